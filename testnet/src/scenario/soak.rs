//! Everything at random for a long time: load, and whatever may break.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    num::NonZeroU64,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use futures::future::try_join_all;
use rand::{Rng as _, RngCore as _, SeedableRng as _, rngs::SmallRng, seq::IndexedRandom as _};
use serde_json::{Value, json};
use tokio::{sync::watch, time::sleep};

use super::{
    harness::{Harness, Unreached, Users},
    scenarios::{CONVERGES_WITHIN, Figures, figures},
};
use crate::{
    http,
    links::{proxy::Order, wire::Shape},
    listing::metric,
    usage,
};

/// Who use the cluster at a time.
const USERS: usize = 4;
/// A user has no more names than this: the oldest are deleted.
const NAMES_EACH: usize = 20;
/// So many of the names deleted long ago are looked at after each phase; all of them are in the end.
const DELETED_LOOKED_AT: usize = 20;
/// Memory may grow until then.
const WARM_AFTER: Duration = Duration::from_secs(600);
/// And afterwards by so much, as a share.
const GROWTH_MAX: f64 = 0.10;
/// What a scheduler's records take.
const STATE_BYTES: &str = "damselfly_scheduler_state_bytes";
/// These are never killed, so that what they take can be compared.
const LASTING: [&str; 6] = ["manager", "scheduler-1", "scheduler-2", "node-1", "node-2", "node-3"];

/// What happens in a phase.
#[derive(Debug, Clone, Copy)]
enum Breaking {
    Nothing,
    KillScheduler,
    KillNode,
    PauseNode,
    PauseScheduler,
    Partition,
    SlowLink,
    StalledLink,
    Reset,
}

const BREAKINGS: [Breaking; 9] = [
    Breaking::Nothing,
    Breaking::KillScheduler,
    Breaking::KillNode,
    Breaking::PauseNode,
    Breaking::PauseScheduler,
    Breaking::Partition,
    Breaking::SlowLink,
    Breaking::StalledLink,
    Breaking::Reset,
];

impl Breaking {
    /// Whether one who asks meanwhile may be told that something is not reached. What schedulers do excuses nobody.
    const fn excuses(self) -> bool {
        matches!(self, Self::KillNode | Self::PauseNode | Self::Partition | Self::StalledLink)
    }
}

pub(super) async fn soak(harness: &mut Harness, time: Duration, seed: u64) -> anyhow::Result<Figures> {
    let mut random = SmallRng::seed_from_u64(seed);
    let begun = Instant::now();
    let mut taken = Taken::default();
    let mut phases: BTreeMap<String, u64> = BTreeMap::new();
    let mut users: Vec<_> = (0..USERS).map(|number| User::new(harness, number, random.next_u64())).collect();
    let mut deleted = BTreeSet::new();
    let (mut longest, mut excused) = (Duration::ZERO, 0);
    while begun.elapsed() < time {
        let breaking = *BREAKINGS.choose(&mut random).context("nothing to do")?;
        *phases.entry(format!("{breaking:?}")).or_default() += 1;
        let at = begun.elapsed().as_secs();
        eprintln!("testnet: {at} s of {}: {breaking:?}", time.as_secs());
        let happened = phase(harness, &mut users, breaking, &mut random).await;
        excused += happened.with_context(|| format!("{breaking:?} after {at} s"))?;
        let names = to_look_at(harness, &mut deleted, &mut random);
        let settled = harness.converged_on(&names, &harness.users.all(), CONVERGES_WITHIN).await;
        longest = longest.max(settled.with_context(|| format!("{breaking:?} after {at} s"))?);
        taken.look(harness, begun.elapsed()).await?;
    }
    // All that was ever deleted, however long that takes.
    harness.converged(&harness.users.all(), time).await?;
    let growth = taken.growth();
    let is_too_much = growth.values().any(|share| *share > GROWTH_MAX);
    // All of it, for what has not grown tells as much.
    ensure!(
        time <= WARM_AFTER * 3 / 2 || !is_too_much,
        "something has grown after the first ten minutes: {growth:.2?}"
    );
    Ok(figures([
        ("phases", json!(phases)),
        ("longest_convergence_seconds", json!(longest.as_secs_f64())),
        ("excused_failures", json!(excused)),
        ("growth_after_ten_minutes", json!(growth)),
        ("taken", taken.report()),
    ]))
}

/// What is bound, what was deleted since the last time, and some of what was deleted before.
fn to_look_at(harness: &Harness, deleted: &mut BTreeSet<String>, random: &mut SmallRng) -> Vec<String> {
    let (mut names, now) = harness.users.bound_and_deleted();
    let (old, new): (Vec<_>, Vec<_>) = now.into_iter().partition(|name| deleted.contains(name));
    names.extend(old.choose_multiple(random, DELETED_LOOKED_AT).cloned());
    deleted.extend(new.iter().cloned());
    names.extend(new);
    names
}

/// Load, and meanwhile one thing that breaks and is mended again. Gives how many asked for what was not reached.
async fn phase(
    harness: &Harness,
    users: &mut [User],
    breaking: Breaking,
    random: &mut SmallRng,
) -> anyhow::Result<u64> {
    let (enough, seen) = watch::channel(false);
    let load = users.iter_mut().map(|user| user.work(breaking.excuses(), seen.clone()));
    let breaks = async {
        let broken = break_and_mend(harness, breaking, random).await;
        enough.send_replace(true);
        broken
    };
    let (excused, ()) = tokio::try_join!(try_join_all(load), breaks)?;
    Ok(excused.into_iter().sum())
}

async fn break_and_mend(harness: &Harness, breaking: Breaking, random: &mut SmallRng) -> anyhow::Result<()> {
    let mut seconds =
        async |from: u64, to: u64| sleep(Duration::from_millis(random.random_range(from * 1000..to * 1000))).await;
    let shape = |shape| Order::Shape { a: vec!["node-1".into(), "node-4".into()], b: others(), shape };
    seconds(2, 4).await;
    match breaking {
        Breaking::Nothing => {}
        Breaking::KillScheduler => {
            harness.kill(&["scheduler-3"]).await?;
            seconds(1, 10).await;
            harness.start(&["scheduler-3"]).await?;
        }
        Breaking::KillNode => {
            harness.kill(&["node-5"]).await?;
            seconds(1, 5).await;
            harness.start(&["node-5"]).await?;
        }
        Breaking::PauseNode => {
            harness.pause(&["node-4"], true)?;
            seconds(1, 15).await;
            harness.pause(&["node-4"], false)?;
        }
        Breaking::PauseScheduler => {
            harness.pause(&["scheduler-2"], true)?;
            seconds(1, 15).await;
            harness.pause(&["scheduler-2"], false)?;
        }
        Breaking::Partition => {
            let a = ["node-1", "node-4", "scheduler-1"].map(str::to_owned).to_vec();
            harness.order(&Order::Cut { a, b: others() })?;
            seconds(1, 20).await;
            harness.order(&Order::Heal)?;
        }
        Breaking::SlowLink => {
            let rate = NonZeroU64::new(2 << 20);
            harness.order(&shape(Shape {
                delay: Duration::from_millis(50),
                bytes_per_second: rate,
                is_stalled: false,
            }))?;
            seconds(5, 10).await;
            harness.order(&Order::Heal)?;
        }
        Breaking::StalledLink => {
            harness.order(&shape(Shape { is_stalled: true, ..Shape::default() }))?;
            seconds(1, 15).await;
            harness.order(&Order::Heal)?;
        }
        Breaking::Reset => {
            let a = [harness.node_names(), harness.scheduler_names()].concat();
            harness.order(&Order::Reset { a: a.clone(), b: a })?;
        }
    }
    seconds(2, 4).await;
    Ok(())
}

fn others() -> Vec<String> {
    ["node-2", "node-3", "node-5", "scheduler-2", "scheduler-3"].map(str::to_owned).to_vec()
}

/// One who imports, exports and deletes his own names, on any node.
struct User {
    users: Users,
    number: usize,
    random: SmallRng,
    /// Those that are bound, the oldest first, and where they were imported.
    names: VecDeque<(String, usize)>,
    imports: u64,
}

impl User {
    fn new(harness: &Harness, number: usize, seed: u64) -> Self {
        let (users, random) = (harness.users.clone(), SmallRng::seed_from_u64(seed));
        Self { users, number, random, names: VecDeque::new(), imports: 0 }
    }

    /// Goes on until it is enough; gives how often it was excused that something was not reached.
    async fn work(&mut self, excuses: bool, enough: watch::Receiver<bool>) -> anyhow::Result<u64> {
        let mut excused = 0;
        while !*enough.borrow() {
            match self.once().await {
                Err(error) if excuses && error.is::<Unreached>() => excused += 1,
                done => done?,
            }
        }
        Ok(excused)
    }

    async fn once(&mut self) -> anyhow::Result<()> {
        let node = self.random.random_range(0..self.users.all().len());
        match self.random.random_range(0..10) {
            0 | 1 => self.import(node).await,
            2 if self.names.len() > NAMES_EACH / 2 => self.delete(node).await,
            _ if self.names.len() > NAMES_EACH => self.delete(node).await,
            _ => self.export(node).await,
        }
    }

    async fn import(&mut self, node: usize) -> anyhow::Result<()> {
        let mut content = vec![0; self.random.random_range(0..4 << 20)];
        self.random.fill_bytes(&mut content);
        self.imports += 1;
        let name = format!("user-{}-{}", self.number, self.imports);
        self.users.import_apart(node, &name, &content).await?;
        self.names.push_back((name, node));
        Ok(())
    }

    async fn delete(&mut self, node: usize) -> anyhow::Result<()> {
        let Some((name, _)) = self.names.pop_front() else { return Ok(()) };
        self.users.delete_apart(node, &name).await
    }

    async fn export(&mut self, node: usize) -> anyhow::Result<()> {
        let at = self.random.random_range(0..self.names.len().max(1));
        let Some((name, home)) = self.names.get(at) else { return Ok(()) };
        self.users.export(node, name).await?;
        // So that the next one on this node is a transfer. What was imported there stays.
        let forgets = node != *home && self.random.random_bool(0.3);
        if forgets { self.users.forget(node, name).await } else { Ok(()) }
    }
}

/// What the programs that are never killed have taken: memory in bytes, and descriptors.
#[derive(Debug, Default)]
struct Taken(BTreeMap<&'static str, Vec<Look>>);

/// When it was, memory in bytes, descriptors.
///
/// Of schedulers without the memory of their records: each delete is kept for 30 days, within a bound, so that grows with what
/// users do.
type Look = (Duration, u64, u64);

impl Taken {
    async fn look(&mut self, harness: &Harness, at: Duration) -> anyhow::Result<()> {
        let (_, cluster) = harness.layout()?;
        for name in LASTING {
            let pid = harness.pid(name)?;
            let (memory, _) = usage::memory_bytes(pid)?;
            let records = match cluster.schedulers.iter().find(|scheduler| scheduler.name == name) {
                Some(scheduler) => {
                    let shown = http::get(&scheduler.metrics).await?.body;
                    metric(&shown, STATE_BYTES).with_context(|| format!("{name} shows no {STATE_BYTES}"))? as u64
                }
                None => 0,
            };
            let look = (at, memory.saturating_sub(records), usage::descriptors(pid)?);
            self.0.entry(name).or_default().push(look);
        }
        Ok(())
    }

    /// The share by which each has grown between the first third of what came after ten minutes and the last third.
    fn growth(&self) -> BTreeMap<String, f64> {
        let mut all = BTreeMap::new();
        for (name, looks) in &self.0 {
            let warm: Vec<_> = looks.iter().filter(|(at, ..)| *at >= WARM_AFTER).collect();
            let third = warm.len() / 3;
            if third == 0 {
                continue;
            }
            let mut note = |what: &str, of: fn(&Look) -> u64| {
                let mean = |looks: &[&Look]| looks.iter().map(|look| of(look) as f64).sum::<f64>() / looks.len() as f64;
                let (early, late) = (mean(&warm[..third]), mean(&warm[warm.len() - third..]));
                all.insert(format!("{what} of {name}"), late / early - 1.0);
            };
            note("memory", |look| look.1);
            note("descriptors", |look| look.2);
        }
        all
    }

    fn report(&self) -> Value {
        let look = |(at, memory, descriptors): &Look| json!([at.as_secs(), memory, descriptors]);
        let all = self.0.iter().map(|(name, looks)| ((*name).to_owned(), looks.iter().map(look).collect()));
        Value::Object(all.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_that_after_the_first_ten_minutes() {
        let mut taken = Taken::default();
        let look = |minute: u64, memory| (Duration::from_secs(minute * 60), memory, 7);
        let looks = (0..40).map(|minute| look(minute, if minute < 10 { 1 } else { 100 + 2 * minute }));
        taken.0.insert("node-1", looks.collect());
        let growth = taken.growth();
        assert!((growth["memory of node-1"] - 40.0 / 129.0).abs() < 1e-9, "{growth:?}");
        assert_eq!(growth["descriptors of node-1"], 0.0);
    }
}
