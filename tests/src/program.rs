//! One process of a cluster, to be killed and started again.

use std::{
    ffi::OsStr,
    fs::OpenOptions,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use damselfly_testnet::{
    http,
    process::{self, Ending},
};
use rustix::process::Signal;

use crate::{Programs, spawner, until};

/// A program with its configuration and log; cheap to clone. It may run or not.
#[derive(Debug, Clone)]
pub struct Program {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    programs: Programs,
    binary: &'static str,
    name: String,
    peer_id: String,
    listen: String,
    config: PathBuf,
    metrics: String,
}

impl Program {
    pub(crate) fn new(
        programs: &Programs,
        binary: &'static str,
        name: &str,
        [peer_id, listen, metrics]: [&str; 3],
        config: &Path,
    ) -> Self {
        let inner = Inner {
            programs: programs.clone(),
            binary,
            name: name.to_owned(),
            peer_id: peer_id.to_owned(),
            listen: listen.to_owned(),
            config: config.to_owned(),
            metrics: metrics.to_owned(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// `node-1`, `scheduler-2`, `manager` and so on.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Its identity.
    pub fn peer_id(&self) -> &str {
        &self.inner.peer_id
    }

    /// Where peers reach it, as a full multiaddr.
    pub fn listen(&self) -> &str {
        &self.inner.listen
    }

    /// Its configuration file.
    pub fn config(&self) -> &Path {
        &self.inner.config
    }

    /// The folder with its configuration, its log and its data.
    pub fn folder(&self) -> &Path {
        self.inner.config.parent().unwrap_or(Path::new("/"))
    }

    /// Its data directory.
    pub fn data(&self) -> PathBuf {
        self.folder().join("data")
    }

    /// All that it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder().join("log")).unwrap_or_default()
    }

    /// The processes that run it: none, or one.
    pub fn pids(&self) -> Vec<i32> {
        process::running(&self.inner.config).into_iter().map(|pid| pid.as_raw_nonzero().get()).collect()
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        !process::running(&self.inner.config).is_empty()
    }

    /// Kills it as a crash does, and returns when it is gone.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn kill(&self) -> anyhow::Result<()> {
        self.end(Signal::KILL, Duration::from_secs(5)).await
    }

    /// Asks it to end, and returns when it has.
    ///
    /// # Errors
    /// When it has not ended within the five seconds that it promises.
    pub async fn terminate(&self) -> anyhow::Result<()> {
        self.end(Signal::TERM, Duration::from_secs(5)).await
    }

    /// Sends it a signal, such as `Signal::STOP` and `Signal::CONT`.
    pub fn signal(&self, signal: Signal) {
        process::signal(&self.inner.config, signal);
    }

    async fn end(&self, signal: Signal, within: Duration) -> anyhow::Result<()> {
        let ending = Ending::of(&self.inner.config);
        self.signal(signal);
        until(&format!("{} ends", self.name()), within, async || {
            ensure!(ending.is_over(), "it runs");
            Ok(())
        })
        .await
    }

    /// Starts it. Returns at once; see [`Program::ready`].
    ///
    /// # Errors
    /// When there is no such program.
    pub fn start(&self) -> anyhow::Result<()> {
        self.start_with(&[] as &[&str], &[])
    }

    /// Starts it with further arguments and environment variables.
    ///
    /// # Errors
    /// As [`Program::start`].
    pub fn start_with(&self, arguments: &[impl AsRef<OsStr>], variables: &[(&str, &str)]) -> anyhow::Result<()> {
        ensure!(!self.is_running(), "{} runs already", self.name());
        let log = OpenOptions::new().create(true).append(true).open(self.folder().join("log"))?;
        let mut command = with_parent(&self.inner.programs);
        command.arg(self.inner.programs.path(self.inner.binary)).arg("--config").arg(&self.inner.config);
        command.args(arguments).envs(variables.iter().copied());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut child = spawner::spawn(command).with_context(|| format!("cannot start {}", self.inner.binary))?;
        // Takes note of its end, so that nothing of it is left.
        std::thread::spawn(move || child.wait());
        Ok(())
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// When it is not ready in time.
    pub async fn start_ready(&self) -> anyhow::Result<()> {
        self.start()?;
        self.ready().await
    }

    /// Waits until `/readyz` says so.
    ///
    /// # Errors
    /// Why it is not ready.
    pub async fn ready(&self) -> anyhow::Result<()> {
        until(&format!("{} is ready", self.name()), Duration::from_secs(20), async || {
            let state = || if self.is_running() { "it runs" } else { "it has ended" };
            let answer = http::get(&self.url("readyz")).await.with_context(state)?;
            ensure!(answer.status == 200, "{}", answer.body.trim());
            Ok(())
        })
        .await
    }

    /// URL of a path of its HTTP server.
    pub fn url(&self, path: &str) -> String {
        self.inner.metrics.replace("/metrics", &format!("/{path}"))
    }

    /// The value of one of its metrics: of all its lines together when they differ in labels.
    ///
    /// # Errors
    /// When it does not run, or has no such metric.
    pub async fn metric(&self, name: &str) -> anyhow::Result<f64> {
        let text = http::get(&self.inner.metrics).await?.body;
        let values: Vec<f64> = text.lines().filter_map(|line| value_of(line, name)).collect();
        if values.is_empty() {
            bail!("{} has no metric {name}:\n{text}", self.name());
        }
        Ok(values.iter().sum())
    }
}

fn value_of(line: &str, name: &str) -> Option<f64> {
    let rest = line.strip_prefix(name)?;
    (rest.starts_with(' ') || rest.starts_with('{')).then(|| rest.rsplit(' ').next()?.parse().ok()).flatten()
}

/// A command that becomes the program given as its next arguments, and ends with this process.
pub(crate) fn with_parent(programs: &Programs) -> Command {
    let mut command = Command::new(programs.path("testnet"));
    command.arg("become").arg("--parent").arg(std::process::id().to_string()).arg("--");
    command
}
