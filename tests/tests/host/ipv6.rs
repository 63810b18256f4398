//! A cluster in a network that has IPv6 alone.

use std::{process::Stdio, time::Duration};

use anyhow::{Context as _, ensure};
use tempfile::TempDir;
use tokio::process::Command;

use crate::support::{can, programs, text};

/// Four hosts start, on a busy machine too.
const WITHIN: Duration = Duration::from_secs(180);
const SCRIPT: &str = include_str!("ipv6.sh");
/// Root of namespaces of its own. What runs there ends with it, and the networks are gone then.
const OWN: [&str; 8] = ["unshare", "--user", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--kill-child"];
/// All that the script needs of the system.
const NEEDED: &str = "mount -t tmpfs tmpfs /run && mkdir /run/netns && ip netns add a \
                      && ip link add name b type bridge && nsenter --net=/run/netns/a unshare --mount ip link set lo up";

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_works_where_there_is_only_ipv6() -> anyhow::Result<()> {
    if !can("a network with IPv6 alone", &[&OWN[..], &["sh", "-c", NEEDED]].concat()) {
        return Ok(());
    }
    let folder = TempDir::with_prefix("dft-")?;
    let programs = programs().await?.path("");
    let mut script = Command::new(OWN[0]);
    script.args(&OWN[1..]).args(["sh", "-c", SCRIPT, "sh"]).arg(programs).arg(folder.path());
    script.stdin(Stdio::null()).kill_on_drop(true);
    let done = tokio::time::timeout(WITHIN, script.output()).await.context("it takes too long")??;
    let (stdout, stderr) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    let logs = ["manager", "scheduler", "one", "two"]
        .map(|host| std::fs::read_to_string(folder.path().join(format!("{host}.log"))).unwrap_or_default());
    ensure!(done.status.success(), "{}: {stdout}{stderr}\n{}", text(folder.path()), logs.join("\n"));
    ensure!(stdout.contains("the same bytes over IPv6"), "{stdout}");
    for (log, host) in logs.iter().zip(["manager", "scheduler", "one", "two"]) {
        let warnings = log.lines().filter(|line| line.contains(" WARN ")).collect::<Vec<_>>();
        ensure!(warnings.len() == 1 && warnings[0].contains("no name servers"), "{host} says it once: {warnings:?}");
    }
    Ok(())
}
