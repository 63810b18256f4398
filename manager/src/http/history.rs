//! `/api/v1/config/history` and `/api/v1/config/rollback`: what was in force before.

use std::time::{Duration, SystemTime};

use axum::{
    Json,
    body::Bytes,
    extract::{
        self, Query,
        rejection::{BytesRejection, QueryRejection},
    },
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use damselfly_messages::config::{Configuration, Settings};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Problem, config};
use crate::{database::audit::Actor, state::State, store::Past};

const LIMIT_DEFAULT: usize = 50;
const LIMIT_MAX: usize = 200;

/// Which part of the history.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    limit: Option<usize>,
    /// The oldest epoch that has been shown.
    cursor: Option<u64>,
}

/// Epochs, newest first.
#[derive(Debug, Serialize)]
pub(super) struct History {
    items: Vec<Entry>,
    next: Option<String>,
}

#[derive(Debug, Serialize)]
struct Entry {
    epoch: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    issued: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    settings: Option<Settings>,
    /// The settings that differ from the epoch before in the history.
    changed: Vec<String>,
    /// Why it cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    damaged: Option<String>,
}

pub(super) async fn show(
    extract::State(state): extract::State<State>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<History>, Problem> {
    let Query(page) = page.map_err(|error| Problem::new(error.status(), "invalid_query", error.body_text()))?;
    let limit = page.limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        let detail = format!("limit is {limit}; allowed are 1 to {LIMIT_MAX}");
        return Err(Problem::new(StatusCode::BAD_REQUEST, "invalid_query", detail));
    }
    // One more: the last one shown is compared with it, and it tells whether there is another page.
    let past = state.history(page.cursor.unwrap_or(u64::MAX), limit + 1).await?;
    let next = past.get(limit).and_then(|_| past.get(limit - 1)).map(|(epoch, _)| epoch.to_string());
    let items = past.iter().take(limit).enumerate().map(|(at, entry)| describe(entry, past.get(at + 1))).collect();
    Ok(Json(History { items, next }))
}

fn describe((epoch, configuration): &Past, older: Option<&Past>) -> Entry {
    match configuration {
        Ok(configuration) => Entry {
            epoch: *epoch,
            issued: Some(rfc3339(configuration)),
            settings: Some(configuration.settings.clone()),
            changed: older
                .and_then(|(_, older)| older.as_ref().ok())
                .map_or_else(Vec::new, |older| differences(&older.settings, &configuration.settings)),
            damaged: None,
        },
        Err(error) => {
            let damaged = Some(damselfly_transport::reason::chain(error));
            Entry { epoch: *epoch, issued: None, settings: None, changed: Vec::new(), damaged }
        }
    }
}

fn rfc3339(configuration: &Configuration) -> String {
    let issued = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(configuration.issued.0));
    humantime::format_rfc3339_millis(issued.unwrap_or(SystemTime::UNIX_EPOCH)).to_string()
}

/// The names of the settings that are not the same.
fn differences(older: &Settings, newer: &Settings) -> Vec<String> {
    let fields = |settings: &Settings| match serde_json::to_value(settings) {
        Ok(Value::Object(fields)) => fields,
        _ => Default::default(),
    };
    let (older, newer) = (fields(older), fields(newer));
    newer.into_iter().filter(|(name, value)| older.get(name) != Some(value)).map(|(name, _)| name).collect()
}

/// What to go back to.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RollBack {
    epoch: u64,
}

/// An epoch to go back to says itself what is wanted, so If-Match may be left out.
pub(super) async fn roll_back(
    extract::State(state): extract::State<State>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let expected = match headers.contains_key(header::IF_MATCH) {
        true => config::Expected::from_headers(&headers)?,
        false => config::Expected::Any,
    };
    let RollBack { epoch } = config::read_body(body)?;
    let (epoch, settings) = state.roll_back(epoch, Actor::manager(), move |current| expected.matches(current)).await?;
    Ok((config::tagged(epoch), Json(settings)).into_response())
}
