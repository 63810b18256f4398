//! Errors as `application/problem+json`.

use std::{borrow::Cow, time::Duration};

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use damselfly_messages::wire::Invalid;
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    access::{AccessError, LoginError, PasswordError},
    database::{DatabaseError, credentials::TokenError, users::UserError},
    state::ChangeError,
};

/// What a client gets instead of a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
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
    field: Option<Cow<'static, str>>,
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

    pub(super) fn retry_after(self, after: Duration) -> Self {
        Self { retry_after: Some(after), ..self }
    }

    pub(super) fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "there is no such resource")
    }

    pub(super) fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "the resource does not know this method")
    }

    pub(super) fn unauthorized() -> Self {
        let detail = "log in, or send `Authorization: Bearer` with a token of this manager";
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
    }

    pub(super) fn internal(error: &dyn std::error::Error) -> Self {
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
            ChangeError::Root(_) => {
                tracing::error!(%error, "nothing can be signed");
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "root_key_unusable", error.to_string())
            }
            ChangeError::Revoked => Self::new(StatusCode::FORBIDDEN, "manager_revoked", error.to_string()),
            ChangeError::TooManyRoots => Self::new(StatusCode::CONFLICT, "too_many_roots", error.to_string()),
            ChangeError::LastScheduler => {
                let detail = format!("{error}; to do so all the same, add ?allow_empty=true");
                Self::new(StatusCode::CONFLICT, "last_scheduler", detail)
            }
            ChangeError::NoScheduler { .. } => Self::new(StatusCode::NOT_FOUND, "no_such_scheduler", error.to_string()),
            ChangeError::NoEpoch { .. } => Self::new(StatusCode::NOT_FOUND, "no_such_epoch", error.to_string()),
            error @ (ChangeError::Store(_)
            | ChangeError::Interrupted(_)
            | ChangeError::Refused(_)
            | ChangeError::Nothing
            | ChangeError::History(_)) => Self::internal(&error),
        }
    }
}

impl From<DatabaseError> for Problem {
    fn from(error: DatabaseError) -> Self {
        Self::internal(&error)
    }
}

impl From<AccessError> for Problem {
    fn from(error: AccessError) -> Self {
        match error {
            AccessError::Unauthorized => Self { detail: error.to_string(), ..Self::unauthorized() },
            AccessError::Database(error) => error.into(),
        }
    }
}

impl From<PasswordError> for Problem {
    fn from(error: PasswordError) -> Self {
        match error {
            PasswordError::Busy => Self {
                retry_after: Some(Duration::from_secs(1)),
                ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", error.to_string())
            },
            PasswordError::Failed => Self::internal(&error),
        }
    }
}

impl From<LoginError> for Problem {
    fn from(error: LoginError) -> Self {
        match error {
            LoginError::Wrong => Self::new(StatusCode::UNAUTHORIZED, "wrong_login", error.to_string()),
            LoginError::Limited { retry_after } => Self {
                retry_after: Some(retry_after),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_tries", error.to_string())
            },
            LoginError::Secret => Self::new(StatusCode::FORBIDDEN, "wrong_secret", error.to_string()),
            LoginError::User(error) => error.into(),
            LoginError::Password(error) => error.into(),
            LoginError::Database(error) => error.into(),
        }
    }
}

impl From<UserError> for Problem {
    fn from(error: UserError) -> Self {
        let conflict = |code| Self::new(StatusCode::CONFLICT, code, error.to_string());
        match error {
            UserError::Exists => conflict("user_exists"),
            UserError::Unknown => Self::new(StatusCode::NOT_FOUND, "no_such_user", error.to_string()),
            UserError::LastAdmin => conflict("last_admin"),
            UserError::SetUp => conflict("set_up"),
            UserError::TooMany => conflict("too_many_users"),
            UserError::Database(error) => error.into(),
        }
    }
}

impl From<TokenError> for Problem {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::TooMany => Self::new(StatusCode::CONFLICT, "too_many_tokens", error.to_string()),
            TokenError::Database(error) => error.into(),
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
