//! What stands for a user: sessions and personal access tokens, both known by hashes only.

use damselfly_messages::record::UnixMillis;
use serde_json::json;
use sqlx::{Row as _, any::AnyRow};

use super::{
    Database, DatabaseError, Page, Paged,
    audit::{self, Actor, Change},
};
use crate::access::{Role, Scopes, scopes};

/// The SHA-256 of a secret of 32 random bytes.
pub type SecretHash = [u8; 32];

/// Sessions of one user at once; the one that was used least lately ends for a further one.
const SESSIONS_MAX: i64 = 16;
/// Tokens of one user that have not expired.
const TOKENS_MAX: i64 = 64;

/// A session, as long as it lasts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Whose.
    pub user: String,
    /// What the user may do now.
    pub role: Role,
    /// When it began.
    pub created: UnixMillis,
    /// When it was used last, give or take a minute.
    pub used: UnixMillis,
}

/// A personal access token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessToken {
    /// What it is known by.
    pub id: u64,
    /// Whose.
    pub user: String,
    /// What for.
    pub label: String,
    /// The most that may be done with it.
    pub role: Role,
    /// What it is limited to.
    pub scopes: Scopes,
    /// When it was made.
    pub created: UnixMillis,
    /// Until when.
    pub expires: UnixMillis,
}

/// A token to be made.
#[derive(Debug, Clone)]
pub struct NewAccessToken {
    /// Of the secret.
    pub hash: SecretHash,
    /// Whose.
    pub user: String,
    /// What for.
    pub label: String,
    /// The most that may be done with it.
    pub role: Role,
    /// What it is limited to.
    pub scopes: Scopes,
    /// Until when.
    pub expires: UnixMillis,
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The user has as many as it may have.
    #[error("this user has {TOKENS_MAX} tokens; revoke one first")]
    TooMany,
    /// It is not known.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl From<sqlx::Error> for TokenError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error.into())
    }
}

impl Database {
    /// Begins a session of `user`, and forgets those that ended: unused since `idle_since`, or begun before
    /// `begun_since`.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn begin_session(
        &self,
        hash: &SecretHash,
        actor: &Actor,
        now: UnixMillis,
        idle_since: UnixMillis,
        begun_since: UnixMillis,
    ) -> Result<(), DatabaseError> {
        let user = actor.name.as_str();
        let mut writing = self.write().await?;
        let ended = sqlx::query("DELETE FROM sessions WHERE used < $1 OR created < $2");
        ended.bind(super::column(idle_since)).bind(super::column(begun_since)).execute(&mut *writing).await?;
        sqlx::query(
            "DELETE FROM sessions WHERE user_name = $1 AND hash NOT IN
             (SELECT hash FROM sessions WHERE user_name = $1 ORDER BY used DESC LIMIT $2)",
        )
        .bind(user)
        .bind(SESSIONS_MAX - 1)
        .execute(&mut *writing)
        .await?;
        let begun = sqlx::query("INSERT INTO sessions (hash, user_name, created, used) VALUES ($1, $2, $3, $3)");
        begun.bind(&hash[..]).bind(user).bind(super::column(now)).execute(&mut *writing).await?;
        let change = Change { action: "session.begin", target: user, ..Change::default() };
        audit::append(&mut writing, now, actor, change).await?;
        writing.commit().await?;
        Ok(())
    }

    /// The session with this hash, if its user may log in. Whether it has lasted too long is for the caller to say.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn session(&self, hash: &SecretHash) -> Result<Option<Session>, DatabaseError> {
        let row = sqlx::query(
            "SELECT s.user_name, s.created, s.used, u.role FROM sessions s JOIN users u ON u.name = s.user_name
             WHERE s.hash = $1 AND u.disabled = 0",
        )
        .bind(&hash[..])
        .fetch_optional(&self.pool)
        .await?;
        row.map(|row| {
            Ok(Session {
                user: row.try_get("user_name")?,
                role: role(&row)?,
                created: super::time(&row, "created")?,
                used: super::time(&row, "used")?,
            })
        })
        .transpose()
    }

    /// Notes that a session is used.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn touch_session(&self, hash: &SecretHash, now: UnixMillis) -> Result<(), DatabaseError> {
        let used = sqlx::query("UPDATE sessions SET used = $2 WHERE hash = $1 AND used < $2");
        used.bind(&hash[..]).bind(super::column(now)).execute(&self.pool).await?;
        Ok(())
    }

    /// Ends a session.
    ///
    /// # Errors
    /// [`DatabaseError`]: it may go on.
    pub async fn end_session(&self, hash: &SecretHash) -> Result<(), DatabaseError> {
        sqlx::query("DELETE FROM sessions WHERE hash = $1").bind(&hash[..]).execute(&self.pool).await?;
        Ok(())
    }

    /// Makes a token.
    ///
    /// # Errors
    /// [`TokenError`].
    pub async fn create_access_token(
        &self,
        token: NewAccessToken,
        actor: &Actor,
        now: UnixMillis,
    ) -> Result<AccessToken, TokenError> {
        let mut writing = self.write().await?;
        let expired = sqlx::query("DELETE FROM access_tokens WHERE user_name = $1 AND expires <= $2");
        expired.bind(&token.user).bind(super::column(now)).execute(&mut *writing).await?;
        let count = sqlx::query_scalar("SELECT COUNT(*) FROM access_tokens WHERE user_name = $1").bind(&token.user);
        let count: i64 = count.fetch_one(&mut *writing).await?;
        if count >= TOKENS_MAX {
            return Err(TokenError::TooMany);
        }
        // A number is never given to a second token: the audit names tokens by it.
        let number: i64 = sqlx::query_scalar(
            "INSERT INTO counters (name, value) VALUES ('access_token', 1)
             ON CONFLICT (name) DO UPDATE SET value = counters.value + 1 RETURNING value",
        )
        .fetch_one(&mut *writing)
        .await?;
        sqlx::query(
            "INSERT INTO access_tokens (number, hash, user_name, label, role, scopes, created, expires)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(number)
        .bind(&token.hash[..])
        .bind(&token.user)
        .bind(&token.label)
        .bind(token.role.name())
        .bind(names(&token.scopes).map(|names| names.join(" ")))
        .bind(super::column(now))
        .bind(super::column(token.expires))
        .execute(&mut *writing)
        .await?;
        let after = json!({
            "label": token.label, "role": token.role.name(), "scopes": names(&token.scopes), "expires": token.expires.0,
        });
        let target = number.to_string();
        let change = Change { action: "token.create", target: &target, before: None, after: Some(after) };
        audit::append(&mut writing, now, actor, change).await?;
        writing.commit().await?;
        let id = u64::try_from(number).map_err(|_| DatabaseError::Damaged { what: "number" })?;
        let NewAccessToken { user, label, role, scopes, expires, .. } = token;
        Ok(AccessToken { id, user, label, role, scopes, created: now, expires })
    }

    /// The tokens of `user`, or of everybody, newest first.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn access_tokens(&self, page: &Page, user: Option<&str>) -> Result<Paged<AccessToken>, DatabaseError> {
        let rows = sqlx::query(
            "SELECT * FROM access_tokens WHERE number < $1 AND ($2 IS NULL OR user_name = $2)
             ORDER BY number DESC LIMIT $3",
        )
        .bind(page.below())
        .bind(user)
        .bind(page.fetch())
        .fetch_all(&self.pool)
        .await?;
        page.cut(rows, read, |row| Ok(super::number(row, "number")?.to_string()))
    }

    /// The token with this hash, if its user may log in; its role is what user and token both may. Whether it has
    /// expired is for the caller to say.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn access_token(&self, hash: &SecretHash) -> Result<Option<AccessToken>, DatabaseError> {
        let row = sqlx::query(
            "SELECT t.*, u.role AS user_role FROM access_tokens t JOIN users u ON u.name = t.user_name
             WHERE t.hash = $1 AND u.disabled = 0",
        )
        .bind(&hash[..])
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let user_role: String = row.try_get("user_role")?;
        let user_role = Role::from_name(&user_role).ok_or(DatabaseError::Damaged { what: "role" })?;
        let token = read(&row)?;
        Ok(Some(AccessToken { role: token.role.min(user_role), ..token }))
    }

    /// Takes a token back, if it is one of `user`'s, or anybody's when that is `None`. Returns whether there was one.
    ///
    /// # Errors
    /// [`DatabaseError`]: it may still be used.
    pub async fn revoke_access_token(
        &self,
        id: u64,
        user: Option<&str>,
        actor: &Actor,
        now: UnixMillis,
    ) -> Result<bool, DatabaseError> {
        let mut writing = self.write().await?;
        let done = sqlx::query("DELETE FROM access_tokens WHERE number = $1 AND ($2 IS NULL OR user_name = $2)")
            .bind(i64::try_from(id).unwrap_or(i64::MAX))
            .bind(user)
            .execute(&mut *writing)
            .await?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        let target = id.to_string();
        let change = Change { action: "token.revoke", target: &target, ..Change::default() };
        audit::append(&mut writing, now, actor, change).await?;
        writing.commit().await?;
        Ok(true)
    }
}

fn role(row: &AnyRow) -> Result<Role, DatabaseError> {
    let role: String = row.try_get("role")?;
    Role::from_name(&role).ok_or(DatabaseError::Damaged { what: "role" })
}

fn names(scopes: &Scopes) -> Option<Vec<&'static str>> {
    scopes.as_ref().map(|scopes| scopes.iter().map(|scope| scope.name()).collect())
}

fn read(row: &AnyRow) -> Result<AccessToken, DatabaseError> {
    let limited: Option<String> = row.try_get("scopes")?;
    let limited = limited.as_deref().map(|names| scopes(names.split_whitespace()));
    Ok(AccessToken {
        id: super::number(row, "number")?,
        user: row.try_get("user_name")?,
        label: row.try_get("label")?,
        role: role(row)?,
        scopes: limited.transpose().map_err(|_| DatabaseError::Damaged { what: "scopes" })?,
        created: super::time(row, "created")?,
        expires: super::time(row, "expires")?,
    })
}
