//! The root key is exchanged under a running cluster.

use std::fs;

use anyhow::{Context as _, ensure};
use damselfly_tests::{Cluster, Options, until};
use serde_json::{Value, json};

use crate::support::{SETTLED, exports};

/// Which roots the manager lists as accepted.
async fn accepted(cluster: &Cluster) -> anyhow::Result<Vec<bool>> {
    let answer = cluster.manage("GET", "roots", None).await?;
    let roots: Value = serde_json::from_str(&answer.body)?;
    let roots = roots["items"].as_array().context("a list")?;
    Ok(roots.iter().map(|root| root["accepted"] == true).collect())
}

async fn rotate(cluster: &Cluster, overlap_seconds: u64) -> anyhow::Result<()> {
    let body = json!({ "overlap_seconds": overlap_seconds });
    let answer = cluster.manage("POST", "roots/rotate", Some(&body)).await?;
    ensure!(answer.status == 200, "{}", answer.body);
    Ok(())
}

#[tokio::test]
async fn roots_are_exchanged_and_everybody_follows() -> anyhow::Result<()> {
    Cluster::run(Options { nodes: 2, ..Options::default() }, async |cluster| {
        let file = cluster.file("file", 1 << 20)?;
        cluster.node(0).import("before", &file).await?.ok()?;
        let key_file = cluster.manager().folder().join("data/root.key");
        let first = fs::read(&key_file)?;
        // One is off whenever it happens.
        cluster.node(1).program().kill().await?;

        rotate(cluster, 600).await?;
        ensure!(accepted(cluster).await? == [true, true], "both count");
        ensure!(fs::read(&key_file)? != first, "the key is the same");
        cluster.node(1).program().start_ready().await?;
        let joined = cluster.add_node(&[]).await?;
        until("hosts of either root meet", SETTLED, async || {
            exports(cluster, &joined, "before", &file).await.map(drop)
        })
        .await?;
        cluster.manager().kill().await?;
        cluster.manager().start_ready().await?;
        cluster.change_settings(|settings| settings.candidate_parents = 15).await?;

        cluster.node(1).program().kill().await?;
        rotate(cluster, 0).await?;
        until("only the newest counts", SETTLED, async || {
            ensure!(accepted(cluster).await? == [false, false, true], "{:?}", accepted(cluster).await?);
            Ok(())
        })
        .await?;
        cluster.node(1).program().start()?;
        // Nobody has renewed in that time, so the manager and those who heard of it refuse the others, who ask why.
        let (epoch, _) = cluster.settings().await?;
        cluster.settled(epoch, 2).await?;
        let after = cluster.file("another", 1 << 20)?;
        cluster.node(0).import("after", &after).await?.ok()?;
        exports(cluster, &joined, "after", &after).await?;
        exports(cluster, cluster.node(1), "after", &after).await?;
        ensure!(
            cluster.manage("POST", "roots/rotate", Some(&json!({ "overlap_seconds": 1u64 << 40 }))).await?.status
                == 400
        );
        let audit = cluster.manage("GET", "audit?action=root.retire", None).await?;
        ensure!(audit.body.contains("root.retire"), "{}", audit.body);
        Ok(())
    })
    .await
}
