//! `/api/v1/join-tokens`, `/api/v1/revocations` and `/api/v1/hosts`: who may be a member, and who is.

use std::time::Duration;

use axum::{
    Extension, Json,
    body::Bytes,
    extract::{
        self, Path, Query,
        rejection::{BytesRejection, QueryRejection},
    },
    http::StatusCode,
};
use damselfly_messages::{
    membership::{Role, Roles, Tags, TokenId},
    scheduler::{TAG_TEXT_MAX, TAGS_MAX},
    units,
};
use libp2p::PeerId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Problem, config::read_body, guard::Origin, page, time::rfc3339, users::invalid};
use crate::{
    access::Caller,
    cluster_view::{HostView, Poller},
    database::{join_tokens::JoinToken, members::Member},
    membership::Membership,
    rates::Rates,
};

/// Longest life of a join token: a year.
const TTL_MAX: u64 = 365 * 24 * 3600;
const USES_MAX: u32 = 100_000;
const REASON_MAX: usize = 500;

/// Which part of a list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    limit: Option<u32>,
    cursor: Option<String>,
}

/// Join tokens, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct JoinTokenList {
    items: Vec<Token>,
    next: Option<String>,
}

/// A join token as it is shown.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = JoinToken)]
pub(super) struct Token {
    id: String,
    roles: Vec<String>,
    tags: Tags,
    uses: u32,
    uses_left: u32,
    #[schema(format = DateTime)]
    created: String,
    created_by: String,
    #[schema(format = DateTime)]
    expires: String,
    withdrawn: bool,
    /// Only when it is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
}

impl Token {
    fn new(token: JoinToken, revealed: Option<String>) -> Self {
        Self {
            id: hex::encode(token.id),
            roles: token.roles,
            tags: token.tags,
            uses: token.uses,
            uses_left: token.uses_left,
            created: rfc3339(token.created),
            created_by: token.created_by,
            expires: rfc3339(token.expires),
            withdrawn: token.revoked.is_some(),
            token: revealed,
        }
    }
}

/// What a host may join as.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "only its schema is used")]
enum JoinRole {
    Node,
    Seed,
    Scheduler,
}

/// What a join token is to be.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewJoinToken)]
pub(super) struct NewToken {
    #[schema(value_type = Vec<JoinRole>, min_items = 1)]
    roles: Vec<Role>,
    #[serde(default)]
    tags: Tags,
    #[serde(default = "one")]
    #[schema(minimum = 1, maximum = 100000)]
    uses: u32,
    /// How long the token can be used: a number of seconds; a duration such as `1day` is read too.
    #[serde(default = "one_hour", deserialize_with = "units::seconds")]
    #[schema(minimum = 1, maximum = 31536000)]
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
        let invalid = |detail: String| Err(Problem::new(StatusCode::BAD_REQUEST, "invalid_token", detail));
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
    Extension(caller): Extension<Caller>,
    Extension(Origin(address)): Extension<Origin>,
    body: Result<Bytes, BytesRejection>,
) -> Result<(StatusCode, Json<Token>), Problem> {
    let new: NewToken = read_body(body)?;
    new.check()?;
    let (granted, lifetime) = ((Roles::of(new.roles), new.tags), Duration::from_secs(new.ttl_seconds));
    let (token, made) = membership.make_token(granted, new.uses, lifetime, &caller.actor(address)).await?;
    Ok((StatusCode::CREATED, Json(Token::new(made, Some(token.reveal())))))
}

pub(super) async fn tokens(
    extract::State(membership): extract::State<Membership>,
    wanted: Result<Query<page::Numbered>, QueryRejection>,
) -> Result<Json<JoinTokenList>, Problem> {
    let page::Numbered { limit, cursor } = page::read(wanted)?;
    let found = membership.database().join_tokens(&page::page(limit, cursor)?).await?;
    let items = found.items.into_iter().map(|token| Token::new(token, None)).collect();
    Ok(Json(JoinTokenList { items, next: found.next }))
}

pub(super) async fn withdraw(
    extract::State(membership): extract::State<Membership>,
    Extension(caller): Extension<Caller>,
    Extension(Origin(address)): Extension<Origin>,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    let TokenId(id) = id.parse().map_err(|_| Problem::not_found())?;
    match membership.database().revoke_join_token(&id, &caller.actor(address), membership.database().now()).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Problem::not_found()),
    }
}

/// Whom to put out.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewRevocation {
    #[schema(pattern = "^12D3KooW[1-9A-HJ-NP-Za-km-z]{44}$")]
    peer_id: String,
    /// For the audit.
    #[schema(
        max_length = 500,
        pattern = r"^[^\u0000-\u001f\u007f-\u009f]*[^\s\u0000-\u001f\u007f-\u009f][^\u0000-\u001f\u007f-\u009f]*$",
        example = "sold"
    )]
    reason: String,
}

/// A host that was put out.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Revocation {
    peer_id: String,
    #[schema(format = DateTime)]
    at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<u64>,
}

pub(super) async fn revoke(
    extract::State(membership): extract::State<Membership>,
    Extension(caller): Extension<Caller>,
    Extension(Origin(address)): Extension<Origin>,
    body: Result<Bytes, BytesRejection>,
) -> Result<(StatusCode, Json<Revocation>), Problem> {
    let NewRevocation { peer_id, reason } = read_body(body)?;
    let peer: PeerId = peer_id.parse().map_err(|_| invalid(format!("peer_id: {peer_id:?} is no peer ID")))?;
    let is_good = reason.chars().count() <= REASON_MAX && !reason.chars().any(char::is_control);
    if !is_good || reason.trim().is_empty() {
        return Err(invalid(format!(
            "reason must have 1 to {REASON_MAX} characters, none of them a control character"
        )));
    }
    let epoch = membership.revoke(peer, reason.clone(), caller.actor(address)).await?;
    let at = membership
        .revoked()
        .into_iter()
        .find(|revoked| revoked.peer == peer)
        .map_or(membership.database().now(), |revoked| revoked.at);
    let shown = Revocation { peer_id, at: rfc3339(at), reason: Some(reason), epoch: Some(epoch) };
    Ok((StatusCode::CREATED, Json(shown)))
}

/// Hosts that were put out, by PeerId.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RevocationList {
    items: Vec<Revocation>,
    next: Option<String>,
}

pub(super) async fn revocations(
    extract::State(membership): extract::State<Membership>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Json<RevocationList>, Problem> {
    let Wanted { limit, cursor } = page::read(wanted)?;
    let (limit, cursor) = (page::limit(limit)? as usize, cursor.unwrap_or_default());
    let mut found: Vec<_> =
        membership.revoked().into_iter().map(|revoked| (revoked.peer.to_string(), revoked.at)).collect();
    found.sort();
    found.retain(|(peer, _)| *peer > cursor);
    let next = found.get(limit).and_then(|_| found.get(limit - 1)).map(|(peer, _)| peer.clone());
    let mut items = Vec::new();
    for (peer_id, at) in found.into_iter().take(limit) {
        let member = membership.database().member(&peer_id).await?;
        let reason = member.and_then(|member| member.revoked).map(|revoked| revoked.reason);
        items.push(Revocation { peer_id, at: rfc3339(at), reason, epoch: None });
    }
    Ok(Json(RevocationList { items, next }))
}

/// Members, by PeerId.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct HostList {
    items: Vec<Host>,
    next: Option<String>,
}

/// A host as it is shown.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Host {
    peer_id: String,
    roles: Vec<String>,
    /// Those of its credential, and those of its own configuration that schedulers have heard of, the first 192 bytes.
    tags: Tags,
    addresses: Vec<String>,
    version: String,
    #[schema(format = DateTime)]
    joined: String,
    #[schema(format = DateTime)]
    renewed: String,
    #[schema(format = DateTime)]
    expires: String,
    revoked: bool,
    /// A scheduler hears of it. Schedulers themselves are under `/schedulers`.
    up: bool,
    /// What it said last, if it did since the manager's start.
    #[serde(skip_serializing_if = "Option::is_none")]
    live: Option<Live>,
}

/// What a host said with its last heartbeat.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Live {
    heard_seconds_ago: u64,
    epoch: u64,
    version: String,
    contents: u64,
    stored_bytes: u64,
    free_bytes: u64,
    sent_bytes: u64,
    received_bytes: u64,
    /// Between the last two heartbeats.
    sent_bytes_per_second: u64,
    received_bytes_per_second: u64,
    local_bytes_per_second: u64,
    imports: u64,
    exports: u64,
    failures: u64,
    downloads: u32,
    children: u32,
}

impl Live {
    fn new(view: &HostView) -> Self {
        let (state, report) = (&view.state, &view.state.report);
        let rates = if view.is_up { view.meter.rates() } else { Rates::default() };
        Self {
            heard_seconds_ago: view.heard.elapsed().as_secs(),
            epoch: state.epoch,
            version: state.version.clone(),
            contents: report.contents,
            stored_bytes: report.stored_bytes,
            free_bytes: report.free_bytes,
            sent_bytes: report.sent_bytes,
            received_bytes: report.received_bytes,
            sent_bytes_per_second: rates.sent as u64,
            received_bytes_per_second: rates.received as u64,
            local_bytes_per_second: rates.local as u64,
            imports: report.imports,
            exports: report.exports,
            failures: report.failures,
            downloads: state.downloads,
            children: state.children,
        }
    }
}

impl Host {
    fn new(member: Member, view: Option<&HostView>) -> Self {
        Self {
            up: view.is_some_and(|view| view.is_up),
            live: view.map(Live::new),
            peer_id: member.peer_id,
            roles: member.roles,
            // A credential's tags go before those of the host's own configuration.
            tags: view
                .map(|view| view.state.tags.as_ref().clone())
                .unwrap_or_default()
                .into_iter()
                .chain(member.tags)
                .collect(),
            addresses: member.addresses,
            version: member.version,
            joined: rfc3339(member.joined),
            renewed: rfc3339(member.renewed),
            expires: rfc3339(member.not_after),
            revoked: member.revoked.is_some(),
        }
    }
}

/// Which hosts.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WantedHosts {
    limit: Option<u32>,
    cursor: Option<String>,
    role: Option<String>,
}

pub(super) async fn hosts(
    extract::State(membership): extract::State<Membership>,
    extract::State(poller): extract::State<Poller>,
    wanted: Result<Query<WantedHosts>, QueryRejection>,
) -> Result<Json<HostList>, Problem> {
    let WantedHosts { limit, cursor, role } = page::read(wanted)?;
    if let Some(role) = &role {
        role.parse::<Role>().map_err(|error| Problem::new(StatusCode::BAD_REQUEST, "invalid_query", error.reason))?;
    }
    let found = membership.database().members(&page::page(limit, cursor)?, role.as_deref()).await?;
    let cluster_view = poller.cluster_view();
    let show = |member: Member| {
        let view = member.peer_id.parse().ok().and_then(|peer: PeerId| cluster_view.hosts.get(&peer));
        Host::new(member, view)
    };
    Ok(Json(HostList { items: found.items.into_iter().map(show).collect(), next: found.next }))
}
