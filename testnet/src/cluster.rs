//! A running cluster: started, changed, ended.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use damselfly_messages::membership::Tags;
use damselfly_transport::program::lifecycle::Signals;
use rustix::fs::{FlockOperation, flock};

pub mod breaking;
pub(crate) mod change;
mod members;
pub(crate) mod partition;
mod probe;

use crate::{
    layout::{ClusterFile, Layout},
    links::{
        control::{self, Links},
        wire::Shape,
    },
    listing, process,
    programs::Programs,
    ready,
};
use members::{Member, Tokens};

/// Where the manager keeps the link for its first admin, beside the admin token.
const SETUP_LINK: &str = "setup_link";

/// How large a cluster is, and how it runs.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many schedulers.
    pub schedulers: u32,
    /// How many nodes.
    pub nodes: u32,
    /// How many seeds beside them.
    pub seeds: u32,
    /// Each node serves others at most this fast.
    pub upload_rate_limit: Option<String>,
    /// Its processes outlive this one.
    pub detached: bool,
    /// Its schedulers and nodes reach each other over links that can be broken.
    pub links: bool,
    /// A round-trip time between nodes, made by such links.
    pub rtt: Option<Duration>,
    /// The last node has a small disk.
    pub small_disk: Option<SmallDisk>,
}

/// A file system in memory, for the data of one program. It is gone when the program ends.
#[derive(Debug, Clone, Copy)]
pub struct SmallDisk {
    /// How large it is.
    pub bytes: u64,
    /// What the program leaves free.
    pub floor_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            schedulers: 2,
            nodes: 3,
            seeds: 0,
            upload_rate_limit: None,
            detached: false,
            links: false,
            rtt: None,
            small_disk: None,
        }
    }
}

/// A cluster that this process has started.
#[derive(Debug)]
pub struct Cluster {
    layout: Layout,
    file: ClusterFile,
    programs: Programs,
    children: Vec<Child>,
}

impl Cluster {
    /// Starts a cluster in `dir` in place of an earlier one, and returns when it is ready.
    ///
    /// # Errors
    /// What did not get ready, with the end of its log; nothing runs then.
    pub async fn start(dir: &Path, options: &Options, programs: Programs) -> anyhow::Result<Self> {
        let layout = Layout::create(dir)?;
        if let Some(earlier) = layout.read()? {
            replace(&layout, &earlier)?;
        }
        let mut children = Vec::new();
        match Self::launch(&layout, options, &programs, &mut children).await {
            Ok(file) => Ok(Self { layout, file, programs, children }),
            Err(error) => {
                process::end(&configs_in(&layout)).await;
                Err(error)
            }
        }
    }

    async fn launch(
        layout: &Layout,
        options: &Options,
        programs: &Programs,
        children: &mut Vec<Child>,
    ) -> anyhow::Result<ClusterFile> {
        let links = Self::links(layout, options, children)?;
        let plan = members::plan(layout, options, links.as_ref())?;
        let schedulers = plan.iter().filter_map(Member::ring_entry).collect();
        let (manager, child) = members::start_manager(layout, programs, schedulers, options.detached).await?;
        children.push(child);
        let mut file = ClusterFile { cluster_id: manager.1, manager: manager.0, schedulers: vec![], nodes: vec![] };
        let tokens = Tokens::make(&file.manager, plan.len().max(1), &Tags::new()).await?;
        for member in &plan {
            children.push(member.start(layout, programs, &tokens, &mut file, options.detached)?);
        }
        layout.write(&file)?;
        ready::cluster(layout, &file, programs, 1).await?;
        probe::schedulers(layout, &file, programs).await?;
        Ok(file)
    }

    /// Those that the members reach each other over, if it has such.
    fn links(layout: &Layout, options: &Options, children: &mut Vec<Child>) -> anyhow::Result<Option<Links>> {
        if !options.links && options.rtt.is_none() {
            return Links::none(layout).map(|()| None);
        }
        let usual = Shape { delay: options.rtt.unwrap_or_default() / 2, ..Shape::default() };
        let (links, child) = Links::start(layout, usual, options.detached)?;
        children.push(child);
        Ok(Some(links))
    }

    /// What `cluster.json` says.
    pub const fn file(&self) -> &ClusterFile {
        &self.file
    }

    /// Where the programs are.
    pub const fn programs(&self) -> &Programs {
        &self.programs
    }

    /// Ends every process of the cluster.
    pub async fn stop(mut self) {
        process::end(&configs_in(&self.layout)).await;
        for child in &mut self.children {
            // Ended above; this only takes note of it.
            drop(child.wait());
        }
    }

    /// The ends of all logs, for a person who looks for what went wrong.
    pub fn logs(&self) -> String {
        let names = names(&self.file);
        names.map(|name| format!("--- {name}\n{}", process::tail(&self.layout.log(name)))).collect()
    }

    /// Waits for Ctrl-C, or until no process of the cluster runs any more. Gives whether there is something to end.
    async fn wait(&mut self, signals: &mut Signals) -> anyhow::Result<bool> {
        loop {
            tokio::select! {
                _ = signals.recv() => return Ok(true),
                () = tokio::time::sleep(Duration::from_millis(300)) => {}
            }
            let mut ended = Vec::new();
            self.children.retain_mut(|child| match child.try_wait() {
                Ok(Some(status)) => {
                    ended.push((child.id(), status));
                    false
                }
                _ => true,
            });
            for (pid, status) in ended {
                eprintln!("testnet: {} has ended ({status})", self.name_of(pid));
            }
            if self.children.is_empty() && configs_in(&self.layout).iter().all(|one| process::running(one).is_empty()) {
                return Ok(false);
            }
        }
    }

    fn name_of(&self, pid: u32) -> &str {
        let schedulers = self.file.schedulers.iter().map(|one| (one.pid, one.name.as_str()));
        let nodes = self.file.nodes.iter().map(|one| (one.pid, one.name.as_str()));
        let manager = [(self.file.manager.pid, MANAGER)];
        let mut all = schedulers.chain(nodes).chain(manager);
        all.find(|(known, _)| *known == pid).map_or(control::NAME, |(_, name)| name)
    }
}

/// The manager's name.
const MANAGER: &str = "manager";

fn names(file: &ClusterFile) -> impl Iterator<Item = &str> {
    let schedulers = file.schedulers.iter().map(|one| one.name.as_str());
    [MANAGER].into_iter().chain(schedulers).chain(file.nodes.iter().map(|one| one.name.as_str()))
}

/// The configuration files of all programs in the cluster's folder.
fn configs_in(layout: &Layout) -> Vec<PathBuf> {
    let entries = fs::read_dir(layout.dir()).into_iter().flatten().flatten();
    let mut configs: Vec<_> =
        entries.map(|entry| entry.path().join("config.toml")).filter(|config| config.is_file()).collect();
    // By name: "manager" comes first and so ends last.
    configs.sort();
    configs
}

/// Makes room for a new cluster where one has been.
fn replace(layout: &Layout, earlier: &ClusterFile) -> anyhow::Result<()> {
    if configs_in(layout).iter().any(|config| !process::running(config).is_empty()) {
        let dir = layout.dir().display();
        bail!("a cluster runs in {dir}: end it with `testnet down --dir {dir}`, or choose another folder");
    }
    for name in names(earlier) {
        let folder = layout.dir().join(name);
        if folder.is_dir() {
            fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        }
    }
    fs::remove_file(layout.file()).context("cannot remove cluster.json")
}

/// `testnet up`
///
/// # Errors
/// What did not get ready.
pub async fn up(dir: &Path, mut options: Options, detach: bool) -> anyhow::Result<()> {
    options.detached = detach;
    let mut signals = Signals::catch()?;
    let programs = Programs::find()?;
    let layout = Layout::create(dir)?;
    let lock = File::create(layout.lock()).context("cannot make the lock")?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!("another testnet runs in {}: choose another folder with --dir", dir.display());
    }
    let mut cluster = tokio::select! {
        cluster = Cluster::start(dir, &options, programs) => cluster?,
        _ = signals.recv() => {
            process::end(&configs_in(&layout)).await;
            bail!("interrupted");
        }
    };
    for node in &cluster.file.nodes {
        println!("DFCACHE_SOCKET={}", node.socket.display());
    }
    let manager = &cluster.file.manager;
    let link = fs::read_to_string(manager.admin_token_file.with_file_name(SETUP_LINK)).ok();
    listing::show_console(&manager.http, link.as_deref());
    eprintln!("testnet: ready; {}", layout.file().display());
    if detach {
        return Ok(());
    }
    eprintln!("testnet: Ctrl-C ends it");
    // Otherwise what runs now has just been started by somebody who had ended it, and is not this one's to end.
    if cluster.wait(&mut signals).await? {
        cluster.stop().await;
    }
    Ok(())
}

/// `testnet down`
///
/// # Errors
/// When there is no cluster.
pub async fn down(dir: &Path) -> anyhow::Result<()> {
    let (layout, file) = Layout::open(dir)?;
    let configs = configs_in(&layout);
    let ran = configs.iter().filter(|config| !process::running(config).is_empty()).count();
    process::end(&configs).await;
    let ended = match ran {
        0 => "nothing ran any more".to_owned(),
        1 => "ended 1 program".to_owned(),
        ran => format!("ended {ran} programs"),
    };
    if layout.is_default() {
        remove(&layout, &file)?;
        eprintln!("testnet: {ended}; removed {}", layout.dir().display());
    } else {
        eprintln!("testnet: {ended}; data and logs stay in {}", layout.dir().display());
    }
    Ok(())
}

/// Removes a cluster's folder, and sockets for which its path was too long.
fn remove(layout: &Layout, file: &ClusterFile) -> anyhow::Result<()> {
    let outside = file.nodes.iter().map(|node| &node.socket).filter(|socket| !socket.starts_with(layout.dir()));
    for socket in outside {
        // A daemon that ended well has removed its own.
        drop(fs::remove_file(socket));
    }
    let dir = layout.dir();
    fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))
}

/// Ends what runs in `dir`, whether or not it is a whole cluster.
pub(crate) async fn abandon(dir: &Path) -> anyhow::Result<()> {
    process::end(&configs_in(&Layout::create(dir)?)).await;
    Ok(())
}

/// `testnet add-scheduler`
///
/// # Errors
/// What did not get ready; the ring is as it was when the scheduler did not start.
pub async fn add_scheduler(dir: &Path) -> anyhow::Result<()> {
    let (layout, mut file) = Layout::open(dir)?;
    running(&file).await?;
    let programs = Programs::find()?;
    let detached = guarded(&layout)?;
    let name = free_name("scheduler", &file);
    let member = Member::scheduler(&layout, name, Links::of(&layout)?.as_ref())?;
    let tokens = Tokens::make(&file.manager, 1, &Tags::new()).await?;
    member.start(&layout, &programs, &tokens, &mut file, detached)?;
    let entry = member.ring_entry().context("no scheduler")?;
    let epoch = change::in_ring(&file.manager, entry.peer_id).await?;
    layout.write(&file)?;
    ready::cluster(&layout, &file, &programs, epoch).await?;
    if let Some(added) = file.schedulers.last() {
        println!("{} {}", added.name, added.listen);
    }
    Ok(())
}

/// `testnet add-node`
///
/// # Errors
/// What did not get ready.
pub async fn add_node(dir: &Path, is_seed: bool, upload_rate_limit: Option<String>, tags: Tags) -> anyhow::Result<()> {
    let (layout, mut file) = Layout::open(dir)?;
    let epoch = running(&file).await?;
    let programs = Programs::find()?;
    let detached = guarded(&layout)?;
    let role = if is_seed { "seed" } else { "node" };
    let member = Member::node(&layout, free_name(role, &file), role, upload_rate_limit, Links::of(&layout)?.as_ref())?;
    let tokens = Tokens::make(&file.manager, 1, &tags).await?;
    member.start(&layout, &programs, &tokens, &mut file, detached)?;
    layout.write(&file)?;
    ready::cluster(&layout, &file, &programs, epoch).await?;
    if let Some(added) = file.nodes.last() {
        println!("DFCACHE_SOCKET={}", added.socket.display());
    }
    Ok(())
}

/// The epoch of a cluster that runs; asked before anything is started that would be left behind.
async fn running(file: &ClusterFile) -> anyhow::Result<u64> {
    change::epoch(&file.manager).await.context("the cluster does not run; start it with `testnet up`")
}

/// The first name of this kind that is not taken.
fn free_name(kind: &str, file: &ClusterFile) -> String {
    let taken: Vec<_> = names(file).collect();
    let mut names = (1..).map(|number| format!("{kind}-{number}"));
    names.find(|name| !taken.contains(&name.as_str())).unwrap_or_else(|| kind.to_owned())
}

/// What this command starts outlives it, but not the `testnet up` in whose foreground the cluster runs.
fn guarded(layout: &Layout) -> anyhow::Result<bool> {
    let lock = File::create(layout.lock())?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut guard = process::become_command(true)?;
        guard.arg(std::env::current_exe()?).arg("guard").arg("--dir").arg(layout.dir());
        guard.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    }
    Ok(true)
}

/// `testnet guard`: waits for the end of the `testnet up` in the foreground, then ends what is left.
///
/// # Errors
/// When there is no cluster.
pub async fn guard(dir: &Path) -> anyhow::Result<()> {
    let (layout, _) = Layout::open(dir)?;
    let lock = File::open(layout.lock())?;
    flock(&lock, FlockOperation::LockExclusive)?;
    process::end(&configs_in(&layout)).await;
    Ok(())
}
