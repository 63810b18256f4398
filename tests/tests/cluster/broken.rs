//! `testnet ps`, `logs`, `kill`, `restart`, `pause` and `resume` of a cluster of local processes.

use anyhow::{Context as _, ensure};
use damselfly_tests::{Cluster, Options};
use serde_json::Value;

/// What `testnet ps` says of a program.
async fn row(cluster: &mut Cluster, name: &str) -> anyhow::Result<Value> {
    let told: Value = serde_json::from_str(&cluster.testnet(&["ps", "--json"]).await?)?;
    let rows = told["items"].as_array().context("no items")?;
    rows.iter().find(|row| row["name"] == name).cloned().with_context(|| format!("no {name} in {told}"))
}

#[tokio::test]
async fn programs_are_ended_started_stopped_and_looked_at() -> anyhow::Result<()> {
    Cluster::run(Options { schedulers: 2, nodes: 2, ..Options::default() }, async |cluster| {
        for (name, role) in [("manager", "manager"), ("scheduler-2", "scheduler"), ("node-1", "node")] {
            let row = row(cluster, name).await?;
            ensure!(row["role"] == role && row["state"] == "running" && row["ready"] == true, "{row}");
            ensure!(row["epoch"].as_u64() > Some(0) && row["memory_bytes"].as_u64() > Some(1 << 20), "{row}");
        }
        let table = cluster.testnet(&["ps"]).await?;
        ensure!(table.lines().count() == 6 && table.contains("scheduler-1"), "{table}");

        cluster.testnet(&["pause", "node-1"]).await?;
        let paused = row(cluster, "node-1").await?;
        ensure!(paused["state"] == "paused" && paused["ready"] == false, "{paused}");
        cluster.testnet(&["resume", "node-1"]).await?;
        ensure!(row(cluster, "node-1").await?["state"] == "running", "it goes on");

        let before = row(cluster, "scheduler-1").await?;
        cluster.testnet(&["pause", "scheduler-1"]).await?;
        cluster.testnet(&["kill", "scheduler-1", "node-2"]).await?;
        for name in ["scheduler-1", "node-2"] {
            let ended = row(cluster, name).await?;
            ensure!(ended["state"] == "ended" && ended["pid"] == 0, "{ended}");
        }
        let refused = cluster.testnet(&["pause", "node-2"]).await.expect_err("it does not run");
        ensure!(format!("{refused}").contains("node-2 does not run"), "{refused}");
        cluster.testnet(&["restart", "scheduler-1", "node-2"]).await?;
        let after = row(cluster, "scheduler-1").await?;
        ensure!(after["ready"] == true && after["pid"] != before["pid"], "{before} {after}");

        let last = cluster.testnet(&["logs", "node-2", "-n", "1"]).await?;
        ensure!(last.lines().count() == 1, "{last}");
        let all = cluster.testnet(&["logs"]).await?;
        ensure!(all.matches("--- ").count() >= 5 && all.contains(last.trim()), "{all}");
        let refused = cluster.testnet(&["kill", "node-9"]).await.expect_err("there is no such node");
        ensure!(format!("{refused}").contains("there are manager, scheduler-1"), "{refused}");

        let file = cluster.file("after", 100_000)?;
        cluster.node(0).import("after", &file).await?;
        let output = cluster.path("out");
        cluster.node(1).export("after", &output).await?;
        ensure!(std::fs::read(&output)? == std::fs::read(&file)?, "the cluster works as before");
        Ok(())
    })
    .await
}
