//! Limits of the whole cluster.

use std::time::{Duration, Instant};

use anyhow::ensure;
use damselfly_messages::config::Override;
use damselfly_tests::{Cluster, Options};

use crate::support::{exports, found_everywhere};

/// It takes twelve seconds with the limit, and a fraction of one without.
const LIMITED: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_limit_in_the_configuration_holds_without_a_restart() -> anyhow::Result<()> {
    Cluster::run(Options { nodes: 3, ..Options::default() }, async |cluster| {
        let file = cluster.file("file", 6 << 20)?;
        cluster.node(0).import("file", &file).await?.ok()?;
        let epoch = cluster.change_settings(|settings| settings.upload_bytes_per_second = 512 << 10).await?;
        cluster.settled(epoch, 2).await?;
        let begun = Instant::now();
        exports(cluster, cluster.node(1), "file", &file).await?;
        ensure!(begun.elapsed() > LIMITED, "6 MiB in {:?} at 512 KiB/s", begun.elapsed());
        let epoch = cluster.change_settings(|settings| settings.upload_bytes_per_second = 0).await?;
        cluster.settled(epoch, 2).await?;
        let begun = Instant::now();
        exports(cluster, cluster.node(2), "file", &file).await?;
        ensure!(begun.elapsed() < LIMITED, "still limited: {:?}", begun.elapsed());
        let refused = cluster.change_settings(|settings| settings.upload_bytes_per_second = 5).await;
        let told = refused.err().map(|error| error.to_string()).unwrap_or_default();
        ensure!(told.contains("upload_bytes_per_second") && told.contains("65536"), "{told}");
        Ok(())
    })
    .await
}

/// Nodes in two zones, of which one is limited.
#[tokio::test]
async fn hosts_with_other_tags_have_other_limits() -> anyhow::Result<()> {
    Cluster::run(Options { nodes: 1, ..Options::default() }, async |cluster| {
        let limited = cluster.add_node(&["--tag", "zone=a", "--tag", "rack=1"]).await?;
        let free = cluster.add_node(&["--tag", "zone=b"]).await?;
        let file = cluster.file("file", 6 << 20)?;
        cluster.node(0).import("file", &file).await?.ok()?;
        let of = |zone: &str, rate: u64| Override {
            tags: [("zone".to_owned(), zone.to_owned())].into(),
            set: [("download_bytes_per_second".to_owned(), rate)].into(),
        };
        let epoch = cluster.change_settings(|settings| settings.overrides = vec![of("a", 512 << 10)]).await?;
        cluster.settled(epoch, 2).await?;
        let begun = Instant::now();
        exports(cluster, &free, "file", &file).await?;
        ensure!(begun.elapsed() < LIMITED, "limited without being of that zone: {:?}", begun.elapsed());
        let begun = Instant::now();
        exports(cluster, &limited, "file", &file).await?;
        ensure!(begun.elapsed() > LIMITED, "6 MiB in {:?} at 512 KiB/s", begun.elapsed());
        let refused = cluster.change_settings(|settings| settings.overrides = vec![of("a", 0), of("b", 5)]).await;
        let told = refused.err().map(|error| error.to_string()).unwrap_or_default();
        ensure!(told.contains("overrides[1].download_bytes_per_second") && told.contains("65536"), "{told}");
        Ok(())
    })
    .await
}

const BUSY: &str = "damselfly_node_busy_answers_total";

/// A holder that serves one piece at a time, so slowly that others would wait too long for their turn.
#[tokio::test]
async fn pieces_are_asked_for_and_served_so_many_at_a_time() -> anyhow::Result<()> {
    let options = Options { nodes: 3, upload_rate_limit: Some("400KiB/s"), ..Options::default() };
    Cluster::run(options, async |cluster| {
        let holder = cluster.node(0);
        let busy = async || holder.program().metric(BUSY).await;
        let file = cluster.file("file", 4 << 20)?;
        holder.import("file", &file).await?.ok()?;
        let epoch = cluster
            .change_settings(|settings| {
                (settings.concurrent_uploads, settings.concurrent_pieces) = (1, 1);
                settings.concurrent_parents = 1;
            })
            .await?;
        cluster.settled(epoch, 2).await?;
        exports(cluster, cluster.node(1), "file", &file).await?;
        ensure!(busy().await? == 0.0, "one is asked for at a time, and one is served");
        cluster.node(1).run(&["delete", "-i", "file", "-l"]).await?.ok()?;
        let epoch = cluster.change_settings(|settings| settings.concurrent_pieces = 64).await?;
        cluster.settled(epoch, 2).await?;
        exports(cluster, cluster.node(2), "file", &file).await?;
        ensure!(busy().await? > 0.0, "several are asked for at a time, and one is served");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn blocked_tags_are_refused_everywhere_until_they_are_not() -> anyhow::Result<()> {
    Cluster::run(Options { nodes: 2, ..Options::default() }, async |cluster| {
        let [one, two] = [cluster.node(0), cluster.node(1)];
        let file = cluster.file("file", 1 << 20)?;
        let path = file.to_str().unwrap_or_default();
        one.run(&["import", "-i", "name", "-t", "bad", path]).await?.ok()?;
        one.import("name", &file).await?.ok()?;
        found_everywhere(cluster, "name", 1).await?;
        let epoch = cluster.change_settings(|settings| settings.blocked_tags = vec!["bad".to_owned()]).await?;
        cluster.settled(epoch, 2).await?;
        let output = cluster.path("output");
        let target = output.to_str().unwrap_or_default();
        for node in [one, two] {
            for (command, file) in [("import", path), ("export", target)] {
                let cid = if command == "import" { "other" } else { "name" };
                let refused = node.run(&[command, "-i", cid, "-t", "bad", file]).await?;
                ensure!(refused.message().contains("\"bad\" is blocked"), "{command}: {refused}");
                refused.exits(7)?;
            }
            ensure!(!output.exists(), "a refused export left a file");
            let found = node.run(&["stat", "-i", "name", "-t", "bad"]).await?.ok()?;
            ensure!(found["holders"] == 1, "it can still be looked up: {found}");
        }
        exports(cluster, two, "name", &file).await?;
        let deleted = two.run(&["delete", "-i", "name", "-t", "bad"]).await?.ok()?;
        ensure!(deleted["deleted"] == true, "{deleted}");
        one.run(&["stat", "-i", "name", "-t", "bad"]).await?.exits(3)?;
        let epoch = cluster.change_settings(|settings| settings.blocked_tags.clear()).await?;
        cluster.settled(epoch, 2).await?;
        one.run(&["import", "-i", "name", "-t", "bad", path]).await?.ok()?;
        exports(cluster, two, "name", &file).await.map(drop)
    })
    .await
}
