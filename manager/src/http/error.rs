//! Errors as `application/problem+json`.

use std::time::Duration;

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use damselfly_messages::wire::Invalid;
use serde::Serialize;

use crate::state::ChangeError;

/// What a client gets instead of a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    /// For programs; never changes its meaning.
    code: &'static str,
    detail: String,
    /// The setting that is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'static str>,
    /// Becomes the header Retry-After.
    #[serde(skip)]
    retry_after: Option<Duration>,
}

impl Problem {
    /// A problem with a code for programs and a detail for people.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or("Error");
        let (kind, status, detail) = ("about:blank", status.as_u16(), detail.into());
        Self { kind, title, status, code, detail, field: None, retry_after: None }
    }

    pub(super) fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "there is no such resource")
    }

    pub(super) fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "the resource does not know this method")
    }

    pub(super) fn unauthorized() -> Self {
        let detail = "send `Authorization: Bearer` with a token of this manager";
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
    }

    fn internal(error: &dyn std::error::Error) -> Self {
        tracing::error!(%error, source = error.source().map(tracing::field::display), "request failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error.to_string())
    }
}

impl From<Invalid> for Problem {
    fn from(invalid: Invalid) -> Self {
        let problem = Self::new(StatusCode::BAD_REQUEST, "invalid_setting", invalid.to_string());
        Self { field: Some(invalid.what), ..problem }
    }
}

impl From<ChangeError> for Problem {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::Stale { current } => {
                let detail = format!("epoch {current} is in force: read it, and send its ETag in If-Match");
                Self::new(StatusCode::PRECONDITION_FAILED, "stale", detail)
            }
            ChangeError::Unsettled { retry_after } => {
                let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "starting", error.to_string());
                Self { retry_after: Some(retry_after), ..problem }
            }
            ChangeError::Invalid(invalid) => invalid.into(),
            ChangeError::NoEpoch { .. } => Self::new(StatusCode::NOT_FOUND, "no_such_epoch", error.to_string()),
            error @ (ChangeError::Store(_)
            | ChangeError::Interrupted(_)
            | ChangeError::Refused(_)
            | ChangeError::Nothing
            | ChangeError::History(_)) => Self::internal(&error),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(&self)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(retry_after) = self.retry_after {
            // Whole seconds, and not too early.
            headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_after.as_secs() + 1));
        }
        response
    }
}
