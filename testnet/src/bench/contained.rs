//! `testnet --docker bench pair`: the export between two containers, as `dfcache` in the second one tells its time.

use std::{fs::File, process::ExitCode};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use super::Pair;
use crate::{
    demo::fill,
    docker::{
        Fleet, engine,
        fleet::Size,
        members::{Kind, Member},
    },
};

/// In the container the only folder of a size that can be written.
const OUTPUT: &str = "/var/lib/damselfly/bench";
const NAME: &str = "bench";

/// Starts a cluster of its own, measures, and removes it.
pub(super) async fn run(pair: Pair) -> anyhow::Result<ExitCode> {
    if pair.rtt.is_some() {
        bail!("--rtt is made by a proxy between local processes: leave --docker out");
    }
    let folder = tempfile::tempdir().context("no temporary folder")?;
    let file = folder.path().join("file");
    fill(&file, pair.size)?;
    eprintln!("testnet: starting two nodes and two schedulers in containers");
    let size = Size { schedulers: 2, nodes: 2, seeds: 0, upload_rate_limit: None };
    let fleet = Fleet::start(&folder.path().join("cluster"), &size).await?;
    let measured = measure(&fleet, &file, pair.runs).await;
    fleet.end().await?;
    let mut seconds = measured?;
    seconds.sort_by(f64::total_cmp);
    let (min, median, max) = (seconds[0], seconds[seconds.len() / 2], seconds[seconds.len() - 1]);
    if pair.json {
        let export = json!({ "min": min, "median": median, "max": max, "runs": seconds });
        println!("{:#}", json!({ "bytes": pair.size, "export_seconds": export }));
    } else {
        let rate = pair.size as f64 / f64::from(1 << 20) / median;
        println!("export of {} bytes: {min:.2} / {median:.2} / {max:.2} s, {rate:.0} MiB/s at the median", pair.size);
        println!("baselines are measured between local processes only: `testnet bench pair`");
    }
    Ok(ExitCode::SUCCESS)
}

async fn measure(fleet: &Fleet, file: &std::path::Path, runs: u32) -> anyhow::Result<Vec<f64>> {
    let members = fleet.members().await?;
    let nodes: Vec<_> = members.iter().filter(|member| member.kind == Kind::Node).collect();
    let [holder, other] = nodes[..] else { bail!("there are not two nodes") };
    ask(fleet, holder, &["import", "-i", NAME, "-"], Some(File::open(file)?)).await?;
    let mut seconds = Vec::new();
    for _ in 0..=runs {
        let done = ask(fleet, other, &["export", "-i", NAME, "--force", "-O", OUTPUT], None).await?;
        seconds.push(done["seconds"].as_f64().context("dfcache tells no time")?);
        ask(fleet, other, &["delete", "-i", NAME, "--local"], None).await?;
    }
    // The first one warms up.
    Ok(seconds.split_off(1))
}

async fn ask(fleet: &Fleet, node: &Member, arguments: &[&str], input: Option<File>) -> anyhow::Result<Value> {
    let done = fleet.dfcache(node, &[&["--json"], arguments].concat(), input, None).await?;
    if !done.status.success() {
        bail!("dfcache {} on {}: {}", arguments.join(" "), node.name, engine::told(&done));
    }
    serde_json::from_slice(&done.stdout).context("dfcache gives no JSON")
}
