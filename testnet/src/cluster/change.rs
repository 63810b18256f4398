//! What the testnet asks of the manager.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use damselfly_messages::{config::Settings, membership::Tags};
use libp2p::PeerId;

use crate::{
    http::{self, Answer},
    layout::ManagerEntry,
};

/// A scheduler that has joined is in the ring by then.
const IN_RING_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long the testnet's join tokens are good.
const TOKEN_SECONDS: u64 = 600;

/// Waits until a scheduler that has joined is in the ring; returns the epoch that says so.
pub(super) async fn in_ring(manager: &ManagerEntry, peer: PeerId) -> anyhow::Result<u64> {
    let begun = Instant::now();
    loop {
        let answer = api(manager, "GET", "config", String::new()).await?;
        let settings: Settings = serde_json::from_str(&answer.body).context("the manager's settings")?;
        if settings.schedulers.iter().any(|scheduler| scheduler.peer_id == peer) {
            return epoch_in(&answer);
        }
        if begun.elapsed() > IN_RING_WITHIN {
            bail!("{peer} is not in the ring {} s after it was started", IN_RING_WITHIN.as_secs());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Makes a join token that is good for so many hosts, and gives them these tags.
pub(crate) async fn join_token(
    manager: &ManagerEntry,
    roles: &[&str],
    uses: usize,
    tags: &Tags,
) -> anyhow::Result<String> {
    let body = serde_json::json!({ "roles": roles, "uses": uses, "ttl_seconds": TOKEN_SECONDS, "tags": tags });
    let answer = api(manager, "POST", "join-tokens", body.to_string()).await?;
    let made: serde_json::Value = serde_json::from_str(&answer.body).context("the manager's answer")?;
    match made["token"].as_str() {
        Some(token) => Ok(token.to_owned()),
        None => bail!("the manager makes no join token ({}): {}", answer.status, answer.body),
    }
}

/// How many schedulers are in the ring, and the epoch that says so.
pub(crate) async fn ring(manager: &ManagerEntry) -> anyhow::Result<(usize, u64)> {
    let answer = api(manager, "GET", "config", String::new()).await?;
    let settings: Settings = serde_json::from_str(&answer.body).context("the manager's settings")?;
    Ok((settings.schedulers.len(), epoch_in(&answer)?))
}

/// What the manager says of `resource`.
pub(crate) async fn get(manager: &ManagerEntry, resource: &str) -> anyhow::Result<serde_json::Value> {
    let answer = api(manager, "GET", resource, String::new()).await?;
    serde_json::from_str(&answer.body).with_context(|| format!("the manager's {resource}"))
}

/// The epoch in force.
pub(super) async fn epoch(manager: &ManagerEntry) -> anyhow::Result<u64> {
    epoch_in(&api(manager, "GET", "config", String::new()).await?)
}

fn epoch_in(answer: &Answer) -> anyhow::Result<u64> {
    let tag = answer.etag.as_deref().context("the manager gives no ETag")?;
    tag.trim_matches('"').parse().context("the manager's ETag is no epoch")
}

/// Replaces one value of the settings; returns the epoch that says so.
pub(crate) async fn set(manager: &ManagerEntry, name: &str, value: serde_json::Value) -> anyhow::Result<u64> {
    let answer = api(manager, "GET", "config", String::new()).await?;
    let mut settings: serde_json::Value = serde_json::from_str(&answer.body).context("the manager's settings")?;
    settings[name] = value;
    let tag = answer.etag.context("the manager gives no ETag")?;
    let answer = ask(manager, ("PUT", "config"), &[("if-match", &tag)], settings.to_string()).await?;
    if answer.status != 200 {
        bail!("the manager answers {}: {}", answer.status, answer.body);
    }
    epoch_in(&answer)
}

/// Puts a host out.
pub(crate) async fn revoke(manager: &ManagerEntry, peer: PeerId) -> anyhow::Result<()> {
    let body = serde_json::json!({ "peer_id": peer.to_string(), "reason": "testnet" });
    let answer = api(manager, "POST", "revocations", body.to_string()).await?;
    if answer.status != 201 {
        bail!("the manager answers {}: {}", answer.status, answer.body);
    }
    Ok(())
}

async fn api(manager: &ManagerEntry, method: &str, resource: &str, body: String) -> anyhow::Result<Answer> {
    let answer = ask(manager, (method, resource), &[], body).await?;
    if method == "GET" && answer.status != 200 {
        bail!("the manager answers {}: {}", answer.status, answer.body);
    }
    Ok(answer)
}

async fn ask(
    manager: &ManagerEntry,
    (method, resource): (&str, &str),
    further: &[(&str, &str)],
    body: String,
) -> anyhow::Result<Answer> {
    let token = std::fs::read_to_string(&manager.admin_token_file).context("no admin token")?;
    let authorization = format!("Bearer {}", token.trim());
    let own = [("authorization", authorization.as_str()), ("content-type", "application/json")];
    let headers: Vec<_> = own.iter().chain(further).copied().collect();
    http::ask(method, &format!("{}/api/v1/{resource}", manager.http), &headers, body).await
}
