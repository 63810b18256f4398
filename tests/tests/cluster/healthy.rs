//! A cluster in which nothing is wrong.

use std::fs;

use anyhow::ensure;
use damselfly_tests::{Cluster, Options};

use crate::support::exports;

/// What the programs warn of, but for the setting by which all of them may be on one host.
fn warnings(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let file = cluster.file_of_cluster();
    let schedulers = file.schedulers.iter().map(|one| &one.config);
    let nodes = file.nodes.iter().map(|one| &one.config);
    let mut found = Vec::new();
    for config in [&file.manager.config].into_iter().chain(schedulers).chain(nodes) {
        let log = fs::read_to_string(config.with_file_name("log"))?;
        let is_warning = |line: &&str| line.contains(" WARN ") || line.contains(" ERROR ");
        found.extend(log.lines().filter(is_warning).filter(|line| !line.contains("loopback")).map(str::to_owned));
    }
    Ok(found)
}

#[tokio::test]
async fn a_healthy_cluster_warns_of_nothing() -> anyhow::Result<()> {
    Cluster::run(Options { nodes: 3, ..Options::default() }, async |cluster| {
        let file = cluster.file("some", 2 << 20)?;
        cluster.node(0).import("some", &file).await?.ok()?;
        exports(cluster, cluster.node(1), "some", &file).await?;
        // Two epochs are two rounds of gossip.
        for parents in [5, 6] {
            let epoch = cluster.change_settings(|settings| settings.candidate_parents = parents).await?;
            cluster.settled(epoch, 2).await?;
        }
        exports(cluster, cluster.node(2), "some", &file).await?;
        cluster.node(1).delete("some").await?.ok()?;
        let found = warnings(cluster)?;
        ensure!(found.is_empty(), "{}", found.join("\n"));
        Ok(())
    })
    .await
}
