//! The members of a cluster: their folders, keys, ports and configurations.

use std::{ffi::OsString, path::Path, process::Child};

use anyhow::Context as _;
use damselfly_messages::{config::SchedulerEntry as RingEntry, membership::Tags};
use damselfly_transport::program::identity::{self, KEY_FILE};
use libp2p::PeerId;
use serde_json::Value;

use super::{MANAGER, Options, SmallDisk, change};
use crate::{
    config::{self, Daemon, Http, address},
    http,
    layout::{ClusterFile, Layout, ManagerEntry, NodeEntry, SchedulerEntry},
    links::control::Links,
    ports, process,
    programs::Programs,
    ready,
};

/// A scheduler or node that is to be started.
#[derive(Debug)]
pub(super) struct Member {
    name: String,
    role: Role,
    peer: PeerId,
    port: u16,
    advertised: u16,
    http: u16,
    disk: Option<SmallDisk>,
}

#[derive(Debug)]
enum Role {
    Scheduler,
    Node { role: &'static str, upload_rate_limit: Option<String> },
}

/// All schedulers and nodes of a new cluster, with their keys made; `links` are those that others reach them over.
pub(super) fn plan(layout: &Layout, options: &Options, links: Option<&Links>) -> anyhow::Result<Vec<Member>> {
    let mut members = Vec::new();
    // A round-trip time is one between nodes.
    let of_schedulers = links.filter(|_| options.links);
    for number in 1..=options.schedulers {
        members.push(Member::scheduler(layout, format!("scheduler-{number}"), of_schedulers)?);
    }
    let nodes = (1..=options.nodes).map(|number| ("node", number));
    for (role, number) in nodes.chain((1..=options.seeds).map(|number| ("seed", number))) {
        let limit = options.upload_rate_limit.clone();
        members.push(Member::node(layout, format!("{role}-{number}"), role, limit, links)?);
    }
    if let Some(last) = members.last_mut() {
        last.disk = options.small_disk;
    }
    Ok(members)
}

/// Join tokens of a cluster.
#[derive(Debug)]
pub(super) struct Tokens {
    scheduler: String,
    node: String,
    seed: String,
}

impl Tokens {
    /// Makes tokens that are good for so many hosts of each kind, and give them these tags.
    pub(super) async fn make(manager: &ManagerEntry, uses: usize, tags: &Tags) -> anyhow::Result<Self> {
        Ok(Self {
            scheduler: change::join_token(manager, &["scheduler"], uses, tags).await?,
            node: change::join_token(manager, &["node"], uses, tags).await?,
            seed: change::join_token(manager, &["node", "seed"], uses, tags).await?,
        })
    }

    fn of(&self, role: &Role) -> &str {
        match role {
            Role::Scheduler => &self.scheduler,
            Role::Node { role: "seed", .. } => &self.seed,
            Role::Node { .. } => &self.node,
        }
    }
}

impl Member {
    pub(super) fn scheduler(layout: &Layout, name: String, links: Option<&Links>) -> anyhow::Result<Self> {
        Self::new(layout, name, Role::Scheduler, links)
    }

    pub(super) fn node(
        layout: &Layout,
        name: String,
        role: &'static str,
        upload_rate_limit: Option<String>,
        links: Option<&Links>,
    ) -> anyhow::Result<Self> {
        Self::new(layout, name, Role::Node { role, upload_rate_limit }, links)
    }

    fn new(layout: &Layout, name: String, role: Role, links: Option<&Links>) -> anyhow::Result<Self> {
        layout.program(&name)?;
        let data = layout.data(&name);
        identity::prepare_data_dir(&data)?;
        let peer = identity::load_or_create(&data.join(KEY_FILE))?.public().to_peer_id();
        let ports = ports::free(2)?;
        let advertised = links.map_or(Ok(ports[0]), |links| links.open(&name, ports[0]))?;
        Ok(Self { name, role, peer, port: ports[0], advertised, http: ports[1], disk: None })
    }

    /// What the ring says of it, if it is a scheduler.
    pub(super) fn ring_entry(&self) -> Option<RingEntry> {
        let addresses = vec![address(self.advertised).parse().ok()?];
        matches!(self.role, Role::Scheduler).then(|| RingEntry::active(self.peer, addresses))
    }

    fn listen(&self) -> String {
        format!("{}/p2p/{}", address(self.port), self.peer)
    }

    /// Writes its configuration, starts it, and adds it to `file`.
    pub(super) fn start(
        &self,
        layout: &Layout,
        programs: &Programs,
        tokens: &Tokens,
        file: &mut ClusterFile,
        detached: bool,
    ) -> anyhow::Result<Child> {
        let (name, config) = (&self.name, layout.config(&self.name));
        let socket = layout.socket(name)?;
        config::write(&config, &self.config(layout, &socket))?;
        let (peer_id, listen) = (self.peer.to_string(), self.listen());
        let metrics = format!("http://127.0.0.1:{}/metrics", self.http);
        let name = name.clone();
        let start = |program: &str| {
            // Only for the first start: afterwards it remembers.
            let variables = [(format!("{}_JOIN", program.to_uppercase()), tokens.of(&self.role).to_owned())];
            let wrapper = self.disk.map_or_else(Vec::new, |disk| disk.wrapper(&layout.data(&name)));
            process::start(&wrapper, &programs.path(program), &config, &layout.log(&name), &variables, detached)
        };
        match &self.role {
            Role::Scheduler => {
                let child = start("dfscheduler")?;
                let pid = child.id();
                file.schedulers.push(SchedulerEntry { name, peer_id, listen, pid, metrics, config });
                Ok(child)
            }
            Role::Node { role, .. } => {
                let child = start("dfdaemon")?;
                let (pid, role, store) = (child.id(), (*role).to_owned(), layout.data(&name).join("contents"));
                file.nodes.push(NodeEntry { name, role, peer_id, listen, socket, store, pid, metrics, config });
                Ok(child)
            }
        }
    }

    fn config(&self, layout: &Layout, socket: &Path) -> Daemon {
        let (socket, role, upload_rate_limit, advertise) = match &self.role {
            Role::Scheduler => (None, None, None, Vec::new()),
            Role::Node { role, upload_rate_limit } => {
                let advertise = vec![address(self.advertised)];
                (Some(socket.to_owned()), Some(*role), upload_rate_limit.clone(), advertise)
            }
        };
        Daemon {
            data_dir: layout.data(&self.name),
            socket,
            role,
            upload_rate_limit,
            listen: vec![address(self.port)],
            advertise,
            allow_loopback: true,
            free_space_floor_bytes: self.disk.map(|disk| disk.floor_bytes),
            http: Http { listen: format!("127.0.0.1:{}", self.http) },
        }
    }
}

impl SmallDisk {
    /// Runs the rest where `data` lies on it. Who is not root needs a user namespace for that.
    fn wrapper(self, data: &Path) -> Vec<OsString> {
        const MOUNT: &str = r#"cp -a "$1" "$1.copy" && mount -t tmpfs -o size="$2",mode=700 tmpfs "$1" &&
            cp -a "$1.copy/." "$1" && shift 2 && exec "$@""#;
        let user = (!rustix::process::geteuid().is_root()).then_some(["--user", "--map-root-user"]);
        let unshare = ["unshare", "--mount"].into_iter().chain(user.into_iter().flatten()).map(OsString::from);
        let shell = ["sh", "-c", MOUNT, "sh"].map(OsString::from);
        unshare.chain(shell).chain([data.into(), self.bytes.to_string().into()]).collect()
    }
}

/// Starts the manager and waits until it is ready; gives its entry and the cluster's ID.
pub(super) async fn start_manager(
    layout: &Layout,
    programs: &Programs,
    schedulers: Vec<RingEntry>,
    detached: bool,
) -> anyhow::Result<((ManagerEntry, String), Child)> {
    layout.program(MANAGER)?;
    let ports = ports::free(3)?;
    let (config, data_dir) = (layout.config(MANAGER), layout.data(MANAGER));
    let manager = config::Manager {
        data_dir: data_dir.clone(),
        listen: vec![address(ports[0])],
        join_listen: format!("127.0.0.1:{}", ports[2]),
        allow_loopback: true,
        http: Http { listen: format!("127.0.0.1:{}", ports[1]) },
        settings: config::settings(schedulers),
    };
    config::write(&config, &manager)?;
    let child = process::start(&[], &programs.path("dfmanager"), &config, &layout.log(MANAGER), &[], detached)?;
    let url = format!("http://127.0.0.1:{}", ports[1]);
    let metrics = format!("{url}/metrics");
    ready::until(layout, MANAGER, ready::deadline(), async || ready::is_ready(&metrics).await).await?;
    let admin_token_file = data_dir.join("admin_token");
    let overview = overview(&url, &std::fs::read_to_string(&admin_token_file).context("no admin token")?).await?;
    let text = |key: &str| overview[key].as_str().map(str::to_owned).with_context(|| format!("no {key} in {overview}"));
    let peer_id = text("peer_id")?;
    let listen = format!("{}/p2p/{peer_id}", address(ports[0]));
    let entry = ManagerEntry { http: url, admin_token_file, pid: child.id(), config, peer_id, listen, metrics };
    Ok(((entry, text("cluster_id")?), child))
}

async fn overview(url: &str, token: &str) -> anyhow::Result<Value> {
    let authorization = format!("Bearer {}", token.trim());
    let url = format!("{url}/api/v1/overview");
    let answer = http::ask("GET", &url, &[("authorization", &authorization)], String::new()).await?;
    serde_json::from_str(&answer.body)
        .with_context(|| format!("the manager answers {}: {}", answer.status, answer.body))
}
