//! Whether exports work: what `up` and `heal` wait for last.
//!
//! Programs that are ready may still not reach each other: a node that could not be dialled is dialled again after a pause
//! only. So nodes are asked what their users would ask.

use std::{process::Stdio, time::Instant};

use rand::Rng as _;
use tokio::process::Command;

use crate::{
    layout::{ClusterFile, Layout, NodeEntry},
    programs::Programs,
    ready::{deadline, until},
};

/// Up to so many nodes, each exports from each; above, each from the next one only.
const ALL_PAIRS_MAX: usize = 6;
/// The exit code of `dfcache` when nobody has the file, and the schedulers are sure of that.
const NOT_FOUND: i32 = 3;

/// Waits until the schedulers answer every node for sure: of names that nobody has, that nobody has them.
///
/// # Errors
/// Which node does not get such an answer, with the end of its log.
pub(super) async fn schedulers(layout: &Layout, file: &ClusterFile, programs: &Programs) -> anyhow::Result<()> {
    let deadline = deadline();
    let probe = Probe::new(programs);
    for node in &file.nodes {
        until(layout, &node.name, deadline, async || {
            // Every scheduler owns some of them, most likely.
            for number in 0..file.schedulers.len() {
                let name = format!("{}-nobody-{number}", probe.name);
                probe.run(node, &["stat", "-i", &name], Some(NOT_FOUND)).await?;
            }
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// Waits until nodes export from each other; the files for it are deleted afterwards.
///
/// # Errors
/// Which node cannot export from which, with the end of its log.
pub(super) async fn exports(layout: &Layout, file: &ClusterFile, programs: &Programs) -> anyhow::Result<()> {
    let deadline = deadline();
    let probe = Probe::new(programs);
    let mut outcome = Ok(());
    for (at, holder) in file.nodes.iter().enumerate() {
        outcome = probe.from(layout, file, at, deadline).await;
        let name = probe.of(holder);
        // Also when it failed; what cannot be deleted now is a file of a few bytes.
        drop(probe.run(holder, &["delete", "-i", &name], Some(0)).await);
        if outcome.is_err() {
            break;
        }
    }
    outcome
}

/// A name that nobody has given yet, and the program that asks for it.
struct Probe<'a> {
    programs: &'a Programs,
    name: String,
}

impl<'a> Probe<'a> {
    fn new(programs: &'a Programs) -> Self {
        Self { programs, name: format!("testnet-probe-{:016x}", rand::rng().random::<u64>()) }
    }

    fn of(&self, holder: &NodeEntry) -> String {
        format!("{}-{}", self.name, holder.name)
    }

    /// The node at place `at` imports a file, and others export it.
    async fn from(&self, layout: &Layout, file: &ClusterFile, at: usize, deadline: Instant) -> anyhow::Result<()> {
        let holder = &file.nodes[at];
        let name = self.of(holder);
        let source = layout.program(&holder.name)?.join("probe");
        std::fs::write(&source, &name)?;
        let path = source.to_string_lossy().into_owned();
        until(layout, &holder.name, deadline, async || {
            self.run(holder, &["import", "-i", &name, &path], Some(0)).await
        })
        .await?;
        std::fs::remove_file(&source)?;
        let reach = if file.nodes.len() <= ALL_PAIRS_MAX { file.nodes.len() } else { 2 };
        for other in file.nodes.iter().cycle().skip(at + 1).take(reach.saturating_sub(1)) {
            until(layout, &other.name, deadline, async || {
                self.run(other, &["export", "-i", &name, "-O", "-"], Some(0)).await
            })
            .await?;
        }
        Ok(())
    }

    /// Whether `dfcache` of a node ends with this code; what it says when it does not.
    async fn run(&self, node: &NodeEntry, arguments: &[&str], code: Option<i32>) -> Result<(), String> {
        let mut command = Command::new(self.programs.path("dfcache"));
        command.args(["--timeout", "5s", "--quiet", "--socket"]).arg(&node.socket).args(arguments);
        let output = command.stdin(Stdio::null()).output().await.map_err(|error| error.to_string())?;
        if output.status.code() == code {
            return Ok(());
        }
        let told = String::from_utf8_lossy(&output.stderr);
        Err(format!("dfcache {}: {}", arguments.join(" "), told.lines().next().unwrap_or("it says nothing")))
    }
}
