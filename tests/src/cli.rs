//! Runs `dfcache`.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use serde_json::Value;
use tokio::process::Command;

use crate::Programs;

/// A run that takes longer hangs.
const TIMEOUT: Duration = Duration::from_secs(120);

/// `dfcache --socket SOCKET --json …`; cheap to clone.
#[derive(Debug, Clone)]
pub struct Dfcache {
    program: PathBuf,
    socket: PathBuf,
}

/// What a run of dfcache came to.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The exit code; -1 when it was killed.
    pub exit: i32,
    /// What it printed, as JSON; null when it is none.
    pub json: Value,
    /// What it printed.
    pub stdout: Vec<u8>,
    /// What it said to the user.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
    line: String,
}

impl Dfcache {
    /// The CLI of the daemon at `socket`.
    pub fn new(programs: &Programs, socket: &Path) -> Self {
        Self { program: programs.path("dfcache"), socket: socket.to_owned() }
    }

    /// A command for a run that needs more than [`Dfcache::run`] gives; it has no arguments but the socket's.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--socket").arg(&self.socket).kill_on_drop(true);
        command
    }

    /// Runs it with `--json` and waits for its end.
    ///
    /// # Errors
    /// Only when it cannot be run or hangs; what it answers is for the caller to judge.
    pub async fn run(&self, arguments: &[impl AsRef<OsStr>]) -> anyhow::Result<Answer> {
        let mut command = self.command();
        command.arg("--json").args(arguments).stdin(Stdio::null());
        let shown: Vec<_> = arguments.iter().map(|argument| argument.as_ref().to_string_lossy()).collect();
        let line = format!("dfcache {} [{}]", shown.join(" "), self.socket.display());
        let begun = Instant::now();
        let output = tokio::time::timeout(TIMEOUT, command.output()).await;
        let output = output.with_context(|| format!("{line} hangs"))?.context("cannot run dfcache")?;
        Ok(Answer {
            exit: output.status.code().unwrap_or(-1),
            json: serde_json::from_slice(&output.stdout).unwrap_or_default(),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            took: begun.elapsed(),
            line,
        })
    }

    /// `import -i cid path`
    ///
    /// # Errors
    /// As [`Dfcache::run`].
    pub async fn import(&self, cid: &str, path: &Path) -> anyhow::Result<Answer> {
        self.run(&arguments(&["import", "-i", cid], path)).await
    }

    /// `export -i cid path`
    ///
    /// # Errors
    /// As [`Dfcache::run`].
    pub async fn export(&self, cid: &str, path: &Path) -> anyhow::Result<Answer> {
        self.run(&arguments(&["export", "-i", cid, "-f"], path)).await
    }

    /// `stat -i cid`
    ///
    /// # Errors
    /// As [`Dfcache::run`].
    pub async fn stat(&self, cid: &str) -> anyhow::Result<Answer> {
        self.run(&["stat", "-i", cid]).await
    }

    /// `delete -i cid`
    ///
    /// # Errors
    /// As [`Dfcache::run`].
    pub async fn delete(&self, cid: &str) -> anyhow::Result<Answer> {
        self.run(&["delete", "-i", cid]).await
    }

    /// The entry of `ls` with this cid.
    ///
    /// # Errors
    /// As [`Dfcache::run`], or when it fails.
    pub async fn entry(&self, cid: &str) -> anyhow::Result<Option<Value>> {
        Ok(self.entries().await?.into_iter().find(|entry| entry["cid"] == cid))
    }

    /// The entries of `ls`.
    ///
    /// # Errors
    /// As [`Dfcache::run`], or when it fails.
    pub async fn entries(&self) -> anyhow::Result<Vec<Value>> {
        let listed = self.run(&["ls"]).await?.ok()?;
        Ok(listed["entries"].as_array().context("no entries")?.clone())
    }
}

fn arguments(first: &[&str], path: &Path) -> Vec<OsString> {
    first.iter().map(OsString::from).chain([path.into()]).collect()
}

impl Answer {
    /// What it printed, when it has done its work.
    ///
    /// # Errors
    /// When it has not.
    pub fn ok(self) -> anyhow::Result<Value> {
        self.exits(0)
    }

    /// What it printed, when it ended with this exit code; for a failure it must have printed its object.
    ///
    /// # Errors
    /// What it did instead.
    pub fn exits(self, exit: i32) -> anyhow::Result<Value> {
        let told = exit == 0 || self.json["error"]["exit"] == exit;
        if self.exit == exit && told {
            return Ok(self.json);
        }
        bail!("{self}, not {exit}")
    }

    /// The code name of its error, such as `not_found`; empty when there is none.
    pub fn code(&self) -> &str {
        self.json["error"]["code"].as_str().unwrap_or_default()
    }

    /// The message of its error; empty when there is none.
    pub fn message(&self) -> &str {
        self.json["error"]["message"].as_str().unwrap_or_default()
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let stdout = String::from_utf8_lossy(&self.stdout);
        let (stdout, stderr) = (stdout.trim(), self.stderr.trim());
        write!(f, "{} ended with {} after {:.2?}: {stdout} {stderr}", self.line, self.exit, self.took)
    }
}
