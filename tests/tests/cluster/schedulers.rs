//! Schedulers die, forget everything, and come back.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::ensure;
use damselfly_tests::{Cluster, Options, Program, until};
use rustix::process::Signal;

use crate::support::{
    RECEIVED, SETTLED, exports, found_everywhere, import_all, kill_all, not_found, received, small_files, start_all,
};

const TASKS: usize = 60;

/// 3 schedulers, any one killed in the middle of an export and of many questions.
#[tokio::test]
async fn one_scheduler_dies() -> anyhow::Result<()> {
    let options = Options { schedulers: 3, nodes: 2, upload_rate_limit: Some("12MiB/s"), ..Options::default() };
    Cluster::run(options, async |cluster| {
        let names: Vec<_> = (0..TASKS).map(|number| format!("task {number}")).collect();
        let files = small_files(cluster, "file", TASKS)?;
        import_all(cluster.node(0), &names, &files).await?;
        let daemon = cluster.node(1).client().await?;
        for (number, victim) in cluster.schedulers().iter().enumerate() {
            let large = format!("large {number}");
            let file = cluster.file(&large, 24 << 20)?;
            cluster.node(0).import(&large, &file).await?.ok()?;
            let before = cluster.node(1).program().metric(RECEIVED).await?;
            let stop = AtomicBool::new(false);
            let export = async {
                let done = exports(cluster, cluster.node(1), &large, &file).await;
                stop.store(true, Ordering::Relaxed);
                done
            };
            let kill = async {
                received(cluster.node(1), before, 4 << 20).await?;
                victim.kill().await
            };
            let ask = async {
                loop {
                    let missed = not_found(&daemon, &names, 1).await;
                    ensure!(missed.is_empty(), "without {}: {missed:?}", victim.name());
                    if stop.load(Ordering::Relaxed) {
                        return Ok(());
                    }
                }
            };
            let (exported, killed, asked) = tokio::join!(export, kill, ask);
            let exported = exported?;
            killed?;
            asked?;
            ensure!(exported["from_peers_bytes"] == 24 << 20, "{exported}");
            // What is begun without it works too.
            let share = TASKS / cluster.schedulers().len();
            for index in (number * share..).take(share / 4) {
                exports(cluster, cluster.node(1), &names[index], &files[index]).await?;
                let dropped = cluster.node(1).run(&["delete", "-i", &names[index], "-l"]).await?.ok()?;
                ensure!(dropped["deleted"] == true, "{dropped}");
            }
            let late = format!("late {number}");
            cluster.node(1).import(&late, &files[number]).await?.ok()?;
            exports(cluster, cluster.node(0), &late, &files[number]).await?;
            victim.start_ready().await?;
            cluster.settled(1, 3).await?;
        }
        Ok(())
    })
    .await
}

/// How often all schedulers were asked whether they know a name, and knew it.
async fn looked_up(cluster: &Cluster) -> anyhow::Result<f64> {
    let found = "damselfly_scheduler_requests_total{kind=\"stat_task\",result=\"ok\"}";
    let counts = cluster.schedulers().iter().map(|scheduler| scheduler.metric(found));
    Ok(futures::future::try_join_all(counts).await?.into_iter().sum())
}

/// A look-up asks one owner, and another one when that is silent or does not know the name.
#[tokio::test]
async fn one_owner_is_asked_and_the_other_when_that_is_silent() -> anyhow::Result<()> {
    Cluster::run(Options { nodes: 1, seeds: 0, ..Options::default() }, async |cluster| {
        let names: Vec<_> = (0..TASKS).map(|number| format!("task {number}")).collect();
        import_all(cluster.node(0), &names, &small_files(cluster, "file", TASKS)?).await?;
        let daemon = cluster.node(0).client().await?;
        let before = looked_up(cluster).await?;
        for name in &names {
            let missed = not_found(&daemon, std::slice::from_ref(name), 1).await;
            ensure!(missed.is_empty(), "{missed:?}");
        }
        // Where the machine is busy, some of them take long enough for the other owner to be asked too.
        let asked = looked_up(cluster).await? - before;
        ensure!((TASKS as f64..1.9 * TASKS as f64).contains(&asked), "{asked} for {TASKS} names");
        for silent in cluster.schedulers() {
            silent.signal(Signal::STOP);
            let begun = Instant::now();
            let missed = not_found(&daemon, &names, 1).await;
            silent.signal(Signal::CONT);
            ensure!(missed.is_empty(), "while {} is silent: {missed:?}", silent.name());
            let took = begun.elapsed();
            ensure!(took < Duration::from_secs(4), "{} was waited for: {took:?}", silent.name());
        }
        Ok(())
    })
    .await
}

/// All records are back in time, and nobody imported again.
async fn all_back(cluster: &Cluster, names: &[String], since: Instant, how: &str) -> anyhow::Result<()> {
    let asker = cluster.nodes().last().ok_or_else(|| anyhow::anyhow!("no node"))?;
    let daemon = asker.client().await?;
    let expected: f64 = (2 * names.len()) as f64;
    until(&format!("all records are back {how}"), SETTLED, async || {
        let mut known = 0.0;
        for scheduler in cluster.schedulers() {
            known += scheduler.metric("damselfly_scheduler_tasks").await?;
        }
        ensure!(known == expected, "the owners know {known} of {expected}");
        Ok(())
    })
    .await?;
    let told = since.elapsed();
    let missed = not_found(&daemon, names, 1).await;
    ensure!(missed.is_empty(), "{how}: {missed:?}");
    let took = since.elapsed();
    eprintln!("{how}: all known again after {told:.1?}, all found after {took:.1?}");
    ensure!(took < Duration::from_secs(15), "{how}: it took {took:?}");
    Ok(())
}

#[tokio::test]
async fn all_schedulers_restart_empty() -> anyhow::Result<()> {
    let options = Options { schedulers: 3, nodes: 3, ..Options::default() };
    Cluster::run(options, async |cluster| {
        let names: Vec<_> = (0..2 * TASKS).map(|number| format!("task {number}")).collect();
        let files = small_files(cluster, "file", 2 * TASKS)?;
        import_all(cluster.node(0), &names[..TASKS], &files[..TASKS]).await?;
        import_all(cluster.node(1), &names[TASKS..], &files[TASKS..]).await?;
        let imports = async || {
            let nodes = [cluster.node(0), cluster.node(1)];
            let counted = nodes.map(async |node| node.program().metric("damselfly_node_imports_total").await);
            anyhow::Ok(futures::future::try_join_all(counted).await?.iter().sum::<f64>())
        };
        let before = imports().await?;

        for scheduler in cluster.schedulers() {
            scheduler.kill().await?;
            scheduler.start()?;
        }
        all_back(cluster, &names, Instant::now(), "one after another").await?;

        kill_all(cluster.schedulers()).await?;
        let since = Instant::now();
        cluster.schedulers().iter().try_for_each(Program::start)?;
        all_back(cluster, &names, since, "at once").await?;

        ensure!(imports().await? == before, "something was imported again");
        exports(cluster, cluster.node(2), &names[0], &files[0]).await.map(drop)
    })
    .await
}

#[tokio::test]
async fn work_goes_on_without_any_scheduler() -> anyhow::Result<()> {
    let options = Options { upload_rate_limit: Some("8MiB/s"), ..Options::default() };
    Cluster::run(options, async |cluster| {
        let [one, two, three] = [cluster.node(0), cluster.node(1), cluster.node(2)];
        let large = cluster.file("large", 32 << 20)?;
        one.import("large", &large).await?.ok()?;
        let [known, unknown, fresh] =
            [cluster.file("known", 1 << 20)?, cluster.file("unknown", 1 << 20)?, cluster.file("fresh", 3 << 20)?];
        one.import("known", &known).await?.ok()?;
        one.import("unknown", &unknown).await?.ok()?;
        exports(cluster, three, "known", &known).await?;
        let dropped = three.run(&["delete", "-i", "known", "-l"]).await?.ok()?;
        ensure!(dropped["deleted"] == true, "{dropped}");

        let before = two.program().metric(RECEIVED).await?;
        let transfer = exports(cluster, two, "large", &large);
        let meanwhile = async {
            received(two, before, 4 << 20).await?;
            kill_all(cluster.schedulers()).await?;

            // Kept, and announced later.
            let queued = one.import("fresh", &fresh).await?;
            ensure!(queued.message().contains("kept") && queued.message().contains("queued"), "{queued}");
            queued.exits(8)?;
            let entry = one.entry("fresh").await?.unwrap_or_default();
            ensure!(entry["state"] == "queued", "{entry}");
            exports(cluster, one, "fresh", &fresh).await?;
            exports(cluster, one, "unknown", &unknown).await?;
            one.stat("unknown").await?.ok()?;

            // Of holders it does not know.
            let output = cluster.path("nothing");
            let refused = three.export("unknown", &output).await?;
            ensure!(refused.took < Duration::from_secs(5), "{refused}");
            ensure!(refused.message().contains("no scheduler is reachable"), "{refused}");
            refused.exits(8)?;
            ensure!(!output.exists(), "a failed export left a file");
            let refused = three.stat("unknown").await?;
            ensure!(refused.took < Duration::from_secs(5), "{refused}");
            refused.exits(8)?;

            // Of holders that it has learned lately.
            exports(cluster, three, "known", &known).await.map(drop)
        };
        let (transferred, meanwhile) = tokio::join!(transfer, meanwhile);
        meanwhile?;
        let transferred = transferred?;
        ensure!(transferred["from_peers_bytes"] == 32 << 20, "{transferred}");

        start_all(cluster.schedulers()).await?;
        until("the queued import is announced", SETTLED, async || {
            let entry = one.entry("fresh").await?.unwrap_or_default();
            ensure!(entry["state"] == "ok", "{entry}");
            Ok(())
        })
        .await?;
        found_everywhere(cluster, "fresh", 1).await?;
        found_everywhere(cluster, "large", 2).await?;
        exports(cluster, two, "fresh", &fresh).await.map(drop)
    })
    .await
}
