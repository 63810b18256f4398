//! `--check-ready` of real programs, and `dfmanager join-token`: what containers use for want of a shell.

use std::{process::Output, time::Duration};

use anyhow::ensure;
use damselfly_tests::{Cluster, Options, Program, Programs, until};
use rustix::process::Signal;
use tokio::process::Command;

async fn run(binary: &str, program: &Program, arguments: &[&str]) -> anyhow::Result<Output> {
    let programs = tokio::task::spawn_blocking(Programs::get).await??;
    let mut command = Command::new(programs.path(binary));
    Ok(command.arg("--config").arg(program.config()).args(arguments).output().await?)
}

#[tokio::test]
async fn a_program_is_asked_whether_it_is_ready() -> anyhow::Result<()> {
    Cluster::run(Options { schedulers: 1, nodes: 1, ..Options::default() }, async |cluster| {
        let programs = [
            ("dfmanager", cluster.manager()),
            ("dfscheduler", cluster.scheduler(0)),
            ("dfdaemon", cluster.node(0).program()),
        ];
        for (binary, program) in programs {
            let asked = run(binary, program, &["--check-ready"]).await?;
            ensure!(asked.status.code() == Some(0), "{binary}: {asked:?}");
        }
        for (binary, program) in programs {
            let pids = program.pids();
            program.signal(Signal::HUP);
            until(&format!("{binary} has read its configuration again"), Duration::from_secs(20), async || {
                ensure!(program.log().contains("the configuration was read again"), "{}", program.log());
                Ok(())
            })
            .await?;
            ensure!(program.pids() == pids, "{binary} is another process");
            program.ready().await?;
        }
        cluster.scheduler(0).kill().await?;
        // What `dfcache health` and `--check-ready` say is the same.
        until("the node notices that its scheduler is gone", Duration::from_secs(30), async || {
            let health = cluster.node(0).run(&["health"]).await?;
            health.exits(8).map(drop)
        })
        .await?;
        let asked = run("dfdaemon", cluster.node(0).program(), &["--check-ready"]).await?;
        let told = String::from_utf8_lossy(&asked.stderr).into_owned();
        ensure!(asked.status.code() == Some(1) && told.contains("none of 1 schedulers"), "{asked:?}");
        let asked = run("dfscheduler", cluster.scheduler(0), &["--check-ready"]).await?;
        let told = String::from_utf8_lossy(&asked.stderr).into_owned();
        ensure!(asked.status.code() == Some(1) && told.contains("nothing answers"), "{asked:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn the_manager_makes_join_tokens_from_the_command_line() -> anyhow::Result<()> {
    Cluster::run(Options { schedulers: 1, nodes: 1, ..Options::default() }, async |cluster| {
        let file = cluster.path("token");
        let wanted = format!("node,zone=b@{}", file.display());
        let made = run("dfmanager", cluster.manager(), &["join-token", "scheduler", &wanted, "--uses", "7"]).await?;
        ensure!(made.status.success() && made.stdout.starts_with(b"dfj1_"), "{made:?}");
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file)?.permissions());
        ensure!(mode & 0o777 == 0o600 && std::fs::read_to_string(&file)?.starts_with("dfj1_"), "{mode:o}");
        let tokens = cluster.manage("GET", "join-tokens", None).await?.body;
        let tokens: serde_json::Value = serde_json::from_str(&tokens)?;
        let newest = &tokens["items"][0];
        ensure!(newest["roles"][0] == "node" && newest["tags"]["zone"] == "b" && newest["uses"] == 7, "{newest}");
        let programs = tokio::task::spawn_blocking(Programs::get).await??;
        let mut after = Command::new(programs.path("dfmanager"));
        after.args(["join-token", "node", "--config"]).arg(cluster.manager().config());
        let made = after.output().await?;
        ensure!(made.status.success() && made.stdout.starts_with(b"dfj1_"), "--config after the command: {made:?}");
        let mut without = Command::new(programs.path("dfmanager"));
        without.args(["join-token", "node", "--data-dir"]).arg(cluster.path("nowhere"));
        let refused = without.output().await?;
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(told.contains("nowhere/admin_token") && told.contains("--config FILE"), "{told}");
        let refused = run("dfmanager", cluster.manager(), &["join-token", "node", "--uses", "0"]).await?;
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(refused.status.code() == Some(1) && told.contains("uses"), "{refused:?}");
        Ok(())
    })
    .await
}
