//! What is of no use any more, so that the tables do not grow for ever.

use std::time::Duration;

use damselfly_messages::record::UnixMillis;

use super::{Database, DatabaseError};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Join tokens that nobody can use, and members that are none any more, are shown for this long.
pub const ENDED_KEPT: Duration = DAY.saturating_mul(90);
/// Who changed what can be looked up for this long.
pub const AUDIT_KEPT: Duration = DAY.saturating_mul(2 * 365);

/// Which deletes of hosts are noted already is known for this long; schedulers tell of them for a week.
const DELETIONS_KEPT: Duration = DAY.saturating_mul(30);

/// How much was removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Entries of the audit.
    pub audit: u64,
    /// Join tokens.
    pub join_tokens: u64,
    /// Members.
    pub members: u64,
}

impl Database {
    /// Removes entries of the audit after [`AUDIT_KEPT`], and after [`ENDED_KEPT`] the join tokens that have expired or
    /// were revoked and the members whose credential ended more than `grace` ago. Revoked members stay: no token must
    /// bring them back. The newest entry of the audit stays too, because the next one is numbered after it.
    ///
    /// # Errors
    /// [`DatabaseError`]: nothing is removed.
    pub async fn prune(&self, grace: Duration, now: UnixMillis) -> Result<Pruned, DatabaseError> {
        let before = |kept: Duration| UnixMillis(now.0.saturating_sub(kept.as_millis() as u64));
        let mut writing = self.write().await?;
        let mut removed = [0; 4];
        for ((sql, kept), removed) in [
            ("DELETE FROM audit WHERE at < $1 AND id < (SELECT MAX(id) FROM audit)", AUDIT_KEPT),
            (
                "DELETE FROM join_tokens WHERE (expires < $1 OR revoked < $1)
                 AND number < (SELECT MAX(number) FROM join_tokens)",
                ENDED_KEPT,
            ),
            ("DELETE FROM members WHERE not_after < $1 AND revoked IS NULL", ENDED_KEPT + grace),
            ("DELETE FROM deletions WHERE noted < $1", DELETIONS_KEPT),
        ]
        .into_iter()
        .zip(&mut removed)
        {
            let done = sqlx::query(sql).bind(super::column(before(kept))).execute(&mut *writing).await?;
            *removed = done.rows_affected();
        }
        writing.commit().await?;
        let [audit, join_tokens, members, _] = removed;
        Ok(Pruned { audit, join_tokens, members })
    }
}
