//! `/api/v1/session` and `/api/v1/setup`: logging in and out, and the first admin.

use axum::{
    Extension, Json,
    body::Bytes,
    extract::{self, rejection::BytesRejection},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use damselfly_transport::program::http::Encrypted;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Problem, config,
    guard::{COOKIE, Origin},
    users,
};
use crate::access::{Access, Caller, Credential, Role, SESSION_TOTAL, Secret, check_name, check_password};

/// Who logs in.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LogIn {
    name: String,
    #[schema(format = Password)]
    password: String,
}

/// The first admin.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SetUp {
    /// Of the link that the manager has shown.
    secret: String,
    #[schema(pattern = "^[a-z0-9][a-z0-9._-]{0,63}$", example = "ada")]
    name: String,
    #[schema(min_length = 12, max_length = 256, format = Password)]
    password: String,
}

/// Who asks.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Session {
    /// None with the token of the data directory.
    name: Option<String>,
    /// What it may do; with a token, also what that may.
    role: Role,
    /// For the header X-CSRF-Token of requests that change something; none with a token.
    csrf_token: Option<String>,
}

impl Session {
    fn of(caller: &Caller) -> Self {
        Self { name: caller.user.clone(), role: caller.role, csrf_token: caller.credential.csrf_token() }
    }
}

pub(super) async fn log_in(
    extract::State(access): extract::State<Access>,
    Extension(Origin(address)): Extension<Origin>,
    encrypted: Option<Extension<Encrypted>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let LogIn { name, password } = config::read_body(body)?;
    // What nobody can have is not looked up, and needs no place among the names that have tried.
    if check_name(&name).is_err() || check_password(&password).is_err() {
        return Err(crate::access::LoginError::Wrong.into());
    }
    let caller = access.log_in(&name, password, address).await?;
    let Credential::Session(secret) = &caller.credential else { return Err(Problem::unauthorized()) };
    let cookie = cookie(secret.reveal(), SESSION_TOTAL.as_secs(), is_secure(encrypted, &headers));
    Ok(([(header::SET_COOKIE, cookie)], Json(Session::of(&caller))).into_response())
}

pub(super) async fn show(Extension(caller): Extension<Caller>) -> Json<Session> {
    Json(Session::of(&caller))
}

pub(super) async fn log_out(
    extract::State(access): extract::State<Access>,
    Extension(caller): Extension<Caller>,
    encrypted: Option<Extension<Encrypted>>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Credential::Session(secret) = caller.credential else {
        let detail = "only a session can log out; revoke the token instead";
        return Err(Problem::new(StatusCode::CONFLICT, "no_session", detail));
    };
    access.database().end_session(&Secret::hash(secret.reveal())).await?;
    Ok((StatusCode::NO_CONTENT, [(header::SET_COOKIE, cookie("", 0, is_secure(encrypted, &headers)))]).into_response())
}

pub(super) async fn set_up(
    extract::State(access): extract::State<Access>,
    Extension(Origin(address)): Extension<Origin>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let SetUp { secret, name, password } = config::read_body(body)?;
    check_name(&name).and_then(|()| check_password(&password)).map_err(users::invalid)?;
    let user = access.set_up(&secret, &name, password, address).await?;
    Ok((StatusCode::CREATED, Json(users::User::from(user))).into_response())
}

fn cookie(value: &str, seconds: u64, is_secure: bool) -> String {
    let secure = if is_secure { "; Secure" } else { "" };
    format!("{COOKIE}={value}; HttpOnly; SameSite=Strict; Path=/; Max-Age={seconds}{secure}")
}

/// We speak TLS ourselves, or a proxy in front says that the browser speaks TLS. Who lies about it harms its own cookie only.
fn is_secure(encrypted: Option<Extension<Encrypted>>, headers: &HeaderMap) -> bool {
    encrypted.is_some_and(|Extension(Encrypted(is_encrypted))| is_encrypted)
        || headers.get("x-forwarded-proto").is_some_and(|scheme| scheme.as_bytes().eq_ignore_ascii_case(b"https"))
}
