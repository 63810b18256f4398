//! Latencies: stats answered by the shard, and a small file from host to host.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use damselfly_transport::local::{client, proto::StatTaskRequest};
use tokio::{
    process::{Child, Command},
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

use super::report::Series;
use crate::{
    cluster::Cluster,
    demo::{dfcache, fill},
    layout::NodeEntry,
};

const STATS_PER_SECOND: u64 = 1_000;
const STATS_FOR: Duration = Duration::from_secs(5);
const SMALL_BYTES: u64 = 1024;

/// Milliseconds of each answer when one client asks `node` for a task that another node holds, 1,000 times a second,
/// without waiting for earlier answers.
pub(super) async fn stats(node: &NodeEntry, cid: &str) -> anyhow::Result<Series> {
    let daemon = client::connect(&node.socket).await.map_err(|failure| anyhow!("{failure}"))?;
    let mut ticks = interval(Duration::from_secs(1) / STATS_PER_SECOND as u32);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut asking = JoinSet::new();
    for _ in 0..STATS_PER_SECOND * STATS_FOR.as_secs() {
        ticks.tick().await;
        let mut daemon = daemon.clone();
        let request = StatTaskRequest { cid: cid.to_owned(), timeout_ms: 5_000, ..StatTaskRequest::default() };
        asking.spawn(async move {
            let begun = Instant::now();
            daemon.stat_task(request).await.map(|_| begun.elapsed())
        });
    }
    let mut series = Series::default();
    while let Some(answered) = asking.join_next().await {
        series.push(answered?.context("a stat failed")?.as_secs_f64() * 1e3);
    }
    Ok(series)
}

/// One small file: imported on `from`, then exported on `to`.
pub(super) struct SmallFile {
    pub(super) import_ms: f64,
    pub(super) export_ms: f64,
    /// How often both daemons asked the disk to keep what they wrote; none without `strace`.
    pub(super) syncs: Option<f64>,
}

pub(super) async fn small_file(
    cluster: &Cluster,
    (from, to): (&NodeEntry, &NodeEntry),
    folder: &Path,
    count_syncs: bool,
) -> anyhow::Result<SmallFile> {
    let (file, copy) = (folder.join("small"), folder.join("small.copy"));
    fill(&file, SMALL_BYTES)?;
    let name = format!("bench/small/{:016x}", rand::random::<u64>());
    let traced: &[&NodeEntry] = if count_syncs { &[from, to] } else { &[] };
    let tracers: Vec<_> = traced.iter().map(|node| trace(node, folder)).collect();
    if !tracers.is_empty() {
        // Attaching has no event to wait for.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let (file, copy_path) = (file.to_string_lossy(), copy.to_string_lossy());
    let begun = Instant::now();
    dfcache(cluster, from, &["import", "-i", &name, &file]).await?;
    let imported = begun.elapsed();
    dfcache(cluster, to, &["export", "-i", &name, "-O", &copy_path]).await?;
    let exported = begun.elapsed() - imported;
    let mut syncs = Some(0.0).filter(|_| !tracers.is_empty());
    for tracer in tracers {
        let counted = count(tracer).await;
        syncs = syncs.zip(counted).map(|(sum, one)| sum + one);
    }
    std::fs::remove_file(&copy)?;
    dfcache(cluster, from, &["delete", "-i", &name]).await?;
    Ok(SmallFile { import_ms: imported.as_secs_f64() * 1e3, export_ms: exported.as_secs_f64() * 1e3, syncs })
}

/// Where the trace goes, and the process that writes it.
type Tracer = (PathBuf, Option<Child>);

/// Counts the system calls of a daemon that sync, if `strace` is there and may.
fn trace(node: &NodeEntry, folder: &Path) -> Tracer {
    let output = folder.join(format!("{}.trace", node.name));
    let mut command = Command::new("strace");
    command.args(["-f", "-e", "trace=fsync,fdatasync,syncfs,sync_file_range,sync", "-o"]).arg(&output);
    command.arg("-p").arg(node.pid.to_string()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let tracer = command.kill_on_drop(true).spawn().ok();
    (output, tracer)
}

async fn count((output, tracer): Tracer) -> Option<f64> {
    let mut child = tracer?;
    if let Some(pid) = child.id().and_then(|pid| rustix::process::Pid::from_raw(pid as i32)) {
        // It detaches then, and writes what it has.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
    }
    timeout(Duration::from_secs(5), child.wait()).await.ok()?.ok()?;
    let text = std::fs::read_to_string(&output).ok()?;
    drop(std::fs::remove_file(&output));
    Some(text.lines().filter(|line| line.contains("sync(") || line.contains("syncfs(")).count() as f64)
}
