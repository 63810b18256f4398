//! Ctrl-C in the middle: exit 130, and nothing is left behind.

use std::{fs, process::Stdio, time::Duration};

use anyhow::{Context as _, ensure};
use damselfly_tests::{Cluster, Node, Options, until};
use rustix::process::Signal;
use serde_json::Value;
use tokio::{io::AsyncWriteExt as _, process::Child};

use crate::support::{Host, holds, list, random, send, tells_json, tells_text};

/// Pieces that a node has received from others.
const RECEIVED: &str = "damselfly_node_received_pieces_total";

#[tokio::test]
async fn an_import_from_a_slow_pipe() -> anyhow::Result<()> {
    Host::run(async |host| {
        for (json, signal) in [(false, Signal::INT), (true, Signal::INT), (false, Signal::TERM)] {
            let mut command = host.command();
            command.args(["import", "-i", "x", "-"]).args(json.then_some("--json"));
            let mut import = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
            let mut stdin = import.stdin.take().context("no stdin")?;
            stdin.write_all(&random("x", 3_000_000)).await?;
            until("the import has begun", Duration::from_secs(10), async || {
                ensure!(!list(&host.data().join("incoming"))?.is_empty(), "nothing comes in");
                Ok(())
            })
            .await?;
            interrupted(import, signal, json).await?;
            // The end of the pipe comes only now, and must not be taken for that of the file.
            drop(stdin);
            cleaned_up(host).await?;
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_import_whose_pipe_ends_with_it() -> anyhow::Result<()> {
    // As in a pipeline at a terminal: Ctrl-C ends both sides at once.
    Host::run(async |host| {
        for _ in 0..5 {
            let mut command = host.command();
            command.args(["import", "-i", "x", "-"]);
            let mut import = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
            let mut stdin = import.stdin.take().context("no stdin")?;
            stdin.write_all(&random("x", 300_000)).await?;
            until("the import has begun", Duration::from_secs(10), async || {
                ensure!(!list(&host.data().join("incoming"))?.is_empty(), "nothing comes in");
                Ok(())
            })
            .await?;
            send(&import, Signal::INT)?;
            drop(stdin);
            tells_text(&import.wait_with_output().await?, 130, "interrupted")?;
            cleaned_up(host).await?;
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_import_of_a_file() -> anyhow::Result<()> {
    Host::run(async |host| {
        let file = host.file("file", 20_000_000)?;
        let mut command = host.command();
        command.args(["import", "-i", "x", "--rate-limit", "2MiB/s"]).arg(&file);
        let import = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        interrupted(import, Signal::INT, false).await?;
        cleaned_up(host).await
    })
    .await
}

#[tokio::test]
async fn an_export_that_takes_its_time() -> anyhow::Result<()> {
    Host::run(async |host| {
        let file = host.file("file", 20_000_000)?;
        host.import("task", &file).await?.ok()?;
        let folder = host.path("outputs");
        fs::create_dir(&folder)?;
        fs::write(folder.join("old"), "old")?;
        // Where the output lies under a hidden name meanwhile, as on a file system without nameless files, see the tests
        // of the target itself.
        let rows = [
            (Signal::INT, false, "new"),
            (Signal::INT, true, "new"),
            (Signal::HUP, false, "old"),
            (Signal::QUIT, true, "old"),
            (Signal::TERM, false, "old"),
        ];
        for (signal, json, name) in rows {
            let mut command = host.command();
            command.args(["export", "-f", "-i", "task", "--rate-limit", "2MiB/s"]).arg(folder.join(name));
            let command = command.args(json.then_some("--json")).stdout(Stdio::piped()).stderr(Stdio::piped());
            let export = command.spawn()?;
            tokio::time::sleep(Duration::from_millis(400)).await;
            interrupted(export, signal, json).await?;
            ensure!(list(&folder)? == ["old"] && fs::read(folder.join("old"))? == b"old", "{:?}", list(&folder)?);
        }
        // A reader that has stalled does not keep it either.
        let mut command = host.command();
        let export = command.args(["export", "-i", "task", "-O", "-"]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut export = export.spawn()?;
        let stdout = export.stdout.take();
        tokio::time::sleep(Duration::from_millis(400)).await;
        interrupted(export, Signal::INT, false).await?;
        drop(stdout);
        host.exports("task", &random("file", 20_000_000)).await?;
        holds(&host.data(), 1)
    })
    .await
}

#[tokio::test]
async fn an_export_from_another_node() -> anyhow::Result<()> {
    let options = Options { schedulers: 1, nodes: 2, upload_rate_limit: Some("4MiB/s"), ..Options::default() };
    Cluster::run(options, async |cluster| {
        let file = cluster.file("task", 24 << 20)?;
        cluster.node(0).import("task", &file).await?.ok()?;
        let (node, folder) = (cluster.node(1), cluster.path("outputs"));
        fs::create_dir(&folder)?;
        let mut command = node.command();
        command.args(["export", "-i", "task"]).arg(folder.join("output"));
        let export = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        received(node, 2.0).await?;
        interrupted(export, Signal::INT, false).await?;
        ensure!(list(&folder)?.is_empty(), "left: {:?}", list(&folder)?);
        // What had come is kept for the next time, and shown.
        let output = folder.join("output");
        let entry = partial(node, "task").await?;
        ensure!(entry["bytes_held"].as_u64().is_some_and(|held| held > 0 && held < 24 << 20), "{entry}");
        let mut command = node.command();
        command.args(["export", "-i", "task"]).arg(&output);
        let done = crate::support::output(command).await?;
        let stderr = String::from_utf8_lossy(&done.stderr).into_owned();
        ensure!(done.status.success() && stderr.contains("MiB of it were here already"), "{stderr}");
        crate::support::same_files(&file, &output)?;
        ensure!(list(&folder)? == ["output"]);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_partial_copy_can_be_removed() -> anyhow::Result<()> {
    let options = Options { schedulers: 1, nodes: 2, upload_rate_limit: Some("4MiB/s"), ..Options::default() };
    Cluster::run(options, async |cluster| {
        let file = cluster.file("task", 24 << 20)?;
        let content = cluster.node(0).import("task", &file).await?.ok()?;
        let content = content["content_id"].as_str().context("no content ID")?.to_owned();
        let node = cluster.node(1);
        for restarted in [false, true] {
            let mut command = node.command();
            command.args(["export", "-i", "task"]).arg(cluster.path("output"));
            let before = node.program().metric(RECEIVED).await?;
            let export = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
            received(node, before + 2.0).await?;
            interrupted(export, Signal::INT, false).await?;
            partial(node, "task").await?;
            let mut cid = "task";
            if restarted {
                node.program().terminate().await?;
                node.program().start_ready().await?;
                cid = &content;
                partial(node, cid).await?;
            }
            let deleted = node.run(&["delete", "-l", "-i", cid]).await?.ok()?;
            ensure!(deleted["deleted"] == true, "{deleted}");
            ensure!(node.entries().await?.is_empty(), "it is still listed");
            let left = list(&node.program().data().join("partial"))?;
            ensure!(left.is_empty(), "left: {left:?}");
        }
        // The other host still has all of it.
        ensure!(cluster.node(0).entry("task").await?.is_some());
        Ok(())
    })
    .await
}

/// Waits until this node has received so many pieces since its start.
async fn received(node: &Node, pieces: f64) -> anyhow::Result<()> {
    until("pieces arrive", Duration::from_secs(20), async || {
        let received = node.program().metric(RECEIVED).await?;
        ensure!(received >= pieces, "{received} of {pieces}");
        Ok(())
    })
    .await
}

/// The entry of a partial copy, as soon as the interrupted download has ended.
async fn partial(node: &Node, cid: &str) -> anyhow::Result<Value> {
    until("the partial copy is listed", Duration::from_secs(10), async || {
        let found = node.entry(cid).await?.context("it is not listed")?;
        let held = &found["bytes_held"];
        ensure!(found["state"] == "partial" && held.as_u64().is_some_and(|held| held > 0), "{found}");
        Ok(found)
    })
    .await
}

async fn interrupted(child: Child, signal: Signal, json: bool) -> anyhow::Result<()> {
    send(&child, signal)?;
    let ended = tokio::time::timeout(Duration::from_secs(5), child.wait_with_output()).await;
    let ended = ended.context("it goes on")??;
    if json { tells_json(&ended, 130, "interrupted") } else { tells_text(&ended, 130, "interrupted") }
}

/// The daemon hears of it a moment later.
async fn cleaned_up(host: &Host) -> anyhow::Result<()> {
    until("nothing is left", Duration::from_secs(5), async || host.is_empty().await).await?;
    // And it stays so.
    tokio::time::sleep(Duration::from_millis(200)).await;
    host.is_empty().await
}
