//! What several of these tests need.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{bail, ensure};
use damselfly_testnet::http;
use damselfly_tests::{Cluster, Node, Program, until};
use damselfly_transport::local::{
    Code, Failure,
    proto::{StatTaskRequest, StatTaskResponse, daemon_client::DaemonClient},
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tonic::transport::Channel;

/// By then the cluster has told itself everything, even on a busy machine.
pub const SETTLED: Duration = Duration::from_secs(30);
/// Imports and questions at a time.
pub const AT_A_TIME: usize = 16;

/// The bytes of two files are the same.
pub fn same(one: &Path, other: &Path) -> anyhow::Result<()> {
    ensure!(fs::read(one)? == fs::read(other)?, "{} has other bytes than {}", other.display(), one.display());
    Ok(())
}

/// The node exports the task, and it is this file.
pub async fn exports(cluster: &Cluster, node: &Node, cid: &str, file: &Path) -> anyhow::Result<serde_json::Value> {
    let output = cluster.path(&format!("{} of {}", cid.replace('/', "_"), node.program().name()));
    let done = node.export(cid, &output).await?.ok()?;
    same(file, &output)?;
    Ok(done)
}

/// Every node finds the task, with so many holders, within the time in which news travel.
pub async fn found_everywhere(cluster: &Cluster, cid: &str, holders: u64) -> anyhow::Result<()> {
    for node in cluster.nodes() {
        until(&format!("{} finds {cid} with {holders} holders", node.program().name()), SETTLED, async || {
            let answer = node.stat(cid).await?.ok()?;
            ensure!(answer["holders"] == holders && answer["state"] == "available", "{answer}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// No node finds the task, within the time in which news travel.
pub async fn gone_everywhere(cluster: &Cluster, cid: &str) -> anyhow::Result<()> {
    for node in cluster.nodes() {
        until(&format!("{cid} is gone from {}", node.program().name()), SETTLED, async || {
            node.stat(cid).await?.exits(3)?;
            ensure!(node.entry(cid).await?.is_none(), "it is listed");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// Small files, each with bytes of its own.
pub fn small_files(cluster: &Cluster, prefix: &str, count: usize) -> anyhow::Result<Vec<PathBuf>> {
    let file = |number| {
        let path = cluster.path(&format!("{prefix}-{number}"));
        fs::write(&path, format!("{prefix} {number}"))?;
        Ok(path)
    };
    (0..count).map(file).collect()
}

/// Imports the files under the names, many at a time. All must succeed.
pub async fn import_all(node: &Node, names: &[String], files: &[PathBuf]) -> anyhow::Result<()> {
    let daemon = node.client().await?;
    let imports = names.iter().zip(files).map(|(name, file)| {
        let mut daemon = daemon.clone();
        async move {
            match Node::import_by_path(&mut daemon, name, file).await? {
                Ok(_) => Ok(()),
                Err(failure) => bail!("{name}: {}", told(&failure)),
            }
        }
    });
    stream::iter(imports).buffer_unordered(AT_A_TIME).try_collect::<Vec<()>>().await.map(drop)
}

/// Asks for a task over gRPC; with `Err` inside, what the user would be told.
pub async fn stat(daemon: &DaemonClient<Channel>, cid: &str) -> Result<StatTaskResponse, Failure> {
    let request = StatTaskRequest { cid: cid.to_owned(), ..StatTaskRequest::default() };
    Ok(daemon.clone().stat_task(request).await?.into_inner())
}

/// Asks for all of the names, many at a time. Returns those that are not found as they should be, with the reason.
pub async fn not_found(daemon: &DaemonClient<Channel>, names: &[String], holders: u32) -> Vec<String> {
    let asked = names.iter().map(|name| async move {
        match stat(daemon, name).await {
            Ok(found) if found.holders == holders => None,
            Ok(found) => Some(format!("{name}: {} holders and not {holders}", found.holders)),
            Err(failure) => Some(format!("{name}: {}", told(&failure))),
        }
    });
    stream::iter(asked).buffer_unordered(AT_A_TIME).filter_map(async |missed| missed).collect().await
}

/// A failure as a person reads it.
pub fn told(failure: &Failure) -> String {
    format!("{} (exit {})", failure.message, failure.code.exit())
}

/// Whether the user was told of a conflict, or that the import is queued.
pub fn is(result: &Result<String, Failure>, code: Code) -> bool {
    matches!(result, Err(failure) if failure.code == code)
}

/// Waits until a node has received so many bytes more from peers than `before`.
pub async fn received(node: &Node, before: f64, bytes: u64) -> anyhow::Result<()> {
    until("bytes arrive", SETTLED, async || {
        let now = node.program().metric(RECEIVED).await? - before;
        ensure!(now >= bytes as f64, "{now} bytes arrived");
        Ok(())
    })
    .await
}

/// The metric of verified bytes from peers.
pub const RECEIVED: &str = "damselfly_node_received_bytes_total";

/// Kills all of them at once.
pub async fn kill_all(programs: &[Program]) -> anyhow::Result<()> {
    futures::future::try_join_all(programs.iter().map(Program::kill)).await.map(drop)
}

/// Starts all of them at once and waits until they listen.
pub async fn start_all(programs: &[Program]) -> anyhow::Result<()> {
    programs.iter().try_for_each(Program::start)?;
    futures::future::try_join_all(programs.iter().map(listens)).await.map(drop)
}

/// Waits until a program answers at all, ready or not.
pub async fn listens(program: &Program) -> anyhow::Result<()> {
    until(&format!("{} listens", program.name()), SETTLED, async || {
        ensure!(http::get(&program.url("healthz")).await?.status == 200, "it is not healthy");
        Ok(())
    })
    .await
}
