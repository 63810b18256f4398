//! Runs `docker`, and `docker compose` or `docker-compose`.

use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use anyhow::{Context as _, bail};
use tokio::process::Command;

/// A command of docker, to be added to.
pub fn docker() -> Command {
    let mut command = Command::new("docker");
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// What `docker` with these arguments prints.
///
/// # Errors
/// What it says when it fails.
pub async fn ask<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> anyhow::Result<String> {
    let mut command = docker();
    command.args(arguments);
    text(command).await
}

/// What `command` prints.
///
/// # Errors
/// What it says when it fails.
pub async fn text(mut command: Command) -> anyhow::Result<String> {
    let line = line(&command);
    let output = command.output().await.with_context(|| format!("cannot run {line}"))?;
    if !output.status.success() {
        bail!("{line}: {}: {}", output.status, told(&output));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What a command has said, for a person.
pub fn told(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    text.trim().to_owned()
}

/// A command line without its longer arguments.
fn line(command: &Command) -> String {
    let command = command.as_std();
    let words = [command.get_program()].into_iter().chain(command.get_args()).map(OsStr::to_string_lossy);
    words.take(6).collect::<Vec<_>>().join(" ")
}

/// Checks that an engine answers.
///
/// # Errors
/// What to do.
pub async fn check() -> anyhow::Result<()> {
    let mut command = docker();
    command.args(["version", "--format", "{{.Server.Version}}"]);
    match command.output().await {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => bail!("no Docker engine answers: start it, and may this user talk to it? {}", told(&output)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!("there is no `docker` command: install Docker, or leave --docker out to run local processes")
        }
        Err(error) => Err(error).context("cannot run docker"),
    }
}

/// A project of Docker Compose: its name and its folder, where its files are.
#[derive(Debug, Clone)]
pub struct Project {
    name: String,
    folder: PathBuf,
    is_plugin: bool,
}

impl Project {
    /// The project in `folder`.
    ///
    /// # Errors
    /// When there is no Docker Compose of either kind.
    pub async fn find(name: String, folder: &Path) -> anyhow::Result<Self> {
        let folder = folder.to_owned();
        if ask(["compose", "version"]).await.is_ok() {
            return Ok(Self { name, folder, is_plugin: true });
        }
        match Command::new("docker-compose").arg("version").output().await {
            Ok(output) if output.status.success() => Ok(Self { name, folder, is_plugin: false }),
            _ => bail!("there is neither `docker compose` nor `docker-compose`: install one of them"),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The filter for what belongs to it.
    pub fn filter(&self) -> String {
        format!("label=com.docker.compose.project={}", self.name)
    }

    /// What compose prints when it is given these arguments, with all profiles of the cluster's own services.
    ///
    /// # Errors
    /// What it says when it fails.
    pub async fn compose<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> anyhow::Result<String> {
        let mut command = if self.is_plugin {
            let mut command = docker();
            command.arg("compose");
            command
        } else {
            let mut command = Command::new("docker-compose");
            command.stdin(Stdio::null()).kill_on_drop(true);
            command
        };
        command.current_dir(&self.folder).arg("--project-name").arg(&self.name).args(arguments);
        text(command).await
    }
}
