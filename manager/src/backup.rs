//! Copies of everything that a manager cannot do without.
//!
//! A backup is a directory with the keys and a snapshot of the database, which belong together. It is as secret as the
//! data directory: who has the root key signs for the cluster.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use damselfly_messages::id::ClusterId;
use damselfly_transport::program::{durable, identity::KEY_FILE};
use tokio::task::{JoinError, spawn_blocking};

use crate::{
    access::ADMIN_TOKEN,
    config::{DATABASE, ManagerConfig},
    database::{Database, DatabaseError, Location, OpenError},
    history::{Store, StoreError},
    keys::ROOT_KEY,
    server::{self, ServerError},
};

/// The keys in a data directory; the root key last, because a directory without it is seen to be unfinished.
const KEYS: [&str; 3] = [KEY_FILE, ADMIN_TOKEN, ROOT_KEY];

/// Why there is no backup, or why it is not restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The database is a server's.
    #[error("the database is PostgreSQL: back it up with pg_dump, and keep root.key of the data directory with it")]
    Postgres,
    /// Nothing is overwritten.
    #[error("{} exists already", .0.display())]
    Exists(PathBuf),
    /// The system refuses.
    #[error("cannot use {}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The database cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The database cannot be copied.
    #[error("the database cannot be copied")]
    Database(#[from] DatabaseError),
    /// The data directory is in use.
    #[error(transparent)]
    Server(#[from] Box<ServerError>),
    /// What was restored does not belong together; it is there, for a look at it.
    #[error("the backup is restored but cannot be used")]
    Store(#[from] StoreError),
    /// Only a defect gets here.
    #[error("the copying failed")]
    Panicked(#[from] JoinError),
}

/// What was restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// Whose manager it is.
    pub cluster: ClusterId,
    /// The newest configuration that it knows; members may know a newer one.
    pub epoch: u64,
}

/// Copies keys and database of the manager with `config`, which may run, into the new directory `output`.
///
/// # Errors
/// [`BackupError`]: what is in `output` is no backup.
pub async fn backup(config: &ManagerConfig, output: &Path) -> Result<(), BackupError> {
    let Location::Sqlite(file) = config.place() else { return Err(BackupError::Postgres) };
    // Opening would make it.
    fs::metadata(&file).map_err(|source| failed(&file, source))?;
    match DirBuilder::new().mode(0o700).create(output) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(BackupError::Exists(output.into())),
        made => made.map_err(|source| failed(output, source))?,
    }
    let database = Database::open(Location::Sqlite(file)).await?;
    let snapshot = output.join(DATABASE);
    let copied = database.snapshot(&snapshot).await;
    database.close().await;
    copied?;
    let (data_dir, output) = (config.data_dir.clone(), output.to_owned());
    spawn_blocking(move || {
        sync_private(&snapshot)?;
        copy_keys(&data_dir, &output)
    })
    .await?
}

/// Brings the backup in `from` back into the data directory of `config`, and opens it to see whether it is sound.
///
/// # Errors
/// [`BackupError::Exists`] when there are keys or a database; nothing is overwritten.
pub async fn restore(config: &ManagerConfig, from: &Path) -> Result<Restored, BackupError> {
    let Location::Sqlite(file) = config.place() else { return Err(BackupError::Postgres) };
    let _lock = server::lock(&config.data_dir).map_err(Box::new)?;
    let (data_dir, from, target) = (config.data_dir.clone(), from.to_owned(), file.clone());
    spawn_blocking(move || {
        for path in KEYS.map(|key| data_dir.join(key)).iter().chain([&target]) {
            if path.try_exists().map_err(|source| failed(path, source))? {
                return Err(BackupError::Exists(path.clone()));
            }
        }
        // All of it must be there, before half of it is here.
        for path in KEYS.iter().chain([&DATABASE]).map(|name| from.join(name)) {
            fs::metadata(&path).map_err(|source| failed(&path, source))?;
        }
        let snapshot = from.join(DATABASE);
        fs::copy(&snapshot, &target).map_err(|source| failed(&snapshot, source))?;
        sync_private(&target)?;
        copy_keys(&from, &data_dir)
    })
    .await??;
    let database = Database::open(Location::Sqlite(file)).await?;
    let opened = Store::open(&config.data_dir, database.clone(), Default::default(), database.now()).await;
    database.close().await;
    let store = opened?;
    Ok(Restored { cluster: store.cluster(), epoch: store.newest().epoch() })
}

fn copy_keys(from: &Path, to: &Path) -> Result<(), BackupError> {
    for key in KEYS {
        let (source, target) = (from.join(key), to.join(key));
        let bytes = fs::read(&source).map_err(|error| failed(&source, error))?;
        durable::create(&target, &bytes, 0o600).map_err(|error| failed(&target, error))?;
    }
    Ok(())
}

/// The file survives a power loss and is its owner's only; its name is synced with the keys after it.
fn sync_private(path: &Path) -> Result<(), BackupError> {
    let synced = fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .and_then(|()| File::open(path))
        .and_then(|file| file.sync_all());
    synced.map_err(|source| failed(path, source))
}

fn failed(path: &Path, source: io::Error) -> BackupError {
    BackupError::Io { path: path.into(), source }
}
