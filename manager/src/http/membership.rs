//! `/api/v1/join-tokens`, `/api/v1/revocations` and `/api/v1/hosts`: who may be a member, and who is.

use std::time::Duration;

use axum::{
    Json,
    body::Bytes,
    extract::{
        self, Path, Query,
        rejection::{BytesRejection, QueryRejection},
    },
    http::StatusCode,
    response::{IntoResponse, Response},
};
use damselfly_messages::{
    membership::{Role, Roles, Tags, TokenId},
    scheduler::{TAG_TEXT_MAX, TAGS_MAX},
};
use libp2p::PeerId;
use serde::{Deserialize, Serialize};

use super::{
    Problem,
    config::read_body,
    error::rfc3339,
    page::{Page, invalid, list, page},
};
use crate::{
    membership::Membership,
    picture::{Eyes, HostView},
    registry::{Member, TokenRecord},
};

/// Longest life of a join token: a year.
const TTL_MAX: u64 = 365 * 24 * 3600;
const USES_MAX: u32 = 100_000;
const REASON_MAX: usize = 500;

/// A join token as it is shown.
#[derive(Debug, Serialize)]
struct Token {
    id: String,
    roles: Vec<Role>,
    tags: Tags,
    uses: u32,
    uses_left: u32,
    created: String,
    expires: String,
    withdrawn: bool,
    /// Only when it is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
}

impl Token {
    fn new(id: String, record: TokenRecord, token: Option<String>) -> Self {
        let (created, expires) = (rfc3339(record.created_unix_ms), rfc3339(record.expires_unix_ms));
        let TokenRecord { roles, tags, uses, uses_left, withdrawn, .. } = record;
        Self { id, roles, tags, uses, uses_left, created, expires, withdrawn, token }
    }
}

/// What a join token is to be.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewToken {
    roles: Vec<Role>,
    #[serde(default)]
    tags: Tags,
    #[serde(default = "one")]
    uses: u32,
    #[serde(default = "one_hour")]
    ttl_seconds: u64,
}

const fn one() -> u32 {
    1
}

const fn one_hour() -> u64 {
    3600
}

impl NewToken {
    fn check(&self) -> Result<(), Problem> {
        let invalid = |detail: String| Err(invalid("invalid_token", detail));
        let too_long = |text: &String| text.len() > TAG_TEXT_MAX;
        if self.roles.is_empty() || self.roles.contains(&Role::Manager) {
            return invalid("roles must be some of node, seed, scheduler".into());
        } else if !(1..=USES_MAX).contains(&self.uses) {
            return invalid(format!("uses is {}; allowed are 1 to {USES_MAX}", self.uses));
        } else if !(1..=TTL_MAX).contains(&self.ttl_seconds) {
            return invalid(format!("ttl_seconds is {}; allowed are 1 to {TTL_MAX}", self.ttl_seconds));
        } else if self.tags.len() > TAGS_MAX || self.tags.iter().any(|(key, value)| too_long(key) || too_long(value)) {
            return invalid(format!("tags are at most {TAGS_MAX}, of at most {TAG_TEXT_MAX} bytes"));
        }
        Ok(())
    }
}

pub(super) async fn make_token(
    extract::State(membership): extract::State<Membership>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let new: NewToken = read_body(body)?;
    new.check()?;
    let (roles, lifetime) = (Roles::of(new.roles), Duration::from_secs(new.ttl_seconds));
    let made = membership.make_token(roles, new.tags, new.uses, lifetime).await;
    let (token, record) = made.map_err(|error| Problem::internal(&error))?;
    let shown = Token::new(token.id.to_string(), record, Some(token.reveal()));
    Ok((StatusCode::CREATED, Json(shown)).into_response())
}

pub(super) async fn tokens(
    extract::State(membership): extract::State<Membership>,
    asked: Result<Query<Page>, QueryRejection>,
) -> Result<Response, Problem> {
    let (limit, cursor) = page(asked)?;
    let found = membership.registry().tokens(&cursor.unwrap_or_default(), limit + 1);
    Ok(list(found, limit, |(id, _)| id.clone(), |(id, record)| Token::new(id, record, None)).into_response())
}

pub(super) async fn withdraw(
    extract::State(membership): extract::State<Membership>,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    let id: TokenId = id.parse().map_err(|_| Problem::not_found())?;
    match membership.withdraw(id).await {
        Ok(true) => Ok(StatusCode::NO_CONTENT),
        Ok(false) => Err(Problem::not_found()),
        Err(error) => Err(Problem::internal(&error)),
    }
}

/// Whom to put out.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewRevocation {
    peer_id: String,
    reason: String,
}

#[derive(Debug, Serialize)]
struct Revocation {
    peer_id: String,
    at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<u64>,
}

pub(super) async fn revoke(
    extract::State(membership): extract::State<Membership>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let NewRevocation { peer_id, reason } = read_body(body)?;
    let peer: PeerId = peer_id.parse().map_err(|_| invalid("invalid_peer_id", format!("{peer_id:?} is no peer ID")))?;
    if reason.trim().is_empty() || reason.len() > REASON_MAX {
        return Err(invalid("invalid_reason", format!("reason must have 1 to {REASON_MAX} bytes")));
    }
    let epoch = membership.revoke(peer, reason.clone()).await?;
    let at = membership.revoked().into_iter().find(|revoked| revoked.peer == peer).map_or(0, |revoked| revoked.at.0);
    let shown = Revocation { peer_id, at: rfc3339(at), reason: Some(reason), epoch: Some(epoch) };
    Ok((StatusCode::CREATED, Json(shown)).into_response())
}

pub(super) async fn revocations(
    extract::State(membership): extract::State<Membership>,
    asked: Result<Query<Page>, QueryRejection>,
) -> Result<Response, Problem> {
    let (limit, cursor) = page(asked)?;
    let mut found = membership.revoked();
    found.sort_by_key(|revoked| revoked.peer.to_string());
    let cursor = cursor.unwrap_or_default();
    found.retain(|revoked| revoked.peer.to_string() > cursor);
    let reason = |peer: &PeerId| membership.registry().member(peer).and_then(|member| member.revoked_because);
    Ok(list(
        found,
        limit,
        |revoked| revoked.peer.to_string(),
        |revoked| Revocation {
            peer_id: revoked.peer.to_string(),
            at: rfc3339(revoked.at.0),
            reason: reason(&revoked.peer),
            epoch: None,
        },
    )
    .into_response())
}

/// A host as it is shown.
#[derive(Debug, Serialize)]
struct Host {
    peer_id: String,
    roles: Vec<Role>,
    tags: Tags,
    addresses: Vec<String>,
    version: String,
    joined: String,
    renewed: String,
    expires: String,
    revoked: bool,
    /// A scheduler hears of it. Schedulers themselves are under `/schedulers`.
    up: bool,
    /// What it said last, if it did since the manager's start.
    #[serde(skip_serializing_if = "Option::is_none")]
    live: Option<Live>,
}

/// What a host said with its last heartbeat.
#[derive(Debug, Serialize)]
struct Live {
    heard_seconds_ago: u64,
    epoch: u64,
    version: String,
    contents: u64,
    stored_bytes: u64,
    free_bytes: u64,
    sent_bytes: u64,
    received_bytes: u64,
    imports: u64,
    exports: u64,
    failures: u64,
    downloads: u32,
    children: u32,
}

impl Live {
    fn new(view: &HostView) -> Self {
        let (state, report) = (&view.state, &view.state.report);
        Self {
            heard_seconds_ago: view.heard.elapsed().as_secs(),
            epoch: state.epoch,
            version: state.version.clone(),
            contents: report.contents,
            stored_bytes: report.stored_bytes,
            free_bytes: report.free_bytes,
            sent_bytes: report.sent_bytes,
            received_bytes: report.received_bytes,
            imports: report.imports,
            exports: report.exports,
            failures: report.failures,
            downloads: state.downloads,
            children: state.children,
        }
    }
}

impl Host {
    fn new(peer: PeerId, member: Member, view: Option<&HostView>) -> Self {
        Self {
            up: view.is_some_and(|view| view.is_up),
            live: view.map(Live::new),
            peer_id: peer.to_string(),
            roles: member.roles,
            tags: member.tags,
            addresses: member.addresses.iter().map(ToString::to_string).collect(),
            version: member.version,
            joined: rfc3339(member.joined_unix_ms),
            renewed: rfc3339(member.renewed_unix_ms),
            expires: rfc3339(member.expires_unix_ms),
            revoked: member.revoked_unix_ms.is_some(),
        }
    }
}

pub(super) async fn hosts(
    extract::State(membership): extract::State<Membership>,
    extract::State(eyes): extract::State<Eyes>,
    asked: Result<Query<Page>, QueryRejection>,
) -> Result<Response, Problem> {
    let (limit, cursor) = page(asked)?;
    let after = cursor.map(|cursor| cursor.parse::<PeerId>()).transpose();
    let after = after.map_err(|_| invalid("invalid_query", "the cursor is none that was given out"))?;
    let found = membership.registry().members(after, limit + 1);
    let picture = eyes.picture();
    let show = |(peer, member)| Host::new(peer, member, picture.hosts.get(&peer));
    Ok(list(found, limit, |(peer, _)| peer.to_string(), show).into_response())
}
