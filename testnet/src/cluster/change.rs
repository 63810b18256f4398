//! Changes of the cluster's settings, by way of the manager.

use std::time::Duration;

use anyhow::{Context as _, bail};
use damselfly_messages::config::Settings;

use crate::{
    http::{self, Answer},
    layout::ManagerEntry,
};

/// Somebody else may change the settings at the same time, this often.
const TRIES: u32 = 10;
/// A manager that starts is asked again after this.
const STARTING: Duration = Duration::from_secs(1);

/// Changes the settings; returns the new epoch.
pub(super) async fn settings(manager: &ManagerEntry, change: impl Fn(&mut Settings)) -> anyhow::Result<u64> {
    for _ in 0..TRIES {
        let answer = api(manager, "GET", &[], String::new()).await?;
        let tag = answer.etag.context("the manager gives no ETag")?;
        let mut settings: Settings = serde_json::from_str(&answer.body).context("the manager's settings")?;
        change(&mut settings);
        let answer = api(manager, "PUT", &[("if-match", &tag)], serde_json::to_string(&settings)?).await?;
        match answer.status {
            200 => return epoch_in(&answer),
            412 => {}
            // It has just started and asks the members whether they know a newer configuration.
            503 => tokio::time::sleep(STARTING).await,
            status => bail!("the manager refuses the change ({status}): {}", answer.body),
        }
    }
    bail!("the settings are changed all the time by somebody else")
}

/// The epoch in force.
pub(super) async fn epoch(manager: &ManagerEntry) -> anyhow::Result<u64> {
    epoch_in(&api(manager, "GET", &[], String::new()).await?)
}

fn epoch_in(answer: &Answer) -> anyhow::Result<u64> {
    let tag = answer.etag.as_deref().context("the manager gives no ETag")?;
    tag.trim_matches('"').parse().context("the manager's ETag is no epoch")
}

async fn api(manager: &ManagerEntry, method: &str, headers: &[(&str, &str)], body: String) -> anyhow::Result<Answer> {
    let token = std::fs::read_to_string(&manager.admin_token_file).context("no admin token")?;
    let authorization = format!("Bearer {}", token.trim());
    let headers = [headers, &[("authorization", &authorization), ("content-type", "application/json")]].concat();
    let answer = http::ask(method, &format!("{}/api/v1/config", manager.http), &headers, body).await?;
    if method == "GET" && answer.status != 200 {
        bail!("the manager answers {}: {}", answer.status, answer.body);
    }
    Ok(answer)
}
