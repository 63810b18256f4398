//! Tokens with which hosts join.

use std::collections::BTreeMap;

use damselfly_messages::record::UnixMillis;
use serde_json::json;
use sqlx::{Row as _, any::AnyRow};

use super::{
    Database, DatabaseError, Page, Paged, Writing,
    audit::{self, Actor, Change},
    members::{self, Joining, Member},
};

/// What a token is known by.
pub type TokenId = [u8; 16];

/// A token to be made.
#[derive(Debug, Clone)]
pub struct NewJoinToken {
    /// Random.
    pub id: TokenId,
    /// By which the secret is recognised; the secret itself is not kept.
    pub verifier: [u8; 32],
    /// What who joins with it may be.
    pub roles: Vec<String>,
    /// What who joins with it is marked with.
    pub tags: BTreeMap<String, String>,
    /// How many may join with it.
    pub uses: u32,
    /// Until when.
    pub expires: UnixMillis,
}

/// A token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// What it is known by.
    pub id: TokenId,
    /// By which the secret is recognised.
    pub verifier: [u8; 32],
    /// What who joins with it may be.
    pub roles: Vec<String>,
    /// What who joins with it is marked with.
    pub tags: BTreeMap<String, String>,
    /// How many could join with it at first.
    pub uses: u32,
    /// How many still can.
    pub uses_left: u32,
    /// Until when.
    pub expires: UnixMillis,
    /// When it was made.
    pub created: UnixMillis,
    /// By whom.
    pub created_by: String,
    /// Since when nobody can.
    pub revoked: Option<UnixMillis>,
}

/// Why nobody joined.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// There is no such token.
    #[error("the manager does not know this token")]
    Unknown,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// It was taken back.
    #[error("the token is revoked")]
    Revoked,
    /// As many as may have joined with it.
    #[error("the token is used up")]
    UsedUp,
    /// The member itself was put out; another token does not bring it back.
    #[error("this member is revoked")]
    MemberRevoked,
    /// It is not known whether it may.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl From<sqlx::Error> for Refused {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error.into())
    }
}

impl Database {
    /// Makes a token.
    ///
    /// # Errors
    /// [`DatabaseError`]: there is none.
    pub async fn create_join_token(
        &self,
        token: NewJoinToken,
        actor: &Actor,
        now: UnixMillis,
    ) -> Result<JoinToken, DatabaseError> {
        let mut writing = self.write().await?;
        let number = super::next_number(&mut writing, "SELECT MAX(number) FROM join_tokens").await?;
        sqlx::query(
            "INSERT INTO join_tokens
             (id, number, verifier, roles, tags, uses, uses_left, expires, created, created_by)
             VALUES ($1, $2, $3, $4, $5, $6, $6, $7, $8, $9)",
        )
        .bind(&token.id[..])
        .bind(number)
        .bind(&token.verifier[..])
        .bind(super::to_json(&token.roles))
        .bind(super::to_json(&token.tags))
        .bind(i64::from(token.uses))
        .bind(super::column(token.expires))
        .bind(super::column(now))
        .bind(&actor.name)
        .execute(&mut *writing)
        .await?;
        let after = json!({ "roles": token.roles, "tags": token.tags, "uses": token.uses, "expires": token.expires.0 });
        let target = hex::encode(token.id);
        let change = Change { action: "join_token.create", target: &target, before: None, after: Some(after) };
        audit::append(&mut writing, now, actor, change).await?;
        let made = get(&mut writing, &token.id).await?.ok_or(DatabaseError::Damaged { what: "join token" })?;
        writing.commit().await?;
        Ok(made)
    }

    /// All tokens, newest first.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn join_tokens(&self, page: &Page) -> Result<Paged<JoinToken>, DatabaseError> {
        let rows = sqlx::query("SELECT * FROM join_tokens WHERE number < $1 ORDER BY number DESC LIMIT $2")
            .bind(page.below())
            .bind(page.fetch())
            .fetch_all(&self.pool)
            .await?;
        page.cut(rows, read, |row| Ok(super::number(row, "number")?.to_string()))
    }

    /// The token with this ID.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn join_token(&self, id: &TokenId) -> Result<Option<JoinToken>, DatabaseError> {
        let query = sqlx::query("SELECT * FROM join_tokens WHERE id = $1").bind(&id[..]);
        query.fetch_optional(&self.pool).await?.as_ref().map(read).transpose()
    }

    /// Takes a token back. Returns false when there is none that could be taken back.
    ///
    /// # Errors
    /// [`DatabaseError`]: it may still be used.
    pub async fn revoke_join_token(&self, id: &TokenId, actor: &Actor, now: UnixMillis) -> Result<bool, DatabaseError> {
        let mut writing = self.write().await?;
        let done = sqlx::query("UPDATE join_tokens SET revoked = $2 WHERE id = $1 AND revoked IS NULL")
            .bind(&id[..])
            .bind(super::column(now))
            .execute(&mut *writing)
            .await?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        let target = hex::encode(id);
        audit::append(
            &mut writing,
            now,
            actor,
            Change { action: "join_token.revoke", target: &target, ..Change::default() },
        )
        .await?;
        writing.commit().await?;
        Ok(true)
    }

    /// Lets `joining` join with the token `id`: takes one of its uses, unless the host has joined with it last, and keeps
    /// the member, which gets the roles and tags of the token. All of it or nothing happens. Whether who joins knows the
    /// secret is the caller's to check.
    ///
    /// # Errors
    /// [`Refused`] says why not.
    pub async fn consume_join_token(&self, id: &TokenId, joining: Joining, now: UnixMillis) -> Result<Member, Refused> {
        let mut writing = self.write().await?;
        let token = get(&mut writing, id).await?.ok_or(Refused::Unknown)?;
        if token.revoked.is_some() {
            return Err(Refused::Revoked);
        }
        if token.expires <= now {
            return Err(Refused::Expired);
        }
        let before = members::get(&mut writing, &joining.peer_id).await?;
        // The answer to it was lost, or could not be kept: it has taken its use already.
        let is_again = before.as_ref().is_some_and(|member| member.token_id == *id);
        if token.uses_left == 0 && !is_again {
            return Err(Refused::UsedUp);
        }
        if before.as_ref().is_some_and(|member| member.revoked.is_some()) {
            return Err(Refused::MemberRevoked);
        }
        if !is_again {
            let taken = sqlx::query("UPDATE join_tokens SET uses_left = uses_left - 1 WHERE id = $1").bind(&id[..]);
            taken.execute(&mut *writing).await?;
        }
        let member = members::put(&mut writing, &token, joining, now).await?;
        // A repeated join is no news: a restart loop must not fill the audit.
        if !is_again {
            let actor = Actor { name: format!("(join token {})", hex::encode(id)), address: None };
            let before = before.map(|member| members::summary(&member));
            let after = Some(members::summary(&member));
            let change = Change { action: "member.join", target: &member.peer_id, before, after };
            audit::append(&mut writing, now, &actor, change).await?;
        }
        writing.commit().await?;
        Ok(member)
    }
}

async fn get(writing: &mut Writing, id: &TokenId) -> Result<Option<JoinToken>, DatabaseError> {
    let query = sqlx::query("SELECT * FROM join_tokens WHERE id = $1").bind(&id[..]);
    query.fetch_optional(&mut **writing).await?.as_ref().map(read).transpose()
}

fn read(row: &AnyRow) -> Result<JoinToken, DatabaseError> {
    let uses = |name: &'static str| {
        u32::try_from(super::number(row, name)?).map_err(|_| DatabaseError::Damaged { what: name })
    };
    Ok(JoinToken {
        id: super::bytes(row, "id")?,
        verifier: super::bytes(row, "verifier")?,
        roles: super::json(row, "roles")?,
        tags: super::json(row, "tags")?,
        uses: uses("uses")?,
        uses_left: uses("uses_left")?,
        expires: super::time(row, "expires")?,
        created: super::time(row, "created")?,
        created_by: row.try_get("created_by")?,
        revoked: super::time_or_none(row, "revoked")?,
    })
}
