//! What is of no use any more, so that the tables do not grow for ever.

use std::time::Duration;

use damselfly_messages::record::UnixMillis;
use sqlx::AssertSqlSafe;

use super::{Database, DatabaseError, Writing};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Join tokens that nobody can use, and members that are none any more, are shown for this long.
pub const ENDED_KEPT: Duration = DAY.saturating_mul(90);
/// Who changed what can be looked up for this long.
pub const AUDIT_KEPT: Duration = DAY.saturating_mul(2 * 365);

/// Which deletes of hosts are noted already is known for this long; schedulers tell of them for a week.
const DELETIONS_KEPT: Duration = DAY.saturating_mul(30);

/// Deletes by users of hosts that the audit keeps, the latest ones: a job may delete 100,000 files a day, and an entry takes
/// half a KiB.
pub const HOST_DELETES_KEPT: u32 = 200_000;
/// Deletes that are known to be noted: more than all schedulers of a cluster remember.
const NOTED_KEPT: u32 = 300_000;
/// Users of the manager have no spaces in their names, see `deletions::user_of`.
const BY_HOSTS: &str = "action = 'task.delete' AND actor LIKE '% on %'";

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
    /// Removes entries of the audit after [`AUDIT_KEPT`], deletes of hosts also above [`HOST_DELETES_KEPT`], and after [`ENDED_KEPT`] the join tokens that have expired or
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
        let deletes = prune_deletes(&mut writing, HOST_DELETES_KEPT, NOTED_KEPT).await?;
        writing.commit().await?;
        let [audit, join_tokens, members, _] = removed;
        Ok(Pruned { audit: audit + deletes, join_tokens, members })
    }
}

/// Removes deletes of hosts from the audit but for the latest `kept`, and what is known of `noted` deletes likewise. Gives the
/// number of entries of the audit that it removed.
pub(super) async fn prune_deletes(writing: &mut Writing, kept: u32, noted: u32) -> Result<u64, DatabaseError> {
    let audit = format!(
        "DELETE FROM audit WHERE {BY_HOSTS}
         AND id <= (SELECT id FROM audit WHERE {BY_HOSTS} ORDER BY id DESC LIMIT 1 OFFSET $1)"
    );
    let done = sqlx::query(AssertSqlSafe(audit)).bind(i64::from(kept)).execute(&mut **writing).await?;
    let known =
        "DELETE FROM deletions WHERE noted < (SELECT noted FROM deletions ORDER BY noted DESC LIMIT 1 OFFSET $1)";
    sqlx::query(known).bind(i64::from(noted)).execute(&mut **writing).await?;
    Ok(done.rows_affected())
}
