//! `testnet scenario`: breaks a cluster while it is in use, and checks what it promises.
//!
//! `harness` is the cluster with its load, `environment` where it runs, `model` what it must hold, `scenarios` what happens to it,
//! with `apart` for what happens between its hosts, `disk` for what happens on one, and `liar` for what one of them says. `soak` is all of it for long.

mod byzantine;
mod disk;
mod environment;
mod harness;
mod model;
mod partitions;
mod scenarios;
mod soak;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use damselfly_transport::program::lifecycle::Signals;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::{
    cluster::{self, Options},
    docker::Fleet,
};
use harness::Harness;
pub use scenarios::Scenario;

/// What `testnet scenario` is told.
#[derive(Debug, clap::Args)]
pub struct ScenarioArgs {
    /// Which one; --list has them.
    #[arg(required_unless_present = "list")]
    name: Option<Scenario>,
    /// Prints the names of all, one a line.
    #[arg(long)]
    list: bool,
    /// Decides whatever is random; another one each time by default.
    #[arg(long)]
    seed: Option<u64>,
    /// As little as shows something, for a run with others.
    #[arg(long)]
    short: bool,
    /// Where the report goes, as JSON; to standard output by default.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// What `testnet soak` is told.
#[derive(Debug, clap::Args)]
pub struct Soak {
    /// How long. What programs take is compared after the first ten, from fifteen on.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    minutes: u64,
    /// Decides whatever is random; another one each time by default.
    #[arg(long)]
    seed: Option<u64>,
    /// Where the report goes, as JSON; to standard output by default.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// What is done to a cluster.
#[derive(Debug, Clone, Copy)]
enum Run {
    Scenario { scenario: Scenario, is_short: bool },
    Soak(Duration),
}

impl Run {
    const fn name(self) -> &'static str {
        match self {
            Self::Scenario { scenario, .. } => scenario.name(),
            Self::Soak(_) => "soak",
        }
    }

    fn options(self) -> Options {
        match self {
            Self::Scenario { scenario, .. } => scenario.options(),
            Self::Soak(_) => Options { schedulers: 3, nodes: 5, links: true, ..Options::default() },
        }
    }

    async fn run(self, harness: &mut Harness, seed: u64) -> anyhow::Result<Map<String, Value>> {
        match self {
            Self::Scenario { scenario, is_short } => scenario.run(harness, is_short).await,
            Self::Soak(time) => soak::soak(harness, time, seed).await,
        }
    }
}

/// `testnet scenario`
///
/// # Errors
/// What did not hold, after the logs.
pub async fn run(args: ScenarioArgs, in_containers: bool) -> anyhow::Result<ExitCode> {
    if args.list {
        for scenario in Scenario::ALL.iter().filter(|scenario| !in_containers || scenario.is_for_containers()) {
            println!("{}", scenario.name());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let scenario = args.name.context("no name")?;
    if in_containers && !scenario.is_for_containers() {
        bail!("{} is done to processes of this machine only: leave --docker out", scenario.name());
    }
    let run = Run::Scenario { scenario, is_short: args.short };
    perform(run, in_containers, args.seed, args.report).await
}

/// `testnet soak`
///
/// # Errors
/// What did not hold, after the logs.
pub async fn run_soak(soak: Soak) -> anyhow::Result<ExitCode> {
    perform(Run::Soak(Duration::from_secs(soak.minutes * 60)), false, soak.seed, soak.report).await
}

/// Runs it on a cluster of its own, of which nothing is left.
async fn perform(
    run: Run,
    in_containers: bool,
    seed: Option<u64>,
    report_at: Option<PathBuf>,
) -> anyhow::Result<ExitCode> {
    let seed = seed.unwrap_or_else(rand::random);
    eprintln!("testnet: {} with --seed {seed}", run.name());
    let mut signals = Signals::catch()?;
    let folder = TempDir::with_prefix("damselfly-scenario-")?;
    let begun = Instant::now();
    let played = tokio::select! {
        played = on_a_stage(run, in_containers, seed, &folder) => played,
        signal = signals.recv() => {
            abandon(&folder.path().join("cluster"), in_containers).await?;
            bail!("interrupted by {signal}");
        }
    };
    let report = report(run, seed, begun.elapsed(), &played);
    let text = format!("{report:#}\n");
    match report_at {
        Some(path) => std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?,
        None => print!("{text}"),
    }
    played.with_context(|| format!("{} --seed {seed} does not hold", run.name()))?;
    eprintln!("testnet: {} holds, {:.1} s", run.name(), begun.elapsed().as_secs_f64());
    Ok(ExitCode::SUCCESS)
}

async fn on_a_stage(run: Run, in_containers: bool, seed: u64, folder: &TempDir) -> anyhow::Result<Map<String, Value>> {
    let mut harness = Harness::set(folder.path(), &run.options(), in_containers, seed).await?;
    let played = run.run(&mut harness, seed).await;
    if played.is_err() {
        eprint!("{}", harness.logs().await);
    }
    let mut counts = harness.counts();
    let cleared = harness.clear().await;
    let mut figures = played?;
    cleared?;
    figures.append(&mut counts);
    Ok(figures)
}

/// Ends what there is of the cluster.
async fn abandon(dir: &Path, in_containers: bool) -> anyhow::Result<()> {
    if in_containers { Fleet::at(dir).await?.end().await } else { cluster::abandon(dir).await }
}

fn report(run: Run, seed: u64, took: Duration, played: &anyhow::Result<Map<String, Value>>) -> Value {
    let (figures, error) = match played {
        Ok(figures) => (Some(figures), None),
        Err(error) => (None, Some(format!("{error:#}"))),
    };
    json!({
        "scenario": run.name(), "seed": seed, "seconds": took.as_secs_f64(), "holds": error.is_none(),
        "figures": figures, "error": error,
    })
}
