//! Which part of a list is asked for.

use axum::{
    extract::{Query, rejection::QueryRejection},
    http::StatusCode,
};

use serde::Deserialize;

use super::Problem;
use crate::database::{LIMIT_MAX, Page};

/// Items of a page when none says how many.
pub(super) const LIMIT_DEFAULT: u32 = 50;

/// Which part of a list whose cursors are numbers.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Numbered {
    pub(super) limit: Option<u32>,
    pub(super) cursor: Option<u64>,
}

/// A query, with a reason when it is none.
pub(super) fn read<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, Problem> {
    let Query(query) = query.map_err(|error| Problem::new(error.status(), "invalid_query", error.body_text()))?;
    Ok(query)
}

/// How many items a page has.
pub(super) fn limit(limit: Option<u32>) -> Result<u32, Problem> {
    let limit = limit.unwrap_or(LIMIT_DEFAULT);
    if (1..=LIMIT_MAX).contains(&limit) {
        return Ok(limit);
    }
    let detail = format!("limit is {limit}; allowed are 1 to {LIMIT_MAX}");
    Err(Problem::new(StatusCode::BAD_REQUEST, "invalid_query", detail))
}

/// A page of a list.
pub(super) fn page(wanted: Option<u32>, cursor: Option<impl ToString>) -> Result<Page, Problem> {
    Ok(Page::new(limit(wanted)?, cursor.map(|cursor| cursor.to_string())))
}
