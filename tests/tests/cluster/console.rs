//! The manager's console in a real browser.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, ensure};
use damselfly_tests::{Cluster, Options, screenshots, until};
use thirtyfour::Key;

use crate::{
    browser::Browser,
    membership::Newcomer,
    support::{SETTLED, exports},
};

const PAGES: [&str; 7] = ["overview", "hosts", "ring", "tasks", "config", "access", "audit"];
const WIDE: (u32, u32) = (1280, 900);
const PHONE: (u32, u32) = (400, 800);

#[tokio::test]
async fn an_operator_works_with_the_console() -> anyhow::Result<()> {
    let Some(mut browser) = Browser::start().await? else {
        // Not by eprintln, which is shown for failures only.
        writeln!(io::stderr(), "\nTHE CONSOLE IS NOT TESTED: chromedriver or chromium is not installed\n")?;
        return Ok(());
    };
    let pictures = screenshots()?;
    Cluster::run(Options { nodes: 2, seeds: 1, ..Options::default() }, async |cluster| {
        let (kept, gone) = (cluster.file("kept", 9 << 20)?, cluster.file("gone", 3 << 20)?);
        cluster.node(0).import("models/kept", &kept).await?.ok()?;
        cluster.node(0).import("models/gone", &gone).await?.ok()?;
        exports(cluster, cluster.node(1), "models/gone", &gone).await?;
        let done = walk(cluster, &browser, pictures).await;
        if done.is_err() {
            eprintln!("--- the page\n{}", browser.text().await.unwrap_or_default());
        }
        let stayed = stayed_here(cluster, &mut browser).await;
        done.and(stayed)
    })
    .await?;
    browser.end().await
}

async fn walk(cluster: &Cluster, browser: &Browser, pictures: Option<PathBuf>) -> anyhow::Result<()> {
    browser.resize(WIDE.0, WIDE.1).await?;
    browser.prefer("light").await?;
    first_admin(cluster, browser).await?;
    a_node_joins(cluster, browser).await?;
    the_ring_is_shown(cluster, browser).await?;
    a_limit_is_changed(cluster, browser).await?;
    the_keyboard_reaches_everything(browser).await?;
    every_page_fits(browser).await?;
    the_document_is_shown(cluster, browser).await?;
    if let Some(folder) = pictures {
        something_moves(cluster, browser).await?;
        pictures_of(browser, &folder).await?;
    }
    a_task_is_deleted(cluster, browser).await?;
    browser.press("Log out").await?;
    browser.sees("//main[@data-page='login']").await?;
    ensure!(browser.script("return document.querySelector('nav').hidden").await? == true, "pages are offered");
    Ok(())
}

/// The link makes one admin, who then logs in with the password.
async fn first_admin(cluster: &Cluster, browser: &Browser) -> anyhow::Result<()> {
    let link = fs::read_to_string(cluster.manager().data().join("setup_link"))?;
    browser.open(link.trim()).await?;
    browser.fill("Name", "ada").await?;
    browser.fill("Password", "correct horse battery").await?;
    ensure!(browser.script("return location.hash").await? == "", "the secret stays in the address");
    browser.press("Make").await?;
    browser.sees("//main[@data-page='overview']").await?;
    browser.press("Log out").await?;
    browser.fill("Name", "ada").await?;
    browser.fill("Password", "wrong horse battery").await?;
    browser.press("Log in").await?;
    browser.sees("//*[@role='alert'][not(@hidden)]").await?;
    browser.fill("Password", "correct horse battery").await?;
    browser.press("Log in").await?;
    browser.sees("//main[@data-page='overview']").await?;
    browser.reads("ada (admin)").await?;
    browser.reads("3 of 3").await
}

/// A node started with a token of the console is seen on it, without a reload.
async fn a_node_joins(cluster: &Cluster, browser: &Browser) -> anyhow::Result<()> {
    browser.page("access").await?;
    browser.press("Make a join token").await?;
    let line = browser.sees("//pre[contains(., 'dfdaemon --join ')]").await?.text().await?;
    let token = line.strip_prefix("dfdaemon --join ").context("a token")?;
    browser.page("hosts").await?;
    browser.script("window.isTheSame = true").await?;
    let before = browser.all("tbody tr").await?.len();
    let newcomer = Newcomer::new(cluster, "dfdaemon", "newcomer")?;
    let mut running = newcomer.command(token).stderr(Stdio::null()).spawn()?;
    until("the new node is there and up", SETTLED, async || {
        let up =
            "return [...document.querySelectorAll('tbody tr')].filter(row => row.querySelector('.mark.good')).length";
        let (rows, up) = (browser.all("tbody tr").await?.len(), browser.script(up).await?);
        ensure!(rows == before + 1 && up == 4, "{rows} rows after {before}, {up} up");
        Ok(())
    })
    .await?;
    ensure!(browser.script("return window.isTheSame").await? == true, "the page was loaded again");
    running.kill().await?;
    until("it is down", SETTLED, async || {
        ensure!(browser.all("tbody .mark.bad").await?.len() == 1);
        Ok(())
    })
    .await?;
    browser.page("overview").await?;
    browser.reads("Warning The host is down.").await
}

/// The picture of the ring says in numbers and letters what it shows in colours.
async fn the_ring_is_shown(cluster: &Cluster, browser: &Browser) -> anyhow::Result<()> {
    browser.page("ring").await?;
    let shown = browser.sees("//*[name()='svg']").await?.attr("aria-label").await?.unwrap_or_default();
    ensure!(shown.starts_with("Shares of the ring: A ") && shown.contains(" %, B "), "{shown}");
    let arcs = browser.all(".picture path").await?.len();
    ensure!((30..=362).contains(&arcs), "{arcs} arcs");
    let rows = browser.text().await?;
    ensure!(cluster.schedulers().iter().all(|one| rows.contains(one.peer_id())), "{rows}");
    ensure!(browser.all("tbody .mark.good").await?.len() == 4, "two are active and warm: {rows}");
    Ok(())
}

/// A wrong value is told while it is typed; a good one is in force everywhere.
async fn a_limit_is_changed(cluster: &Cluster, browser: &Browser) -> anyhow::Result<()> {
    browser.page("config").await?;
    browser.fill("candidate_parents", "-1").await?;
    browser.sees("//input[@name='candidate_parents'][@aria-invalid='true']").await?;
    browser.press("Review the change").await?;
    browser.has_focus("[name=candidate_parents]").await?;
    browser.fill("candidate_parents", "7").await?;
    browser.press("Review the change").await?;
    let dialog = browser.sees("//dialog[@open]").await?.text().await?;
    ensure!(dialog.contains("candidate_parents 16 7"), "{dialog}");
    // Escape does nothing but close it, and the focus is where it was.
    browser.keys(Key::Escape).await?;
    browser.has_focus("button.main").await?;
    ensure!(cluster.settings().await?.1.candidate_parents == 16, "it is in force without consent");
    browser.press("Review the change").await?;
    browser.press("Put in force").await?;
    until("it is everywhere", SETTLED, async || {
        let text = browser.text().await?;
        ensure!(text.contains("Epoch 2 runs on") && text.contains("100 %"), "{text}");
        Ok(())
    })
    .await?;
    let (epoch, settings) = cluster.settings().await?;
    ensure!((epoch, settings.candidate_parents) == (2, 7), "{epoch} {settings:?}");
    browser.reads("candidate_parents: 16 → 7").await
}

async fn a_task_is_deleted(cluster: &Cluster, browser: &Browser) -> anyhow::Result<()> {
    browser.page("tasks").await?;
    browser.fill("Name (cid)", "models/gone").await?;
    browser.press("Find").await?;
    browser.follow("models/gone").await?;
    browser.sees("//main[@data-page='task']").await?;
    ensure!(browser.all("tbody .mark.good").await?.len() == 2, "it has two holders");
    browser.press("Delete in the whole cluster").await?;
    browser.press("Delete").await?;
    browser.reads("Deleted: 2 hosts dropped it").await?;
    cluster.node(1).stat("models/gone").await?.exits(3)?;
    cluster.node(1).stat("models/kept").await?.ok().map(drop)
}

/// Without a mouse: past the pages to the content, and from one control to the next, round the whole page.
async fn the_keyboard_reaches_everything(browser: &Browser) -> anyhow::Result<()> {
    browser.page("access").await?;
    browser.reload().await?;
    browser.sees("//main[@data-page='access']").await?;
    browser.keys(Key::Tab + "").await?;
    browser.has_focus("#skip").await?;
    browser.keys(Key::Enter + "").await?;
    browser.has_focus("#main").await?;
    let controls =
        "return [...document.querySelectorAll('main a, main button, main input, main select, main [tabindex=\"0\"]')]
        .filter(one => one.checkVisibility()).length";
    let controls = browser.script(controls).await?.as_u64().context("no number")?;
    ensure!(controls > 10, "{controls} controls");
    let mut reached = 0;
    loop {
        browser.keys(Key::Tab + "").await?;
        let script = "const one = document.activeElement; const style = getComputedStyle(one);
            return [one.closest('main') !== null, style.outlineStyle !== 'none', one.outerHTML]";
        let told = browser.script(script).await?;
        if told[0] != true {
            break;
        }
        ensure!(told[1] == true, "it has the focus, and nobody sees it: {}", told[2]);
        reached += 1;
        ensure!(reached <= controls, "the focus does not leave the page: {}", told[2]);
    }
    ensure!(reached == controls, "{reached} of {controls} controls are reached");
    Ok(())
}

/// No page is wider than a phone, and all that is written on it can be read, by day and by night.
async fn every_page_fits(browser: &Browser) -> anyhow::Result<()> {
    browser.resize(PHONE.0, PHONE.1).await?;
    for page in PAGES {
        browser.page(page).await?;
        let wide = browser.overflow().await?;
        ensure!(wide.is_empty(), "{page} is wider than {} pixels: {wide:#?}", PHONE.0);
        for scheme in ["dark", "light"] {
            browser.prefer(scheme).await?;
            let faint = browser.faint().await?;
            ensure!(faint.is_empty(), "{page}, {scheme}: {faint:#?}");
        }
    }
    browser.page("tasks").await?;
    browser.script("document.querySelector('tbody a').click()").await?;
    browser.sees("//main[@data-page='task']").await?;
    let wide = browser.overflow().await?;
    ensure!(wide.is_empty(), "a task is wider: {wide:#?}");
    browser.resize(WIDE.0, WIDE.1).await
}

/// Who is logged in sees the document of the API, with nothing from elsewhere.
async fn the_document_is_shown(cluster: &Cluster, browser: &Browser) -> anyhow::Result<()> {
    let manager = &cluster.file_of_cluster().manager.http;
    browser.open(&format!("{manager}/docs/")).await?;
    let operation = browser.sees("//*[@data-path='/api/v1/overview']").await?;
    operation.click().await?;
    browser.reads("The cluster at a glance.").await?;
    browser.open(manager).await?;
    browser.sees("//main[@data-page='overview']").await.map(drop)
}

/// So that there is something to be seen in the pictures.
async fn something_moves(cluster: &Cluster, browser: &Browser) -> anyhow::Result<()> {
    browser.page("overview").await?;
    for number in 1..=4 {
        let name = format!("models/{number}");
        let file = cluster.file(&format!("moved {number}"), 48 << 20)?;
        cluster.node(0).import(&name, &file).await?.ok()?;
        for node in [1, 2, 1] {
            exports(cluster, cluster.node(node), &name, &file).await?;
        }
        let all = "return [...document.querySelectorAll('svg.line')].map(one => one.getAttribute('aria-label'))";
        until("it is seen", SETTLED, async || {
            let told = browser.script(all).await?;
            let still =
                told.as_array().context("no list")?.iter().filter(|one| one.to_string().contains(", 0 B/s at most"));
            ensure!(still.count() == 0, "{told}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// For the documentation.
async fn pictures_of(browser: &Browser, folder: &Path) -> anyhow::Result<()> {
    for page in PAGES {
        browser.page(page).await?;
        browser.script("scrollTo(0, 0)").await?;
        let name = if page == "config" { "configuration" } else { page };
        browser.screenshot(&folder.join(format!("{name}.png"))).await?;
    }
    browser.page("tasks").await?;
    browser.script("document.querySelector('tbody a').click()").await?;
    browser.sees("//main[@data-page='task']").await?;
    browser.screenshot(&folder.join("task.png")).await?;
    browser.page("overview").await?;
    browser.prefer("dark").await?;
    browser.screenshot(&folder.join("overview-dark.png")).await?;
    browser.resize(PHONE.0, PHONE.1).await?;
    browser.screenshot(&folder.join("overview-phone.png")).await?;
    browser.prefer("light").await?;
    browser.resize(WIDE.0, WIDE.1).await
}

/// The page asked nobody but its manager, and nothing went wrong in it.
async fn stayed_here(cluster: &Cluster, browser: &mut Browser) -> anyhow::Result<()> {
    let manager = format!("{}/", cluster.file_of_cluster().manager.http);
    let requests = browser.requests().await?;
    // The browser begins with a page of its own.
    let elsewhere: Vec<_> = requests
        .iter()
        .filter(|url| ![&manager, "data:", "chrome://"].iter().any(|own| url.starts_with(own)))
        .collect();
    ensure!(elsewhere.is_empty(), "it asked others: {elsewhere:?}");
    ensure!(requests.iter().any(|url| url.ends_with("/api/v1/events")), "the log of requests is not complete");
    // The wrong password is refused, and the browser notes that.
    let refused =
        format!("{manager}api/v1/session - Failed to load resource: the server responded with a status of 401");
    let errors: Vec<_> = browser.errors().await?.iter().filter(|error| !error.starts_with(&refused)).collect();
    ensure!(errors.is_empty(), "{errors:#?}");
    Ok(())
}
