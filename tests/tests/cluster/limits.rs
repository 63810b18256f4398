//! Limits of the whole cluster.

use std::time::{Duration, Instant};

use anyhow::ensure;
use damselfly_tests::{Cluster, Options};

use crate::support::exports;

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
