//! Measurements.

use std::{process::ExitCode, time::Duration};

use clap::Subcommand;

use crate::units::{parse_duration, parse_size};

pub mod baseline;
mod contained;
mod pair;
mod report;
mod rollout;
mod small;

/// What can be measured.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Two nodes: a file that only one holds is exported on the other, in turn with baselines without Damselfly.
    Pair(Pair),
    /// Many members that hold nothing: how long a change of the configuration takes until the last one has it, and how long
    /// one that is put out keeps connections.
    Rollout(Rollout),
}

/// `testnet bench rollout`
#[derive(Debug, Clone, clap::Args)]
pub struct Rollout {
    /// How many members, in this process, beside two schedulers.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=2000))]
    hosts: u32,
    /// How many changes, and how many are put out.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Prints the result as JSON.
    #[arg(long)]
    json: bool,
}

/// `testnet bench pair`
#[derive(Debug, Clone, clap::Args)]
pub struct Pair {
    /// The size of the file.
    #[arg(long, default_value = "1GiB", value_parser = parse_size)]
    size: u64,
    /// How often everything is measured, after one round that does not count.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// A round-trip time between the two, made by a delaying proxy, for the baselines too.
    #[arg(long, value_parser = parse_duration)]
    rtt: Option<Duration>,
    /// Prints the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Measures what was asked for.
///
/// # Errors
/// What went wrong.
pub async fn run(bench: Bench) -> anyhow::Result<ExitCode> {
    match bench {
        Bench::Pair(pair) => pair::run(pair).await,
        Bench::Rollout(rollout) => rollout::run(rollout).await,
    }
}

/// Measures in containers what can be measured there.
///
/// # Errors
/// What went wrong.
pub async fn run_in_containers(bench: Bench) -> anyhow::Result<ExitCode> {
    match bench {
        Bench::Pair(pair) => contained::run(pair).await,
        Bench::Rollout(_) => anyhow::bail!("`bench rollout` runs its members in this process: leave --docker out"),
    }
}
