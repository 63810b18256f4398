//! Waiting until a cluster is ready.

use std::{
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::bail;
use serde_json::Value;
use tokio::{process::Command, time::sleep};

use crate::{
    http,
    layout::{ClusterFile, Layout, NodeEntry},
    process::{running, tail},
    programs::Programs,
};

/// A cluster that is not ready by then will not be.
const TIMEOUT: Duration = Duration::from_secs(60);
const INTERVAL: Duration = Duration::from_millis(50);
/// A node keeps connections to as many schedulers.
const NODE_SCHEDULERS: usize = 2;

/// Waits until `check` says that nothing is missing.
///
/// # Errors
/// What is missing, with the end of the program's log, when the time is over or the program has ended.
pub(crate) async fn until(
    layout: &Layout,
    name: &str,
    deadline: Instant,
    mut check: impl AsyncFnMut() -> Result<(), String>,
) -> anyhow::Result<()> {
    loop {
        let Err(missing) = check().await else { return Ok(()) };
        let has_ended = has_ended(&layout.config(name)).await;
        if has_ended || Instant::now() > deadline {
            let what = if has_ended { "has ended".to_owned() } else { format!("is not ready: {missing}") };
            bail!("{name} {what}; the end of {}:\n{}", layout.log(name).display(), tail(&layout.log(name)));
        }
        sleep(INTERVAL).await;
    }
}

/// Looks twice: while a process becomes another program it has no command line for a moment.
async fn has_ended(config: &Path) -> bool {
    if !running(config).is_empty() {
        return false;
    }
    sleep(INTERVAL).await;
    running(config).is_empty()
}

pub(crate) fn deadline() -> Instant {
    Instant::now() + TIMEOUT
}

/// Whether `/readyz` beside this `/metrics` says so.
pub(crate) async fn is_ready(metrics: &str) -> Result<(), String> {
    match http::get(&metrics.replace("/metrics", "/readyz")).await {
        Ok(answer) if answer.status == 200 => Ok(()),
        Ok(answer) => Err(answer.body.trim().replace('\n', "; ")),
        Err(error) => Err(format!("{error:#}")),
    }
}

/// Waits until every program has the configuration of `epoch` and does its work, and the schedulers are warm.
pub(crate) async fn cluster(
    layout: &Layout,
    cluster: &ClusterFile,
    programs: &Programs,
    epoch: u64,
) -> anyhow::Result<()> {
    let deadline = deadline();
    for scheduler in &cluster.schedulers {
        until(layout, &scheduler.name, deadline, async || is_ready(&scheduler.metrics).await).await?;
    }
    let wanted = Wanted { epoch, schedulers: cluster.schedulers.len() };
    for node in &cluster.nodes {
        let dfcache = programs.path("dfcache");
        until(layout, &node.name, deadline, async || {
            is_ready(&node.metrics).await?;
            wanted.check(&health(&dfcache, node).await?)
        })
        .await?;
    }
    Ok(())
}

/// What a node must say of itself.
pub(crate) struct Wanted {
    /// Of this epoch or a later one.
    pub(crate) epoch: u64,
    /// So many there are.
    pub(crate) schedulers: usize,
}

impl Wanted {
    /// Whether `dfcache health` says so.
    pub(crate) fn check(&self, health: &Value) -> Result<(), String> {
        if health["member"] != true {
            return Err("not a member".into());
        }
        let epoch = health["epoch"].as_u64().unwrap_or(0);
        if epoch < self.epoch {
            return Err(format!("it has epoch {epoch} and not {}", self.epoch));
        }
        let schedulers = health["schedulers"].as_array().map_or(&[][..], Vec::as_slice);
        let reachable: Vec<_> = schedulers.iter().filter(|one| one["reachable"] == true).collect();
        if reachable.len() < self.schedulers.min(NODE_SCHEDULERS) {
            return Err(format!("it reaches {} schedulers of {}", reachable.len(), self.schedulers));
        }
        if reachable.iter().any(|one| one["warm"] != true) {
            return Err("a scheduler is still warming up".into());
        }
        Ok(())
    }
}

async fn health(dfcache: &Path, node: &NodeEntry) -> Result<Value, String> {
    let mut command = Command::new(dfcache);
    command.arg("--socket").arg(&node.socket).args(["--json", "health"]);
    let output = command.stdin(Stdio::null()).output().await.map_err(|error| error.to_string())?;
    serde_json::from_slice(&output.stdout).map_err(|_| String::from_utf8_lossy(&output.stderr).into_owned())
}
