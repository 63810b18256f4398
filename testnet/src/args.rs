//! The command line.

use std::{num::NonZeroU64, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::bail;
use clap::{Parser, Subcommand};

use crate::{
    bench,
    byzantine::Liar,
    cluster::{self, Options, breaking, partition},
    demo,
    docker::{
        fleet,
        verbs::{self, Doing},
    },
    layout,
    links::{control::Serve, wire::Shape},
    process, scenario,
    units::{parse_bytes_per_second, parse_duration, parse_rate},
};

/// Runs a whole Damselfly cluster on this machine.
#[derive(Debug, Parser)]
#[command(name = "testnet", version)]
pub struct Arguments {
    /// Runs the cluster in containers.
    #[arg(long, global = true)]
    docker: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Starts a cluster, waits until it is ready, and stays until Ctrl-C.
    Up {
        #[command(flatten)]
        size: Size,
        #[command(flatten)]
        place: ClusterDir,
        /// Returns when the cluster is ready and leaves it running.
        #[arg(long)]
        detach: bool,
        /// Schedulers and nodes reach each other over links that `partition` and `link` break; in containers they always do.
        #[arg(long)]
        links: bool,
    },
    /// Ends every process of the cluster.
    Down {
        #[command(flatten)]
        place: ClusterDir,
    },
    /// Imports a file on one node of a fresh cluster, exports it on another, and compares.
    Demo {
        /// The folder for the cluster; a temporary one by default.
        #[arg(long)]
        dir: Option<PathBuf>,
    },
    /// Adds a scheduler to the running cluster, and to its ring.
    AddScheduler {
        #[command(flatten)]
        place: ClusterDir,
    },
    /// Adds a node to the running cluster.
    AddNode {
        /// The node is a seed.
        #[arg(long)]
        seed: bool,
        /// The node serves others at most this fast.
        #[arg(long, value_name = "SIZE/s", value_parser = parse_rate)]
        upload_rate_limit: Option<String>,
        /// A tag in the node's credential; may be given several times
        #[arg(long, value_name = "NAME=VALUE", value_parser = parse_tag)]
        tag: Vec<(String, String)>,
        #[command(flatten)]
        place: ClusterDir,
    },
    /// Lists the programs of the cluster and how they are.
    Ps {
        /// Prints JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        place: ClusterDir,
    },
    /// Shows the logs of all programs, or of some.
    Logs {
        /// Which ones.
        names: Vec<String>,
        /// Goes on showing what comes.
        #[arg(short, long)]
        follow: bool,
        /// Only so many of the last lines.
        #[arg(short = 'n', long)]
        lines: Option<u32>,
        #[command(flatten)]
        place: ClusterDir,
    },
    /// Ends programs at once, as a crash does.
    Kill {
        /// Which ones.
        #[arg(required = true)]
        names: Vec<String>,
        /// Lets them end cleanly.
        #[arg(long)]
        term: bool,
        #[command(flatten)]
        place: ClusterDir,
    },
    /// Starts programs again, and waits until the cluster is ready.
    Restart {
        /// Which ones.
        #[arg(required = true)]
        names: Vec<String>,
        #[command(flatten)]
        place: ClusterDir,
    },
    /// Stops programs in the middle of what they do.
    Pause {
        /// Which ones.
        #[arg(required = true)]
        names: Vec<String>,
        #[command(flatten)]
        place: ClusterDir,
    },
    /// Lets paused programs go on.
    Resume {
        /// Which ones.
        #[arg(required = true)]
        names: Vec<String>,
        #[command(flatten)]
        place: ClusterDir,
    },
    /// Cuts two groups off from each other; who is in neither reaches both.
    Partition {
        /// Names with commas between them, or a tag such as zone=a.
        a: String,
        /// The other side.
        b: String,
        #[command(flatten)]
        place: ClusterDir,
    },
    /// Ends a partition, and waits until the cluster is ready.
    Heal {
        #[command(flatten)]
        place: ClusterDir,
    },
    /// Makes the links between two groups slow or stalled in both directions; as they were, without an option.
    ///
    /// Only for a cluster of local processes that was started with `up --links`.
    Link {
        /// Names with commas between them, or a tag such as zone=a.
        a: String,
        /// The other side.
        b: String,
        /// Each byte arrives so much later.
        #[arg(long, value_parser = parse_duration)]
        delay: Option<Duration>,
        /// All connections between two programs together carry at most this much, in each direction.
        #[arg(long, value_name = "SIZE/s", value_parser = parse_bytes_per_second)]
        rate: Option<NonZeroU64>,
        /// Nothing arrives any more, and what is under way is kept.
        #[arg(long)]
        stall: bool,
        /// Ends the connections that there are, and changes nothing.
        #[arg(long, conflicts_with_all = ["delay", "rate", "stall"])]
        reset: bool,
        #[command(flatten)]
        place: ClusterDir,
    },
    /// Makes the image for --docker: static programs, built by cargo.
    Image,
    /// Breaks a cluster of its own while it is in use, and checks what it promises.
    Scenario(scenario::ScenarioArgs),
    /// Breaks a cluster of its own at random for a long time, and sees that what its programs take does not grow.
    Soak(scenario::Soak),
    /// Measures.
    Bench {
        #[command(subcommand)]
        bench: bench::Bench,
    },
    /// Becomes a program of the cluster; started by this program only.
    #[command(hide = true, name = "become")]
    Become(process::Become),
    /// Has the links of a cluster; started by this program only.
    #[command(hide = true)]
    Links(Serve),
    /// Ends the cluster when the process that holds its lock ends; started by this program only.
    #[command(hide = true)]
    Guard {
        #[command(flatten)]
        place: ClusterDir,
    },
    /// Becomes a member that lies; started by this program only.
    #[command(hide = true)]
    Liar(Liar),
    /// One side of a baseline; started by this program only.
    #[command(hide = true)]
    Baseline(bench::baseline::Baseline),
}

#[derive(Debug, clap::Args)]
struct Size {
    /// How many schedulers [default: 2, in containers 3].
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=64))]
    schedulers: Option<u32>,
    /// How many nodes [default: 3].
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=256))]
    nodes: Option<u32>,
    /// How many seeds beside them [default: 0, in containers 1].
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=64))]
    seeds: Option<u32>,
    /// Each node serves others at most this fast.
    #[arg(long, value_name = "SIZE/s", value_parser = parse_rate)]
    upload_rate_limit: Option<String>,
}

#[derive(Debug, clap::Args)]
struct ClusterDir {
    /// The folder of the cluster; the same one for each user by default.
    #[arg(long)]
    dir: Option<PathBuf>,
}

impl ClusterDir {
    fn dir(self) -> PathBuf {
        self.dir.unwrap_or_else(layout::default_dir)
    }

    /// Another default, so that both kinds of cluster may run at once.
    fn docker(self) -> PathBuf {
        self.dir.unwrap_or_else(|| layout::default_dir().with_extension("docker"))
    }
}

/// Does what the command line says.
///
/// # Errors
/// What a person should read.
pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    if arguments.docker {
        return run_in_containers(arguments.command).await;
    }
    match arguments.command {
        Command::Up { size, place, detach, links } => {
            cluster::up(&place.dir(), Options { links, ..options(size) }, detach).await?;
        }
        Command::Down { place } => cluster::down(&place.dir()).await?,
        Command::Demo { dir } => return demo::run(dir).await,
        Command::AddScheduler { place } => cluster::add_scheduler(&place.dir()).await?,
        Command::AddNode { seed, upload_rate_limit, tag, place } => {
            cluster::add_node(&place.dir(), seed, upload_rate_limit, tag.into_iter().collect()).await?;
        }
        Command::Bench { bench } => return bench::run(bench).await,
        Command::Image => verbs::image().await?,
        Command::Ps { json, place } => breaking::ps(&place.dir(), json).await?,
        Command::Logs { names, follow, lines, place } => breaking::logs(&place.dir(), &names, lines, follow).await?,
        Command::Kill { names, term, place } => breaking::kill(&place.dir(), &names, term).await?,
        Command::Restart { names, place } => breaking::restart(&place.dir(), &names).await?,
        Command::Pause { names, place } => breaking::pause(&place.dir(), &names, true)?,
        Command::Resume { names, place } => breaking::pause(&place.dir(), &names, false)?,
        Command::Partition { a, b, place } => partition::partition(&place.dir(), &a, &b).await?,
        Command::Heal { place } => partition::heal(&place.dir()).await?,
        Command::Link { a, b, reset: true, place, .. } => partition::reset(&place.dir(), &a, &b).await?,
        Command::Link { a, b, delay, rate, stall, place, .. } => {
            let delay = delay.unwrap_or_default();
            let shape = Shape { delay, bytes_per_second: rate, is_stalled: stall };
            partition::shape(&place.dir(), &a, &b, shape).await?;
        }
        Command::Scenario(scenario) => return scenario::run(scenario, false).await,
        Command::Soak(soak) => return scenario::run_soak(soak).await,
        Command::Become(program) => return Err(program.exec().into()),
        Command::Links(serve) => serve.run()?,
        Command::Guard { place } => cluster::guard(&place.dir()).await?,
        Command::Liar(liar) => liar.run().await?,
        Command::Baseline(baseline) => baseline.run().await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn run_in_containers(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Up { size, place, detach, .. } => {
            verbs::up(&place.docker(), &fleet_size(size), detach).await?;
        }
        Command::Down { place } => verbs::down(&place.docker()).await?,
        Command::Demo { dir } => return demo::run_in_containers(&ClusterDir { dir }.docker()).await,
        Command::AddScheduler { place } => verbs::add_scheduler(&place.docker()).await?,
        Command::AddNode { upload_rate_limit: Some(_), .. } => bail!("--upload-rate-limit is not for --docker"),
        Command::AddNode { seed, tag, place, .. } => {
            verbs::add_node(&place.docker(), seed, &tag.into_iter().collect()).await?;
        }
        Command::Ps { json, place } => verbs::ps(&place.docker(), json).await?,
        Command::Logs { names, follow, lines, place } => verbs::logs(&place.docker(), &names, lines, follow).await?,
        Command::Kill { names, term, place } => {
            let doing = if term { Doing::Terminate } else { Doing::Kill };
            verbs::act(&place.docker(), doing, &names).await?;
        }
        Command::Restart { names, place } => verbs::act(&place.docker(), Doing::Restart, &names).await?,
        Command::Pause { names, place } => verbs::act(&place.docker(), Doing::Pause, &names).await?,
        Command::Resume { names, place } => verbs::act(&place.docker(), Doing::Resume, &names).await?,
        Command::Partition { a, b, place } => verbs::partition(&place.docker(), &a, &b).await?,
        Command::Heal { place } => verbs::heal(&place.docker()).await?,
        Command::Image => verbs::image().await?,
        Command::Bench { bench } => return bench::run_in_containers(bench).await,
        Command::Scenario(scenario) => return scenario::run(scenario, true).await,
        Command::Soak(_) => bail!("a soak is of processes of this machine: leave --docker out"),
        Command::Link { .. } => bail!("links are those of local processes: leave --docker out, or use partition"),
        Command::Become(_) | Command::Guard { .. } | Command::Liar(_) | Command::Links(_) | Command::Baseline(_) => {
            bail!("this is not for --docker")
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn fleet_size(size: Size) -> fleet::Size {
    let ours = fleet::Size::default();
    fleet::Size {
        schedulers: size.schedulers.unwrap_or(ours.schedulers),
        nodes: size.nodes.unwrap_or(ours.nodes),
        seeds: size.seeds.unwrap_or(ours.seeds),
        upload_rate_limit: size.upload_rate_limit,
    }
}

fn parse_tag(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("a tag is NAME=VALUE, such as zone=a")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn options(size: Size) -> Options {
    let ours = Options::default();
    Options {
        schedulers: size.schedulers.unwrap_or(ours.schedulers),
        nodes: size.nodes.unwrap_or(ours.nodes),
        seeds: size.seeds.unwrap_or(ours.seeds),
        upload_rate_limit: size.upload_rate_limit,
        ..ours
    }
}
