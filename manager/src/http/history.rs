//! `/api/v1/config/history` and `/api/v1/config/rollback`: what was in force before.

use std::collections::HashSet;

use axum::{
    Extension, Json,
    body::Bytes,
    extract::{
        self, Query,
        rejection::{BytesRejection, QueryRejection},
    },
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use damselfly_messages::config::{Configuration, Settings};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{
    ToSchema,
    openapi::{ArrayBuilder, ObjectBuilder, OneOfBuilder, Type},
};

use super::{Problem, config, guard::Origin, page, time::rfc3339};
use crate::{access::Caller, history::Past, state::State};

/// A page has no more epochs: each may have half a megabyte.
const EPOCHS_MAX: usize = 32;

/// Epochs, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct History {
    items: Vec<Entry>,
    next: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Entry {
    epoch: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    issued: Option<String>,
    /// The user, token or program that made the change.
    actor: String,
    /// What the change was for: a revocation, a root exchange, a rollback, a scheduler. `null` for plain changes.
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    settings: Option<Settings>,
    /// The settings that differ from the epoch before in the history.
    changed: Vec<String>,
    /// The hosts that this epoch revokes.
    revoked: Vec<String>,
    /// Whether the root keys differ from the epoch before in the history.
    roots_changed: bool,
    /// Why it cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    damaged: Option<String>,
}

pub(super) async fn show(
    extract::State(state): extract::State<State>,
    wanted: Result<Query<page::Numbered>, QueryRejection>,
) -> Result<Json<History>, Problem> {
    let page::Numbered { limit, cursor } = page::read(wanted)?;
    let limit = (page::limit(limit)? as usize).min(EPOCHS_MAX);
    // One more: the last one shown is compared with it, and it tells whether there is another page.
    let past = state.history(cursor.unwrap_or(u64::MAX), limit + 1).await?;
    let next = past.get(limit).and_then(|_| past.get(limit - 1)).map(|past| past.epoch.to_string());
    let items = past.iter().take(limit).enumerate().map(|(at, entry)| describe(entry, past.get(at + 1))).collect();
    Ok(Json(History { items, next }))
}

fn describe(past: &Past, older: Option<&Past>) -> Entry {
    let blank = Entry {
        epoch: past.epoch,
        issued: None,
        actor: past.actor.clone(),
        reason: past.reason.clone(),
        settings: None,
        changed: Vec::new(),
        revoked: Vec::new(),
        roots_changed: false,
        damaged: None,
    };
    let configuration = match &past.configuration {
        Ok(configuration) => configuration,
        Err(error) => return Entry { damaged: Some(damselfly_transport::error_chain::chain(error)), ..blank },
    };
    let shown =
        Entry { issued: Some(rfc3339(configuration.issued)), settings: Some(configuration.settings.clone()), ..blank };
    let Some(older) = older.and_then(|older| older.configuration.as_ref().ok()) else { return shown };
    Entry {
        changed: names(differences(&older.settings, &configuration.settings)),
        revoked: newly_revoked(older, configuration),
        roots_changed: older.roots != configuration.roots,
        ..shown
    }
}

/// The hosts that are revoked in `newer` and not in `older`.
fn newly_revoked(older: &Configuration, newer: &Configuration) -> Vec<String> {
    let known: HashSet<_> = older.revoked.iter().map(|revocation| revocation.peer).collect();
    let added = newer.revoked.iter().filter(|revocation| !known.contains(&revocation.peer));
    added.map(|revocation| revocation.peer.to_string()).collect()
}

/// The settings that are not the same, by their names.
fn differences(older: &Settings, newer: &Settings) -> Vec<Difference> {
    let fields = |settings: &Settings| match serde_json::to_value(settings) {
        Ok(Value::Object(fields)) => fields,
        _ => Default::default(),
    };
    let mut older = fields(older);
    let both = fields(newer).into_iter().map(|(field, after)| {
        let before = older.remove(&field).unwrap_or_default();
        Difference { field, before, after }
    });
    let mut differences: Vec<_> = both.filter(|difference| difference.before != difference.after).collect();
    differences.sort_unstable_by(|one, other| one.field.cmp(&other.field));
    differences
}

fn names(differences: Vec<Difference>) -> Vec<String> {
    differences.into_iter().map(|difference| difference.field).collect()
}

/// Which epochs to compare.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Compared {
    from: u64,
    to: u64,
}

/// What is other in one epoch than in another.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Differences {
    from: u64,
    to: u64,
    items: Vec<Difference>,
}

/// A setting with two values.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Difference {
    field: String,
    #[schema(schema_with = value)]
    before: Value,
    #[schema(schema_with = value)]
    after: Value,
}

/// Settings are numbers, or lists of texts or objects.
fn value() -> OneOfBuilder {
    let of = |kind| ObjectBuilder::new().schema_type(kind).build();
    let entry = OneOfBuilder::new().item(of(Type::String)).item(of(Type::Object));
    OneOfBuilder::new().item(of(Type::Integer)).item(ArrayBuilder::new().items(entry).build())
}

pub(super) async fn compare(
    extract::State(state): extract::State<State>,
    compared: Result<Query<Compared>, QueryRejection>,
) -> Result<Json<Differences>, Problem> {
    let Compared { from, to } = page::read(compared)?;
    let (older, newer) = (state.settings_of(from).await?, state.settings_of(to).await?);
    Ok(Json(Differences { from, to, items: differences(&older, &newer) }))
}

/// What to go back to.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RollBack {
    #[schema(minimum = 1, maximum = 9223372036854775807_u64)]
    epoch: u64,
}

/// An epoch to go back to says itself what is wanted, so If-Match may be left out.
pub(super) async fn roll_back(
    extract::State(state): extract::State<State>,
    Extension(caller): Extension<Caller>,
    Extension(Origin(address)): Extension<Origin>,
    allowed: Result<Query<config::Allowed>, QueryRejection>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let empty = page::read(allowed)?.empty_ring();
    let expected = config::Expected::if_given(&headers)?;
    let RollBack { epoch } = config::read_body(body)?;
    let (epoch, settings) =
        state.roll_back(epoch, caller.actor(address), empty, move |current| expected.matches(current)).await?;
    Ok((config::tagged(epoch), Json(settings)).into_response())
}
