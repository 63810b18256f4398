//! `testnet scenario`: breaks a cluster while it is in use, and checks what it promises.
//!
//! `stage` is the cluster with its load, `model` what it must hold, `plays` what happens to it.

mod model;
mod plays;
mod stage;

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use damselfly_transport::program::lifecycle::Signals;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::{cluster, programs::Programs};
pub use plays::Play;
use stage::Stage;

/// What `testnet scenario` is told.
#[derive(Debug, clap::Args)]
pub struct Scenario {
    /// Which one; --list has them.
    #[arg(required_unless_present = "list")]
    name: Option<Play>,
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

/// Runs it on a cluster of its own, of local processes, of which nothing is left.
///
/// # Errors
/// What did not hold, after the logs.
pub async fn run(scenario: Scenario) -> anyhow::Result<ExitCode> {
    if scenario.list {
        for play in Play::ALL {
            println!("{}", play.name());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let play = scenario.name.context("no name")?;
    let seed = scenario.seed.unwrap_or_else(rand::random);
    eprintln!("testnet: {} with --seed {seed}", play.name());
    let mut signals = Signals::catch()?;
    let programs = Programs::find()?;
    let folder = TempDir::with_prefix("damselfly-scenario-")?;
    let begun = Instant::now();
    let played = tokio::select! {
        played = on_a_stage(play, seed, scenario.short, &folder, programs) => played,
        signal = signals.recv() => {
            cluster::abandon(&folder.path().join("cluster")).await?;
            bail!("interrupted by {signal}");
        }
    };
    let report = report(play, seed, begun.elapsed(), &played);
    let text = format!("{report:#}\n");
    match scenario.report {
        Some(path) => std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?,
        None => print!("{text}"),
    }
    played.with_context(|| format!("{} --seed {seed} does not hold", play.name()))?;
    eprintln!("testnet: {} holds, {:.1} s", play.name(), begun.elapsed().as_secs_f64());
    Ok(ExitCode::SUCCESS)
}

async fn on_a_stage(
    play: Play,
    seed: u64,
    is_short: bool,
    folder: &TempDir,
    programs: Programs,
) -> anyhow::Result<Map<String, Value>> {
    let mut stage = Stage::set(folder.path(), &play.options(), programs, seed).await?;
    let played = play.run(&mut stage, is_short).await;
    if played.is_err() {
        eprint!("{}", stage.logs());
    }
    stage.clear().await;
    played.map(|mut figures| {
        figures.append(&mut stage.counts());
        figures
    })
}

fn report(play: Play, seed: u64, took: Duration, played: &anyhow::Result<Map<String, Value>>) -> Value {
    let (figures, error) = match played {
        Ok(figures) => (Some(figures), None),
        Err(error) => (None, Some(format!("{error:#}"))),
    };
    json!({
        "scenario": play.name(), "seed": seed, "seconds": took.as_secs_f64(), "holds": error.is_none(),
        "figures": figures, "error": error,
    })
}
