//! A store that is to hold no more than so much.

use anyhow::ensure;
use damselfly_tests::{Cluster, Node, Options, until};

use crate::support::{SETTLED, exports, found_everywhere};

const PART: u64 = 16 << 20;
const OWN: u64 = 8 << 20;
const LARGE: u64 = 60 << 20;
const QUOTA: u64 = 64 << 20;

async fn holds(node: &Node, cids: &[&str]) -> anyhow::Result<()> {
    for cid in ["first", "second", "third", "fourth", "own", "large"] {
        let held = node.entry(cid).await?.is_some();
        ensure!(held == cids.contains(&cid), "{cid} is {}held", if held { "" } else { "not " });
    }
    Ok(())
}

async fn in_force(node: &Node) -> anyhow::Result<()> {
    until("the quota is in force", SETTLED, async || {
        let quota = node.program().metric("damselfly_node_quota_bytes").await?;
        ensure!(quota == QUOTA as f64, "{quota}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn copies_go_when_there_is_no_room_and_imports_stay() -> anyhow::Result<()> {
    Cluster::run(Options { nodes: 3, ..Options::default() }, async |cluster| {
        let (giver, taker, other) = (cluster.node(0), cluster.node(1), cluster.node(2));
        let mut files = Vec::new();
        for cid in ["first", "second", "third"] {
            let file = cluster.file(cid, PART)?;
            giver.import(cid, &file).await?.ok()?;
            files.push((cid, file));
        }
        giver.import("large", &cluster.file("large", LARGE)?).await?.ok()?;
        taker.import("own", &cluster.file("own", OWN)?).await?.ok()?;
        let fourth = cluster.file("fourth", PART)?;
        other.import("fourth", &fourth).await?.ok()?;
        cluster.change_settings(|settings| settings.store_quota_bytes = QUOTA).await?;
        futures::future::try_join_all(cluster.nodes().iter().map(in_force)).await?;

        // What was imported is more than the quota, and stays; nothing more comes in, and an operator sees why.
        let refused = giver.import("more", &cluster.file("more", 1)?).await?.exits(10)?;
        ensure!(refused.to_string().contains(&format!("quota of {QUOTA} bytes")), "{refused}");
        let health = giver.run(&["health"]).await?.json;
        ensure!(health["problems"][0]["code"] == "store_full", "{health}");

        for (cid, file) in &files {
            exports(cluster, taker, cid, file).await?;
        }
        until("the copies are kept", SETTLED, async || holds(taker, &["first", "second", "third", "own"]).await)
            .await?;
        let refused = taker.export("large", &cluster.path("refused")).await?.exits(10)?;
        ensure!(refused.to_string().contains(&format!("quota of {QUOTA} bytes")), "{refused}");
        ensure!(!cluster.path("refused").exists(), "there is an output");
        holds(taker, &["first", "second", "third", "own"]).await?;
        found_everywhere(cluster, "first", 2).await?;
        // Used again, so it is not the one that goes.
        exports(cluster, taker, "first", &files[0].1).await?;

        exports(cluster, taker, "fourth", &fourth).await?;
        until("it is kept", SETTLED, async || holds(taker, &["first", "third", "fourth", "own"]).await).await?;
        ensure!(taker.program().metric("damselfly_node_evicted_bytes_total").await? == PART as f64);
        // The owners know, and who wants it again gets it again.
        found_everywhere(cluster, "second", 1).await?;
        ensure!(taker.run(&["health"]).await?.json["problems"].as_array().is_some_and(Vec::is_empty));

        cluster
            .change_settings(|settings| (settings.store_high_percent, settings.store_low_percent) = (60, 40))
            .await?;
        until("only the one used last is left", SETTLED, async || holds(taker, &["fourth", "own"]).await).await?;
        exports(cluster, taker, "second", &files[1].1).await.map(drop)
    })
    .await
}
