//! A name stands for one content.

use std::{collections::HashMap, path::PathBuf};

use anyhow::{Context as _, anyhow, bail, ensure};
use damselfly_tests::{Cluster, Node, Options, until};
use damselfly_transport::local::{Code, Failure, proto::daemon_client::DaemonClient};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::Value;
use tonic::transport::Channel;

use crate::support::{
    AT_A_TIME, SETTLED, exports, found_everywhere, is, kill_all, same, small_files, start_all, stat, told,
};

#[tokio::test]
async fn the_first_content_stays() -> anyhow::Result<()> {
    Cluster::run(Options::default(), async |cluster| {
        let (first, other) = (cluster.file("first", 3 << 20)?, cluster.file("other", 3 << 20)?);
        let content = cluster.node(0).import("name", &first).await?.ok()?["content_id"].clone();
        for round in ["before anybody else holds it", "when all hold it"] {
            for node in cluster.nodes() {
                let refused = node.import("name", &other).await?;
                ensure!(refused.code() == "conflict", "{round}: {refused}");
                refused.exits(6)?;
                let found = node.stat("name").await?.ok()?;
                ensure!(found["content_id"] == content, "{round}: {found}");
            }
            for node in &cluster.nodes()[1..] {
                let entry = node.entry("name").await?;
                ensure!(round != "before anybody else holds it" || entry.is_none(), "something is kept: {entry:?}");
                exports(cluster, node, "name", &first).await?;
            }
        }
        found_everywhere(cluster, "name", 3).await?;
        // The same bytes are no conflict, and the others may have another name.
        cluster.node(2).import("name", &first).await?.ok()?;
        cluster.node(1).import("another name", &other).await?.ok()?;
        exports(cluster, cluster.node(2), "another name", &other).await?;
        Ok(())
    })
    .await
}

/// Two hosts import other bytes under the same 200 names: while the ring is as it is, while it changes, and while no
/// scheduler is there.
#[tokio::test]
async fn racing_imports_have_one_winner() -> anyhow::Result<()> {
    let options = Options { schedulers: 3, ..Options::default() };
    Cluster::run(options, async |cluster| {
        let mut races = Races::default();
        races.run(cluster, "plain", 70).await?;

        let (before, after) = (Race::new(cluster, "ring", 70)?, cluster.leave_ring(0));
        let (raced, epoch) = tokio::join!(before.run(cluster), after);
        races.0.push(raced?);
        cluster.settled(epoch?, 2).await?;
        let epoch = cluster.join_ring(0).await?;
        cluster.settled(epoch, 2).await?;

        kill_all(cluster.schedulers()).await?;
        races.run(cluster, "queued", 60).await?;
        let queued = races.0.last().context("no race")?;
        for outcome in queued.outcomes.iter().flatten() {
            ensure!(is(outcome, Code::NoSource), "no scheduler was there: {outcome:?}");
        }
        start_all(cluster.schedulers()).await?;

        for race in &races.0 {
            race.judge(cluster).await?;
        }
        Ok(())
    })
    .await
}

#[derive(Default)]
struct Races(Vec<Race>);

impl Races {
    async fn run(&mut self, cluster: &Cluster, what: &str, count: usize) -> anyhow::Result<()> {
        self.0.push(Race::new(cluster, what, count)?.run(cluster).await?);
        Ok(())
    }
}

/// Names, and what two hosts import under each.
struct Race {
    names: Vec<String>,
    files: [Vec<PathBuf>; 2],
    outcomes: Vec<[Result<String, Failure>; 2]>,
}

impl Race {
    fn new(cluster: &Cluster, what: &str, count: usize) -> anyhow::Result<Self> {
        let files =
            [small_files(cluster, &format!("{what}-a"), count)?, small_files(cluster, &format!("{what}-b"), count)?];
        Ok(Self { names: (0..count).map(|number| format!("{what} {number}")).collect(), files, outcomes: Vec::new() })
    }

    async fn run(mut self, cluster: &Cluster) -> anyhow::Result<Self> {
        let daemons = [cluster.node(0).client().await?, cluster.node(1).client().await?];
        let race = |number: usize| {
            let [mut one, mut other] = daemons.clone();
            let (name, files) = (&self.names[number], [&self.files[0][number], &self.files[1][number]]);
            async move {
                let one = Node::import_by_path(&mut one, name, files[0]);
                let other = Node::import_by_path(&mut other, name, files[1]);
                let (one, other) = tokio::try_join!(one, other)?;
                anyhow::Ok([one, other])
            }
        };
        self.outcomes = stream::iter((0..self.names.len()).map(race)).buffered(AT_A_TIME / 2).try_collect().await?;
        Ok(self)
    }

    /// One winner on every host, and the loser told.
    async fn judge(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let what = format!("{} and its like have one winner", self.names[0]);
        let winners = until(&what, SETTLED, async || self.winners(cluster).await).await?;
        let lost = winners.iter().filter(|winner| **winner == 1).count();
        eprintln!("{what}: {} times the one, {lost} times the other", winners.len() - lost);
        // Whoever asks gets the winner's bytes, and nobody the loser's.
        let daemons = futures::future::try_join_all(cluster.nodes().iter().map(Node::client)).await?;
        let exports = winners.iter().enumerate().flat_map(|(number, winner)| {
            let (name, file) = (&self.names[number], &self.files[*winner][number]);
            [daemons[2].clone(), daemons[1 - winner].clone()].into_iter().enumerate().map(move |(asker, mut daemon)| {
                let output = cluster.path(&format!("{name} for {asker}"));
                async move {
                    match Node::export_to_path(&mut daemon, name, &output).await? {
                        Ok(_) => same(file, &output),
                        Err(failure) => bail!("{name} for {asker}: {}", told(&failure)),
                    }
                }
            })
        });
        stream::iter(exports).buffer_unordered(AT_A_TIME).try_collect::<Vec<()>>().await.map(drop)
    }

    async fn winners(&self, cluster: &Cluster) -> anyhow::Result<Vec<usize>> {
        let daemons = futures::future::try_join_all(cluster.nodes().iter().map(Node::client)).await?;
        let mut listed = Vec::new();
        for node in &cluster.nodes()[..2] {
            let entries = node.entries().await?.into_iter();
            listed.push(entries.map(|entry| (entry["cid"].as_str().unwrap_or_default().to_owned(), entry)).collect());
        }
        let winners = (0..self.names.len()).map(|number| self.winner(&daemons, &listed, number));
        stream::iter(winners).buffered(AT_A_TIME).try_collect().await
    }

    async fn winner(
        &self,
        daemons: &[DaemonClient<Channel>],
        listed: &[HashMap<String, Value>],
        number: usize,
    ) -> anyhow::Result<usize> {
        let (name, outcomes) = (&self.names[number], &self.outcomes[number]);
        let mut contents = Vec::new();
        for daemon in daemons {
            let found = stat(daemon, name).await.map_err(|failure| anyhow!("{name}: {}", told(&failure)))?;
            contents.push(found.task.context("no task")?.content_id);
        }
        ensure!(contents.iter().all(|content| *content == contents[0]), "{name}: hosts disagree: {contents:?}");
        let entries = [listed[0].get(name), listed[1].get(name)];
        let standing = |entry: Option<&Value>| entry.is_some_and(|entry| entry["state"] == "ok");
        let winner = match (standing(entries[0]), standing(entries[1])) {
            (true, false) => 0,
            (false, true) => 1,
            _ => bail!("{name}: {entries:?}"),
        };
        let (loser, won) = (1 - winner, entries[winner].context("no entry")?);
        ensure!(won["content_id"] == contents[0], "{won} does not stand: {contents:?}");
        ensure!(!is(&outcomes[winner], Code::Conflict), "{name}: the winner was told of a conflict");
        let told_by_ls = entries[loser].is_some_and(|entry| entry["state"] == "conflict");
        let told_at_once = is(&outcomes[loser], Code::Conflict);
        ensure!(told_at_once || told_by_ls, "{name}: the loser was told {:?}", outcomes[loser]);
        for failure in outcomes.iter().flat_map(|outcome| outcome.as_ref().err()) {
            ensure!(matches!(failure.code, Code::Conflict | Code::NoSource), "{name}: {}", told(failure));
        }
        Ok(winner)
    }
}
