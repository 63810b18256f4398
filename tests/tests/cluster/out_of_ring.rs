//! Schedulers leave the ring because they are dead or drained, and come back.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use damselfly_messages::config::SchedulerState::{self, Active, Dead, Draining};
use damselfly_tests::{Cluster, Options, Program};
use damselfly_transport::local::proto::daemon_client::DaemonClient;
use serde_json::{Value, json};
use tonic::transport::Channel;

use crate::support::{import_all, not_found, small_files};

const TASKS: usize = 200;
/// The shortest time after which a scheduler can be dead.
const DEAD_MS: u64 = 10_000;
/// A dead scheduler is out, and one that answers is back, by then, even on a busy machine.
const WITHIN: Duration = Duration::from_secs(60);

/// Who asks for all tasks, again and again.
struct Asker {
    daemon: DaemonClient<Channel>,
    names: Vec<String>,
}

impl Asker {
    async fn new(cluster: &Cluster) -> anyhow::Result<Self> {
        let names: Vec<_> = (0..TASKS).map(|number| format!("task {number}")).collect();
        import_all(cluster.node(0), &names, &small_files(cluster, "file", TASKS)?).await?;
        Ok(Self { daemon: cluster.node(1).client().await?, names })
    }

    async fn finds_all(&self, when: &str) -> anyhow::Result<()> {
        let missed = not_found(&self.daemon, &self.names, 1).await;
        ensure!(missed.is_empty(), "{when}: {missed:?}");
        Ok(())
    }

    /// Asks until `is_so`; everything must be found all the time.
    async fn finds_all_until(
        &self,
        what: &str,
        is_so: impl AsyncFn() -> anyhow::Result<bool>,
    ) -> anyhow::Result<Duration> {
        let began = Instant::now();
        loop {
            let is_over = is_so().await?;
            self.finds_all(&format!("until {what}")).await?;
            if is_over {
                return Ok(began.elapsed());
            }
            ensure!(began.elapsed() < WITHIN, "not within {WITHIN:?}: {what}");
        }
    }
}

async fn state(cluster: &Cluster, scheduler: &Program) -> anyhow::Result<SchedulerState> {
    let (_, settings) = cluster.settings().await?;
    let entry = settings.scheduler(&scheduler.peer_id().parse()?).map(|entry| entry.state);
    entry.context("it is not listed")
}

/// Asks the manager to change a scheduler's state. Returns the status and the answer.
async fn set(cluster: &Cluster, scheduler: &Program, wanted: &str) -> anyhow::Result<(u16, Value)> {
    let resource = format!("schedulers/{}", scheduler.peer_id());
    let answer = cluster.manage("PATCH", &resource, Some(&json!({ "state": wanted }))).await?;
    Ok((answer.status, serde_json::from_str(&answer.body)?))
}

#[tokio::test]
async fn a_dead_scheduler_leaves_the_ring_and_comes_back() -> anyhow::Result<()> {
    let options = Options { schedulers: 3, nodes: 2, ..Options::default() };
    Cluster::run(options, async |cluster| {
        let asker = Asker::new(cluster).await?;
        cluster.change_settings(|settings| settings.dead_scheduler_ms = DEAD_MS).await?;
        let cluster = &*cluster;
        let victim = &cluster.schedulers()[0];
        victim.kill().await?;
        let is = async |wanted| anyhow::Ok(state(cluster, victim).await? == wanted);
        let out = asker.finds_all_until("it is out of the ring", async || is(Dead).await).await?;
        ensure!(out >= Duration::from_millis(DEAD_MS) - Duration::from_secs(2), "out after only {out:?}");
        let (epoch, settings) = cluster.settings().await?;
        ensure!(settings.active_schedulers().count() == 2, "{settings:?}");
        cluster.settled(epoch, 2).await?;
        asker.finds_all("without it").await?;

        victim.start_ready().await?;
        let back = asker.finds_all_until("it is in the ring again", async || is(Active).await).await?;
        let (epoch, _) = cluster.settings().await?;
        cluster.settled(epoch, 3).await?;
        asker.finds_all("with it").await?;
        eprintln!("out after {out:.1?}, back after {back:.1?}");
        let audit = cluster.manage("GET", "audit?action=scheduler.state", None).await?;
        let audit: Value = serde_json::from_str(&audit.body)?;
        let items = audit["items"].as_array().context("a list")?;
        ensure!(items.len() == 2 && items.iter().all(|item| item["actor"] == "(manager)"), "{audit}");
        ensure!(items[1]["after"]["schedulers"].to_string().contains("dead"), "{audit}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_drained_scheduler_is_no_owner_until_an_operator_says_so() -> anyhow::Result<()> {
    let options = Options { schedulers: 3, nodes: 2, ..Options::default() };
    Cluster::run(options, async |cluster| {
        let asker = Asker::new(cluster).await?;
        cluster.change_settings(|settings| settings.dead_scheduler_ms = DEAD_MS).await?;
        let [one, two, three] = cluster.schedulers() else { anyhow::bail!("there are three") };
        for (round, drained) in [one, two].into_iter().enumerate() {
            let (status, answer) = set(cluster, drained, "draining").await?;
            ensure!(status == 200 && answer["state"] == "draining", "{status} {answer}");
            let (epoch, _) = cluster.settings().await?;
            asker
                .finds_all_until("nodes have settled", || async {
                    cluster.settled(epoch, 2 - round).await.map(|()| true)
                })
                .await?;
        }
        let (status, answer) = set(cluster, three, "draining").await?;
        ensure!(status == 409 && answer["code"] == "last_scheduler", "{status} {answer}");
        let asked = three.metric("damselfly_scheduler_tasks").await?;
        ensure!(asked == TASKS as f64, "the last one owns all: {asked}");
        for drained in [one, two] {
            drained.kill().await?;
        }
        asker.finds_all("without the drained ones").await?;
        for drained in [one, two] {
            ensure!(state(cluster, drained).await? == Draining, "{}", drained.name());
            drained.start_ready().await?;
        }
        // For longer than a dead one would take to come back.
        let began = Instant::now();
        asker
            .finds_all_until("it was drained for a while", || async {
                ensure!(state(cluster, one).await? == Draining, "nobody has put it back");
                Ok(began.elapsed() > Duration::from_millis(DEAD_MS) + Duration::from_secs(4))
            })
            .await?;
        let (status, answer) = set(cluster, one, "active").await?;
        ensure!(status == 200 && answer["state"] == "active", "{status} {answer}");
        let (epoch, _) = cluster.settings().await?;
        asker.finds_all_until("nodes have settled", async || cluster.settled(epoch, 2).await.map(|()| true)).await?;
        Ok(())
    })
    .await
}
