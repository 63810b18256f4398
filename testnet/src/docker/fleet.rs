//! A cluster in containers: started, changed, ended.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use damselfly_messages::membership::Tags;
use damselfly_transport::program::durable;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::sleep;

use super::{
    engine::{self, Project, docker},
    ensure_image,
    members::{self, Kind, Member},
};
use crate::{
    cluster::change,
    http,
    layout::{ClusterFile, Layout, ManagerEntry, NodeEntry, SchedulerEntry},
    listing::metric,
    ports, ready,
};

const COMPOSE: &str = include_str!("../../compose.yaml");
/// As many schedulers as compose.yaml has.
pub const SCHEDULERS_MAX: u32 = 5;
/// A cluster that is not ready by then will not be: health checks and a warm-up, on a machine that does other things too.
const READY_WITHIN: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How much of a log is shown of what did not become ready.
const TAIL_LINES: &str = "30";
/// The contents of a node in its container.
const STORE: &str = "/var/lib/damselfly/contents";
const SOCKET: &str = "/run/damselfly/dfdaemon.sock";

/// How many programs of each kind.
#[derive(Debug, Clone)]
pub struct Size {
    /// At most [`SCHEDULERS_MAX`].
    pub schedulers: u32,
    /// The first half in zone a, the others in zone b.
    pub nodes: u32,
    /// In zone a.
    pub seeds: u32,
    /// Each node serves others at most this fast.
    pub upload_rate_limit: Option<String>,
}

impl Default for Size {
    fn default() -> Self {
        Self { schedulers: 3, nodes: 3, seeds: 1, upload_rate_limit: None }
    }
}

/// How many replicas each service that scales has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Scale {
    seed: usize,
    node: usize,
    node_b: usize,
}

impl Scale {
    fn of(members: &[Member]) -> Self {
        let count = |service: &str| members.iter().filter(|member| member.service == service).count();
        Self { seed: count("seed"), node: count("node"), node_b: count("node-b") }
    }

    /// Compose takes what is not said for one.
    fn arguments(self) -> [String; 6] {
        let scale = || "--scale".to_owned();
        let Self { seed, node, node_b } = self;
        [scale(), format!("seed={seed}"), scale(), format!("node={node}"), scale(), format!("node-b={node_b}")]
    }
}

/// What `cluster.json` says: what it says of local processes, with paths inside of the containers.
#[derive(Debug, Serialize, Deserialize)]
struct Described {
    docker: DockerEntry,
    #[serde(flatten)]
    cluster: ClusterFile,
}

#[derive(Debug, Serialize, Deserialize)]
struct DockerEntry {
    /// Of Docker Compose.
    project: String,
}

/// A cluster in containers.
#[derive(Debug, Clone)]
pub struct Fleet {
    layout: Layout,
    project: Project,
}

impl Fleet {
    /// The cluster of this folder, whether or not it runs.
    ///
    /// # Errors
    /// When there is no Docker.
    pub async fn at(dir: &Path) -> anyhow::Result<Self> {
        engine::check().await?;
        let layout = Layout::create(dir)?;
        let hash = blake3::hash(layout.dir().as_os_str().as_encoded_bytes()).to_hex();
        let project = Project::find(format!("damselfly-{}", &hash[..10]), layout.dir()).await?;
        Ok(Self { layout, project })
    }

    /// The cluster of this folder, with what runs of it.
    ///
    /// # Errors
    /// When there is none.
    pub async fn open(dir: &Path) -> anyhow::Result<(Self, Vec<Member>)> {
        let fleet = Self::at(dir).await?;
        let members = fleet.members().await?;
        let place = fleet.layout.dir().display();
        ensure!(!members.is_empty(), "there is no cluster of containers in {place}: `testnet --docker up` starts one");
        Ok((fleet, members))
    }

    /// Starts a cluster and returns when it is ready.
    ///
    /// # Errors
    /// What did not get ready, with the end of its log; nothing is left then.
    pub async fn start(dir: &Path, size: &Size) -> anyhow::Result<Self> {
        ensure!((1..=SCHEDULERS_MAX).contains(&size.schedulers), "1 to {SCHEDULERS_MAX} schedulers in containers");
        let fleet = Self::at(dir).await?;
        let place = fleet.layout.dir().display();
        ensure!(
            fleet.members().await?.is_empty(),
            "there are containers of a cluster in {place}: `testnet --docker down --dir {place}` ends it"
        );
        ensure_image().await?;
        let started = fleet.launch(size).await;
        if started.is_err() {
            fleet.end().await?;
        }
        started?;
        Ok(fleet)
    }

    async fn launch(&self, size: &Size) -> anyhow::Result<()> {
        self.write_files(size.upload_rate_limit.as_deref())?;
        let node_b = size.nodes as usize / 2;
        let scale = Scale { seed: size.seeds as usize, node: size.nodes as usize - node_b, node_b };
        let services = (1..=size.schedulers).map(|number| format!("scheduler-{number}"));
        let services: Vec<_> = services.chain(["seed", "node", "node-b"].map(str::to_owned)).collect();
        if let Err(error) = self.up(scale, &services).await {
            bail!("{error:#}\n{}", self.logs().await);
        }
        self.settle().await
    }

    /// `docker compose up` of these services and what they need, without a change to what there is.
    async fn up(&self, scale: Scale, services: &[String]) -> anyhow::Result<()> {
        let arguments = ["up", "--detach", "--no-build", "--no-recreate"].map(str::to_owned).into_iter();
        let arguments = arguments.chain(scale.arguments()).chain(services.iter().cloned());
        self.project.compose(arguments).await.map(drop)
    }

    fn write_files(&self, upload_rate_limit: Option<&str>) -> anyhow::Result<()> {
        let port = ports::free(1)?[0];
        let limit = upload_rate_limit.map(|limit| format!("DFDAEMON_UPLOAD_RATE_LIMIT={limit}\n")).unwrap_or_default();
        let settings = format!(
            "# Written by testnet, so that `docker compose` in this folder means this cluster.\n\
             COMPOSE_PROJECT_NAME={}\nDAMSELFLY_HTTP_PORT={port}\nDAMSELFLY_VERSION={}\n{limit}",
            self.project.name(),
            env!("CARGO_PKG_VERSION"),
        );
        for (name, text) in [("compose.yaml", COMPOSE), (".env", &settings)] {
            let path = self.layout.dir().join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    /// The programs of the cluster.
    ///
    /// # Errors
    /// When docker fails.
    pub async fn members(&self) -> anyhow::Result<Vec<Member>> {
        members::list(&self.project).await
    }

    /// Its project.
    pub fn project(&self) -> &Project {
        &self.project
    }

    fn admin_token_file(&self) -> PathBuf {
        self.layout.dir().join("admin_token")
    }

    /// Where the manager is asked.
    async fn manager(&self) -> anyhow::Result<ManagerEntry> {
        let members = self.members().await?;
        let manager = members.iter().find(|member| member.kind == Kind::Manager).context("there is no manager")?;
        let mut entry = ManagerEntry {
            http: manager.url("")?,
            admin_token_file: self.admin_token_file(),
            pid: manager.pid,
            config: "/etc/damselfly/manager.toml".into(),
            peer_id: String::new(),
            listen: String::new(),
            metrics: manager.url("/metrics")?,
        };
        if !entry.admin_token_file.exists() {
            self.copy_admin_token(manager).await?;
        }
        let overview = change::get(&entry, "overview").await?;
        entry.peer_id = overview["peer_id"].as_str().context("the manager tells no peer_id")?.to_owned();
        entry.listen = manager.listen(&entry.peer_id);
        Ok(entry)
    }

    async fn copy_admin_token(&self, manager: &Member) -> anyhow::Result<()> {
        let token = file_of(manager, "admin_token").await?;
        durable::replace(&self.admin_token_file(), &token, 0o600).context("cannot keep the admin token")
    }

    /// The address of the console, and the link by which its first admin is made while there is none. Both are as the manager's
    /// port is published.
    ///
    /// # Errors
    /// The manager does not run.
    pub async fn console(&self) -> anyhow::Result<(String, Option<String>)> {
        let members = self.members().await?;
        let manager = members.iter().find(|member| member.kind == Kind::Manager).context("there is no manager")?;
        let console = manager.url("")?;
        // There is no such file any more when the first admin was made.
        let Ok(link) = file_of(manager, "setup_link").await else { return Ok((console, None)) };
        let link = String::from_utf8_lossy(&link);
        let path = link.trim().find("/setup").map(|begin| &link.trim()[begin..]);
        Ok((console.clone(), path.map(|path| format!("{console}{path}"))))
    }

    /// Waits until every scheduler is in the ring, and every program has the configuration that says so and does its work;
    /// writes `cluster.json`.
    ///
    /// # Errors
    /// What is missing, with the end of the program's log.
    pub async fn settle(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        let members = self.members().await?;
        let running: Vec<_> = members.iter().filter(|member| member.state != "exited").collect();
        let schedulers = running.iter().filter(|member| member.kind == Kind::Scheduler).count();
        let manager = running.iter().find(|member| member.kind == Kind::Manager).context("the manager does not run")?;
        let mut epoch = 0;
        self.until(manager, deadline, async || {
            let entry = self.manager().await.map_err(|error| format!("{error:#}"))?;
            let (in_ring, now) = change::ring(&entry).await.map_err(|error| format!("{error:#}"))?;
            epoch = now;
            if in_ring < schedulers {
                Err(format!("{in_ring} of {schedulers} schedulers are in the ring"))
            } else {
                Ok(())
            }
        })
        .await?;
        let wanted = ready::Wanted { epoch, schedulers };
        for member in running {
            self.until(member, deadline, async || self.is_ready(member, &wanted).await).await?;
        }
        self.describe().await
    }

    /// Whether it does its work, with the configuration that is wanted.
    async fn is_ready(&self, member: &Member, wanted: &ready::Wanted) -> Result<(), String> {
        let text = |error: anyhow::Error| format!("{error:#}");
        let metrics = member.url("/metrics").map_err(text)?;
        ready::is_ready(&metrics).await?;
        if member.kind.is_node() {
            return wanted.check(&self.health(member).await.map_err(text)?);
        }
        let shown = http::get(&metrics).await.map_err(text)?.body;
        match metric(&shown, "damselfly_configuration_epoch") {
            Some(epoch) if epoch >= wanted.epoch as f64 => Ok(()),
            epoch => Err(format!("it has epoch {} and not {}", epoch.unwrap_or(0.0), wanted.epoch)),
        }
    }

    /// What `dfcache health` of a node says.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn health(&self, node: &Member) -> anyhow::Result<Value> {
        let mut command = docker();
        command.args(["exec", &node.id, "dfcache", "--json", "health"]);
        let output = command.output().await.context("cannot run docker")?;
        // It fails when something is wrong, and says what.
        serde_json::from_slice(&output.stdout).map_err(|_| anyhow::anyhow!("{}", engine::told(&output)))
    }

    async fn until(
        &self,
        member: &Member,
        deadline: Instant,
        mut check: impl AsyncFnMut() -> Result<(), String>,
    ) -> anyhow::Result<()> {
        loop {
            let Err(missing) = check().await else { return Ok(()) };
            let state = engine::ask(["inspect", "--format", "{{.State.Status}}", &member.id]).await?;
            let has_ended = !["running", "paused", "created"].contains(&state.trim());
            if has_ended || Instant::now() > deadline {
                let what = if has_ended { "has ended".to_owned() } else { format!("is not ready: {missing}") };
                bail!("{} {what}; the end of its log:\n{}", member.name, log_of(member).await);
            }
            sleep(LOOK_EVERY).await;
        }
    }

    async fn describe(&self) -> anyhow::Result<()> {
        let members = self.members().await?;
        let manager = self.manager().await?;
        let overview = change::get(&manager, "overview").await?;
        let cluster_id = overview["cluster_id"].as_str().context("the manager tells no cluster_id")?.to_owned();
        let ring = change::get(&manager, "config").await?;
        let (mut schedulers, mut nodes) = (Vec::new(), Vec::new());
        for member in members.iter().filter(|member| member.is_running()) {
            let metrics = member.url("/metrics")?;
            let (name, pid) = (member.name.clone(), member.pid);
            match member.kind {
                Kind::Manager => {}
                Kind::Scheduler => {
                    let peer_id =
                        peer_at(&ring, &member.service).with_context(|| format!("{name} is not in the ring"))?;
                    let (listen, config) = (member.listen(&peer_id), "/etc/damselfly/scheduler.toml".into());
                    schedulers.push(SchedulerEntry { name, peer_id, listen, pid, metrics, config });
                }
                Kind::Seed | Kind::Node => {
                    let peer_id = self.health(member).await?["peer_id"].as_str().context("no peer_id")?.to_owned();
                    let (listen, role) = (member.listen(&peer_id), member.kind.to_string());
                    let (socket, store, config) = (SOCKET.into(), STORE.into(), "/etc/damselfly/daemon.toml".into());
                    nodes.push(NodeEntry { name, role, peer_id, listen, socket, store, pid, metrics, config });
                }
            }
        }
        let cluster = ClusterFile { cluster_id, manager, schedulers, nodes };
        let described = Described { docker: DockerEntry { project: self.project.name().to_owned() }, cluster };
        let text = serde_json::to_vec_pretty(&described)?;
        durable::replace(&self.layout.file(), &text, 0o600).context("cannot write cluster.json")
    }

    /// Where it is described.
    pub fn file(&self) -> PathBuf {
        self.layout.file()
    }

    /// Adds a node in the zone that `tags` name; returns its name.
    ///
    /// # Errors
    /// What did not get ready.
    pub async fn add_node(&self, is_seed: bool, tags: &Tags) -> anyhow::Result<String> {
        let before = self.members().await?;
        let mut scale = Scale::of(&before);
        let others = tags.keys().find(|name| *name != "zone");
        let zone = tags.get("zone").map(String::as_str);
        let (service, count) = match (is_seed, zone) {
            _ if others.is_some() => bail!("in containers zone is the only tag: --tag zone=a or --tag zone=b"),
            (true, None | Some("a")) => ("seed", &mut scale.seed),
            (false, None | Some("a")) => ("node", &mut scale.node),
            (false, Some("b")) => ("node-b", &mut scale.node_b),
            _ => bail!("in containers there are seeds in zone a, and nodes in the zones a and b"),
        };
        *count += 1;
        self.add(&before, scale, service.to_owned()).await
    }

    /// Adds a scheduler; returns its name.
    ///
    /// # Errors
    /// What did not get ready.
    pub async fn add_scheduler(&self) -> anyhow::Result<String> {
        let before = self.members().await?;
        let mut services = (1..=SCHEDULERS_MAX).map(|number| format!("scheduler-{number}"));
        let free = services.find(|service| before.iter().all(|member| member.service != *service));
        let service =
            free.with_context(|| format!("there are {SCHEDULERS_MAX} schedulers, and no more in containers"))?;
        self.add(&before, Scale::of(&before), service).await
    }

    async fn add(&self, before: &[Member], scale: Scale, service: String) -> anyhow::Result<String> {
        self.up(scale, &[service]).await?;
        self.settle().await?;
        let after = self.members().await?;
        let added = after.into_iter().find(|member| before.iter().all(|one| one.id != member.id));
        added.map(|member| member.name).context("compose has added nothing")
    }

    /// Ends it: no container, network or volume is left. The image stays.
    ///
    /// # Errors
    /// What is left, and why.
    pub async fn end(&self) -> anyhow::Result<()> {
        if !self.layout.dir().join("compose.yaml").exists() {
            self.write_files(None)?;
        }
        self.resume_all().await?;
        self.heal().await?;
        let profiles = ["--profile", "more", "--profile", "observe"];
        let down = ["down", "--volumes", "--remove-orphans", "--timeout", "10"];
        self.project.compose(profiles.into_iter().chain(down)).await?;
        for (what, arguments) in [
            ("containers", ["ps", "--all", "--quiet"].as_slice()),
            ("networks", &["network", "ls", "--quiet"]),
            ("volumes", &["volume", "ls", "--quiet"]),
        ] {
            let filter = ["--filter".to_owned(), self.project.filter()];
            let arguments = arguments.iter().map(|one| (*one).to_owned()).chain(filter);
            let left = engine::ask(arguments).await?;
            ensure!(left.trim().is_empty(), "{what} are left: {}", left.trim().replace('\n', " "));
        }
        for path in [self.layout.file(), self.admin_token_file()] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove {}", path.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The ends of all logs, for a person who looks for what went wrong.
    pub async fn logs(&self) -> String {
        let mut text = String::new();
        let ids = engine::ask(["ps", "--all", "--quiet", "--filter", &self.project.filter()]).await.unwrap_or_default();
        for id in ids.split_whitespace() {
            let name = engine::ask(["inspect", "--format", "{{.Name}}: {{.State.Status}}", id]).await;
            let log = tail(id).await.unwrap_or_else(|error| format!("{error:#}\n"));
            text += &format!("--- {}\n{log}", name.unwrap_or_default().trim().trim_start_matches('/'));
        }
        text
    }

    /// Runs `dfcache` at a node, with this standard input and output.
    ///
    /// # Errors
    /// When it cannot be run; its failure is in the output.
    pub async fn dfcache(
        &self,
        node: &Member,
        arguments: &[&str],
        input: Option<fs::File>,
        output: Option<fs::File>,
    ) -> anyhow::Result<Output> {
        let mut command = docker();
        command.args(["exec", "--interactive", &node.id, "dfcache"]).args(arguments);
        if let Some(input) = input {
            command.stdin(input);
        }
        if let Some(output) = output {
            command.stdout(output).stderr(std::process::Stdio::piped());
            return command.spawn()?.wait_with_output().await.context("cannot run docker");
        }
        command.output().await.context("cannot run docker")
    }
}

/// The PeerId of the scheduler that the ring finds by this name.
fn peer_at(settings: &Value, service: &str) -> Option<String> {
    let address = format!("/dns/{service}/");
    let named = |one: &&Value| {
        one["addresses"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|at| at.as_str().is_some_and(|at| at.starts_with(&address)))
    };
    settings["schedulers"].as_array()?.iter().find(named)?["peer_id"].as_str().map(str::to_owned)
}

async fn log_of(member: &Member) -> String {
    tail(&member.id).await.unwrap_or_else(|error| format!("{error:#}\n"))
}

async fn tail(id: &str) -> anyhow::Result<String> {
    let mut command = docker();
    command.args(["logs", "--tail", TAIL_LINES, id]);
    let output = command.output().await.context("cannot run docker")?;
    Ok(format!("{}{}", String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout)))
}

/// A file in the data directory of a running program.
async fn file_of(member: &Member, name: &str) -> anyhow::Result<Vec<u8>> {
    let from = format!("{}:/var/lib/damselfly/{name}", member.id);
    let temporary = tempfile::tempdir().context("no temporary folder")?;
    let copy = temporary.path().join("copy");
    engine::ask(["cp".as_ref(), from.as_ref(), copy.as_os_str()]).await?;
    fs::read(&copy).with_context(|| format!("cannot read {}", copy.display()))
}
