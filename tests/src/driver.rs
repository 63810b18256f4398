//! Chromium's driver, for tests of what a person sees in a browser.

use std::{
    env,
    fs::{self, File},
    io::Read as _,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{Programs, program::with_parent, spawner, until};

/// What Debian's packages `chromium-driver` and `chromium` have.
const DRIVERS: [&str; 2] = ["chromedriver", "chromium-driver"];
const BROWSERS: [&str; 2] = ["chromium", "google-chrome"];

/// A running driver; dropped, it and every browser that it has started are killed and their folder is removed.
#[derive(Debug)]
pub struct Driver {
    folder: TempDir,
    child: Child,
    url: String,
    browser: PathBuf,
}

impl Driver {
    /// Starts it on a port of its own; nothing when this machine has no driver or no browser.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start() -> anyhow::Result<Option<Self>> {
        let (Some(driver), Some(browser)) = (installed(&DRIVERS), installed(&BROWSERS)) else { return Ok(None) };
        let programs = tokio::task::spawn_blocking(Programs::get).await??;
        let folder = TempDir::with_prefix("dft-browser-")?;
        let log = folder.path().join("driver.log");
        let output = File::create(&log)?;
        let mut command = with_parent(&programs);
        command.arg(driver).arg("--port=0");
        // Whatever it starts has this folder as its home: by that it is found again.
        command.env("HOME", folder.path()).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = spawner::spawn(command)?;
        let mut started = Self { folder, child, url: String::new(), browser };
        let port = until("the driver listens", Duration::from_secs(20), async || {
            let told = fs::read_to_string(&log)?;
            let port = told.split("started successfully on port ").nth(1).and_then(|rest| rest.split_once('.'));
            Ok(port.with_context(|| told.clone())?.0.to_owned())
        })
        .await?;
        started.url = format!("http://127.0.0.1:{port}");
        Ok(Some(started))
    }

    /// Where it listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The browser that it is to start.
    pub fn browser(&self) -> &Path {
        &self.browser
    }

    /// A folder for the browser, removed at the end.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Ends it and every browser that it has started.
    ///
    /// # Errors
    /// When the driver had ended before, as it does when it crashes.
    pub fn end(&mut self) -> anyhow::Result<()> {
        let ended = self.child.try_wait()?;
        self.kill();
        ensure!(ended.is_none(), "the driver has ended by itself: {ended:?}");
        Ok(())
    }

    fn kill(&mut self) {
        // It has ended, or it is killed; there is nothing else to do about it here.
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Each look finds what those have started that were there at the last one.
        loop {
            let running = started_with(self.folder.path());
            if running.is_empty() {
                return;
            }
            for pid in running {
                let _ = kill_process(pid, Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The first of the programs that is in PATH.
fn installed(names: &[&str]) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    let folders: Vec<_> = env::split_paths(&path).collect();
    names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name))).find(|file| file.is_file())
}

/// Processes whose environment names the folder as their home and that have not ended.
fn started_with(home: &Path) -> Vec<Pid> {
    let wanted = [b"HOME=", home.as_os_str().as_bytes()].concat();
    let has_it = |pid: &i32| {
        let mut environment = Vec::new();
        let read = File::open(format!("/proc/{pid}/environ")).and_then(|mut file| file.read_to_end(&mut environment));
        read.is_ok() && environment.split(|byte| *byte == 0).any(|variable| variable == wanted)
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(has_it).filter_map(Pid::from_raw).collect()
}

/// The folder for screenshots that an environment variable names; it is made.
///
/// # Errors
/// When it cannot be made.
pub fn screenshots() -> anyhow::Result<Option<PathBuf>> {
    let Some(folder) = env::var_os("DAMSELFLY_SCREENSHOTS").map(PathBuf::from) else { return Ok(None) };
    if folder.is_relative() {
        bail!("DAMSELFLY_SCREENSHOTS names no absolute path: {}", folder.display());
    }
    fs::create_dir_all(&folder)?;
    Ok(Some(folder))
}
