//! Where a download comes from.

use std::time::Duration;

use anyhow::ensure;
use damselfly_tests::{Cluster, Node, Options, until};

use crate::support::{RECEIVED, SETTLED, exports, found_everywhere, received, same};

const SENT: &str = "damselfly_node_sent_bytes_total";
/// A busy machine may be late once.
const TRIES: usize = 3;

#[tokio::test]
async fn three_parents_are_three_times_as_fast() -> anyhow::Result<()> {
    let options = Options { nodes: 4, upload_rate_limit: Some("20MiB/s"), ..Options::default() };
    Cluster::run(options, async |cluster| {
        let downloader = cluster.node(3);
        let mut ratios = Vec::new();
        for round in 0..TRIES {
            let mut seconds = Vec::new();
            for parents in [1_u64, 3] {
                let name = format!("{parents} parents {round}");
                let file = cluster.file(&name, 96 << 20)?;
                for node in &cluster.nodes()[..parents as usize] {
                    node.import(&name, &file).await?.ok()?;
                }
                found_everywhere(cluster, &name, parents).await?;
                let output = cluster.path("output");
                let answer = downloader.export(&name, &output).await?;
                let took = answer.took;
                let done = answer.ok()?;
                same(&file, &output)?;
                ensure!(done["peers"] == parents && done["from_peers_bytes"] == 96 << 20, "{done}");
                seconds.push(took.as_secs_f64());
            }
            let ratio = seconds[1] / seconds[0];
            eprintln!("96 MiB: {:.2} s from one parent, {:.2} s from three, {ratio:.3} of it", seconds[0], seconds[1]);
            if (0.25..1.25 / 3.0).contains(&ratio) {
                return Ok(());
            }
            ratios.push(ratio);
        }
        anyhow::bail!("three parents took {ratios:.3?} of the time of one")
    })
    .await
}

#[tokio::test]
async fn more_exports_than_streams_to_the_one_parent_take_turns() -> anyhow::Result<()> {
    const EXPORTS: usize = 40;
    Cluster::run(Options { nodes: 2, ..Options::default() }, async |cluster| {
        let [holder, asker] = [cluster.node(0), cluster.node(1)];
        let mut wanted = Vec::new();
        for number in 0..EXPORTS {
            let name = format!("content {number}");
            let file = cluster.file(&name, 8 << 20)?;
            holder.import(&name, &file).await?.ok()?;
            wanted.push((name, file, cluster.path(&format!("output {number}"))));
        }
        let exports = wanted.iter().map(async |(name, file, output)| {
            asker.export(name, output).await?.ok()?;
            same(file, output)
        });
        futures::future::try_join_all(exports).await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_seed_is_preferred() -> anyhow::Result<()> {
    Cluster::run(Options { nodes: 3, seeds: 1, ..Options::default() }, async |cluster| {
        // With one parent for each download it shows which one is the best.
        let epoch = cluster.change_settings(|settings| settings.candidate_parents = 1).await?;
        cluster.settled(epoch, 2).await?;
        let (downloader, seed) = (cluster.node(2), cluster.node(3));
        for number in 0..5 {
            let name = format!("file {number}");
            let file = cluster.file(&name, 2 << 20)?;
            for node in [cluster.node(0), cluster.node(1), seed] {
                node.import(&name, &file).await?.ok()?;
            }
            found_everywhere(cluster, &name, 3).await?;
            let done = exports(cluster, downloader, &name, &file).await?;
            ensure!(done["peers"] == 1, "{done}");
        }
        for node in [cluster.node(0), cluster.node(1)] {
            let sent = node.program().metric(SENT).await?;
            ensure!(sent == 0.0, "{} sent {sent} bytes", node.program().name());
        }
        // It counts bytes when they are gone, a moment after they have arrived.
        until("the seed sent all", SETTLED, async || {
            let sent = seed.program().metric(SENT).await?;
            ensure!(sent == f64::from(5 * (2 << 20)), "it sent {sent} bytes");
            Ok(())
        })
        .await?;
        Ok(())
    })
    .await
}

async fn kill_when(victim: &Node, downloader: &Node, before: f64, bytes: u64) -> anyhow::Result<()> {
    received(downloader, before, bytes).await?;
    victim.program().kill().await
}

#[tokio::test]
async fn a_parent_dies_in_the_middle() -> anyhow::Result<()> {
    let options = Options { nodes: 4, upload_rate_limit: Some("8MiB/s"), ..Options::default() };
    Cluster::run(options, async |cluster| {
        let downloader = cluster.node(3);
        // There are others.
        let file = cluster.file("shared", 48 << 20)?;
        for node in &cluster.nodes()[..3] {
            node.import("shared", &file).await?.ok()?;
        }
        found_everywhere(cluster, "shared", 3).await?;
        let before = downloader.program().metric(RECEIVED).await?;
        let export = exports(cluster, downloader, "shared", &file);
        let (done, killed) = tokio::join!(export, kill_when(cluster.node(1), downloader, before, 8 << 20));
        killed?;
        let done = done?;
        ensure!(done["from_peers_bytes"] == 48 << 20, "{done}");

        // There is no other.
        let file = cluster.file("lonely", 32 << 20)?;
        cluster.node(0).import("lonely", &file).await?.ok()?;
        let output = cluster.path("lonely output");
        let before = downloader.program().metric(RECEIVED).await?;
        let export = downloader.export("lonely", &output);
        let (failed, killed) = tokio::join!(export, kill_when(cluster.node(0), downloader, before, 12 << 20));
        killed?;
        let failed = failed?;
        eprintln!("without a source: {failed}");
        // 30 s after the last byte: it might come back.
        let in_time = Duration::from_secs(30)..Duration::from_secs(45);
        ensure!(in_time.contains(&failed.took), "{failed}");
        ensure!(failed.message().contains("no holder is reachable"), "{failed}");
        failed.exits(8)?;
        ensure!(!output.exists(), "a failed export left a file");

        // Later there is one again, and also the downloader has been away.
        downloader.program().kill().await?;
        downloader.program().start_ready().await?;
        cluster.node(0).program().start_ready().await?;
        found_everywhere_but(cluster, 1, "lonely").await?;
        let done = exports(cluster, downloader, "lonely", &file).await?;
        let local = done["from_local_bytes"].as_u64().unwrap_or_default();
        eprintln!("continued: {done}");
        ensure!(local >= 8 << 20, "of 12 MiB that were verified {local} bytes are left: {done}");
        ensure!(done["from_peers_bytes"] == (32 << 20) - local, "{done}");
        Ok(())
    })
    .await
}

/// The nodes that run find the task.
async fn found_everywhere_but(cluster: &Cluster, down: usize, cid: &str) -> anyhow::Result<()> {
    for (index, node) in cluster.nodes().iter().enumerate().filter(|(index, _)| *index != down) {
        let what = format!("node {index} finds {cid}");
        until(&what, SETTLED, async || {
            let found = node.stat(cid).await?.ok()?;
            ensure!(found["state"] == "available", "{found}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}
