//! The command line.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::{
    bench,
    cluster::{self, Options},
    demo, layout, process,
    units::parse_rate,
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
        place: Place,
        /// Returns when the cluster is ready and leaves it running.
        #[arg(long)]
        detach: bool,
    },
    /// Ends every process of the cluster.
    Down {
        #[command(flatten)]
        place: Place,
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
        place: Place,
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
        place: Place,
    },
    /// Measures.
    Bench {
        #[command(subcommand)]
        bench: bench::Bench,
    },
    /// Becomes a program of the cluster; started by this program only.
    #[command(hide = true, name = "become")]
    Become(process::Become),
    /// Ends the cluster when the process that holds its lock ends; started by this program only.
    #[command(hide = true)]
    Guard {
        #[command(flatten)]
        place: Place,
    },
    /// One side of a baseline; started by this program only.
    #[command(hide = true)]
    Baseline(bench::baseline::Baseline),
}

#[derive(Debug, clap::Args)]
struct Size {
    /// How many schedulers.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=64))]
    schedulers: u32,
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=256))]
    nodes: u32,
    /// How many seeds beside them.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=64))]
    seeds: u32,
    /// Each node serves others at most this fast.
    #[arg(long, value_name = "SIZE/s", value_parser = parse_rate)]
    upload_rate_limit: Option<String>,
}

#[derive(Debug, clap::Args)]
struct Place {
    /// The folder of the cluster; the same one for each user by default.
    #[arg(long)]
    dir: Option<PathBuf>,
}

impl Place {
    fn dir(self) -> PathBuf {
        self.dir.unwrap_or_else(layout::default_dir)
    }
}

/// Does what the command line says.
///
/// # Errors
/// What a person should read.
pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    if arguments.docker {
        eprintln!("testnet: --docker is not built yet; without it the cluster runs as local processes");
        return Ok(ExitCode::from(2));
    }
    match arguments.command {
        Command::Up { size, place, detach } => cluster::up(&place.dir(), options(size), detach).await?,
        Command::Down { place } => cluster::down(&place.dir()).await?,
        Command::Demo { dir } => return demo::run(dir).await,
        Command::AddScheduler { place } => cluster::add_scheduler(&place.dir()).await?,
        Command::AddNode { seed, upload_rate_limit, tag, place } => {
            cluster::add_node(&place.dir(), seed, upload_rate_limit, tag.into_iter().collect()).await?;
        }
        Command::Bench { bench } => return bench::run(bench).await,
        Command::Become(program) => return Err(program.exec().into()),
        Command::Guard { place } => cluster::guard(&place.dir()).await?,
        Command::Baseline(baseline) => baseline.run().await?,
    }
    Ok(ExitCode::SUCCESS)
}

fn parse_tag(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("a tag is NAME=VALUE, such as zone=a")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn options(size: Size) -> Options {
    let Size { schedulers, nodes, seeds, upload_rate_limit } = size;
    Options { schedulers, nodes, seeds, upload_rate_limit, ..Options::default() }
}
