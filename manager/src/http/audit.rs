//! `/api/v1/audit`: who changed what.

use axum::{
    Json, extract,
    extract::{Query, rejection::QueryRejection},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::{Problem, page, time::rfc3339};
use crate::{
    access::Access,
    database::audit::{Entry, Filter},
};

/// Which entries.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    limit: Option<u32>,
    cursor: Option<u64>,
    actor: Option<String>,
    action: Option<String>,
}

/// Entries, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AuditList {
    items: Vec<AuditEntry>,
    next: Option<String>,
}

/// A change.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AuditEntry {
    id: String,
    #[schema(format = DateTime)]
    at: String,
    actor: String,
    action: String,
    target: String,
    from_address: Option<String>,
    #[schema(value_type = Option<Object>)]
    before: Option<Value>,
    #[schema(value_type = Option<Object>)]
    after: Option<Value>,
}

pub(super) async fn list(
    extract::State(access): extract::State<Access>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Json<AuditList>, Problem> {
    let Wanted { limit, cursor, actor, action } = page::read(wanted)?;
    let found = access.database().audit(&page::page(limit, cursor)?, &Filter { actor, action }).await?;
    Ok(Json(AuditList { items: found.items.into_iter().map(shown).collect(), next: found.next }))
}

fn shown(entry: Entry) -> AuditEntry {
    let Entry { id, at, actor, action, target, from_address, before, after } = entry;
    AuditEntry { id: id.to_string(), at: rfc3339(at), actor, action, target, from_address, before, after }
}
