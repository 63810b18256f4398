//! Entries with an end.

use std::path::Path;

use anyhow::ensure;
use damselfly_tests::{Cluster, Node, Options, until};

use crate::support::{SETTLED, exports, found_everywhere, gone_everywhere, listens};

#[tokio::test]
async fn an_entry_expires_wherever_it_is_and_a_pin_survives() -> anyhow::Result<()> {
    Cluster::run(Options { nodes: 2, ..Options::default() }, async |cluster| {
        let file = cluster.file("file", 1 << 20)?;
        let (node, other) = (cluster.node(0), cluster.node(1));
        import(node, "pinned", &file, &["--ttl", "3s", "--pin"]).await?;
        import(node, "short", &file, &["--ttl", "10s"]).await?;
        exports(cluster, other, "short", &file).await?;
        let end = expires(node, "short").await?;
        // An export ends before its copy is in the store.
        until("the end is the same on both", SETTLED, async || {
            let others = expires(other, "short").await?;
            ensure!(others.is_string() && others == end, "{others} and not {end}");
            Ok(())
        })
        .await?;
        // By then that of the pinned one has passed too.
        gone_everywhere(cluster, "short").await?;
        found_everywhere(cluster, "pinned", 1).await?;
        exports(cluster, other, "pinned", &file).await?;
        // The name is free.
        let next = cluster.file("next", 1 << 10)?;
        import(other, "short", &next, &[]).await?;
        exports(cluster, node, "short", &next).await.map(drop)
    })
    .await
}

#[tokio::test]
async fn what_expired_while_its_host_was_away_takes_no_name_back() -> anyhow::Result<()> {
    Cluster::run(Options { nodes: 2, ..Options::default() }, async |cluster| {
        let file = cluster.file("file", 1 << 10)?;
        let (node, other) = (cluster.node(0), cluster.node(1));
        import(node, "name", &file, &["--ttl", "3s"]).await?;
        import(node, "kept", &file, &["--ttl", "3s"]).await?;
        import(node, "kept", &file, &[]).await?;
        ensure!(expires(node, "kept").await?.is_null(), "of two imports the later end stands");
        node.program().kill().await?;
        // The name stands for what the schedulers know until the absent host's lease has ended.
        let next = cluster.file("next", 1 << 10)?;
        until("the name is free", SETTLED, async || import(other, "name", &next, &[]).await).await?;
        node.program().start()?;
        listens(node.program()).await?;
        found_everywhere(cluster, "kept", 1).await?;
        found_everywhere(cluster, "name", 1).await?;
        ensure!(node.entry("name").await?.is_none(), "it is still here");
        exports(cluster, node, "name", &next).await.map(drop)
    })
    .await
}

async fn import(node: &Node, cid: &str, file: &Path, options: &[&str]) -> anyhow::Result<()> {
    let path = file.to_str().unwrap_or_default();
    let arguments = [&["import", "-i", cid], options, &[path]].concat();
    node.run(&arguments).await?.ok().map(drop)
}

/// When the node's own entry ends.
async fn expires(node: &Node, cid: &str) -> anyhow::Result<serde_json::Value> {
    Ok(node.entry(cid).await?.unwrap_or_default()["expires"].clone())
}
