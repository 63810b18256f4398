//! `/api/v1/tokens`: personal access tokens.

use std::{collections::BTreeSet, time::Duration};

use axum::{
    Extension, Json,
    body::Bytes,
    extract::{
        self, Path, Query,
        rejection::{BytesRejection, QueryRejection},
    },
    http::StatusCode,
};
use damselfly_messages::{record::UnixMillis, units};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Problem, config, guard::Origin, page, time::rfc3339, users::invalid};
use crate::{
    access::{Access, Caller, Credential, Role, Scope, Secret, TOKEN_PREFIX, check_label, scopes},
    database::credentials::{AccessToken, NewAccessToken},
};

/// How long a token is good by default, and at most.
const TTL_DEFAULT: Duration = Duration::from_secs(90 * 24 * 60 * 60);
const TTL_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// Tokens, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TokenList {
    items: Vec<Token>,
    next: Option<String>,
}

/// A token without its secret.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Token {
    id: String,
    user: String,
    label: String,
    /// The most that may be done with it.
    role: Role,
    /// What it is limited to; null is all that the role may do.
    scopes: Option<Vec<Scope>>,
    #[schema(format = DateTime)]
    created: String,
    #[schema(format = DateTime)]
    expires: String,
}

impl From<AccessToken> for Token {
    fn from(token: AccessToken) -> Self {
        let AccessToken { id, user, label, role, scopes, created, expires } = token;
        let scopes = scopes.map(|scopes| scopes.into_iter().collect());
        Self { id: id.to_string(), user, label, role, scopes, created: rfc3339(created), expires: rfc3339(expires) }
    }
}

/// A token to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewToken {
    /// What it is for.
    #[schema(pattern = r"^[^\u0000-\u001f\u007f-\u009f]{1,100}$", example = "CI")]
    label: String,
    /// The most that may be done with it; one's own role at most, and by default.
    role: Option<Role>,
    /// What it is limited to; all that the role may do when this is left out.
    #[schema(value_type = Option<Vec<Scope>>, min_items = 1, max_items = 9)]
    scopes: Option<Vec<String>>,
    /// How long the token can be used: a number of seconds, or a duration such as `90d`. 90 days by default, 366 at most.
    #[serde(default, deserialize_with = "units::optional_seconds")]
    #[schema(minimum = 1, maximum = 31622400)]
    ttl_seconds: Option<u64>,
}

/// A token that was made.
#[derive(Serialize, ToSchema)]
pub(super) struct MadeToken {
    /// The secret; it is shown this once.
    token: String,
    #[serde(flatten)]
    about: Token,
}

pub(super) async fn list(
    extract::State(access): extract::State<Access>,
    Extension(caller): Extension<Caller>,
    wanted: Result<Query<page::Numbered>, QueryRejection>,
) -> Result<Json<TokenList>, Problem> {
    let page::Numbered { limit, cursor } = page::read(wanted)?;
    let found = access.database().access_tokens(&page::page(limit, cursor)?, whose(&caller)).await?;
    Ok(Json(TokenList { items: found.items.into_iter().map(Token::from).collect(), next: found.next }))
}

/// A token cannot make another one: who has found it could go on when it is revoked.
pub(super) async fn create(
    extract::State(access): extract::State<Access>,
    Extension(caller): Extension<Caller>,
    Extension(Origin(address)): Extension<Origin>,
    body: Result<Bytes, BytesRejection>,
) -> Result<(StatusCode, Json<MadeToken>), Problem> {
    let (Credential::Session(_), Some(user)) = (&caller.credential, caller.user.clone()) else {
        let detail = "tokens are made by who has logged in with a password";
        return Err(Problem::new(StatusCode::FORBIDDEN, "session_required", detail));
    };
    let NewToken { label, role, scopes, ttl_seconds } = config::read_body(body)?;
    check_label(&label).map_err(invalid)?;
    let role = role.unwrap_or(caller.role);
    if role > caller.role {
        let detail = format!("your role is {}, and a token cannot have a higher one", caller.role.name());
        return Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", detail));
    }
    let scopes = scopes.map(|names| limited(&names)).transpose()?;
    let ttl = ttl_seconds.map_or(TTL_DEFAULT, Duration::from_secs);
    if ttl.is_zero() || ttl > TTL_MAX {
        return Err(invalid(format!("ttl_seconds is 1 to {}", TTL_MAX.as_secs())));
    }
    let (secret, now) = (Secret::generate(TOKEN_PREFIX), access.database().now());
    let expires = UnixMillis(now.0 + ttl.as_secs() * 1000);
    let token = NewAccessToken { hash: Secret::hash(secret.reveal()), user, label, role, scopes, expires };
    let made = access.database().create_access_token(token, &caller.actor(address), now).await?;
    Ok((StatusCode::CREATED, Json(MadeToken { token: secret.reveal().to_owned(), about: made.into() })))
}

fn limited(names: &[String]) -> Result<BTreeSet<Scope>, Problem> {
    let known = Scope::ALL.map(Scope::name).join(", ");
    let wrong = |detail: String| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "unknown_scope", detail);
    match names.len() {
        0 => Err(wrong(format!("scopes are some of {known}; leave them out for all that the role may do"))),
        count if count > Scope::ALL.len() => Err(wrong(format!("{count} scopes are too many; there are {known}"))),
        _ => scopes(names.iter().map(String::as_str))
            .map_err(|name| wrong(format!("there is no scope {name:?}; there are {known}"))),
    }
}

pub(super) async fn revoke(
    extract::State(access): extract::State<Access>,
    Extension(caller): Extension<Caller>,
    Extension(Origin(address)): Extension<Origin>,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    // Ids are numbers; anything else is no token's.
    let Ok(id) = id.parse() else { return Err(Problem::not_found()) };
    let actor = caller.actor(address);
    match access.database().revoke_access_token(id, whose(&caller), &actor, access.database().now()).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Problem::not_found()),
    }
}

/// Admins see and revoke everybody's, the others their own.
fn whose(caller: &Caller) -> Option<&str> {
    match (caller.role, &caller.user) {
        (Role::Admin, _) => None,
        // Only the admin token has no user, and it is an admin's.
        (_, user) => Some(user.as_deref().unwrap_or_default()),
    }
}
