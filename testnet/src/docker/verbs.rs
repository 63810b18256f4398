//! The commands of `testnet --docker`.

use std::path::Path;

use anyhow::{Context as _, bail};
use damselfly_messages::membership::Tags;
use damselfly_transport::program::lifecycle::Signals;

use super::{
    engine,
    fleet::{Fleet, Size},
    members::{self, Member},
};
use crate::listing::{self, Looks, Row};

/// `up`
///
/// # Errors
/// What did not get ready.
pub async fn up(dir: &Path, size: &Size, detach: bool) -> anyhow::Result<()> {
    let mut signals = Signals::catch()?;
    let fleet = tokio::select! {
        fleet = Fleet::start(dir, size) => fleet?,
        _ = signals.recv() => {
            Fleet::at(dir).await?.end().await?;
            bail!("interrupted");
        }
    };
    for node in fleet.members().await?.iter().filter(|member| member.kind.is_node()) {
        println!("docker exec -i {} dfcache    # {}", &node.id[..12], node.name);
    }
    let (console, first_admin) = fleet.console().await?;
    listing::show_console(&console, first_admin.as_deref());
    eprintln!("testnet: ready; {}", fleet.file().display());
    if detach {
        return Ok(());
    }
    eprintln!("testnet: Ctrl-C ends it, and removes its containers, networks and volumes");
    signals.recv().await;
    fleet.end().await
}

/// `down`
///
/// # Errors
/// What is left.
pub async fn down(dir: &Path) -> anyhow::Result<()> {
    let (fleet, _) = Fleet::open(dir).await?;
    fleet.end().await?;
    eprintln!("testnet: no container, network or volume is left; the image stays (`docker image rm` removes it)");
    Ok(())
}

/// `add-node`
///
/// # Errors
/// What did not get ready.
pub async fn add_node(dir: &Path, is_seed: bool, tags: &Tags) -> anyhow::Result<()> {
    let (fleet, _) = Fleet::open(dir).await?;
    println!("{}", fleet.add_node(is_seed, tags).await?);
    Ok(())
}

/// `add-scheduler`
///
/// # Errors
/// What did not get ready.
pub async fn add_scheduler(dir: &Path) -> anyhow::Result<()> {
    let (fleet, _) = Fleet::open(dir).await?;
    println!("{}", fleet.add_scheduler().await?);
    Ok(())
}

/// `ps`
///
/// # Errors
/// When docker fails.
pub async fn ps(dir: &Path, as_json: bool) -> anyhow::Result<()> {
    let (_, members) = Fleet::open(dir).await?;
    let mut rows = Vec::new();
    for member in &members {
        let looks = match member.url("/metrics") {
            Ok(metrics) if member.is_running() => Looks::at(&metrics).await,
            _ => Looks::nothing(&member.state),
        };
        rows.push(Row {
            name: &member.name,
            role: member.kind.to_string(),
            state: &member.state,
            pid: member.pid,
            zone: member.tags.get("zone").map(String::as_str),
            looks,
        });
    }
    listing::print(&rows, as_json);
    Ok(())
}

/// `logs`
///
/// # Errors
/// When there is no such member.
pub async fn logs(dir: &Path, names: &[String], lines: Option<u32>, follow: bool) -> anyhow::Result<()> {
    let (fleet, members) = Fleet::open(dir).await?;
    let wanted = if names.is_empty() { members.iter().collect() } else { members::named(&members, names)? };
    fleet.show_logs(&wanted, lines, follow).await
}

/// What is done to members that are named.
#[derive(Debug, Clone, Copy)]
pub enum Doing {
    /// SIGKILL.
    Kill,
    /// SIGTERM.
    Terminate,
    /// An end, a new start, and waiting until the cluster is ready.
    Restart,
    /// A stop in the middle of what they do.
    Pause,
    /// Going on.
    Resume,
}

/// `kill`, `restart`, `pause`, `resume`
///
/// # Errors
/// When there is no such member, or docker fails.
pub async fn act(dir: &Path, doing: Doing, names: &[String]) -> anyhow::Result<()> {
    let (fleet, members) = Fleet::open(dir).await?;
    let named = members::named(&members, names)?;
    match doing {
        Doing::Kill => fleet.kill(&named, false).await,
        Doing::Terminate => fleet.kill(&named, true).await,
        Doing::Restart => fleet.restart(&named).await,
        Doing::Pause => fleet.pause(&named).await,
        Doing::Resume => fleet.resume(&named).await,
    }
}

/// `partition`
///
/// # Errors
/// When a group is empty, or docker fails.
pub async fn partition(dir: &Path, ones: &str, others: &str) -> anyhow::Result<()> {
    let (fleet, members) = Fleet::open(dir).await?;
    let (ones, others) = (group(&members, ones)?, group(&members, others)?);
    fleet.partition(&ones, &others).await
}

/// Members by names with commas between them, or by a tag such as `zone=a`.
fn group<'a>(members: &'a [Member], text: &str) -> anyhow::Result<Vec<&'a Member>> {
    let Some((name, value)) = text.split_once('=') else {
        return members::named(members, &text.split(',').map(str::to_owned).collect::<Vec<_>>());
    };
    let has = |member: &&Member| member.tags.get(name).is_some_and(|tag| tag == value);
    let found: Vec<_> = members.iter().filter(has).collect();
    if found.is_empty() { bail!("nobody has the tag {text}") } else { Ok(found) }
}

/// `heal`
///
/// # Errors
/// What did not get ready again.
pub async fn heal(dir: &Path) -> anyhow::Result<()> {
    let (fleet, _) = Fleet::open(dir).await?;
    fleet.heal().await?;
    fleet.settle().await
}

/// `image`
///
/// # Errors
/// Why there is none.
pub async fn image() -> anyhow::Result<()> {
    let name = super::ensure_image().await?;
    let id = engine::ask(["image", "inspect", "--format", "{{.Id}}", name]).await.context("the image is gone")?;
    println!("{name} {}", id.trim());
    Ok(())
}
