//! A cluster with its load: what users do to it, checked against the model.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail, ensure};
use futures::future::try_join_all;
use rand::{Rng as _, RngCore as _, SeedableRng as _, rngs::SmallRng};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use tokio::time::{sleep, timeout};

use super::{
    environment::{Environment, Reach},
    model::{Digest, Model},
};
use crate::{
    cluster::{Options, breaking},
    layout::{ClusterFile, Layout},
    links::proxy::Order,
    process,
};

/// Exit codes of `dfcache`: done; no such name; the daemon is not reachable; other bytes have this name; kept here, and
/// told when a scheduler is reached; too late.
const DONE: i32 = 0;
const NOT_FOUND: i32 = 3;
const NO_DAEMON: i32 = 4;
const CONFLICT: i32 = 6;
const QUEUED: i32 = 8;
const LATE: i32 = 9;
/// A command that takes longer hangs: the longest, an export over a slow link, takes a third of it.
const COMMAND_WITHIN: Duration = Duration::from_secs(180);
/// A daemon that is restarted answers again by then.
const DAEMON_BACK_WITHIN: Duration = Duration::from_secs(30);
const RETRY_EVERY: Duration = Duration::from_millis(100);

/// Something could not be had because what it needs was not reached.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Unreached(String);

/// A cluster that is used and broken.
#[derive(Debug)]
pub(super) struct Harness {
    environment: Environment,
    schedulers: Vec<String>,
    nodes: Vec<String>,
    pub(super) users: Users,
    random: SmallRng,
    /// So many files were made: no name is used twice.
    made: usize,
}

impl Harness {
    pub(super) async fn set(folder: &Path, options: &Options, in_containers: bool, seed: u64) -> anyhow::Result<Self> {
        let files = folder.join("files");
        fs::create_dir_all(&files)?;
        let environment = Environment::open(&folder.join("cluster"), options, in_containers).await?;
        let (reach, [schedulers, nodes]) = (environment.reach().await?, environment.names().await?);
        let inner = Inner { reach, files, model: Mutex::default(), counts: Counts::default() };
        let users = Users { inner: Arc::new(inner) };
        Ok(Self { environment, schedulers, nodes, users, random: SmallRng::seed_from_u64(seed), made: 0 })
    }

    /// Ends the cluster; nothing is left of it.
    pub(super) async fn clear(self) -> anyhow::Result<()> {
        self.environment.close().await
    }

    pub(super) async fn logs(&self) -> String {
        self.environment.logs().await
    }

    pub(super) fn counts(&self) -> Map<String, Value> {
        self.users.inner.counts.report()
    }

    /// One of so many.
    pub(super) fn any(&mut self, many: usize) -> usize {
        self.random.random_range(0..many)
    }

    /// A new name, and random bytes for it.
    pub(super) fn file(&mut self, bytes: usize) -> (String, Vec<u8>) {
        let mut content = vec![0; bytes];
        self.random.fill_bytes(&mut content);
        self.made += 1;
        (format!("file-{}", self.made), content)
    }

    /// Imports so many files of random bytes on nodes in turn; gives their names.
    pub(super) async fn fill(&mut self, many: usize, bytes: usize, on: &[usize]) -> anyhow::Result<Vec<String>> {
        let mut names = Vec::new();
        for number in 0..many {
            let (name, content) = self.file(bytes);
            self.users.import(on[number % on.len()], &name, &content).await?;
            names.push(name);
        }
        Ok(names)
    }

    /// Where the cluster's files are.
    pub(super) fn layout(&self) -> anyhow::Result<(Layout, ClusterFile)> {
        self.environment.layout()
    }

    /// Kills programs as a crash does.
    pub(super) async fn kill(&self, names: &[&str]) -> anyhow::Result<()> {
        self.environment.kill(&owned(names)).await
    }

    /// Stops programs in the middle of what they do, or has them go on.
    pub(super) fn pause(&self, names: &[&str], is_paused: bool) -> anyhow::Result<()> {
        let (layout, _) = self.layout()?;
        breaking::pause(layout.dir(), &owned(names), is_paused)
    }

    /// The process that a program is now.
    pub(super) fn pid(&self, name: &str) -> anyhow::Result<u32> {
        let (layout, _) = self.layout()?;
        let pid = process::running(&layout.config(name)).first().map(|pid| pid.as_raw_nonzero().get());
        Ok(pid.with_context(|| format!("{name} does not run"))?.try_into()?)
    }

    /// Starts them again, or anew if they run, and waits until the cluster is ready.
    pub(super) async fn restart(&self, names: &[&str]) -> anyhow::Result<()> {
        self.environment.restart(&owned(names)).await
    }

    /// Starts them again, whatever the others do.
    pub(super) async fn start(&self, names: &[&str]) -> anyhow::Result<()> {
        self.environment.start(&owned(names)).await
    }

    /// Cuts two sides off from each other.
    pub(super) async fn part(&self, sides: &[Vec<String>; 2]) -> anyhow::Result<()> {
        self.environment.part(sides).await
    }

    /// Ends what [`part`](Self::part) has begun.
    pub(super) async fn rejoin(&self) -> anyhow::Result<()> {
        self.environment.rejoin().await
    }

    /// Breaks or mends links of processes.
    pub(super) fn order(&self, order: &Order) -> anyhow::Result<()> {
        self.environment.order(order)
    }

    pub(super) fn scheduler_names(&self) -> &[String] {
        &self.schedulers
    }

    pub(super) fn node_names(&self) -> &[String] {
        &self.nodes
    }

    /// One of the first so many nodes.
    pub(super) fn any_node(&mut self, many: usize) -> String {
        let at = self.any(many);
        self.nodes[at].clone()
    }

    /// Every program, the manager last.
    pub(super) fn names(&self) -> Vec<String> {
        [&self.schedulers[..], &self.nodes, &["manager".to_owned()]].concat()
    }

    /// Waits until these nodes find what was acknowledged and nothing that was deleted; gives how long it took.
    pub(super) async fn converged(&self, nodes: &[usize], within: Duration) -> anyhow::Result<Duration> {
        let names = self.users.model().names();
        self.converged_on(&names, nodes, within).await
    }

    /// The same for some names.
    pub(super) async fn converged_on(
        &self,
        names: &[String],
        nodes: &[usize],
        within: Duration,
    ) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        loop {
            match self.users.look(names, nodes).await {
                Ok(()) => return Ok(begun.elapsed()),
                Err(error) if begun.elapsed() > within => {
                    return Err(error.context(format!("not right after {} s", within.as_secs())));
                }
                Err(_) => sleep(RETRY_EVERY).await,
            }
        }
    }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Those who use the cluster; clones are the same ones.
#[derive(Debug, Clone)]
pub(super) struct Users {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    reach: Reach,
    files: PathBuf,
    model: Mutex<Model>,
    counts: Counts,
}

/// What was done.
#[derive(Debug, Default)]
struct Counts {
    imports: AtomicU64,
    exports: AtomicU64,
    deletes: AtomicU64,
    /// Again, because the user's own daemon was away.
    retries: AtomicU64,
    bytes: AtomicU64,
}

impl Counts {
    fn report(&self) -> Map<String, Value> {
        let Self { imports, exports, deletes, retries, bytes } = self;
        [("imports", imports), ("exports", exports), ("deletes", deletes), ("retries", retries), ("bytes", bytes)]
            .into_iter()
            .map(|(name, count)| (name.to_owned(), json!(count.load(Ordering::Relaxed))))
            .collect()
    }
}

fn add(count: &AtomicU64, many: u64) -> u64 {
    count.fetch_add(many, Ordering::Relaxed)
}

impl Users {
    fn model(&self) -> MutexGuard<'_, Model> {
        self.inner.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every node.
    pub(super) fn all(&self) -> Vec<usize> {
        (0..self.inner.reach.nodes()).collect()
    }

    /// The names that must be found, and those that must not.
    pub(super) fn bound_and_deleted(&self) -> (Vec<String>, Vec<String>) {
        let model = self.model();
        model.bound_and_deleted(&model.names())
    }

    /// Those of these names that must be found.
    pub(super) fn bound_among(&self, names: &[String]) -> Vec<String> {
        self.model().bound_and_deleted(names).0
    }

    /// Runs `dfcache` in this way; again when its daemon is being restarted.
    async fn patiently(&self, run: impl AsyncFn(&Reach) -> anyhow::Result<Output>) -> anyhow::Result<Output> {
        let begun = Instant::now();
        loop {
            let ran = timeout(COMMAND_WITHIN, run(&self.inner.reach)).await;
            let output = ran.map_err(|_| anyhow!("dfcache has not ended after {} s", COMMAND_WITHIN.as_secs()))??;
            if !self.inner.reach.is_away(&output) || begun.elapsed() > DAEMON_BACK_WITHIN {
                return Ok(output);
            }
            add(&self.inner.counts.retries, 1);
            sleep(RETRY_EVERY).await;
        }
    }

    async fn dfcache(&self, node: usize, arguments: &[&str]) -> anyhow::Result<Output> {
        let done = self.patiently(async |reach| reach.ask(node, arguments).await).await;
        done.with_context(|| format!("dfcache {} on node {}", arguments.join(" "), node + 1))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.inner.files.join(name)
    }

    pub(super) async fn import(&self, node: usize, name: &str, content: &[u8]) -> anyhow::Result<()> {
        self.imported(node, name, content, &[DONE]).await
    }

    /// Imports where it may be that no scheduler is reached: what is kept here is announced later.
    pub(super) async fn import_apart(&self, node: usize, name: &str, content: &[u8]) -> anyhow::Result<()> {
        self.imported(node, name, content, &[DONE, QUEUED]).await
    }

    async fn imported(&self, node: usize, name: &str, content: &[u8], right: &[i32]) -> anyhow::Result<()> {
        let digest: Digest = Sha256::digest(content).into();
        self.model().doubtful(name, digest);
        self.import_bytes(node, name, content, right).await?;
        self.model().bound(name, digest);
        add(&self.inner.counts.imports, 1);
        Ok(())
    }

    /// Imports what there may be no room for; whether there was. This exit code says that there was not.
    pub(super) async fn import_if(
        &self,
        node: usize,
        name: &str,
        content: &[u8],
        no_room: i32,
    ) -> anyhow::Result<bool> {
        let code = self.import_bytes(node, name, content, &[DONE, no_room]).await?;
        if code == DONE {
            self.model().bound(name, Sha256::digest(content).into());
            add(&self.inner.counts.imports, 1);
        }
        Ok(code == DONE)
    }

    /// Imports under a name that somebody else imports other bytes under: one of them wins, in the end on every node.
    pub(super) async fn contest(&self, node: usize, name: &str, content: &[u8]) -> anyhow::Result<()> {
        self.model().contested(name, Sha256::digest(content).into());
        self.import_bytes(node, name, content, &[DONE, QUEUED, CONFLICT]).await.map(drop)
    }

    async fn import_bytes(&self, node: usize, name: &str, content: &[u8], right: &[i32]) -> anyhow::Result<i32> {
        let path = self.file(&format!("{name}-{node}.in"));
        fs::write(&path, content)?;
        let done = self.patiently(async |reach| reach.import(node, name, &path).await).await;
        fs::remove_file(&path)?;
        let done = done.with_context(|| format!("import of {name} on node {}", node + 1))?;
        ended(&done, right).with_context(|| format!("import of {name} on node {}", node + 1))
    }

    /// Exports and compares.
    pub(super) async fn export(&self, node: usize, name: &str) -> anyhow::Result<Value> {
        let number = add(&self.inner.counts.exports, 1);
        let path = self.file(&format!("{number}.out"));
        let done = self.patiently(async |reach| reach.export(node, name, &path).await).await;
        let ended = done.and_then(|done| ended(&done, &[DONE]).map(|_| done));
        let done = ended.with_context(|| format!("export of {name} on node {}", node + 1))?;
        let content = fs::read(&path)?;
        fs::remove_file(&path)?;
        self.model().exported(name, Sha256::digest(&content).into())?;
        add(&self.inner.counts.bytes, content.len() as u64);
        serde_json::from_slice(&done.stdout).context("dfcache gives no JSON")
    }

    /// Exports what cannot be exported now, and has this exit code.
    pub(super) async fn export_fails(&self, node: usize, name: &str, code: i32) -> anyhow::Result<Value> {
        let path = self.file("never.out");
        let done = self.patiently(async |reach| reach.export(node, name, &path).await).await?;
        ended(&done, &[code]).with_context(|| format!("export of {name} on node {}", node + 1))?;
        ensure!(!path.exists(), "an export that has failed leaves a file");
        serde_json::from_slice(&done.stdout).context("dfcache gives no JSON")
    }

    /// Drops the copy that an export has left at the node, so that the next one is a transfer too.
    pub(super) async fn forget(&self, node: usize, name: &str) -> anyhow::Result<()> {
        let done = self.dfcache(node, &["delete", "-i", name, "-l"]).await?;
        ended(&done, &[DONE]).with_context(|| format!("local delete of {name} on node {}", node + 1))?;
        Ok(())
    }

    pub(super) async fn delete(&self, node: usize, name: &str) -> anyhow::Result<()> {
        self.deleted(node, name, &[DONE]).await
    }

    /// Deletes where it may be that no scheduler is reached: the others are told later.
    pub(super) async fn delete_apart(&self, node: usize, name: &str) -> anyhow::Result<()> {
        self.deleted(node, name, &[DONE, QUEUED]).await
    }

    async fn deleted(&self, node: usize, name: &str, right: &[i32]) -> anyhow::Result<()> {
        self.model().may_be_deleted(name);
        let done = self.dfcache(node, &["delete", "-i", name]).await?;
        let code = ended(&done, right).with_context(|| format!("delete of {name} on node {}", node + 1))?;
        let said: Value = serde_json::from_slice(&done.stdout).context("dfcache gives no JSON")?;
        // Else the owners that are reached know of none, and others may.
        if code == QUEUED || said["deleted"] == true {
            self.model().deleted(name);
            add(&self.inner.counts.deletes, 1);
        }
        Ok(())
    }

    /// Somebody else has deleted it.
    pub(super) fn was_deleted(&self, name: &str) {
        self.model().deleted(name);
    }

    /// How many hosts hold all of it, as the node is told.
    pub(super) async fn holders(&self, node: usize, name: &str) -> anyhow::Result<u64> {
        let found = self.dfcache(node, &["stat", "-i", name]).await?;
        ended(&found, &[DONE]).with_context(|| format!("stat of {name} on node {}", node + 1))?;
        let found: Value = serde_json::from_slice(&found.stdout).context("dfcache gives no JSON")?;
        found["holders"].as_u64().with_context(|| format!("no holders in {found}"))
    }

    /// Whether a node finds a name now.
    pub(super) async fn finds(&self, node: usize, name: &str) -> anyhow::Result<bool> {
        Ok(self.dfcache(node, &["stat", "-i", name]).await?.status.success())
    }

    /// Whether these nodes find what they have to of these names, and nothing else.
    async fn look(&self, names: &[String], nodes: &[usize]) -> anyhow::Result<()> {
        let (bound, deleted) = self.model().bound_and_deleted(names);
        try_join_all(nodes.iter().map(|node| self.look_at(*node, &bound, &deleted))).await.map(drop)
    }

    async fn look_at(&self, node: usize, bound: &[String], deleted: &[String]) -> anyhow::Result<()> {
        for name in bound {
            let found = self.dfcache(node, &["stat", "-i", name]).await?;
            let is_lost = found.status.code() == Some(NOT_FOUND);
            ensure!(!is_lost, "{name} was acknowledged, and node {} does not find it", node + 1);
            ended(&found, &[DONE]).with_context(|| format!("stat of {name} on node {}", node + 1))?;
        }
        for name in deleted {
            let found = self.dfcache(node, &["stat", "-i", name]).await?;
            let code = ended(&found, &[DONE, NOT_FOUND]);
            let code = code.with_context(|| format!("stat of {name} on node {}", node + 1))?;
            ensure!(code == NOT_FOUND, "{name} was deleted, and node {} finds it: {}", node + 1, said(&found));
        }
        Ok(())
    }
}

/// With which of these exit codes it has ended.
fn ended(output: &Output, right: &[i32]) -> anyhow::Result<i32> {
    match output.status.code() {
        Some(code) if right.contains(&code) => Ok(code),
        Some(NOT_FOUND | NO_DAEMON | QUEUED | LATE) => Err(Unreached(said(output)).into()),
        _ => bail!("{}", said(output)),
    }
}

fn said(output: &Output) -> String {
    let texts = [&output.stderr, &output.stdout].map(|text| String::from_utf8_lossy(text).trim().to_owned());
    format!("{}: {}", output.status, texts.join(" "))
}
