//! Who belongs to the cluster.

use std::collections::BTreeMap;

use damselfly_messages::record::UnixMillis;
use serde_json::{Value, json};
use sqlx::{Row as _, any::AnyRow};

use super::{
    Database, DatabaseError, Page, Paged, Writing,
    audit::{self, Actor, Change},
    join_tokens::{JoinToken, TokenId},
};

/// What who joins says, and what it gets.
#[derive(Debug, Clone)]
pub struct Joining {
    /// Who.
    pub peer_id: String,
    /// The serial number of its credential, of [`Database::next_serial`].
    pub serial: u64,
    /// Until when its credential is good.
    pub not_after: UnixMillis,
    /// Where it can be dialled.
    pub addresses: Vec<String>,
    /// Of its program.
    pub version: String,
}

/// A member, also one that was put out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Who.
    pub peer_id: String,
    /// What it may be.
    pub roles: Vec<String>,
    /// What it is marked with.
    pub tags: BTreeMap<String, String>,
    /// The serial number of its newest credential.
    pub serial: u64,
    /// When it joined first.
    pub joined: UnixMillis,
    /// When it got its newest credential.
    pub renewed: UnixMillis,
    /// Until when that is good.
    pub not_after: UnixMillis,
    /// Where it can be dialled.
    pub addresses: Vec<String>,
    /// Of its program.
    pub version: String,
    /// With which it joined last.
    pub token_id: TokenId,
    /// Put out: when, why and by whom.
    pub revoked: Option<Revoked>,
}

/// That a member was put out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revoked {
    /// When.
    pub at: UnixMillis,
    /// Why.
    pub reason: String,
    /// By whom.
    pub by: String,
}

/// Why a member got no new credential.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// It never joined.
    #[error("there is no such member")]
    Unknown,
    /// It was put out.
    #[error("this member is revoked")]
    Revoked,
    /// It is not known whether it may.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl From<sqlx::Error> for RenewError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error.into())
    }
}

impl Database {
    /// The member with this PeerId.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn member(&self, peer_id: &str) -> Result<Option<Member>, DatabaseError> {
        let query = sqlx::query("SELECT * FROM members WHERE peer_id = $1").bind(peer_id);
        query.fetch_optional(&self.pool).await?.as_ref().map(read).transpose()
    }

    /// All members, or those with `role`, by PeerId.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn members(&self, page: &Page, role: Option<&str>) -> Result<Paged<Member>, DatabaseError> {
        // Roles are a list in JSON, so the quotes tell where one begins and ends.
        let role = role.map(|role| super::to_json(&role));
        let rows = sqlx::query(
            "SELECT * FROM members WHERE peer_id > $1 AND ($2 IS NULL OR REPLACE(roles, $2, '') <> roles)
             ORDER BY peer_id LIMIT $3",
        )
        .bind(page.after().unwrap_or_default())
        .bind(role)
        .bind(page.fetch())
        .fetch_all(&self.pool)
        .await?;
        page.cut(rows, read, |row| Ok(row.try_get("peer_id")?))
    }

    /// Notes the new credential of a member. It is no change by anybody, so it is not in the audit.
    ///
    /// # Errors
    /// [`RenewError`]: nothing has changed, and it must get none.
    pub async fn renew_member(&self, renewing: Joining, now: UnixMillis) -> Result<Member, RenewError> {
        let mut writing = self.write().await?;
        let member = get(&mut writing, &renewing.peer_id).await?.ok_or(RenewError::Unknown)?;
        if member.revoked.is_some() {
            return Err(RenewError::Revoked);
        }
        sqlx::query(
            "UPDATE members SET serial = $2, not_after = $3, addresses = $4, version = $5, renewed = $6
             WHERE peer_id = $1",
        )
        .bind(&renewing.peer_id)
        .bind(serial_column(renewing.serial))
        .bind(super::column(renewing.not_after))
        .bind(super::to_json(&renewing.addresses))
        .bind(&renewing.version)
        .bind(super::column(now))
        .execute(&mut *writing)
        .await?;
        writing.commit().await?;
        let Joining { serial, not_after, addresses, version, .. } = renewing;
        Ok(Member { serial, not_after, addresses, version, renewed: now, ..member })
    }

    /// Puts a member out for good. Returns it; `None` when there is no such member. Who was put out before stays so
    /// for the first reason.
    ///
    /// # Errors
    /// [`DatabaseError`]: nothing has changed.
    pub async fn revoke_member(
        &self,
        peer_id: &str,
        reason: &str,
        actor: &Actor,
        now: UnixMillis,
    ) -> Result<Option<Member>, DatabaseError> {
        let mut writing = self.write().await?;
        let Some(mut member) = get(&mut writing, peer_id).await? else { return Ok(None) };
        if member.revoked.is_some() {
            return Ok(Some(member));
        }
        sqlx::query("UPDATE members SET revoked = $2, revoked_reason = $3, revoked_by = $4 WHERE peer_id = $1")
            .bind(peer_id)
            .bind(super::column(now))
            .bind(reason)
            .bind(&actor.name)
            .execute(&mut *writing)
            .await?;
        let (before, after) = (Some(summary(&member)), Some(json!({ "reason": reason })));
        let change = Change { action: "member.revoke", target: peer_id, before, after };
        audit::append(&mut writing, now, actor, change).await?;
        writing.commit().await?;
        member.revoked = Some(Revoked { at: now, reason: reason.to_owned(), by: actor.name.clone() });
        Ok(Some(member))
    }

    /// The members that were put out at `since` or later, by time; `limit` at most.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn revoked_members(&self, since: UnixMillis, limit: u32) -> Result<Vec<Member>, DatabaseError> {
        let rows = sqlx::query("SELECT * FROM members WHERE revoked >= $1 ORDER BY revoked, peer_id LIMIT $2")
            .bind(super::column(since))
            .bind(i64::from(limit))
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(read).collect()
    }

    /// When the credentials end of members that are not put out, of those that end before `before`, the latest first;
    /// `limit` at most.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn credentials_ending(
        &self,
        before: UnixMillis,
        limit: u32,
    ) -> Result<Vec<(String, UnixMillis)>, DatabaseError> {
        let rows = sqlx::query(
            "SELECT peer_id, not_after FROM members WHERE revoked IS NULL AND not_after < $1
             ORDER BY not_after DESC, peer_id LIMIT $2",
        )
        .bind(super::column(before))
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(|row| Ok((row.try_get("peer_id")?, super::time(row, "not_after")?))).collect()
    }

    /// PeerIds and roles of members that are not revoked and got their newest credential at `since` or later, the latest
    /// first; `limit` at most.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn members_renewed(
        &self,
        since: UnixMillis,
        limit: u32,
    ) -> Result<Vec<(String, Vec<String>)>, DatabaseError> {
        let rows = sqlx::query(
            "SELECT peer_id, roles FROM members WHERE revoked IS NULL AND renewed >= $1
             ORDER BY renewed DESC, peer_id LIMIT $2",
        )
        .bind(super::column(since))
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(|row| Ok((row.try_get("peer_id")?, super::json(row, "roles")?))).collect()
    }

    /// A serial number that no credential has: 1, 2, and so on.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn next_serial(&self) -> Result<u64, DatabaseError> {
        let mut writing = self.write().await?;
        let serial: i64 =
            sqlx::query_scalar("UPDATE counters SET value = value + 1 WHERE name = 'serial' RETURNING value")
                .fetch_one(&mut *writing)
                .await?;
        writing.commit().await?;
        u64::try_from(serial).map_err(|_| DatabaseError::Damaged { what: "serial" })
    }
}

pub(super) async fn get(writing: &mut Writing, peer_id: &str) -> Result<Option<Member>, DatabaseError> {
    let query = sqlx::query("SELECT * FROM members WHERE peer_id = $1").bind(peer_id);
    query.fetch_optional(&mut **writing).await?.as_ref().map(read).transpose()
}

/// Keeps who joined with `token`; who was a member before keeps the time of the first joining.
pub(super) async fn put(
    writing: &mut Writing,
    token: &JoinToken,
    joining: Joining,
    now: UnixMillis,
) -> Result<Member, DatabaseError> {
    sqlx::query(
        "INSERT INTO members
         (peer_id, roles, tags, serial, joined, renewed, not_after, addresses, version, token_id)
         VALUES ($1, $2, $3, $4, $5, $5, $6, $7, $8, $9)
         ON CONFLICT (peer_id) DO UPDATE SET
         roles = excluded.roles, tags = excluded.tags, serial = excluded.serial, renewed = excluded.renewed,
         not_after = excluded.not_after, addresses = excluded.addresses, version = excluded.version,
         token_id = excluded.token_id",
    )
    .bind(&joining.peer_id)
    .bind(super::to_json(&token.roles))
    .bind(super::to_json(&token.tags))
    .bind(serial_column(joining.serial))
    .bind(super::column(now))
    .bind(super::column(joining.not_after))
    .bind(super::to_json(&joining.addresses))
    .bind(&joining.version)
    .bind(&token.id[..])
    .execute(&mut **writing)
    .await?;
    get(writing, &joining.peer_id).await?.ok_or(DatabaseError::Damaged { what: "member" })
}

/// What the audit says of a member.
pub(super) fn summary(member: &Member) -> Value {
    json!({ "roles": member.roles, "tags": member.tags, "serial": member.serial, "addresses": member.addresses })
}

fn serial_column(serial: u64) -> i64 {
    i64::try_from(serial).unwrap_or(i64::MAX)
}

fn read(row: &AnyRow) -> Result<Member, DatabaseError> {
    let revoked = match super::time_or_none(row, "revoked")? {
        Some(at) => Some(Revoked { at, reason: row.try_get("revoked_reason")?, by: row.try_get("revoked_by")? }),
        None => None,
    };
    Ok(Member {
        peer_id: row.try_get("peer_id")?,
        roles: super::json(row, "roles")?,
        tags: super::json(row, "tags")?,
        serial: super::number(row, "serial")?,
        joined: super::time(row, "joined")?,
        renewed: super::time(row, "renewed")?,
        not_after: super::time(row, "not_after")?,
        addresses: super::json(row, "addresses")?,
        version: row.try_get("version")?,
        token_id: super::bytes(row, "token_id")?,
        revoked,
    })
}
