//! `/api/v1/users`

use axum::{
    Extension, Json,
    body::Bytes,
    extract::{
        self, Path, Query,
        rejection::{BytesRejection, QueryRejection},
    },
    http::StatusCode,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Problem, config, guard::Origin, page, time::rfc3339};
use crate::{
    access::{Access, Caller, Credential, Role, check_name, check_password},
    database::users as rows,
};

/// Which part of the list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    limit: Option<u32>,
    cursor: Option<String>,
}

/// Users by name.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct UserList {
    items: Vec<User>,
    next: Option<String>,
}

/// A user.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct User {
    name: String,
    role: Role,
    disabled: bool,
    #[schema(format = DateTime)]
    created: String,
}

impl From<rows::User> for User {
    fn from(user: rows::User) -> Self {
        let rows::User { name, role, is_disabled: disabled, created } = user;
        Self { name, role, disabled, created: rfc3339(created) }
    }
}

/// A user to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewUser {
    #[schema(pattern = "^[a-z0-9][a-z0-9._-]{0,63}$", example = "ada")]
    name: String,
    #[schema(min_length = 12, max_length = 256, format = Password)]
    password: String,
    role: Role,
}

/// What is to be other; what is left out stays.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct UserChange {
    role: Option<Role>,
    disabled: Option<bool>,
    #[schema(min_length = 12, max_length = 256, format = Password)]
    password: Option<String>,
    /// Needed for a new password of one's own.
    #[schema(format = Password)]
    current_password: Option<String>,
}

pub(super) async fn list(
    extract::State(access): extract::State<Access>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Json<UserList>, Problem> {
    let Wanted { limit, cursor } = page::read(wanted)?;
    let found = access.database().users(&page::page(limit, cursor)?).await?;
    Ok(Json(UserList { items: found.items.into_iter().map(User::from).collect(), next: found.next }))
}

pub(super) async fn create(
    extract::State(access): extract::State<Access>,
    Extension(caller): Extension<Caller>,
    Extension(Origin(address)): Extension<Origin>,
    body: Result<Bytes, BytesRejection>,
) -> Result<(StatusCode, Json<User>), Problem> {
    let NewUser { name, password, role } = config::read_body(body)?;
    check_name(&name).and_then(|()| check_password(&password)).map_err(invalid)?;
    let password = access.passwords().hash(password).await?;
    let user = rows::NewUser { name: &name, role, password: &password };
    let made = access.database().create_user(user, &caller.actor(address), access.database().now()).await?;
    Ok((StatusCode::CREATED, Json(made.into())))
}

pub(super) async fn change(
    extract::State(access): extract::State<Access>,
    Extension(caller): Extension<Caller>,
    Extension(Origin(address)): Extension<Origin>,
    Path(name): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<User>, Problem> {
    let UserChange { role, disabled, password, current_password } = config::read_body(body)?;
    if caller.role < Role::Admin && (role.is_some() || disabled.is_some()) {
        let detail = "of yourself you can change the password; this needs the role admin";
        return Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", detail));
    }
    let password = match password {
        Some(password) => {
            check_password(&password).map_err(invalid)?;
            if caller.is(&name) {
                confirm(&access, &caller, &name, current_password).await?;
            }
            Some(access.passwords().hash(password).await?)
        }
        None => None,
    };
    let change = rows::UserChange { role, is_disabled: disabled, password };
    Ok(Json(
        access.database().change_user(&name, change, &caller.actor(address), access.database().now()).await?.into(),
    ))
}

/// Who has only found a browser or a token lying about does not know the password.
async fn confirm(access: &Access, caller: &Caller, name: &str, current: Option<String>) -> Result<(), Problem> {
    if !matches!(caller.credential, Credential::Session(_)) {
        let detail = "a token cannot change the password of its user";
        return Err(Problem::new(StatusCode::FORBIDDEN, "session_required", detail));
    }
    let current =
        current.ok_or_else(|| invalid("current_password is needed for a new password of your own".to_owned()))?;
    Ok(access.confirm(name, current).await?)
}

pub(super) async fn remove(
    extract::State(access): extract::State<Access>,
    Extension(caller): Extension<Caller>,
    Extension(Origin(address)): Extension<Origin>,
    Path(name): Path<String>,
) -> Result<StatusCode, Problem> {
    access.database().delete_user(&name, &caller.actor(address), access.database().now()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A value that may not be; `allowed` says what may.
pub(super) fn invalid(allowed: String) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "invalid_value", allowed)
}
