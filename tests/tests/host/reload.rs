//! SIGHUP: a daemon reads its configuration again and goes on.

use std::{fs, time::Duration};

use anyhow::ensure;
use damselfly_tests::until;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Host, text};

async fn hang_up(host: &Host, told: &str) -> anyhow::Result<()> {
    let pid = host.pid().and_then(|pid| Pid::from_raw(pid.cast_signed()));
    let seen = host.log().matches(told).count();
    kill_process(pid.expect("it runs"), Signal::HUP)?;
    until(&format!("the log says {told:?}"), Duration::from_secs(20), async || {
        ensure!(host.log().matches(told).count() > seen, "{}", host.log());
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_reads_the_configuration_again() -> anyhow::Result<()> {
    let mut host = Host::new().await?;
    let file = host.path("dfdaemon.toml");
    fs::write(&file, "log_filter = \"info\"\n")?;
    host.with_arguments(&["--config", &text(&file)]);
    host.start().await?;
    let pid = host.pid();

    fs::write(&file, "log_filter = \"info,damselfly_node=debug\"\nupload_rate_limit = \"5MiB/s\"\n")?;
    hang_up(&host, "the configuration was read again").await?;
    ensure!(host.log().contains("upload_rate_limit"), "{}", host.log());
    // What is wrong, and what cannot change, is said, and the daemon goes on.
    fs::write(&file, "log_filter = 5\nnonsense = true\n")?;
    hang_up(&host, "the one before stays").await?;
    fs::write(&file, "role = \"seed\"\nstore_quota_bytes = \"1GiB\"\n")?;
    hang_up(&host, "only by a restart").await?;
    ensure!(host.log().contains("role"), "{}", host.log());
    host.run(&["ls"]).await?.ok()?;
    ensure!(host.pid() == pid && host.end(Signal::TERM).await?.success(), "it ends as ever");
    Ok(())
}
