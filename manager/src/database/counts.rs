//! How much there is, for the metrics.

use damselfly_messages::record::UnixMillis;

use super::{Database, DatabaseError};

/// How much there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Hosts that joined and are not revoked.
    pub members: i64,
    /// Hosts that were put out.
    pub revoked: i64,
    /// Sessions that have not ended.
    pub sessions: i64,
}

impl Database {
    /// Counts members, and sessions that were used since `idle_since` and begun since `begun_since`.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn counts(&self, idle_since: UnixMillis, begun_since: UnixMillis) -> Result<Counts, DatabaseError> {
        let members = sqlx::query_scalar("SELECT COUNT(*) FROM members WHERE revoked IS NULL");
        let revoked = sqlx::query_scalar("SELECT COUNT(*) FROM members WHERE revoked IS NOT NULL");
        let sessions = sqlx::query_scalar("SELECT COUNT(*) FROM sessions WHERE used >= $1 AND created >= $2")
            .bind(super::column(idle_since))
            .bind(super::column(begun_since));
        Ok(Counts {
            members: members.fetch_one(&self.pool).await?,
            revoked: revoked.fetch_one(&self.pool).await?,
            sessions: sessions.fetch_one(&self.pool).await?,
        })
    }
}
