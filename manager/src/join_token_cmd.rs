//! `dfmanager join-token`: join tokens for who is on the manager's own host, by way of its API.

use std::{collections::BTreeMap, fs, path::PathBuf, str::FromStr, time::Duration};

use anyhow::{Context as _, bail};
use damselfly_messages::membership::Role;
use damselfly_transport::{
    program::{
        durable,
        http::{Question, ask},
    },
    stdio,
};

use crate::{access::ADMIN_TOKEN, config::ManagerConfig};

/// A token that is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    roles: Vec<String>,
    tags: BTreeMap<String, String>,
    output: Option<PathBuf>,
}

impl FromStr for Wanted {
    type Err = String;

    /// Reads `ROLE[+ROLE][,TAG=VALUE]…[@FILE]`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (what, output) = match text.split_once('@') {
            Some((_, "")) => return Err("the file after @ is missing".to_owned()),
            Some((what, path)) => (what, Some(path.into())),
            None => (text, None),
        };
        let mut parts = what.split(',');
        let roles: Vec<_> = parts.next().unwrap_or_default().split('+').map(str::to_owned).collect();
        if let Some(role) = roles.iter().find(|role| role.parse::<Role>().is_err()) {
            return Err(format!("{role:?} is no role: node, seed or scheduler, several with + between them"));
        }
        let pair = |part: &str| part.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        let wrong = |part: &str| format!("{part:?} is no tag like zone=a");
        let tags = parts.map(|part| pair(part).ok_or_else(|| wrong(part))).collect::<Result<_, _>>()?;
        Ok(Self { roles, tags, output })
    }
}

/// Makes a token for each one that is wanted, and writes it into its file or prints it.
///
/// # Errors
/// Why there is none; those before it are made.
pub async fn invite(config: &ManagerConfig, wanted: &[Wanted], uses: u32, ttl: Duration) -> anyhow::Result<()> {
    let path = config.data_dir.join(ADMIN_TOKEN);
    let admin = fs::read_to_string(&path).with_context(|| {
        format!(
            "cannot read {}, which the manager makes at its first start: run this as the manager's user, with its \
                 configuration (--config FILE) or its data directory (--data-dir DIR)",
            path.display()
        )
    })?;
    if stdio::stdout_is_closed() && wanted.iter().any(|one| one.output.is_none()) {
        // A token is shown once.
        bail!("stdout is closed: redirect it to where the token is to go, or name a file with @FILE");
    }
    for one in wanted {
        let token = make(config, admin.trim(), one, uses, ttl).await?;
        match &one.output {
            None => stdio::print(&format!("{token}\n")).context("cannot write the token to stdout")?,
            Some(path) => durable::replace(path, token.as_bytes(), 0o600)
                .with_context(|| format!("cannot write {}", path.display()))?,
        }
    }
    Ok(())
}

async fn make(
    config: &ManagerConfig,
    admin: &str,
    wanted: &Wanted,
    uses: u32,
    ttl: Duration,
) -> anyhow::Result<String> {
    let Wanted { roles, tags, .. } = wanted;
    let body = serde_json::json!({ "roles": roles, "tags": tags, "uses": uses, "ttl_seconds": ttl.as_secs() });
    let question = Question {
        method: axum::http::Method::POST,
        path: "/api/v1/join-tokens",
        token: Some(admin),
        body: body.to_string(),
    };
    let answer = ask(&config.http, &config.data_dir, question).await.context("cannot ask the manager")?;
    let said: serde_json::Value = serde_json::from_str(&answer.body).unwrap_or_default();
    match said["token"].as_str() {
        Some(token) if answer.status == 201 => Ok(token.to_owned()),
        _ => bail!("the manager refuses ({}): {}", answer.status, said["detail"].as_str().unwrap_or(&answer.body)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_token_is_for_is_read() {
        let wanted: Wanted = "node+seed,zone=a,rack=r1@/run/tokens/a".parse().expect("a token");
        assert_eq!(wanted.roles, ["node", "seed"]);
        assert_eq!(
            wanted.tags.into_iter().collect::<Vec<_>>(),
            [("rack".into(), "r1".into()), ("zone".into(), "a".into())]
        );
        assert_eq!(wanted.output, Some("/run/tokens/a".into()));
        assert_eq!("scheduler".parse::<Wanted>().map(|wanted| wanted.output), Ok(None));
        for (text, reason) in [("nod", "no role"), ("", "no role"), ("node,zone", "no tag"), ("node@", "missing")] {
            let error = text.parse::<Wanted>().expect_err(text);
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
