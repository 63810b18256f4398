//! Where the cluster of a scenario runs: in processes of this machine, or in containers.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use anyhow::{Context as _, bail};
use tokio::process::Command;

use crate::{
    cluster::{Cluster, Options, breaking},
    docker::{
        engine,
        fleet::{Fleet, Size},
        members::{self, Member},
    },
    layout::{ClusterFile, Layout},
    links::{control::Links, proxy::Order},
    programs::Programs,
};

/// Exit code of `dfcache`: the daemon is not reachable.
const NO_DAEMON: i32 = 4;
/// In a container the only folder of a size that can be written.
const OUTPUTS: &str = "/var/lib/damselfly";

/// A cluster of one kind or the other.
#[derive(Debug)]
pub(super) enum Environment {
    Processes { dir: PathBuf, programs: Programs, cluster: Box<Cluster> },
    Containers(Fleet),
}

impl Environment {
    /// Starts a cluster; it is ready then.
    pub(super) async fn open(dir: &Path, options: &Options, in_containers: bool) -> anyhow::Result<Self> {
        if in_containers {
            let Options { schedulers, nodes, seeds, .. } = *options;
            let size = Size { schedulers, nodes, seeds, upload_rate_limit: options.upload_rate_limit.clone() };
            return Fleet::start(dir, &size).await.map(Self::Containers);
        }
        let programs = Programs::find()?;
        let cluster = Cluster::start(dir, options, programs.clone()).await?;
        Ok(Self::Processes { dir: dir.to_owned(), programs, cluster: Box::new(cluster) })
    }

    /// Ends it; nothing is left.
    pub(super) async fn close(self) -> anyhow::Result<()> {
        match self {
            Self::Processes { cluster, .. } => {
                cluster.stop().await;
                Ok(())
            }
            Self::Containers(fleet) => fleet.end().await,
        }
    }

    /// The ends of all logs.
    pub(super) async fn logs(&self) -> String {
        match self {
            Self::Processes { cluster, .. } => cluster.logs(),
            Self::Containers(fleet) => fleet.logs().await,
        }
    }

    /// How users reach its nodes.
    pub(super) async fn reach(&self) -> anyhow::Result<Reach> {
        Ok(match self {
            Self::Processes { programs, cluster, .. } => Reach::Sockets {
                dfcache: programs.path("dfcache"),
                sockets: cluster.file().nodes.iter().map(|node| node.socket.clone()).collect(),
            },
            Self::Containers(fleet) => {
                let members = fleet.members().await?;
                let nodes = members.into_iter().filter(|member| member.kind.is_node()).collect();
                Reach::Containers { fleet: fleet.clone(), nodes }
            }
        })
    }

    /// The names of its schedulers, and those of its nodes.
    pub(super) async fn names(&self) -> anyhow::Result<[Vec<String>; 2]> {
        Ok(match self {
            Self::Processes { cluster, .. } => {
                let ClusterFile { schedulers, nodes, .. } = cluster.file();
                let schedulers = schedulers.iter().map(|one| one.name.clone()).collect();
                [schedulers, nodes.iter().map(|one| one.name.clone()).collect()]
            }
            Self::Containers(fleet) => {
                let members = fleet.members().await?;
                let of = |wanted: fn(&Member) -> bool| {
                    members.iter().filter(|member| wanted(member)).map(|member| member.name.clone()).collect()
                };
                [of(|one| one.kind == members::Kind::Scheduler), of(|one| one.kind.is_node())]
            }
        })
    }

    /// Kills programs as a crash does.
    pub(super) async fn kill(&self, names: &[String]) -> anyhow::Result<()> {
        match self {
            Self::Processes { dir, .. } => breaking::kill(dir, names, false).await,
            Self::Containers(fleet) => fleet.kill(&members::named(&fleet.members().await?, names)?, false).await,
        }
    }

    /// Starts what has ended, and does not wait.
    pub(super) async fn start(&self, names: &[String]) -> anyhow::Result<()> {
        match self {
            Self::Processes { dir, programs, .. } => breaking::start(dir, names, programs, false),
            Self::Containers(fleet) => fleet.begin(&members::named(&fleet.members().await?, names)?).await,
        }
    }

    /// Starts what has ended, anew what runs, and waits until the cluster is ready.
    pub(super) async fn restart(&self, names: &[String]) -> anyhow::Result<()> {
        match self {
            Self::Processes { dir, programs, .. } => breaking::start_anew(dir, names, programs, false).await,
            Self::Containers(fleet) => fleet.restart(&members::named(&fleet.members().await?, names)?).await,
        }
    }

    /// Cuts two sides off from each other.
    pub(super) async fn part(&self, [ones, others]: &[Vec<String>; 2]) -> anyhow::Result<()> {
        match self {
            Self::Processes { .. } => self.order(&Order::Cut { a: ones.clone(), b: others.clone() }),
            Self::Containers(fleet) => {
                let members = fleet.members().await?;
                fleet.partition(&members::named(&members, ones)?, &members::named(&members, others)?).await
            }
        }
    }

    /// Ends what [`part`](Self::part) has begun.
    pub(super) async fn rejoin(&self) -> anyhow::Result<()> {
        match self {
            Self::Processes { .. } => self.order(&Order::Heal),
            Self::Containers(fleet) => fleet.heal().await,
        }
    }

    /// Breaks or mends links of processes.
    pub(super) fn order(&self, order: &Order) -> anyhow::Result<()> {
        let (layout, _) = self.layout()?;
        Links::of(&layout)?.context("a cluster without links")?.order(order).map(drop)
    }

    /// Where the files of processes are.
    pub(super) fn layout(&self) -> anyhow::Result<(Layout, ClusterFile)> {
        match self {
            Self::Processes { dir, .. } => Layout::open(dir),
            Self::Containers(_) => bail!("this is done to processes of this machine only"),
        }
    }
}

/// How users run `dfcache` at a node.
#[derive(Debug)]
pub(super) enum Reach {
    Sockets { dfcache: PathBuf, sockets: Vec<PathBuf> },
    Containers { fleet: Fleet, nodes: Vec<Member> },
}

impl Reach {
    /// How many nodes there are.
    pub(super) fn nodes(&self) -> usize {
        match self {
            Self::Sockets { sockets, .. } => sockets.len(),
            Self::Containers { nodes, .. } => nodes.len(),
        }
    }

    /// Whether the node's daemon was not there to be asked.
    pub(super) fn is_away(&self, output: &Output) -> bool {
        // What says nothing of its own was killed with its container, or was refused by Docker, which has many ways to do so.
        let said_nothing = || serde_json::from_slice::<serde_json::Value>(&output.stdout).is_err();
        match (self, output.status.code()) {
            (_, Some(NO_DAEMON)) => true,
            (Self::Containers { .. }, Some(0)) => false,
            (Self::Containers { .. }, _) => said_nothing(),
            _ => false,
        }
    }

    /// Asks for what needs no file.
    pub(super) async fn ask(&self, node: usize, arguments: &[&str]) -> anyhow::Result<Output> {
        self.run(node, arguments, None).await
    }

    pub(super) async fn import(&self, node: usize, name: &str, file: &Path) -> anyhow::Result<Output> {
        self.run(node, &["import", "-i", name, "-"], Some(File::open(file)?)).await
    }

    /// Exports into `file`, which is there when it was done.
    pub(super) async fn export(&self, node: usize, name: &str, file: &Path) -> anyhow::Result<Output> {
        let Self::Containers { nodes, .. } = self else {
            return self.run(node, &["export", "-i", name, "-f", text(file)?], None).await;
        };
        let inside = format!("{OUTPUTS}/{name}.out");
        let done = self.run(node, &["export", "-i", name, "-f", "-O", &inside], None).await?;
        if done.status.success() {
            engine::ask(["cp", &format!("{}:{inside}", nodes[node].id), text(file)?]).await?;
        }
        Ok(done)
    }

    async fn run(&self, node: usize, arguments: &[&str], input: Option<File>) -> anyhow::Result<Output> {
        let arguments = [&["--json", "--no-progress"], arguments].concat();
        match self {
            Self::Sockets { dfcache, sockets } => {
                let mut command = Command::new(dfcache);
                command.arg("--socket").arg(&sockets[node]).args(arguments).kill_on_drop(true);
                command.stdin(input.map_or_else(Stdio::null, Stdio::from));
                command.output().await.context("cannot run dfcache")
            }
            Self::Containers { fleet, nodes } => fleet.dfcache(&nodes[node], &arguments, input, None).await,
        }
    }
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("a path that is no text")
}
