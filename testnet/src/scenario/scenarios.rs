//! What happens to a cluster while it is in use.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::ValueEnum;
use futures::future::try_join_all;
use serde_json::{Map, Value, json};
use tokio::{sync::watch, time::sleep};

use super::{
    byzantine, disk,
    harness::{Harness, Users},
    partitions,
};
use crate::{cluster::Options, links::proxy::Order};

/// Records are where they belong so long after whatever happened.
pub(super) const CONVERGES_WITHIN: Duration = Duration::from_secs(15);

/// A scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// The host that serves an export is killed in the middle; others go on.
    NodeLoss,
    /// Schedulers are killed and started again, one after the other, under exports.
    SchedulerLoss,
    /// All schedulers are killed at once and start again with nothing.
    SchedulersLoss,
    /// The manager is away, while hosts and schedulers work and restart.
    ManagerLoss,
    /// Every program is restarted in turn under exports.
    RollingRestart,
    /// Random groups are cut off from each other, and import and delete meanwhile.
    Partition,
    /// Hosts are far away over slow links.
    SlowLink,
    /// Links stall in the middle of exports.
    StalledLink,
    /// All connections between hosts and schedulers break at once, again and again, under exports.
    ConnectionLoss,
    /// A host's disk is full.
    FullDisk,
    /// A member lies in every way that the protocols allow.
    Liar,
}

pub(super) type Figures = Map<String, Value>;

pub(super) fn figures<const N: usize>(all: [(&str, Value); N]) -> Figures {
    all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

impl Scenario {
    /// Each of them.
    pub const ALL: [Self; 11] = [
        Self::NodeLoss,
        Self::SchedulerLoss,
        Self::SchedulersLoss,
        Self::ManagerLoss,
        Self::RollingRestart,
        Self::Partition,
        Self::SlowLink,
        Self::StalledLink,
        Self::ConnectionLoss,
        Self::FullDisk,
        Self::Liar,
    ];

    /// As it is typed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NodeLoss => "node-loss",
            Self::SchedulerLoss => "scheduler-loss",
            Self::SchedulersLoss => "schedulers-loss",
            Self::ManagerLoss => "manager-loss",
            Self::RollingRestart => "rolling-restart",
            Self::Partition => "partition",
            Self::SlowLink => "slow-link",
            Self::StalledLink => "stalled-link",
            Self::ConnectionLoss => "connection-loss",
            Self::FullDisk => "full-disk",
            Self::Liar => "liar",
        }
    }

    /// Whether it can be done to containers too: links and disks are those of processes.
    pub(super) const fn is_for_containers(self) -> bool {
        use Scenario::{ManagerLoss, NodeLoss, Partition, RollingRestart, SchedulerLoss, SchedulersLoss};
        matches!(self, NodeLoss | SchedulerLoss | SchedulersLoss | ManagerLoss | RollingRestart | Partition)
    }

    pub(super) fn options(self) -> Options {
        // So that exports take long enough for what happens meanwhile.
        let rate = match self {
            Self::NodeLoss => Some("8MiB/s"),
            Self::StalledLink | Self::Liar => Some("16MiB/s"),
            _ => None,
        };
        let upload_rate_limit = rate.map(str::to_owned);
        let links = matches!(self, Self::Partition | Self::SlowLink | Self::StalledLink | Self::ConnectionLoss);
        let nodes = if self == Self::Partition { 6 } else { 4 };
        let small_disk = (self == Self::FullDisk).then_some(disk::DISK);
        Options { schedulers: 3, nodes, upload_rate_limit, links, small_disk, ..Options::default() }
    }

    pub(super) async fn run(self, harness: &mut Harness, is_short: bool) -> anyhow::Result<Figures> {
        match self {
            Self::NodeLoss => node_loss(harness, if is_short { 2 } else { 10 }).await,
            Self::SchedulerLoss => {
                let [time, pause] = if is_short { [30, 5] } else { [300, 10] };
                scheduler_loss(harness, Duration::from_secs(time), Duration::from_secs(pause)).await
            }
            Self::SchedulersLoss => schedulers_loss(harness, if is_short { 2 } else { 10 }).await,
            Self::ManagerLoss => manager_loss(harness).await,
            Self::RollingRestart => rolling_restart(harness, if is_short { 20 } else { 100 }).await,
            Self::Partition => partitions::partition(harness, if is_short { 1 } else { 20 }).await,
            Self::SlowLink => partitions::slow_link(harness, if is_short { 1 } else { 10 }).await,
            Self::StalledLink => partitions::stalled_link(harness, if is_short { 1 } else { 10 }).await,
            Self::ConnectionLoss => {
                connection_loss(harness, Duration::from_secs(if is_short { 15 } else { 120 })).await
            }
            Self::FullDisk => disk::full(harness, if is_short { 1 } else { 5 }).await,
            Self::Liar => byzantine::run(harness, is_short).await,
        }
    }
}

/// Node 4 exports what nodes 1 to 3 hold, one of which is killed meanwhile.
async fn node_loss(harness: &mut Harness, rounds: usize) -> anyhow::Result<Figures> {
    let users = harness.users.clone();
    let mut longest = Duration::ZERO;
    for round in 0..rounds {
        let name = harness.fill(1, 32 << 20, &[0]).await?.pop().context("a file")?;
        for node in [1, 2] {
            users.export(node, &name).await?;
        }
        let lost = harness.any_node(3);
        let begun = Instant::now();
        let export = async { Ok((users.export(3, &name).await?, begun.elapsed())) };
        let loss = async {
            // In the middle: three parents of 8 MiB/s need more than a second.
            sleep(Duration::from_millis(500)).await;
            harness.kill(&[&lost]).await?;
            Ok(begun.elapsed())
        };
        let exported: anyhow::Result<_> = async { tokio::try_join!(export, loss) }.await;
        let ((exported, took), killed) = exported.with_context(|| format!("round {round}, {lost} lost"))?;
        ensure!(exported["from_peers_bytes"] != 0, "nothing was transferred: {exported}");
        ensure!(took > killed, "round {round}: it was over after {took:?}, before {lost} was killed");
        longest = longest.max(took);
        harness.restart(&[&lost]).await?;
        users.delete(3, &name).await?;
    }
    let settled = harness.converged(&[0, 1, 2, 3], CONVERGES_WITHIN).await?;
    Ok(figures([
        ("rounds", json!(rounds)),
        ("longest_export_seconds", json!(longest.as_secs_f64())),
        ("converged_seconds", json!(settled.as_secs_f64())),
    ]))
}

/// Exports until it is told that it is enough; each is a transfer. Gives how many.
async fn exports(users: Users, node: usize, names: Vec<String>, enough: watch::Receiver<bool>) -> anyhow::Result<u64> {
    let mut done = 0;
    for name in names.iter().cycle() {
        if *enough.borrow() {
            break;
        }
        users.export(node, name).await?;
        users.forget(node, name).await?;
        done += 1;
    }
    Ok(done)
}

/// Eight exports at a time, on the nodes that hold nothing.
async fn under_exports(
    harness: &mut Harness,
    meanwhile: impl AsyncFnOnce(&mut Harness) -> anyhow::Result<()>,
) -> anyhow::Result<u64> {
    let mut sets: Vec<Vec<String>> = vec![Vec::new(); 8];
    let names = harness.fill(40, 2 << 20, &[0]).await?;
    for (at, name) in names.into_iter().enumerate() {
        // A second holder: any one may be away.
        harness.users.export(1, &name).await?;
        sets[at % 8].push(name);
    }
    let (enough, seen) = watch::channel(false);
    let users = harness.users.clone();
    let load = sets.into_iter().enumerate().map(|(at, names)| exports(users.clone(), 2 + at % 2, names, seen.clone()));
    let breaking = async {
        let broken = meanwhile(harness).await;
        enough.send_replace(true);
        broken
    };
    let (counts, ()) = tokio::try_join!(try_join_all(load), breaking)?;
    Ok(counts.into_iter().sum())
}

async fn scheduler_loss(harness: &mut Harness, time: Duration, pause: Duration) -> anyhow::Result<Figures> {
    let mut kills = 0;
    let exports = under_exports(harness, async |harness| {
        let begun = Instant::now();
        while begun.elapsed() < time {
            let lost = format!("scheduler-{}", harness.any(3) + 1);
            harness.kill(&[&lost]).await?;
            kills += 1;
            sleep(pause / 2).await;
            harness.start(&[&lost]).await?;
            sleep(pause / 2).await;
        }
        Ok(())
    })
    .await?;
    let settled = harness.converged(&[0, 3], CONVERGES_WITHIN).await?;
    ensure!(exports > 0, "nothing was exported");
    Ok(figures([
        ("kills", json!(kills)),
        ("exports_under_kills", json!(exports)),
        ("converged_seconds", json!(settled.as_secs_f64())),
    ]))
}

async fn connection_loss(harness: &mut Harness, time: Duration) -> anyhow::Result<Figures> {
    const PAUSE: Duration = Duration::from_secs(3);
    let all = [harness.node_names(), harness.scheduler_names()].concat();
    let mut resets = 0;
    let exports = under_exports(harness, async |harness| {
        let begun = Instant::now();
        while begun.elapsed() < time {
            sleep(PAUSE).await;
            harness.order(&Order::Reset { a: all.clone(), b: all.clone() })?;
            resets += 1;
        }
        Ok(())
    })
    .await?;
    let settled = harness.converged(&harness.users.all(), CONVERGES_WITHIN).await?;
    ensure!(exports > 0, "nothing was exported");
    Ok(figures([
        ("resets", json!(resets)),
        ("exports_under_resets", json!(exports)),
        ("converged_seconds", json!(settled.as_secs_f64())),
    ]))
}

async fn schedulers_loss(harness: &mut Harness, rounds: usize) -> anyhow::Result<Figures> {
    const ALL: [&str; 3] = ["scheduler-1", "scheduler-2", "scheduler-3"];
    let mut longest = Duration::ZERO;
    for _ in 0..rounds {
        let names = harness.fill(20, 100_000, &[0, 1, 2]).await?;
        let users = harness.users.clone();
        for name in &names[..5] {
            users.delete(1, name).await?;
        }
        harness.kill(&ALL).await?;
        harness.start(&ALL).await?;
        longest = longest.max(harness.converged(&[0, 3], CONVERGES_WITHIN).await?);
        for name in &names[5..] {
            users.export(3, name).await?;
            users.forget(3, name).await?;
        }
    }
    Ok(figures([("rounds", json!(rounds)), ("longest_recovery_seconds", json!(longest.as_secs_f64()))]))
}

async fn manager_loss(harness: &mut Harness) -> anyhow::Result<Figures> {
    let users = harness.users.clone();
    let names = harness.fill(10, 1 << 20, &[0, 1]).await?;
    harness.kill(&["manager"]).await?;
    users.import(2, "without-a-manager", &[7; 1 << 20]).await?;
    users.delete(1, &names[0]).await?;
    for name in &names[1..] {
        users.export(3, name).await?;
    }
    let lost = ["scheduler-1", &harness.node_names()[1]];
    harness.kill(&lost).await?;
    harness.start(&lost).await?;
    let restarted = harness.converged(&[1, 3], CONVERGES_WITHIN).await?;
    users.export(1, "without-a-manager").await?;
    harness.restart(&["manager"]).await?;
    let settled = harness.converged(&[0, 1, 2, 3], CONVERGES_WITHIN).await?;
    Ok(figures([
        ("restarted_without_manager_seconds", json!(restarted.as_secs_f64())),
        ("converged_seconds", json!(settled.as_secs_f64())),
    ]))
}

async fn rolling_restart(harness: &mut Harness, least: u64) -> anyhow::Result<Figures> {
    let mut restarts = 0;
    let mut exports = 0;
    while exports < least {
        exports += under_exports(harness, async |harness| {
            for name in harness.names() {
                harness.restart(&[&name]).await.with_context(|| format!("restart of {name}"))?;
                restarts += 1;
            }
            Ok(())
        })
        .await?;
    }
    let settled = harness.converged(&harness.users.all(), CONVERGES_WITHIN).await?;
    Ok(figures([
        ("restarts", json!(restarts)),
        ("exports_under_restarts", json!(exports)),
        ("converged_seconds", json!(settled.as_secs_f64())),
    ]))
}
