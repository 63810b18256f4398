//! The daemon is killed at any moment: what was acknowledged stays, and nothing wrong is ever given out.

use std::{
    env,
    fs::{self, File},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use damselfly_tests::{Cluster, Node, Options, until};
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use rustix::fs::{FlockOperation, flock};

use crate::support::{Host, SETTLED, answers, holds, list, random, same_bytes, same_files, text};

/// A killed daemon answers again within this time.
const START_MAX: Duration = Duration::from_secs(2);
const IMPORTED_BYTES: u64 = 10_000_000;
const FETCHED_BYTES: u64 = 24_000_000;

#[tokio::test]
async fn killed_while_it_imports() -> anyhow::Result<()> {
    imports(10).await
}

#[tokio::test]
#[ignore = "takes a minute"]
async fn killed_a_hundred_times_while_it_imports() -> anyhow::Result<()> {
    imports(100).await
}

#[tokio::test]
async fn killed_while_it_downloads() -> anyhow::Result<()> {
    downloads(10).await
}

#[tokio::test]
#[ignore = "takes minutes"]
async fn killed_a_hundred_times_while_it_downloads() -> anyhow::Result<()> {
    downloads(100).await
}

#[tokio::test]
async fn a_long_download_goes_on_where_it_was() -> anyhow::Result<()> {
    let options = Options { schedulers: 1, nodes: 2, upload_rate_limit: Some("3MiB/s"), ..Options::default() };
    Cluster::run(options, async |cluster| {
        let [holder, killed] = [cluster.node(0), cluster.node(1)];
        let file = cluster.file("task", FETCHED_BYTES)?;
        holder.import("task", &file).await?.ok()?;
        let output = cluster.path("output");
        let mut command = killed.command();
        let export = command.args(["export", "-q", "-i", "task"]).arg(&output).stderr(Stdio::piped()).spawn()?;
        // Every five seconds what has come is made to last.
        tokio::time::sleep(Duration::from_millis(6_500)).await;
        killed.program().kill().await?;
        let ended = export.wait_with_output().await?;
        ensure!(ended.status.code() == Some(4) && !output.exists(), "{}", ended.status);
        restart(killed).await?;
        let done = until("the export goes on", SETTLED, async || killed.export("task", &output).await?.ok()).await?;
        same_files(&file, &output)?;
        let local = done["from_local_bytes"].as_u64().unwrap_or_default();
        eprintln!("{local} of {FETCHED_BYTES} bytes were kept");
        ensure!(local >= FETCHED_BYTES / 4 && done["from_peers_bytes"] == FETCHED_BYTES - local, "{done}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn it_starts_before_the_killed_one_is_quite_gone() -> anyhow::Result<()> {
    Host::run(async |host| {
        let file = host.file("task", IMPORTED_BYTES)?;
        host.import("task", &file).await?.ok()?;
        // A process that has been killed closes its files after everything else.
        for lock in [host.data().join("LOCK"), host.path("socket.lock")] {
            host.kill().await?;
            let held = File::open(&lock)?;
            flock(&held, FlockOperation::LockExclusive)?;
            let closed = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(300));
                drop(held);
            });
            let took = host.start().await?;
            closed.join().ok().context("the lock is held for ever")?;
            ensure!((Duration::from_millis(250)..START_MAX).contains(&took), "{} after {took:.0?}", lock.display());
        }
        host.exports("task", &random("task", IMPORTED_BYTES)).await
    })
    .await
}

/// Another run kills at other moments; `DAMSELFLY_SEED` repeats one.
fn moments() -> SmallRng {
    let seed = env::var("DAMSELFLY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random::<u64>);
    eprintln!("DAMSELFLY_SEED={seed}");
    SmallRng::seed_from_u64(seed)
}

/// A moment within a work that took `usual`, or just after it.
fn moment(random: &mut SmallRng, usual: Duration, number: usize, of: usize) -> Duration {
    // One in each slice, so that few points are spread as well as many.
    let slice = (number as f64 + random.random::<f64>()) / of as f64;
    usual.mul_f64(slice * 1.2)
}

async fn imports(points: usize) -> anyhow::Result<()> {
    let mut random_moments = moments();
    Host::run(async |host| {
        let (mut acknowledged, mut usual) = (Vec::new(), Duration::ZERO);
        // The first one is slower than those to come.
        for cid in ["first", "second", "third"] {
            let file = host.file(cid, IMPORTED_BYTES)?;
            let imported = host.import(cid, &file).await?;
            usual = imported.took;
            imported.ok()?;
            acknowledged.push(cid.to_owned());
        }
        let (mut present, mut absent, mut slowest) = (0, 0, Duration::ZERO);
        for number in 0..points {
            let cid = format!("import {number}");
            let file = host.file(&cid, IMPORTED_BYTES)?;
            let mut command = host.command();
            command.args(["import", "--json", "-i", &cid]).arg(&file).stdout(Stdio::piped()).stderr(Stdio::piped());
            let import = command.spawn()?;
            tokio::time::sleep(moment(&mut random_moments, usual, number, points)).await;
            host.kill().await?;
            let ended = import.wait_with_output().await?;
            slowest = slowest.max(host.start().await?);
            let exit = ended.status.code();
            let told = String::from_utf8_lossy(&ended.stdout);
            ensure!(matches!(exit, Some(0 | 4)), "{cid}: {}: {told}", ended.status);
            ensure!(exit == Some(0) || told.contains("daemon_unreachable"), "{cid}: {told}");
            match (host.entry(&cid).await?, exit) {
                (Some(_), _) => {
                    present += 1;
                    acknowledged.push(cid);
                }
                (None, Some(0)) => anyhow::bail!("{cid} was acknowledged and is gone"),
                (None, _) => absent += 1,
            }
            fs::remove_file(&file)?;
            holds(&host.data(), acknowledged.len())?;
            let sample = &acknowledged[random_moments.random_range(0..acknowledged.len())];
            host.exports(sample, &random(sample, IMPORTED_BYTES)).await?;
        }
        for cid in &acknowledged {
            host.exports(cid, &random(cid, IMPORTED_BYTES)).await.with_context(|| cid.clone())?;
        }
        eprintln!(
            "killed {points} times within imports of {usual:.0?}: {present} are there, {absent} are not, \
             the slowest start took {slowest:.0?}"
        );
        ensure!(slowest <= START_MAX, "a start took {slowest:.2?}");
        Ok(())
    })
    .await
}

async fn downloads(points: usize) -> anyhow::Result<()> {
    let mut random_moments = moments();
    let options = Options { schedulers: 1, nodes: 2, upload_rate_limit: Some("80MiB/s"), ..Options::default() };
    Cluster::run(options, async |cluster| {
        let [holder, killed] = [cluster.node(0), cluster.node(1)];
        let mut usual = Duration::ZERO;
        for cid in ["first", "second"] {
            let file = cluster.file(cid, FETCHED_BYTES)?;
            holder.import(cid, &file).await?.ok()?;
            let exported = killed.export(cid, &cluster.path("output")).await?;
            usual = exported.took;
            exported.ok()?;
        }
        let (mut finished, mut resumed, mut slowest) = (0, 0, Duration::ZERO);
        for number in 0..points {
            let cid = format!("download {number}");
            let file = cluster.file(&cid, FETCHED_BYTES)?;
            holder.import(&cid, &file).await?.ok()?;
            let folder = cluster.path(&format!("outputs {number}"));
            fs::create_dir(&folder)?;
            let output = folder.join("output");
            let mut command = killed.command();
            command.args(["export", "--json", "-i", &cid]).arg(&output).stdout(Stdio::piped()).stderr(Stdio::piped());
            let export = command.spawn()?;
            tokio::time::sleep(moment(&mut random_moments, usual, number, points)).await;
            killed.program().kill().await?;
            let ended = export.wait_with_output().await?;
            slowest = slowest.max(restart(killed).await?);
            match ended.status.code() {
                Some(0) => {
                    finished += 1;
                    same_files(&file, &output)?;
                    fs::remove_file(&output)?;
                }
                Some(4) => ensure!(list(&folder)?.is_empty(), "a killed export left {:?}", list(&folder)?),
                _ => anyhow::bail!("{cid}: {}: {}", ended.status, String::from_utf8_lossy(&ended.stdout)),
            }
            // Whatever is there is right, and the rest can be had.
            let done = until("the export goes on", SETTLED, async || killed.export(&cid, &output).await?.ok()).await?;
            same_files(&file, &output)?;
            let (local, peers) = (done["from_local_bytes"].as_u64(), done["from_peers_bytes"].as_u64());
            ensure!(local.zip(peers).map(|(local, peers)| local + peers) == Some(FETCHED_BYTES), "{done}");
            resumed += usize::from(local > Some(0) && peers > Some(0));
            // The store gets tidy: complete contents only. That is not what an export waits for.
            until("the copy is stored", SETTLED, async || holds(&killed.program().data(), number + 3)).await?;
            fs::remove_dir_all(&folder)?;
            fs::remove_file(&file)?;
        }
        for number in 0..points {
            let cid = format!("download {number}");
            let output = cluster.path("output");
            killed.run(&["export", "-l", "-f", "-i", &cid, &text(&output)]).await?.ok()?;
            same_bytes(&fs::read(&output)?, &fs::read(cluster.file(&cid, FETCHED_BYTES)?)?)?;
        }
        eprintln!(
            "killed {points} times within downloads of {usual:.0?}: {finished} were finished, {resumed} were resumed, \
             the slowest start took {slowest:.0?}"
        );
        ensure!(slowest <= START_MAX, "a start took {slowest:.2?}");
        Ok(())
    })
    .await
}

async fn restart(node: &Node) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    node.program().start()?;
    until("the daemon answers", Duration::from_secs(20), async || answers(node.socket()).await).await?;
    Ok(begun.elapsed())
}
