//! What happens when somebody moves the clock of a host: by an hour, by a day, to 1970; while a program runs and between
//! two runs of it.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, ensure};
use damselfly_tests::{Cluster, Node, Options, Program, until};
use damselfly_transport::clock::SHIFT_VARIABLE;
use serde_json::Value;

use crate::support::{SETTLED, exports};

/// Entries are looked at every second, so whatever is removed wrongly is gone after this.
const EXPIRY_HAS_RUN: Duration = Duration::from_millis(2_500);

/// By how much a test moves a clock, in milliseconds.
fn moves() -> [(&'static str, i64); 5] {
    let since_1970 = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis() as i64);
    [
        ("an hour back", -3_600_000),
        ("two hours ahead", 7_200_000),
        ("a day back", -86_400_000),
        ("a day ahead", 86_400_000),
        ("to 1970", -since_1970),
    ]
}

/// A program whose wall clock the test moves.
struct Moved {
    program: Program,
    shift: PathBuf,
}

impl Moved {
    async fn restart(cluster: &Cluster, program: &Program) -> anyhow::Result<Self> {
        let this = Self { program: program.clone(), shift: cluster.path(&format!("shift of {}", program.name())) };
        this.set(0)?;
        this.start_again().await?;
        Ok(this)
    }

    fn set(&self, milliseconds: i64) -> anyhow::Result<()> {
        // Replaced: a program that reads a half of it would see another time.
        let new = self.shift.with_extension("new");
        fs::write(&new, milliseconds.to_string())?;
        Ok(fs::rename(new, &self.shift)?)
    }

    async fn start_again(&self) -> anyhow::Result<()> {
        self.program.terminate().await?;
        let shift = self.shift.to_str().context("a path that is no text")?;
        self.program.start_with(&[] as &[&str], &[(SHIFT_VARIABLE, shift)])?;
        self.program.ready().await
    }
}

async fn problems(node: &Node) -> anyhow::Result<Vec<Value>> {
    let health = node.run(&["health"]).await?.json;
    Ok(health["problems"].as_array().context("no problems in health")?.clone())
}

async fn shows_clock(node: &Node, is_wrong: bool, why: &str) -> anyhow::Result<()> {
    until(&format!("{why}: health shows it"), SETTLED, async || {
        let problems = problems(node).await?;
        let shown = problems.iter().any(|problem| problem["code"] == "clock");
        ensure!(shown == is_wrong, "{problems:?}");
        Ok(())
    })
    .await
}

/// Whatever the clock shows: the host is a member, its entry stays, others get it, and it imports.
async fn goes_on(cluster: &Cluster, node: &Node, number: usize, why: &str) -> anyhow::Result<()> {
    let begun = Instant::now();
    let (kept, file) = (format!("kept-{number}"), cluster.file("file", 64 << 10)?);
    let other = cluster.node(1);
    until(&format!("{why}: another host gets it"), SETTLED, async || {
        exports(cluster, other, &kept, &file).await.map(drop)
    })
    .await?;
    other.run(&["delete", "-l", "-i", &kept]).await?.ok()?;
    fs::remove_file(cluster.path(&format!("{kept} of {}", other.program().name())))?;
    let new = format!("new-{number}");
    until(&format!("{why}: it imports"), SETTLED, async || {
        let path = file.to_str().unwrap_or_default();
        node.run(&["import", "-i", &new, "--ttl", "1h", path]).await?.ok().map(drop)
    })
    .await?;
    until(&format!("{why}: its entries stay"), SETTLED, async || {
        for cid in [&kept, &new] {
            let entry = node.entry(cid).await?;
            if entry.is_none() {
                return Ok(Err(anyhow::anyhow!("{why}: {cid} is gone")));
            }
        }
        ensure!(begun.elapsed() >= EXPIRY_HAS_RUN, "nothing was looked at yet");
        Ok(Ok(()))
    })
    .await??;
    Ok(())
}

/// The end of an entry that was imported under whatever clock is the true one.
async fn ends_in_an_hour(node: &Node, cid: &str, why: &str) -> anyhow::Result<()> {
    let entry = node.entry(cid).await?.with_context(|| format!("{why}: {cid} is gone"))?;
    let expires = humantime::parse_rfc3339(entry["expires"].as_str().context("no end")?)?;
    let left = expires.duration_since(SystemTime::now()).unwrap_or_default();
    ensure!(left > Duration::from_secs(3000) && left < Duration::from_secs(3900), "{why}: it ends in {left:?}");
    Ok(())
}

#[tokio::test]
async fn a_clock_that_is_moved_while_programs_run_ends_nothing() -> anyhow::Result<()> {
    Cluster::run(Options { nodes: 2, ..Options::default() }, async |cluster| {
        let node = cluster.node(0);
        let of_node = Moved::restart(cluster, node.program()).await?;
        let of_scheduler = Moved::restart(cluster, cluster.scheduler(0)).await?;
        let file = cluster.file("file", 64 << 10)?;
        for (number, (why, shift)) in moves().into_iter().enumerate() {
            let kept = format!("kept-{number}");
            until(&format!("{why}: the clocks agree before"), SETTLED, async || {
                ensure!(problems(node).await?.is_empty(), "{:?}", problems(node).await?);
                node.run(&["import", "-i", &kept, "--ttl", "1h", file.to_str().unwrap_or_default()])
                    .await?
                    .ok()
                    .map(drop)
            })
            .await?;
            let connected = node.program().metric("damselfly_connected_peers").await?;
            of_node.set(shift)?;
            of_scheduler.set(shift)?;
            shows_clock(node, true, why).await?;
            goes_on(cluster, node, number, why).await?;
            ends_in_an_hour(node, &format!("new-{number}"), why).await?;
            ensure!(node.program().metric("damselfly_connected_peers").await? >= connected, "{why}: connections ended");
            for program in [node.program(), cluster.scheduler(0)] {
                ensure!(program.is_running(), "{why}: {} has ended", program.name());
                ensure!(!program.log().contains("no member"), "{why}: {}", program.log());
            }
            of_node.set(0)?;
            of_scheduler.set(0)?;
            shows_clock(node, false, why).await?;
        }
        // What has really expired goes.
        node.run(&["import", "-i", "short", "--ttl", "1s", file.to_str().unwrap_or_default()]).await?.ok()?;
        until("it expires", SETTLED, async || {
            ensure!(node.entry("short").await?.is_none(), "it is here");
            Ok(())
        })
        .await
    })
    .await
}

#[tokio::test]
async fn a_clock_that_is_moved_between_two_runs_ends_nothing() -> anyhow::Result<()> {
    Cluster::run(Options { nodes: 2, ..Options::default() }, async |cluster| {
        let node = cluster.node(0);
        let of_node = Moved::restart(cluster, node.program()).await?;
        let of_scheduler = Moved::restart(cluster, cluster.scheduler(0)).await?;
        let file = cluster.file("file", 64 << 10)?;
        for (number, (why, shift)) in moves().into_iter().enumerate() {
            let kept = format!("kept-{number}");
            until(&format!("{why}: it imports before"), SETTLED, async || {
                node.run(&["import", "-i", &kept, "--ttl", "1h", file.to_str().unwrap_or_default()])
                    .await?
                    .ok()
                    .map(drop)
            })
            .await?;
            of_node.set(shift)?;
            of_scheduler.set(shift)?;
            // As after a boot: what the last run knew of the time is of no use then.
            if number != 0 && number != 3 {
                fs::remove_file(node.program().data().join("clock.json"))?;
                fs::remove_file(cluster.scheduler(0).data().join("clock.json"))?;
            }
            of_scheduler.start_again().await?;
            of_node.start_again().await?;
            shows_clock(node, true, why).await?;
            goes_on(cluster, node, number, why).await?;
            of_node.set(0)?;
            of_scheduler.set(0)?;
            shows_clock(node, false, why).await?;
            of_scheduler.start_again().await?;
        }
        ensure!(node.program().is_running() && cluster.scheduler(0).is_running(), "a program has ended");
        Ok(())
    })
    .await
}
