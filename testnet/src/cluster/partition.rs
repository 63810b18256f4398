//! Breaks the links between local programs, and mends them.

use std::path::Path;

use anyhow::{Context as _, bail, ensure};

use super::{MANAGER, change, probe};
use crate::{
    layout::{ClusterFile, Layout},
    links::{control::Links, proxy::Order, wire::Shape},
    programs::Programs,
    ready,
};

/// `testnet partition`: cuts two groups off from each other; who is in neither reaches both.
///
/// # Errors
/// When a group is empty or not of this cluster, or the cluster has no links.
pub async fn partition(dir: &Path, ones: &str, others: &str) -> anyhow::Result<()> {
    let (links, a, b) = between(dir, ones, others).await?;
    links.order(&Order::Cut { a, b }).map(drop)
}

/// `testnet link`: makes the links between two groups like this, in both directions.
///
/// # Errors
/// When a group is empty or not of this cluster, or the cluster has no links.
pub async fn shape(dir: &Path, ones: &str, others: &str, shape: Shape) -> anyhow::Result<()> {
    let (links, a, b) = between(dir, ones, others).await?;
    links.order(&Order::Shape { a, b, shape }).map(drop)
}

/// `testnet link --reset`: ends the connections between two groups.
///
/// # Errors
/// When a group is empty or not of this cluster, or the cluster has no links.
pub async fn reset(dir: &Path, ones: &str, others: &str) -> anyhow::Result<()> {
    let (links, a, b) = between(dir, ones, others).await?;
    links.order(&Order::Reset { a, b }).map(drop)
}

/// `testnet heal`: mends all links, and waits until nodes export from each other again.
///
/// # Errors
/// What did not get ready again.
pub async fn heal(dir: &Path) -> anyhow::Result<()> {
    let (layout, file) = Layout::open(dir)?;
    links(&layout)?.order(&Order::Heal)?;
    let epoch = change::epoch(&file.manager).await?;
    let programs = Programs::find()?;
    ready::cluster(&layout, &file, &programs, epoch).await?;
    probe::exports(&layout, &file, &programs).await
}

fn links(layout: &Layout) -> anyhow::Result<Links> {
    let none = "this cluster has no links that could be broken: start it with `testnet up --links`, or use --docker";
    Links::of(layout)?.context(none)
}

async fn between(dir: &Path, ones: &str, others: &str) -> anyhow::Result<(Links, Vec<String>, Vec<String>)> {
    let (layout, file) = Layout::open(dir)?;
    let links = links(&layout)?;
    let (a, b) = (group(&file, ones).await?, group(&file, others).await?);
    let both = a.iter().find(|name| b.contains(name));
    ensure!(both.is_none(), "{} is on both sides", both.map_or("", String::as_str));
    Ok((links, a, b))
}

/// Names with commas between them, or those with a tag such as `zone=a`.
async fn group(file: &ClusterFile, text: &str) -> anyhow::Result<Vec<String>> {
    let schedulers = file.schedulers.iter().map(|one| (one.name.as_str(), one.peer_id.as_str()));
    let nodes = file.nodes.iter().map(|one| (one.name.as_str(), one.peer_id.as_str()));
    let members: Vec<_> = schedulers.chain(nodes).collect();
    if let Some((tag, value)) = text.split_once('=') {
        let hosts = change::get(&file.manager, "hosts").await?;
        let hosts = hosts["items"].as_array().map_or(&[][..], Vec::as_slice);
        let has = |peer_id: &str| hosts.iter().any(|host| host["peer_id"] == peer_id && host["tags"][tag] == value);
        let found: Vec<_> =
            members.iter().filter(|(_, peer_id)| has(peer_id)).map(|(name, _)| (*name).into()).collect();
        return if found.is_empty() { bail!("nobody has the tag {text}") } else { Ok(found) };
    }
    let known = |name: &str| members.iter().any(|(known, _)| *known == name);
    text.split(',')
        .map(|name| match name {
            MANAGER => bail!("nobody needs the manager to serve: `testnet pause manager` takes it away from all"),
            name if known(name) => Ok(name.to_owned()),
            name => bail!(
                "there is no {name:?}; there are {}",
                members.iter().map(|one| one.0).collect::<Vec<_>>().join(", ")
            ),
        })
        .collect()
}
