//! What happens when links are cut, slow or stalled.

use std::{
    collections::BTreeSet,
    num::NonZeroU64,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use futures::future::try_join_all;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{
    harness::{Harness, Users},
    scenarios::{CONVERGES_WITHIN, Figures, figures},
};
use crate::links::{proxy::Order, wire::Shape};

const FILE_BYTES: usize = 100_000;
const STALLED_BYTES: usize = 64 << 20;
/// An export without a verified byte ends with the reason by then.
const GIVES_UP_WITHIN: Duration = Duration::from_secs(40);
/// Exit code of `dfcache`: no holder, or no scheduler, is reached.
const UNREACHABLE: i32 = 8;

/// Random partitions, with imports and deletes on both sides, of names that the other side has too.
pub(super) async fn partition(harness: &mut Harness, rounds: usize) -> anyhow::Result<Figures> {
    let mut longest = Duration::ZERO;
    for round in 1..=rounds {
        let sides = Sides::random(harness);
        eprintln!(
            "testnet: partition {round} of {rounds}: {} | {}",
            sides.names[0].join(","),
            sides.names[1].join(",")
        );
        let names = meanwhile(harness, &sides, round).await.with_context(|| format!("partition {round}"))?;
        harness.rejoin().await?;
        let nodes = harness.users.all();
        let settled = harness.converged_on(&names, &nodes, CONVERGES_WITHIN).await;
        longest = longest.max(settled.with_context(|| format!("partition {round} of {sides:?}"))?);
        for name in harness.users.bound_among(&names) {
            let node = harness.any(nodes.len());
            harness.users.export(node, &name).await?;
        }
        // The first of them says who has won.
        for &node in &nodes {
            harness.users.export(node, &contested_name(round)).await?;
        }
    }
    // What was right after its own partition may have come back later.
    let settled = harness.converged(&harness.users.all(), CONVERGES_WITHIN).await?;
    Ok(figures([
        ("partitions", json!(rounds)),
        ("longest_convergence_seconds", json!(longest.as_secs_f64())),
        ("all_again_seconds", json!(settled.as_secs_f64())),
    ]))
}

fn contested_name(round: usize) -> String {
    format!("contested-{round}")
}

/// Two sides, each with a node.
#[derive(Debug)]
struct Sides {
    names: [Vec<String>; 2],
    nodes: [Vec<usize>; 2],
}

impl Sides {
    fn random(harness: &mut Harness) -> Self {
        loop {
            let mut sides = Self { names: Default::default(), nodes: Default::default() };
            for (at, name) in harness.node_names().to_vec().into_iter().enumerate() {
                let side = harness.any(2);
                sides.names[side].push(name);
                sides.nodes[side].push(at);
            }
            for name in harness.scheduler_names().to_vec() {
                sides.names[harness.any(2)].push(name);
            }
            if sides.nodes.iter().all(|nodes| !nodes.is_empty()) {
                return sides;
            }
        }
    }
}

/// Imports, cuts, and has both sides import and delete; gives the names of all that it has used.
async fn meanwhile(harness: &mut Harness, sides: &Sides, round: usize) -> anyhow::Result<Vec<String>> {
    let users = harness.users.clone();
    let mut used = BTreeSet::new();
    // Each side holds all of these.
    let mut common = Vec::new();
    for _ in 0..4 {
        let at = sides.nodes.each_ref().map(|nodes| nodes[harness.any(nodes.len())]);
        let name = harness.fill(1, FILE_BYTES, &at[..1]).await?.pop().context("a file")?;
        users.export(at[1], &name).await?;
        used.insert(name.clone());
        common.push((name, at));
    }
    harness.part(&sides.names).await?;
    let cut = Instant::now();
    let mut work = Vec::new();
    for (side, nodes) in sides.nodes.iter().enumerate() {
        let mut imports = Vec::new();
        for _ in 0..3 {
            let (name, content) = harness.file(FILE_BYTES);
            used.insert(name.clone());
            imports.push((nodes[harness.any(nodes.len())], name, content));
        }
        let (_, content) = harness.file(FILE_BYTES);
        let contested = (nodes[harness.any(nodes.len())], contested_name(round), content);
        let (name, at) = &common[side];
        let other = sides.nodes[1 - side][0];
        work.push(on_a_side(users.clone(), imports, contested, (at[side], name.clone()), other));
    }
    try_join_all(work).await?;
    // From a hiccup to longer than any connection lasts.
    let lasts = Duration::from_millis(harness.any(20_000) as u64);
    sleep(lasts.saturating_sub(cut.elapsed())).await;
    Ok(used.into_iter().collect())
}

type Import = (usize, String, Vec<u8>);

async fn on_a_side(
    users: Users,
    imports: Vec<Import>,
    contested: Import,
    (node, deleted): (usize, String),
    other: usize,
) -> anyhow::Result<()> {
    for (node, name, content) in &imports {
        users.import_apart(*node, name, content).await?;
    }
    // Else nothing is cut, and nothing is shown.
    let seen = imports.iter().map(|(_, name, _)| users.finds(other, name));
    ensure!(!try_join_all(seen).await?.contains(&true), "the other side finds what was imported on this one");
    let (at, name, content) = contested;
    users.contest(at, &name, &content).await?;
    users.delete_apart(node, &deleted).await
}

/// One of three holders is far away over a slow link, then all are.
pub(super) async fn slow_link(harness: &mut Harness, rounds: usize) -> anyhow::Result<Figures> {
    let users = harness.users.clone();
    let rate = NonZeroU64::new(256 << 10);
    let slow = Shape { delay: Duration::from_millis(100), bytes_per_second: rate, ..Shape::default() };
    let (mut longest, mut undisturbed) = (Duration::ZERO, Duration::ZERO);
    for round in 0..rounds {
        let name = held_by_three(harness, 32 << 20).await?;
        undisturbed = undisturbed.max(timed(&users, &name).await?);
        users.forget(3, &name).await?;
        let far = harness.any_node(3);
        harness.order(&Order::Shape { a: vec![far.clone()], b: vec!["node-4".into()], shape: slow })?;
        let took = timed(&users, &name).await.with_context(|| format!("round {round}, {far} is far away"))?;
        longest = longest.max(took);
        harness.order(&Order::Heal)?;
        users.delete(3, &name).await?;
    }
    let small = held_by_three(harness, 3 << 20).await?;
    harness.order(&Order::Shape { a: three(), b: vec!["node-4".into()], shape: slow })?;
    let all_slow = timed(&users, &small).await.context("all are far away")?;
    harness.order(&Order::Heal)?;
    let settled = harness.converged(&users.all(), CONVERGES_WITHIN).await?;
    Ok(figures([
        ("rounds", json!(rounds)),
        ("longest_undisturbed_seconds", json!(undisturbed.as_secs_f64())),
        ("longest_with_a_slow_link_seconds", json!(longest.as_secs_f64())),
        ("three_mib_over_slow_links_seconds", json!(all_slow.as_secs_f64())),
        ("converged_seconds", json!(settled.as_secs_f64())),
    ]))
}

/// A link stalls in the middle of an export, then all do.
pub(super) async fn stalled_link(harness: &mut Harness, rounds: usize) -> anyhow::Result<Figures> {
    let users = harness.users.clone();
    let stalled = Shape { is_stalled: true, ..Shape::default() };
    let mut longest = Duration::ZERO;
    for round in 0..rounds {
        let name = held_by_three(harness, STALLED_BYTES).await?;
        let lost = harness.any_node(3);
        let stall = Order::Shape { a: vec![lost.clone()], b: vec!["node-4".into()], shape: stalled };
        let (_, took) = broken_meanwhile(harness, users.export(3, &name), &stall)
            .await
            .with_context(|| format!("round {round}, the link to {lost} stalled"))?;
        longest = longest.max(took);
        harness.order(&Order::Heal)?;
        users.delete(3, &name).await?;
    }
    let name = held_by_three(harness, STALLED_BYTES).await?;
    let stall = Order::Shape { a: three(), b: vec!["node-4".into()], shape: stalled };
    let (_, gave_up) = broken_meanwhile(harness, users.export_fails(3, &name, UNREACHABLE), &stall).await?;
    ensure!(gave_up < GIVES_UP_WITHIN, "it took {gave_up:?} to give up");
    harness.order(&Order::Heal)?;
    let again = users.export(3, &name).await.context("after the links are mended")?;
    let rest = again["from_peers_bytes"].as_u64().context("no count of bytes")?;
    ensure!(rest < STALLED_BYTES as u64, "it began anew: {again}");
    let settled = harness.converged(&users.all(), CONVERGES_WITHIN).await?;
    Ok(figures([
        ("rounds", json!(rounds)),
        ("longest_with_a_stalled_link_seconds", json!(longest.as_secs_f64())),
        ("gave_up_on_all_after_seconds", json!(gave_up.as_secs_f64())),
        ("bytes_that_were_left", json!(rest)),
        ("converged_seconds", json!(settled.as_secs_f64())),
    ]))
}

fn three() -> Vec<String> {
    (1..=3).map(|number| format!("node-{number}")).collect()
}

/// A file that nodes 1 to 3 hold.
async fn held_by_three(harness: &mut Harness, bytes: usize) -> anyhow::Result<String> {
    let name = harness.fill(1, bytes, &[0]).await?.pop().context("a file")?;
    for node in [1, 2] {
        harness.users.export(node, &name).await?;
    }
    Ok(name)
}

/// How long node 4 takes to export.
async fn timed(users: &Users, name: &str) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let exported = users.export(3, name).await?;
    ensure!(exported["from_peers_bytes"] != 0, "nothing was transferred: {exported}");
    Ok(begun.elapsed())
}

/// Breaks links in the middle of an export; gives what came of it, and when.
async fn broken_meanwhile(
    harness: &Harness,
    export: impl Future<Output = anyhow::Result<Value>>,
    order: &Order,
) -> anyhow::Result<(Value, Duration)> {
    let begun = Instant::now();
    let export = async { Ok((export.await?, begun.elapsed())) };
    let breaking = async {
        // In the middle: three parents of 16 MiB/s need more than a second, and have proved the length by then.
        sleep(Duration::from_millis(800)).await;
        harness.order(order).map(|()| begun.elapsed())
    };
    let ((exported, took), broken) = tokio::try_join!(export, breaking)?;
    ensure!(took > broken, "it was over after {took:?}, before anything was broken");
    Ok((exported, took))
}
