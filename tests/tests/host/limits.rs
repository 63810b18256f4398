//! Limits of the daemon's process: each an answer that names it, and never the end of the daemon.

use std::process::Stdio;

use anyhow::ensure;
use rustix::process::Signal;

use crate::support::{Host, random, run_fails, text};

const LIMITED: &str = r#"ulimit "$1" "$2" && shift 2 && exec "$@""#;

#[tokio::test]
async fn a_file_longer_than_allowed_is_an_error() -> anyhow::Result<()> {
    let mut host = Host::new().await?;
    host.start().await?;
    let (long, short) = (host.file("long", 40_000_000)?, host.file("short", 1_000_000)?);
    host.import("long", &long).await?.ok()?;
    host.end(Signal::TERM).await?;
    // In blocks of 512 or 1024 bytes, by the shell: 16 or 32 MiB.
    host.with_wrapper(&["sh", "-c", LIMITED, "sh", "-f", "32768"]);
    host.start().await?;
    let output = host.path("output");
    run_fails(
        &host,
        &["import", "-i", "other", "--ttl", "1h", &text(&host.file("other", 40_000_001)?)],
        10,
        "RLIMIT_FSIZE",
    )
    .await?;
    // Told before anything is written: at this rate it would take hours.
    run_fails(&host, &["export", "-i", "long", "--rate-limit", "1KiB/s", &text(&output)], 10, "RLIMIT_FSIZE").await?;
    run_fails(&host, &["export", "-i", "long", &text(&output)], 10, "RLIMIT_FSIZE").await?;
    host.import("short", &short).await?.ok()?;
    host.exports("short", &random("short", 1_000_000)).await
}

#[tokio::test]
async fn out_of_descriptors_is_busy() -> anyhow::Result<()> {
    let mut host = Host::new().await?;
    host.with_wrapper(&["sh", "-c", LIMITED, "sh", "-n", "64"]);
    host.start().await?;
    let file = host.file("file", 3_000_000)?;
    host.import("c", &file).await?.ok()?;
    let exports: Vec<_> = (0..40)
        .map(|number| {
            let mut command = host.command();
            command.args(["export", "-i", "c", "--rate-limit", "1MiB/s"]).arg(host.path(&format!("output-{number}")));
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
        })
        .collect::<Result<_, _>>()?;
    let mut busy = 0;
    for export in exports {
        let done = export.wait_with_output().await?;
        let stderr = String::from_utf8_lossy(&done.stderr).into_owned();
        match done.status.code() {
            Some(0) => {}
            Some(10) => {
                busy += 1;
                ensure!(stderr.contains("limit of open files, which is 64"), "{stderr}");
            }
            // The daemon could not even take the connection.
            Some(4) => ensure!(stderr.contains("hint:"), "{stderr}"),
            _ => anyhow::bail!("{}: {stderr}", done.status),
        }
    }
    ensure!(busy > 0, "the limit was never reached");
    // It is none the worse.
    host.exports("c", &random("file", 3_000_000)).await
}
