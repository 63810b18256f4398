//! A manager that is lost and comes back from its backup.

use std::{fs, path::Path, process::Stdio};

use anyhow::{Context as _, ensure};
use damselfly_tests::{Cluster, Options, until};
use serde_json::Value;
use tokio::process::Command;

use crate::{
    membership::Newcomer,
    support::{SETTLED, exports},
};

/// Runs dfmanager with the configuration of the cluster's own.
async fn dfmanager(cluster: &Cluster, arguments: &[&str], path: &Path) -> anyhow::Result<()> {
    let mut command = Command::new(cluster.programs().path("dfmanager"));
    command.arg("--config").arg(cluster.manager().config()).args(arguments).arg(path).stdin(Stdio::null());
    let done = command.output().await?;
    ensure!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

#[tokio::test]
async fn what_members_know_is_not_lost_with_the_manager() -> anyhow::Result<()> {
    Cluster::run(Options { schedulers: 1, nodes: 2, ..Options::default() }, async |cluster| {
        let file = cluster.file("file", 3 << 20)?;
        cluster.node(0).import("file", &file).await?.ok()?;
        let early = cluster.join_token(&["node"], 1, 600).await?;
        let backup = cluster.path("backup");
        dfmanager(cluster, &["backup", "--output"], &backup).await?;

        // What the backup does not know: two epochs, and a member.
        cluster.change_settings(|settings| settings.candidate_parents = 5).await?;
        let late = cluster.join_token(&["node"], 1, 600).await?;
        let newcomer = Newcomer::new(cluster, "dfdaemon", "newcomer")?;
        let mut running =
            newcomer.command(late["token"].as_str().context("no token")?).stderr(Stdio::null()).spawn()?;
        until("it has joined", SETTLED, async || {
            ensure!(newcomer.folder().join("data/membership.json").exists(), "not yet");
            Ok(())
        })
        .await?;
        let epoch = cluster.change_settings(|settings| settings.candidate_parents = 6).await?;
        cluster.settled(epoch, 1).await?;

        cluster.manager().kill().await?;
        fs::remove_dir_all(cluster.manager().data())?;
        dfmanager(cluster, &["restore", "--from"], &backup).await?;
        cluster.manager().start_ready().await?;
        let after = until("a change is the next epoch of all", SETTLED, async || {
            cluster.change_settings(|settings| settings.concurrent_parents = 7).await
        });
        let after = after.await?;
        ensure!(after == epoch + 1, "epoch {after} after {epoch}");
        cluster.settled(after, 1).await?;
        let (_, settings) = cluster.settings().await?;
        ensure!(settings.candidate_parents == 6, "what members knew is in force: {settings:?}");
        exports(cluster, cluster.node(1), "file", &file).await?;

        // Who joined since stays a member, and the token of before is good.
        ensure!(running.try_wait()?.is_none(), "the newcomer has ended");
        let second = Newcomer::new(cluster, "dfdaemon", "second")?;
        let _running = second.command(early["token"].as_str().context("no token")?).stderr(Stdio::null()).spawn()?;
        until("a host joins with the token of before", SETTLED, async || {
            let known = fs::read(second.folder().join("data/membership.json"))?;
            let known: Value = serde_json::from_slice(&known)?;
            ensure!(known["managers"].as_array().is_some_and(|all| !all.is_empty()), "{known}");
            Ok(())
        })
        .await
    })
    .await
}
