//! A browser with one page, as a person uses it: by what can be read on it.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, bail, ensure};
use damselfly_tests::{Driver, until};
use serde_json::{Value, json};
use thirtyfour::{
    By, ChromiumLikeCapabilities as _, DesiredCapabilities, Key, LoggingPrefsLogLevel, WebDriver, WebElement,
    error::WebDriverResult,
};

use crate::support::SETTLED;

/// Resolves no name, so that nothing leaves the machine even if the page tries, and asks nobody for news.
const ARGUMENTS: &[&str] = &[
    "--headless=new",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-gpu",
    "--disable-sync",
    "--no-default-browser-check",
    "--no-first-run",
    // Tests run as root in containers, where Chromium has no sandbox; it sees this machine's pages only.
    "--no-sandbox",
];

impl Drop for Browser {
    /// The driver is killed and every browser with it: asking it first would block, for minutes when it hangs.
    fn drop(&mut self) {
        // It was quit already, or it will not be.
        let _ = self.web.clone().leak();
    }
}

/// A browser.
pub struct Browser {
    web: WebDriver,
    driver: Driver,
    /// What was requested, and what the console said, up to the last look.
    requests: Vec<String>,
    errors: Vec<String>,
}

impl Browser {
    /// Starts it; nothing when there is none on this machine.
    pub async fn start() -> anyhow::Result<Option<Self>> {
        let Some(driver) = Driver::start().await? else { return Ok(None) };
        let mut wanted = DesiredCapabilities::chrome();
        wanted.set_binary(driver.browser().to_str().context("a path that is no text")?)?;
        ARGUMENTS.iter().try_for_each(|argument| wanted.add_arg(argument))?;
        wanted.add_arg(&format!("--user-data-dir={}", driver.folder().join("profile").display()))?;
        wanted.set_logging_prefs("browser", LoggingPrefsLogLevel::All)?;
        wanted.set_logging_prefs("performance", LoggingPrefsLogLevel::All)?;
        let web = WebDriver::new(driver.url(), wanted).await?;
        Ok(Some(Self { web, driver, requests: Vec::new(), errors: Vec::new() }))
    }

    /// Ends it.
    pub async fn end(mut self) -> anyhow::Result<()> {
        self.web.clone().quit().await?;
        self.driver.end()
    }

    pub async fn open(&self, url: &str) -> anyhow::Result<()> {
        Ok(self.web.goto(url).await?)
    }

    /// Loads the page anew.
    pub async fn reload(&self) -> anyhow::Result<()> {
        Ok(self.web.refresh().await?)
    }

    /// Runs a script in the page.
    pub async fn script(&self, script: &str) -> anyhow::Result<Value> {
        Ok(self.web.execute(script, Vec::new()).await?.json().clone())
    }

    /// What can be read on the page.
    pub async fn text(&self) -> anyhow::Result<String> {
        Ok(self.web.find(By::Tag("body")).await?.text().await?)
    }

    /// Waits until something can be read on the page.
    pub async fn reads(&self, wanted: &str) -> anyhow::Result<()> {
        until(&format!("the page reads {wanted:?}"), SETTLED, async || {
            let text = self.text().await?;
            ensure!(text.contains(wanted), "it reads: {text}");
            Ok(())
        })
        .await
    }

    /// Waits until the element is there and can be seen.
    pub async fn sees(&self, xpath: &str) -> anyhow::Result<WebElement> {
        until(&format!("{xpath} can be seen"), SETTLED, async || {
            let found = self.web.find(By::XPath(xpath)).await?;
            ensure!(found.is_displayed().await?, "it is hidden");
            Ok(found)
        })
        .await
    }

    /// Elements that are there now.
    pub async fn all(&self, css: &str) -> anyhow::Result<Vec<WebElement>> {
        Ok(self.web.find_all(By::Css(css)).await?)
    }

    /// Presses the button with this text; in the dialog, if there is one.
    pub async fn press(&self, text: &str) -> anyhow::Result<()> {
        self.act(&format!("//button[normalize-space()='{text}']"), async |button| button.click().await).await
    }

    /// Follows a link with this text.
    pub async fn follow(&self, text: &str) -> anyhow::Result<()> {
        self.act(&format!("//a[normalize-space()='{text}']"), async |link| link.click().await).await
    }

    /// Types into the input with this label, in place of what is there.
    pub async fn fill(&self, label: &str, text: &str) -> anyhow::Result<()> {
        let input = format!("//label[starts-with(normalize-space(), '{label}')]//input");
        self.act(&input, async |input| input.send_keys(Key::Control + "a").await).await?;
        self.act(&input, async |input| input.send_keys(text).await).await
    }

    /// Pages change under who uses them: an element that is gone is looked for again.
    async fn act(&self, xpath: &str, act: impl AsyncFn(WebElement) -> WebDriverResult<()>) -> anyhow::Result<()> {
        until(&format!("{xpath} can be used"), SETTLED, async || {
            let dialogs = self.all("dialog[open]").await?;
            let within = if dialogs.is_empty() { "" } else { "//dialog[@open]" };
            Ok(act(self.web.find(By::XPath(format!("{within}{xpath}"))).await?).await?)
        })
        .await
    }

    /// Sends keys to where the focus is.
    pub async fn keys(&self, keys: impl Into<thirtyfour::TypingData>) -> anyhow::Result<()> {
        Ok(self.web.action_chain().send_keys(keys).perform().await?)
    }

    /// Shows the page named in the address, and waits until it is complete.
    pub async fn page(&self, name: &str) -> anyhow::Result<()> {
        self.script(&format!("location.hash = '#{name}'")).await?;
        self.sees(&format!("//main[@data-page='{name}']")).await.map(drop)
    }

    /// Gives the page so many pixels.
    pub async fn resize(&self, width: u32, height: u32) -> anyhow::Result<()> {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.web.cdp().send_raw("Emulation.setDeviceMetricsOverride", size).await?;
        let shown = self.script("return innerWidth").await?;
        ensure!(shown == width, "the page is {shown} pixels wide and not {width}");
        Ok(())
    }

    /// `light` or `dark`.
    pub async fn prefer(&self, scheme: &str) -> anyhow::Result<()> {
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.web.cdp().send_raw("Emulation.setEmulatedMedia", media).await?;
        let is_so = self.script(&format!("return matchMedia('(prefers-color-scheme: {scheme})').matches")).await?;
        ensure!(is_so == true, "the page is not {scheme}");
        Ok(())
    }

    /// What is wider than the page, so that one has to scroll sideways.
    pub async fn overflow(&self) -> anyhow::Result<Vec<String>> {
        let script = "const wide = document.documentElement.scrollWidth > innerWidth;
            const beyond = [...document.querySelectorAll('body *')].filter(one => !one.closest('.scroll') &&
                !one.closest('.skip') && one.getBoundingClientRect().right > innerWidth + 1);
            return wide ? beyond.map(one => one.outerHTML.slice(0, 200)).concat('the page') : [];";
        let found = self.script(script).await?;
        Ok(found.as_array().context("no list")?.iter().map(Value::to_string).collect())
    }

    /// Texts that do not stand out from what is behind them as WCAG's level AA wants: 4.5 to 1.
    pub async fn faint(&self) -> anyhow::Result<Vec<String>> {
        let found = self.script(include_str!("contrast.js")).await?;
        Ok(found.as_array().context("no list")?.iter().map(Value::to_string).collect())
    }

    /// Takes a picture of what is seen of the page.
    pub async fn screenshot(&self, file: &Path) -> anyhow::Result<()> {
        Ok(self.web.screenshot(file).await?)
    }

    /// Every URL that was requested so far, by the page or for it.
    pub async fn requests(&mut self) -> anyhow::Result<&[String]> {
        for entry in self.web.get_log("performance").await? {
            let message: Value = serde_json::from_str(&entry.message)?;
            let message = &message["message"];
            let key = match message["method"].as_str() {
                Some("Network.requestWillBeSent") => "/params/request/url",
                Some("Network.webSocketCreated") => "/params/url",
                _ => continue,
            };
            let url = message.pointer(key).and_then(Value::as_str).context("a request without a URL")?;
            self.requests.push(url.to_owned());
        }
        Ok(&self.requests)
    }

    /// What the browser's console has of errors so far.
    pub async fn errors(&mut self) -> anyhow::Result<&[String]> {
        for entry in self.web.browser_log().await? {
            if matches!(entry.level.as_str(), "SEVERE" | "WARNING") {
                self.errors.push(entry.message);
            }
        }
        Ok(&self.errors)
    }

    /// Waits until a script that tells the element with the focus says that it is this one.
    pub async fn has_focus(&self, css: &str) -> anyhow::Result<()> {
        until(&format!("{css} has the focus"), Duration::from_secs(5), async || {
            let script = format!("return [document.activeElement.matches('{css}'), document.activeElement.outerHTML]");
            let told = self.script(&script).await?;
            if told[0] == true { Ok(()) } else { bail!("{}", told[1]) }
        })
        .await
    }
}
