//! What is deleted stays deleted.

use std::fs;

use anyhow::{Context as _, ensure};
use damselfly_tests::{Cluster, Node, Options, until};
use futures::future::try_join_all;
use serde_json::{Value, json};

use crate::support::{SETTLED, exports, found_everywhere, gone_everywhere, kill_all, small_files, start_all};

fn contents(node: &Node) -> anyhow::Result<usize> {
    Ok(fs::read_dir(node.store())?.count())
}

/// What the manager's audit has of deletes.
async fn noted(cluster: &Cluster) -> anyhow::Result<Vec<Value>> {
    let answer = cluster.manage("GET", "audit?action=task.delete", None).await?;
    let page: Value = serde_json::from_str(&answer.body)?;
    Ok(page["items"].as_array().context("no page")?.clone())
}

/// Imports on the first node and exports on the others, so that all hold it.
async fn held_by_all(cluster: &Cluster, cid: &str) -> anyhow::Result<std::path::PathBuf> {
    let file = cluster.file(cid, 2 << 20)?;
    cluster.node(0).import(cid, &file).await?.ok()?;
    for node in &cluster.nodes()[1..] {
        exports(cluster, node, cid, &file).await?;
    }
    found_everywhere(cluster, cid, cluster.nodes().len() as u64).await?;
    Ok(file)
}

#[tokio::test]
async fn the_audit_has_who_deleted() -> anyhow::Result<()> {
    Cluster::run(Options { schedulers: 3, nodes: 2, ..Options::default() }, async |cluster| {
        let file = cluster.file("file", 1000)?;
        for cid in ["one", "two"] {
            cluster
                .node(0)
                .run(&["import", "--tag", "v1", "--cid", cid, file.to_str().context("text")?])
                .await?
                .ok()?;
        }
        cluster.node(1).run(&["delete", "--cid", "one", "--tag", "v1"]).await?.ok()?;
        let on = cluster.file_of_cluster().nodes[1].peer_id.clone();
        let mine = format!("uid {} on {on}", rustix::process::getuid().as_raw());
        until("the delete is in the audit", SETTLED, async || {
            let noted = noted(cluster).await?;
            let told: Vec<_> = noted.iter().map(|entry| (&entry["actor"], &entry["before"])).collect();
            ensure!(told == [(&json!(mine), &json!({ "cid": "one", "tag": "v1" }))], "{noted:?}");
            Ok(())
        })
        .await?;

        // What is deleted while the manager is away is noted when it is back, and nothing twice.
        cluster.manager().kill().await?;
        cluster.node(1).run(&["delete", "--cid", "two", "--tag", "v1"]).await?.ok()?;
        cluster.manager().start_ready().await?;
        until("the second one is too", SETTLED, async || {
            let noted = noted(cluster).await?;
            let cids: Vec<_> = noted.iter().map(|entry| &entry["before"]["cid"]).collect();
            ensure!(cids == ["two", "one"], "{noted:?}");
            Ok(())
        })
        .await
    })
    .await
}

#[tokio::test]
async fn a_delete_reaches_all_holders() -> anyhow::Result<()> {
    Cluster::run(Options::default(), async |cluster| {
        let nothing = cluster.node(2).delete("task").await?.ok()?;
        ensure!(nothing["deleted"] == false && nothing["holders"] == 0, "{nothing}");
        let file = held_by_all(cluster, "task").await?;

        // Only this host's copy.
        let local = cluster.node(2).run(&["delete", "-i", "task", "-l"]).await?.ok()?;
        ensure!(local["deleted"] == true && local["holders"] == 1, "{local}");
        found_everywhere(cluster, "task", 2).await?;
        ensure!(cluster.node(2).entry("task").await?.is_none(), "it is listed");
        cluster.node(2).run(&["stat", "-i", "task", "-l"]).await?.exits(3)?;
        ensure!(cluster.node(2).stat("task").await?.ok()?["local"] == false, "it is local");
        exports(cluster, cluster.node(2), "task", &file).await?;
        found_everywhere(cluster, "task", 3).await?;

        // Everywhere, at once: when it returns, no reachable host has it.
        let deleted = cluster.node(1).delete("task").await?.ok()?;
        ensure!(deleted["deleted"] == true && deleted["holders"] == 3, "{deleted}");
        for node in cluster.nodes() {
            ensure!(node.entry("task").await?.is_none(), "{} has it", node.program().name());
            node.stat("task").await?.exits(3)?;
            node.export("task", &cluster.path("nothing")).await?.exits(3)?;
            ensure!(contents(node)? == 0, "{} keeps the bytes", node.program().name());
        }
        let again = cluster.node(0).delete("task").await?.ok()?;
        ensure!(again["deleted"] == false, "{again}");

        // The name is free for other bytes.
        let other = cluster.file("other", 1 << 20)?;
        cluster.node(2).import("task", &other).await?.ok()?;
        exports(cluster, cluster.node(0), "task", &other).await?;
        found_everywhere(cluster, "task", 2).await
    })
    .await
}

/// A holder that was down drops its copy; also when all schedulers have forgotten everything meanwhile.
#[tokio::test]
async fn a_holder_that_was_down_resurrects_nothing() -> anyhow::Result<()> {
    Cluster::run(Options::default(), async |cluster| {
        held_by_all(cluster, "one").await?;
        let other = held_by_all(cluster, "other").await?;
        let (away, here) = (cluster.node(2), [cluster.node(0), cluster.node(1)]);

        away.program().kill().await?;
        let deleted = cluster.node(0).delete("one").await?.ok()?;
        ensure!(deleted["deleted"] == true && deleted["holders"] == 2, "{deleted}");
        away.program().start_ready().await?;
        gone_everywhere(cluster, "one").await?;
        found_everywhere(cluster, "other", 3).await?;

        away.program().kill().await?;
        cluster.node(1).delete("other").await?.ok()?;
        kill_all(cluster.schedulers()).await?;
        // The one with the old copy is heard first, by schedulers that know nothing.
        here.iter().for_each(|node| node.program().signal(rustix::process::Signal::STOP));
        start_all(cluster.schedulers()).await?;
        away.program().start_ready().await?;
        until("the old copy is announced", SETTLED, async || {
            ensure!(away.stat("other").await?.ok()?["holders"] == 1, "it is not");
            Ok(())
        })
        .await?;
        here.iter().for_each(|node| node.program().signal(rustix::process::Signal::CONT));
        gone_everywhere(cluster, "other").await?;

        // Nobody holds a delete against whoever imports it again.
        away.import("other", &other).await?.ok()?;
        found_everywhere(cluster, "other", 1).await?;
        exports(cluster, cluster.node(1), "other", &other).await?;
        found_everywhere(cluster, "other", 2).await
    })
    .await
}

#[tokio::test]
async fn a_delete_without_scheduler_takes_effect_later() -> anyhow::Result<()> {
    Cluster::run(Options::default(), async |cluster| {
        held_by_all(cluster, "task").await?;
        held_by_all(cluster, "renewed").await?;
        kill_all(cluster.schedulers()).await?;
        let node = cluster.node(1);
        for cid in ["task", "renewed"] {
            let queued = node.delete(cid).await?;
            ensure!(queued.message().contains("queued"), "{queued}");
            queued.exits(8)?;
            ensure!(node.entry(cid).await?.is_none(), "{cid} is listed");
        }
        // What is imported after the delete is not meant by it.
        let renewed = cluster.file("other bytes", 1 << 20)?;
        node.import("renewed", &renewed).await?.exits(8)?;
        // Also when the daemon is another one by then.
        node.program().kill().await?;
        node.program().start()?;
        start_all(cluster.schedulers()).await?;
        node.program().ready().await?;
        gone_everywhere(cluster, "task").await?;
        until("the new content stands", SETTLED, async || {
            for node in cluster.nodes() {
                let found = node.stat("renewed").await?.ok()?;
                ensure!(found["bytes"] == 1 << 20 && found["holders"] == 1, "{found}");
            }
            ensure!(cluster.node(0).entry("renewed").await?.is_none(), "the old content is listed");
            Ok(())
        })
        .await?;
        exports(cluster, cluster.node(2), "renewed", &renewed).await.map(drop)
    })
    .await
}

/// With three schedulers, two of which own a name, the third stands in for those that it does not own.
#[tokio::test]
async fn a_delete_waits_for_an_owner() -> anyhow::Result<()> {
    Cluster::run(Options { schedulers: 3, ..Options::default() }, async |cluster| {
        let files = small_files(cluster, "name", 12)?;
        let cids: Vec<_> = (0..files.len()).map(|number| format!("name {number}")).collect();
        for (cid, file) in cids.iter().zip(&files) {
            cluster.node(0).import(cid, file).await?.ok()?;
        }
        // It cannot tell the one that stands in.
        cluster.node(0).program().kill().await?;
        kill_all(&cluster.schedulers()[..2]).await?;
        for answer in try_join_all(cids.iter().map(|cid| cluster.node(1).delete(cid))).await? {
            let is_queued = answer.exit == 8;
            ensure!(is_queued || answer.clone().ok()?["deleted"] == true, "nobody was asked who knows: {answer}");
        }
        start_all(&cluster.schedulers()[..2]).await?;
        cluster.node(0).program().start_ready().await?;
        for cid in &cids {
            gone_everywhere(cluster, cid).await?;
        }
        Ok(())
    })
    .await
}
