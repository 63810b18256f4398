//! The manager's database: SQLite in the data directory, or PostgreSQL.
//!
//! One code path for both: portable SQL, and writers that take turns. A [`Writing`] transaction of SQLite begins
//! IMMEDIATE, one of PostgreSQL takes an advisory lock; so what it has read stays true until it commits.

use std::{
    fmt,
    fs::OpenOptions,
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Once,
    time::Duration,
};

use damselfly_messages::record::UnixMillis;
use damselfly_transport::clock::Clock;
use serde::{Serialize, de::DeserializeOwned};
use sqlx::{
    Any, AnyConnection, AnyPool, Connection as _, Executor as _, Row as _, Transaction,
    any::{AnyPoolOptions, AnyRow},
    migrate::MigrateError,
};
use tokio::time::timeout;

pub mod audit;
pub mod configurations;
mod connect;
pub mod counts;
pub mod credentials;
pub mod deletions;
pub mod join_tokens;
pub mod leader;
pub mod managers;
pub mod members;
mod migrations;
mod page;
pub mod prune;
#[cfg(test)]
mod tests;
mod url;
pub mod users;

pub use page::{LIMIT_MAX, Page, Paged};
pub use url::DatabaseUrl;

/// Connections of this process.
const CONNECTIONS_MAX: u32 = 8;
/// Who gets no connection by then fails.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// PostgreSQL gives a statement up by then, and one that waits for its turn to write as well.
const STATEMENT_TIMEOUT: &str = "SET statement_timeout = '10s'";
/// The advisory lock by which the writers in PostgreSQL take turns.
const WRITER_LOCK: i64 = 0x6466_6d67_7200;

/// Where the database is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A file, which is made when it is missing.
    Sqlite(PathBuf),
    /// A server that several managers may share.
    Postgres(DatabaseUrl),
}

/// A transaction that changes something; it is the only one at that time, and is undone unless it commits.
pub type Writing = Transaction<'static, Any>;

/// A handle to the database.
#[derive(Clone)]
pub struct Database {
    pool: AnyPool,
    place: Location,
    clock: Clock,
}

/// Why there is no database.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It cannot be reached.
    #[error("the database cannot be opened")]
    Connect(#[source] sqlx::Error),
    /// It does not answer.
    #[error("the database did not answer within {ACQUIRE_TIMEOUT:?}")]
    Silent,
    /// The file cannot be made.
    #[error("cannot use {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its tables cannot be brought to this version.
    #[error("the database cannot be brought to this version; was it made by a newer one?")]
    Migrate(#[from] MigrateError),
}

/// Why the database did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// It does not answer, or refuses.
    #[error("the database failed")]
    Failed(#[from] sqlx::Error),
    /// What it holds makes no sense.
    #[error("the database holds no sound {what}")]
    Damaged {
        /// The column.
        what: &'static str,
    },
}

impl Database {
    /// Opens the database, and brings its tables to this version.
    ///
    /// # Errors
    /// [`OpenError`]: nothing has changed.
    pub async fn open(place: Location) -> Result<Self, OpenError> {
        install_drivers();
        let (url, setup, migrations): (String, &'static [&'static str], _) = match &place {
            Location::Sqlite(path) => {
                (url::of_file(path), &["PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL"], &migrations::SQLITE)
            }
            Location::Postgres(url) => (url.reveal().to_owned(), &[STATEMENT_TIMEOUT], &migrations::POSTGRES),
        };
        if let Location::Sqlite(path) = &place {
            make_private(path).map_err(|source| OpenError::File { path: path.clone(), source })?;
        }
        // A pool tries for as long as it may, and then does not say why it failed.
        let first = timeout(ACQUIRE_TIMEOUT, AnyConnection::connect(&url)).await;
        drop(first.map_err(|_| OpenError::Silent)?.map_err(OpenError::Connect)?.close().await);
        let options = AnyPoolOptions::new().max_connections(CONNECTIONS_MAX).acquire_timeout(ACQUIRE_TIMEOUT);
        let options = options.after_connect(move |connection, _| {
            Box::pin(async move {
                for statement in setup {
                    connection.execute(*statement).await?;
                }
                Ok(())
            })
        });
        let pool = options.connect(&url).await.map_err(OpenError::Connect)?;
        migrations.run(&pool).await?;
        Ok(Self { pool, place, clock: Clock::system() })
    }

    /// Where it is.
    pub const fn place(&self) -> &Location {
        &self.place
    }

    /// The same, with the manager's clock instead of the bare system's.
    #[must_use]
    pub fn with_clock(self, clock: Clock) -> Self {
        Self { clock, ..self }
    }

    /// The clock that its rows go by.
    pub const fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The present time, as the tables have it.
    pub fn now(&self) -> UnixMillis {
        self.clock.now()
    }

    /// Whether other managers may use it too.
    pub const fn is_shared(&self) -> bool {
        matches!(self.place, Location::Postgres(_))
    }

    /// Begins a change.
    ///
    /// # Errors
    /// [`DatabaseError::Failed`], also when others write for too long.
    pub async fn write(&self) -> Result<Writing, DatabaseError> {
        match self.place {
            Location::Sqlite(_) => Ok(self.pool.begin_with("BEGIN IMMEDIATE").await?),
            Location::Postgres(_) => {
                let mut writing = self.pool.begin().await?;
                let turn = sqlx::query("SELECT CAST(pg_advisory_xact_lock($1) AS TEXT)").bind(WRITER_LOCK);
                turn.execute(&mut *writing).await?;
                Ok(writing)
            }
        }
    }

    /// The value that `meta` has for `key`.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn meta(&self, key: &str) -> Result<Option<String>, DatabaseError> {
        Ok(sqlx::query_scalar("SELECT value FROM meta WHERE key = $1").bind(key).fetch_optional(&self.pool).await?)
    }

    /// Writes all of it, as it is at one moment, into a new file at `path`. Only SQLite can.
    ///
    /// # Errors
    /// [`DatabaseError`], also when there is something at `path`.
    pub async fn snapshot(&self, path: &Path) -> Result<(), DatabaseError> {
        let path = path.to_str().ok_or(DatabaseError::Damaged { what: "path" })?;
        sqlx::query("VACUUM INTO $1").bind(path).execute(&self.pool).await?;
        Ok(())
    }

    /// Waits for what is under way, and closes the connections.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database").field("place", &self.place).finish_non_exhaustive()
    }
}

fn install_drivers() {
    static ONCE: Once = Once::new();
    ONCE.call_once(sqlx::any::install_default_drivers);
}

/// Makes the file, if there is none, for its owner only; what SQLite puts beside it gets the same permissions.
fn make_private(path: &Path) -> io::Result<()> {
    OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path).map(drop)
}

/// A time as a column has it; what is beyond the column's range is for ever.
fn column(time: UnixMillis) -> i64 {
    i64::try_from(time.0).unwrap_or(i64::MAX)
}

fn time(row: &AnyRow, name: &str) -> Result<UnixMillis, DatabaseError> {
    Ok(UnixMillis(u64::try_from(row.try_get::<i64, _>(name)?).unwrap_or(0)))
}

fn time_or_none(row: &AnyRow, name: &str) -> Result<Option<UnixMillis>, DatabaseError> {
    let at: Option<i64> = row.try_get(name)?;
    Ok(at.map(|at| UnixMillis(u64::try_from(at).unwrap_or(0))))
}

fn number(row: &AnyRow, name: &'static str) -> Result<u64, DatabaseError> {
    u64::try_from(row.try_get::<i64, _>(name)?).map_err(|_| DatabaseError::Damaged { what: name })
}

fn bytes<const N: usize>(row: &AnyRow, name: &'static str) -> Result<[u8; N], DatabaseError> {
    row.try_get::<Vec<u8>, _>(name)?.try_into().map_err(|_| DatabaseError::Damaged { what: name })
}

fn json<T: DeserializeOwned>(row: &AnyRow, name: &'static str) -> Result<T, DatabaseError> {
    serde_json::from_str(row.try_get(name)?).map_err(|_| DatabaseError::Damaged { what: name })
}

/// JSON of lists, maps and values, whose keys are text.
fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned())
}

/// The number above all that `table` has; only a writer may ask. `sql` selects the highest one.
async fn next_number(writing: &mut Writing, highest: &'static str) -> Result<i64, DatabaseError> {
    let highest: Option<i64> = sqlx::query_scalar(highest).fetch_one(&mut **writing).await?;
    Ok(highest.unwrap_or(0) + 1)
}
