//! Serving never needs the manager.

use anyhow::ensure;
use damselfly_tests::{Cluster, Node, Options, Program};

use crate::support::{exports, found_everywhere, gone_everywhere, kill_all};

/// Imports, exports, finds and deletes.
async fn works(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let file = cluster.file(name, 2 << 20)?;
    cluster.node(0).import(name, &file).await?.ok()?;
    exports(cluster, cluster.node(1), name, &file).await?;
    found_everywhere(cluster, name, 2).await?;
    cluster.node(1).delete(name).await?.ok()?;
    gone_everywhere(cluster, name).await
}

#[tokio::test]
async fn nothing_changes_without_the_manager() -> anyhow::Result<()> {
    Cluster::run(Options { nodes: 2, ..Options::default() }, async |cluster| {
        let kept = cluster.file("kept", 1 << 20)?;
        cluster.node(0).import("kept", &kept).await?.ok()?;
        cluster.manager().kill().await?;
        works(cluster, "without the manager").await?;

        cluster.node(0).program().kill().await?;
        cluster.scheduler(0).terminate().await?;
        cluster.scheduler(0).start_ready().await?;
        cluster.node(0).program().start_ready().await?;
        cluster.settled(1, 2).await?;
        works(cluster, "after restarts").await?;

        let nodes: Vec<_> = cluster.nodes().iter().map(|node| node.program().clone()).collect();
        let all: Vec<Program> = cluster.schedulers().iter().cloned().chain(nodes).collect();
        kill_all(&all).await?;
        all.iter().try_for_each(Program::start)?;
        futures::future::try_join_all(all.iter().map(Program::ready)).await?;
        cluster.settled(1, 2).await?;
        works(cluster, "after everything restarted").await?;
        found_everywhere(cluster, "kept", 1).await?;

        // It is heard again when it comes back.
        cluster.manager().start_ready().await?;
        let epoch = cluster.change_settings(|settings| settings.candidate_parents = 5).await?;
        cluster.settled(epoch, 2).await?;
        ensure!(cluster.nodes().iter().map(Node::program).all(Program::is_running), "a node has ended");
        works(cluster, "with the manager").await
    })
    .await
}
