//! Lists in parts.

use axum::{
    Json,
    extract::{Query, rejection::QueryRejection},
    http::StatusCode,
};
use serde::{Deserialize, Serialize};

use super::Problem;

/// Items of a part when nothing is said.
pub(super) const LIMIT_DEFAULT: usize = 50;
/// Most items of a part.
pub(super) const LIMIT_MAX: usize = 200;

/// Which part of a list.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    limit: Option<usize>,
    cursor: Option<String>,
}

/// A part of a list, and where the next one begins.
#[derive(Debug, Serialize)]
pub(super) struct List<T> {
    pub(super) items: Vec<T>,
    pub(super) next: Option<String>,
}

/// The limit and the cursor of a request.
pub(super) fn page(page: Result<Query<Page>, QueryRejection>) -> Result<(usize, Option<String>), Problem> {
    let Query(page) = page.map_err(|error| Problem::new(error.status(), "invalid_query", error.body_text()))?;
    Ok((check_limit(page.limit.unwrap_or(LIMIT_DEFAULT))?, page.cursor))
}

pub(super) fn check_limit(limit: usize) -> Result<usize, Problem> {
    if (1..=LIMIT_MAX).contains(&limit) {
        return Ok(limit);
    }
    Err(invalid("invalid_query", format!("limit is {limit}; allowed are 1 to {LIMIT_MAX}")))
}

pub(super) fn invalid(code: &'static str, detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, code, detail)
}

/// One more than asked for tells whether there is another part.
pub(super) fn list<T, R>(
    mut found: Vec<T>,
    limit: usize,
    cursor: impl Fn(&T) -> String,
    show: impl Fn(T) -> R,
) -> Json<List<R>> {
    let next = found.get(limit).and_then(|_| found.get(limit - 1)).map(cursor);
    found.truncate(limit);
    Json(List { items: found.into_iter().map(show).collect(), next })
}
