//! A cluster with its load: what users do to it, checked against the model.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use rand::{Rng as _, RngCore as _, SeedableRng as _, rngs::SmallRng};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use tokio::{process::Command, time::sleep};

use super::model::{Digest, Model};
use crate::{
    cluster::{Cluster, Options, breaking},
    programs::Programs,
};

/// Exit codes of `dfcache`: no such name; the daemon is not reachable.
const NOT_FOUND: i32 = 3;
const NO_DAEMON: i32 = 4;
/// A daemon that is restarted answers again by then.
const DAEMON_BACK_WITHIN: Duration = Duration::from_secs(30);
const RETRY_EVERY: Duration = Duration::from_millis(100);

/// A cluster that is used and broken.
#[derive(Debug)]
pub(super) struct Stage {
    dir: PathBuf,
    programs: Programs,
    cluster: Option<Cluster>,
    pub(super) users: Users,
    random: SmallRng,
    /// So many files were made: no name is used twice.
    made: usize,
}

impl Stage {
    pub(super) async fn set(folder: &Path, options: &Options, programs: Programs, seed: u64) -> anyhow::Result<Self> {
        let (dir, files) = (folder.join("cluster"), folder.join("files"));
        fs::create_dir_all(&files)?;
        let dfcache = programs.path("dfcache");
        let cluster = Cluster::start(&dir, options, programs.clone()).await?;
        let sockets = cluster.file().nodes.iter().map(|node| node.socket.clone()).collect();
        let inner = Inner { dfcache, sockets, files, model: Mutex::default(), counts: Counts::default() };
        let users = Users { inner: Arc::new(inner) };
        Ok(Self { dir, programs, cluster: Some(cluster), users, random: SmallRng::seed_from_u64(seed), made: 0 })
    }

    /// Ends the cluster.
    pub(super) async fn clear(&mut self) {
        if let Some(cluster) = self.cluster.take() {
            cluster.stop().await;
        }
    }

    pub(super) fn logs(&self) -> String {
        self.cluster.as_ref().map(Cluster::logs).unwrap_or_default()
    }

    pub(super) fn counts(&self) -> Map<String, Value> {
        self.users.inner.counts.report()
    }

    /// One of so many.
    pub(super) fn any(&mut self, many: usize) -> usize {
        self.random.random_range(0..many)
    }

    /// Imports so many files of random bytes on nodes in turn; gives their names.
    pub(super) async fn fill(&mut self, many: usize, bytes: usize, on: &[usize]) -> anyhow::Result<Vec<String>> {
        let mut names = Vec::new();
        for number in 0..many {
            let mut content = vec![0; bytes];
            self.random.fill_bytes(&mut content);
            self.made += 1;
            let name = format!("file-{}", self.made);
            self.users.import(on[number % on.len()], &name, &content).await?;
            names.push(name);
        }
        Ok(names)
    }

    /// Kills programs as a crash does.
    pub(super) async fn kill(&self, names: &[&str]) -> anyhow::Result<()> {
        breaking::kill(&self.dir, &owned(names), false).await
    }

    /// Starts them again, or anew if they run, and waits until the cluster is ready.
    pub(super) async fn restart(&self, names: &[&str]) -> anyhow::Result<()> {
        breaking::start_anew(&self.dir, &owned(names), &self.programs, false).await
    }

    /// Starts them again, whatever the others do.
    pub(super) fn start(&self, names: &[&str]) -> anyhow::Result<()> {
        breaking::start(&self.dir, &owned(names), &self.programs, false)
    }

    /// Every program, the manager last.
    pub(super) fn names(&self) -> Vec<String> {
        let Some(cluster) = &self.cluster else { return Vec::new() };
        let file = cluster.file();
        let schedulers = file.schedulers.iter().map(|one| one.name.clone());
        let nodes = file.nodes.iter().map(|one| one.name.clone());
        schedulers.chain(nodes).chain(["manager".to_owned()]).collect()
    }

    /// Waits until every node finds what was acknowledged and nothing that was deleted; gives how long it took.
    pub(super) async fn converged(&self, nodes: &[usize], within: Duration) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        loop {
            match self.users.look(nodes).await {
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
    dfcache: PathBuf,
    sockets: Vec<PathBuf>,
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

    /// How many nodes there are.
    pub(super) fn nodes(&self) -> usize {
        self.inner.sockets.len()
    }

    /// Runs `dfcache`; again when its daemon is being restarted.
    async fn dfcache(&self, node: usize, arguments: &[&str]) -> anyhow::Result<Output> {
        let begun = Instant::now();
        loop {
            let mut command = Command::new(&self.inner.dfcache);
            command.arg("--socket").arg(&self.inner.sockets[node]).args(["--json", "--no-progress"]).args(arguments);
            let output =
                command.stdin(Stdio::null()).kill_on_drop(true).output().await.context("cannot run dfcache")?;
            if output.status.code() != Some(NO_DAEMON) || begun.elapsed() > DAEMON_BACK_WITHIN {
                return Ok(output);
            }
            add(&self.inner.counts.retries, 1);
            sleep(RETRY_EVERY).await;
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.inner.files.join(name)
    }

    pub(super) async fn import(&self, node: usize, name: &str, content: &[u8]) -> anyhow::Result<()> {
        let digest: Digest = Sha256::digest(content).into();
        let path = self.file(&format!("{name}.in"));
        fs::write(&path, content)?;
        self.model().doubtful(name, digest);
        let done = self.dfcache(node, &["import", "-i", name, text(&path)?]).await?;
        fs::remove_file(&path)?;
        ensure!(done.status.success(), "import of {name} on node {}: {}", node + 1, said(&done));
        self.model().bound(name, digest);
        add(&self.inner.counts.imports, 1);
        Ok(())
    }

    /// Exports and compares.
    pub(super) async fn export(&self, node: usize, name: &str) -> anyhow::Result<Value> {
        let number = add(&self.inner.counts.exports, 1);
        let path = self.file(&format!("{number}.out"));
        let done = self.dfcache(node, &["export", "-i", name, "-f", text(&path)?]).await?;
        ensure!(done.status.success(), "export of {name} on node {}: {}", node + 1, said(&done));
        let content = fs::read(&path)?;
        fs::remove_file(&path)?;
        self.model().exported(name, Sha256::digest(&content).into())?;
        add(&self.inner.counts.bytes, content.len() as u64);
        serde_json::from_slice(&done.stdout).context("dfcache gives no JSON")
    }

    /// Drops the copy that an export has left at the node, so that the next one is a transfer too.
    pub(super) async fn forget(&self, node: usize, name: &str) -> anyhow::Result<()> {
        let done = self.dfcache(node, &["delete", "-i", name, "-l"]).await?;
        ensure!(done.status.success(), "local delete of {name} on node {}: {}", node + 1, said(&done));
        Ok(())
    }

    pub(super) async fn delete(&self, node: usize, name: &str) -> anyhow::Result<()> {
        let done = self.dfcache(node, &["delete", "-i", name]).await?;
        ensure!(done.status.success(), "delete of {name} on node {}: {}", node + 1, said(&done));
        self.model().deleted(name);
        add(&self.inner.counts.deletes, 1);
        Ok(())
    }

    /// Whether these nodes find what they have to, and nothing else.
    async fn look(&self, nodes: &[usize]) -> anyhow::Result<()> {
        let (bound, deleted) = {
            let model = self.model();
            (model.bound_names(), model.deleted_names())
        };
        for &node in nodes {
            for name in &bound {
                let found = self.dfcache(node, &["stat", "-i", name]).await?;
                let is_lost = found.status.code() == Some(NOT_FOUND);
                ensure!(!is_lost, "{name} was acknowledged, and node {} does not find it", node + 1);
                ensure!(found.status.success(), "stat of {name} on node {}: {}", node + 1, said(&found));
            }
            for name in &deleted {
                let found = self.dfcache(node, &["stat", "-i", name]).await?;
                match found.status.code() {
                    Some(NOT_FOUND) => {}
                    Some(0) => bail!("{name} was deleted, and node {} finds it", node + 1),
                    _ => bail!("stat of {name} on node {}: {}", node + 1, said(&found)),
                }
            }
        }
        Ok(())
    }
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("a path that is no text")
}

fn said(output: &Output) -> String {
    let texts = [&output.stderr, &output.stdout].map(|text| String::from_utf8_lossy(text).trim().to_owned());
    format!("{}: {}", output.status, texts.join(" "))
}
