//! Sources that are slow, paused, or have more to do than they can.

use std::time::{Duration, Instant};

use anyhow::ensure;
use damselfly_tests::{Cluster, Options, until};
use futures::future::try_join_all;
use rustix::process::Signal;

use crate::support::{RECEIVED, SETTLED, exports, received};

/// Without a byte for this long a transfer ends.
const STALLED_AFTER: Duration = Duration::from_secs(30);

#[tokio::test]
async fn bytes_that_flow_slowly_are_progress() -> anyhow::Result<()> {
    let options = Options { nodes: 2, upload_rate_limit: Some("200KiB/s"), ..Options::default() };
    Cluster::run(options, async |cluster| {
        let file = cluster.file("file", 8 << 20)?;
        cluster.node(0).import("file", &file).await?.ok()?;
        let begun = Instant::now();
        exports(cluster, cluster.node(1), "file", &file).await?;
        ensure!(begun.elapsed() > STALLED_AFTER, "8 MiB in {:?} at 200 KiB/s: nothing was slow", begun.elapsed());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn what_is_given_up_is_cancelled_and_what_verified_is_kept() -> anyhow::Result<()> {
    let options = Options { nodes: 2, upload_rate_limit: Some("200KiB/s"), ..Options::default() };
    Cluster::run(options, async |cluster| {
        let [holder, asker] = [cluster.node(0), cluster.node(1)];
        let large = cluster.file("large", 8 << 20)?;
        let small = cluster.file("small", 10 << 10)?;
        holder.import("large", &large).await?.ok()?;
        holder.import("small", &small).await?.ok()?;
        let output = cluster.path("output");
        let path = output.to_str().unwrap_or_default();
        asker.run(&["--timeout", "15s", "export", "-i", "large", "-f", path]).await?.exits(9)?;
        let kept = asker.program().metric(RECEIVED).await?;
        ensure!(kept > 0.0, "no piece was complete within 15 s");
        let begun = Instant::now();
        exports(cluster, asker, "small", &small).await?;
        ensure!(begun.elapsed() < Duration::from_secs(8), "10 KiB took {:?}", begun.elapsed());
        let done = exports(cluster, asker, "large", &large).await?;
        ensure!(done["from_peers_bytes"].as_u64().is_some_and(|bytes| bytes < 8 << 20), "nothing was kept: {done}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_paused_holder_is_waited_for() -> anyhow::Result<()> {
    let options = Options { nodes: 3, upload_rate_limit: Some("1MiB/s"), ..Options::default() };
    Cluster::run(options, async |cluster| {
        let [holder, asker] = [cluster.node(0), cluster.node(1)];
        let file = cluster.file("file", 8 << 20)?;
        holder.import("file", &file).await?.ok()?;
        let asked_meanwhile = cluster.file("asked meanwhile", 1 << 20)?;
        holder.import("asked meanwhile", &asked_meanwhile).await?.ok()?;
        let exporting = exports(cluster, asker, "file", &file);
        let pausing = async {
            received(asker, 0.0, 1).await?;
            holder.program().signal(Signal::STOP);
            let resuming = async {
                // A pause has a length: this is what is tested.
                tokio::time::sleep(Duration::from_secs(20)).await;
                holder.program().signal(Signal::CONT);
            };
            // One that has a connection to the holder, and one that has to make one.
            let stranger = cluster.node(2);
            let begun = tokio::join!(
                resuming,
                exports(cluster, asker, "asked meanwhile", &asked_meanwhile),
                exports(cluster, stranger, "asked meanwhile", &asked_meanwhile),
            );
            begun.1?;
            begun.2?;
            anyhow::Ok(())
        };
        tokio::try_join!(exporting, pausing)?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn many_hosts_share_a_slow_source() -> anyhow::Result<()> {
    const HOSTS: u32 = 6;
    let options = Options { nodes: HOSTS + 1, upload_rate_limit: Some("400KiB/s"), ..Options::default() };
    Cluster::run(options, async |cluster| {
        let file = cluster.file("file", 6 << 20)?;
        cluster.node(0).import("file", &file).await?.ok()?;
        until("it is found", SETTLED, async || cluster.node(1).stat("file").await?.ok().map(drop)).await?;
        let cluster = &*cluster;
        let all = cluster.nodes()[1..].iter().map(|node| exports(cluster, node, "file", &file));
        try_join_all(all).await.map(drop)
    })
    .await
}
