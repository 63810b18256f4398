//! Entries with an end.

use anyhow::ensure;
use damselfly_tests::{Cluster, Options, until};

use crate::support::{SETTLED, exports, found_everywhere, gone_everywhere};

#[tokio::test]
async fn an_entry_expires_and_a_pin_survives() -> anyhow::Result<()> {
    Cluster::run(Options { nodes: 2, ..Options::default() }, async |cluster| {
        let file = cluster.file("file", 1 << 20)?;
        let path = file.to_str().unwrap_or_default();
        let node = cluster.node(0);
        node.run(&["import", "-i", "pinned", "--ttl", "3s", "--pin", path]).await?.ok()?;
        node.run(&["import", "-i", "short", "--ttl", "5s", path]).await?.ok()?;
        let expires = |entry: Option<serde_json::Value>| entry.is_some_and(|entry| entry["expires"].is_string());
        ensure!(expires(node.entry("short").await?), "it does not say when it expires");
        ensure!(cluster.node(1).stat("short").await?.ok()?["holders"] == 1, "it is not found");
        // By the end of the one, that of the other has passed too.
        until("it expires", SETTLED, async || {
            ensure!(node.entry("short").await?.is_none(), "it is listed");
            Ok(())
        })
        .await?;
        gone_everywhere(cluster, "short").await?;
        found_everywhere(cluster, "pinned", 1).await?;
        exports(cluster, cluster.node(1), "pinned", &file).await.map(drop)
    })
    .await
}
