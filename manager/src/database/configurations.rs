//! The signed configurations.

use damselfly_messages::{config::SignedConfiguration, record::UnixMillis};
use sqlx::Row as _;

use super::{Database, DatabaseError, Writing};

/// The key of the cluster ID in `meta`.
pub const CLUSTER: &str = "cluster";

/// The key in `meta` of how the cluster came to its newest root, in hex.
pub const SUCCESSION: &str = "succession";
/// The key in `meta` of when older roots are to be retired, in milliseconds.
pub const RETIREMENT: &str = "retirement";

/// A row to be kept.
#[derive(Debug, Clone, Copy)]
pub struct Signed<'a> {
    /// What members get.
    pub signed: &'a SignedConfiguration,
    /// When it was signed.
    pub issued: UnixMillis,
    /// Who wanted it.
    pub actor: &'a str,
    /// What for.
    pub reason: Option<&'a str>,
}

/// Keeps a configuration, unless there is one of this epoch. Returns whether there was none.
///
/// # Errors
/// [`DatabaseError`].
pub async fn insert(writing: &mut Writing, row: Signed<'_>) -> Result<bool, DatabaseError> {
    let done = sqlx::query(
        "INSERT INTO configurations (epoch, issued, signed, actor, reason) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (epoch) DO NOTHING",
    )
    .bind(epoch_column(row.signed.epoch()))
    .bind(super::column(row.issued))
    .bind(row.signed.as_bytes())
    .bind(row.actor)
    .bind(row.reason)
    .execute(&mut **writing)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The newest epoch, as it stays until `writing` ends; `None` in an empty database.
///
/// # Errors
/// [`DatabaseError`].
pub async fn newest_epoch(writing: &mut Writing) -> Result<Option<u64>, DatabaseError> {
    let newest: Option<i64> =
        sqlx::query_scalar("SELECT MAX(epoch) FROM configurations").fetch_one(&mut **writing).await?;
    newest.map(|epoch| u64::try_from(epoch).map_err(|_| DatabaseError::Damaged { what: "epoch" })).transpose()
}

/// The signed bytes of `epoch`, as they stay until `writing` ends.
///
/// # Errors
/// [`DatabaseError`].
pub async fn get(writing: &mut Writing, epoch: u64) -> Result<Option<Vec<u8>>, DatabaseError> {
    let query = sqlx::query_scalar("SELECT signed FROM configurations WHERE epoch = $1").bind(epoch_column(epoch));
    Ok(query.fetch_optional(&mut **writing).await?)
}

/// Makes the database that of `cluster`.
///
/// # Errors
/// [`DatabaseError`], also when it is somebody's already.
pub async fn claim(writing: &mut Writing, cluster: &str) -> Result<(), DatabaseError> {
    let claim = sqlx::query("INSERT INTO meta (key, value) VALUES ($1, $2)").bind(CLUSTER).bind(cluster);
    claim.execute(&mut **writing).await?;
    Ok(())
}

/// Gives `key` another value in `meta`.
///
/// # Errors
/// [`DatabaseError`].
pub async fn set(writing: &mut Writing, key: &str, value: &str) -> Result<(), DatabaseError> {
    let set = "INSERT INTO meta (key, value) VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value";
    sqlx::query(set).bind(key).bind(value).execute(&mut **writing).await?;
    Ok(())
}

/// A configuration of the history.
#[derive(Debug, Clone)]
pub struct Kept {
    /// Its epoch.
    pub epoch: u64,
    /// As members got it.
    pub signed: Vec<u8>,
    /// Who wanted it.
    pub actor: String,
    /// What it was for, if that was written down.
    pub reason: Option<String>,
}

impl Database {
    /// At most `limit` configurations with epochs below `before`, newest first.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn configurations(&self, before: u64, limit: usize) -> Result<Vec<Kept>, DatabaseError> {
        let newest_first = "SELECT epoch, signed, actor, reason FROM configurations
                            WHERE epoch < $1 ORDER BY epoch DESC LIMIT $2";
        let rows = sqlx::query(newest_first)
            .bind(epoch_column(before))
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .fetch_all(&self.pool)
            .await?;
        let kept = |row| {
            Ok(Kept {
                epoch: super::number(row, "epoch")?,
                signed: row.try_get("signed")?,
                actor: row.try_get("actor")?,
                reason: row.try_get("reason")?,
            })
        };
        rows.iter().map(kept).collect()
    }

    /// The signed bytes of `epoch`.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn configuration(&self, epoch: u64) -> Result<Option<Vec<u8>>, DatabaseError> {
        let query = sqlx::query_scalar("SELECT signed FROM configurations WHERE epoch = $1").bind(epoch_column(epoch));
        Ok(query.fetch_optional(&self.pool).await?)
    }
}

fn epoch_column(epoch: u64) -> i64 {
    i64::try_from(epoch).unwrap_or(i64::MAX)
}
