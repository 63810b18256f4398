//! The ring changes while tasks exist.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::ensure;
use damselfly_messages::{config::Settings, name::Name, ring::Ring};
use damselfly_tests::{Cluster, Node, Options, until};
use damselfly_transport::local::proto::daemon_client::DaemonClient;
use tonic::transport::Channel;

use crate::support::{SETTLED, import_all, not_found, small_files};

const TASKS: usize = 1000;
const ANNOUNCED: &str = "damselfly_node_announced_total";

#[tokio::test]
async fn a_fourth_scheduler_takes_over_its_share() -> anyhow::Result<()> {
    let options = Options { schedulers: 3, nodes: 2, ..Options::default() };
    Cluster::run(options, async |cluster| {
        let names: Vec<_> = (0..TASKS).map(|number| format!("task {number}")).collect();
        let files = small_files(cluster, "file", TASKS)?;
        import_all(cluster.node(0), &names, &files).await?;
        let other = cluster.node(1).client().await?;
        ensure!(not_found(&other, &names, 1).await.is_empty(), "not all are found before");
        let before = quiet(cluster, cluster.node(0)).await?;
        let (_, ring_before) = cluster.settings().await?;

        let asking = Asking::default();
        let (missed, added) = tokio::join!(asking.until_stopped(&other, &names), async {
            let added = cluster.add_scheduler().await;
            asking.stop.store(true, Ordering::Relaxed);
            added
        });
        let added = added?;
        ensure!(missed.is_empty(), "not found during the change: {missed:?}");
        let rounds = asking.rounds.load(Ordering::Relaxed);
        ensure!(rounds > 0, "nobody asked during the change");
        let missed = not_found(&other, &names, 1).await;
        ensure!(missed.is_empty(), "not found after the change: {missed:?}");

        let (_, ring_after) = cluster.settings().await?;
        let moved = moved(&ring_before, &ring_after, &names)?;
        let told = quiet(cluster, cluster.node(0)).await? - before;
        eprintln!("{moved} of {} records moved, {told} were told again; asked {rounds} times", 2 * TASKS);
        ensure!(told == moved, "{moved} records moved, and {told} were told again");
        until("the new scheduler knows its share", SETTLED, async || {
            let known = added.metric("damselfly_scheduler_tasks").await?;
            ensure!(known == f64::from(moved), "it knows {known} of {moved}");
            Ok(())
        })
        .await
    })
    .await
}

/// Asks for all tasks again and again.
#[derive(Default)]
struct Asking {
    stop: AtomicBool,
    rounds: AtomicUsize,
}

impl Asking {
    async fn until_stopped(&self, daemon: &DaemonClient<Channel>, names: &[String]) -> Vec<String> {
        loop {
            let missed = not_found(daemon, names, 1).await;
            // The last round counts too: it began before the change was over.
            self.rounds.fetch_add(1, Ordering::Relaxed);
            if !missed.is_empty() || self.stop.load(Ordering::Relaxed) {
                return missed;
            }
        }
    }
}

/// How many records a node has told schedulers in all, as soon as none is told any more for several heartbeats.
async fn quiet(cluster: &Cluster, node: &Node) -> anyhow::Result<u32> {
    let heartbeat = Duration::from_millis(cluster.settings().await?.1.heartbeat_ms);
    let mut last = (node.program().metric(ANNOUNCED).await?, std::time::Instant::now());
    until("nothing is announced any more", SETTLED, async || {
        let now = node.program().metric(ANNOUNCED).await?;
        if now != last.0 {
            last = (now, std::time::Instant::now());
        }
        ensure!(last.1.elapsed() > 3 * heartbeat, "{now} records");
        Ok(now as u32)
    })
    .await
}

/// How many pairs of task and owner are new.
fn moved(before: &Settings, after: &Settings, names: &[String]) -> anyhow::Result<u32> {
    let ring = |settings: &Settings| {
        let members = settings.schedulers.iter().map(|entry| (entry.peer_id, entry.weight));
        Ring::new(members, settings.replicas as usize)
    };
    let (before, after) = (ring(before), ring(after));
    let mut moved = 0;
    for name in names {
        let task = Name::parse(name, "")?.task_id();
        moved += after.owners(&task).filter(|owner| !before.owns(owner, &task)).count() as u32;
    }
    Ok(moved)
}
