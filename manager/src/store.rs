//! The root key, a file, and the history of signed configurations, in the database.
//!
//! The two belong together: one without the other is a lost backup or a mixed-up directory, and a manager that went on
//! would split the cluster. So it does not start.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use damselfly_messages::{
    config::{Acceptance, Configuration, ConfigurationRefused, Revocation, Settings, SignedConfiguration},
    id::ClusterId,
    record::UnixMillis,
    wire::{Invalid, Wire as _},
};
use damselfly_transport::program::identity::{self, IdentityError};
use libp2p::identity::Keypair;
use serde_json::json;

use crate::database::{
    Database, DatabaseError,
    audit::{self, Actor, Change},
    configurations::{self, Signed},
};

/// The file of the root key in the data directory.
pub const ROOT_KEY: &str = "root.key";
/// The root key until the first configuration is kept, so that a crash in between leaves neither alone.
const FOUNDING_KEY: &str = "root.key.founding";

/// Why there is no usable store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory or a key in it cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The system refuses.
    #[error("cannot use {}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The database does not answer.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// There is a root key but the database is empty.
    #[error("{} is there, but the database is empty: restore the backup that holds both", key.display())]
    KeyAlone {
        /// The key file.
        key: PathBuf,
    },
    /// The database holds a cluster but there is no root key.
    #[error("the database holds cluster {cluster}, but {} is missing: restore the backup that holds both, or copy the key from another manager of this database", key.display())]
    DatabaseAlone {
        /// The missing key file.
        key: PathBuf,
        /// Whose database it is.
        cluster: String,
    },
    /// Key and database belong to different clusters.
    #[error("{} is the key of cluster {of_key}, but the database holds cluster {of_database}: restore the backup that holds both", key.display())]
    Foreign {
        /// The key file.
        key: PathBuf,
        /// Whose key it is.
        of_key: String,
        /// Whose database it is.
        of_database: String,
    },
    /// A configuration is damaged or another root's.
    #[error("epoch {epoch} in the database cannot be used: {refused}")]
    Refused {
        /// Which one.
        epoch: u64,
        /// Why.
        refused: ConfigurationRefused,
    },
    /// The first settings cannot be signed.
    #[error("no first configuration")]
    First(#[from] Invalid),
}

/// The root key and the database.
#[derive(Debug)]
pub struct Store {
    root: Keypair,
    database: Database,
    newest: SignedConfiguration,
    is_new: bool,
}

impl Store {
    /// Opens the store; founds the cluster with `first` settings if key and database are new.
    ///
    /// # Errors
    /// [`StoreError`]: nothing that is there is changed.
    pub async fn open(
        data_dir: &Path,
        database: Database,
        first: Settings,
        now: UnixMillis,
    ) -> Result<Self, StoreError> {
        identity::prepare_data_dir(data_dir)?;
        let (key, founding) = (data_dir.join(ROOT_KEY), data_dir.join(FOUNDING_KEY));
        let cluster = database.meta(configurations::CLUSTER).await?;
        let is_founding = founding.try_exists().map_err(|source| failed(&founding, source))?;
        let root = match (identity::load(&key)?, &cluster) {
            (Some(root), Some(_)) => root,
            (Some(_), None) => return Err(StoreError::KeyAlone { key }),
            (None, Some(cluster)) if !is_founding => {
                return Err(StoreError::DatabaseAlone { key, cluster: cluster.clone() });
            }
            (None, _) => found(&founding, &key, &database, first, now).await?,
        };
        let newest = newest(&database, &root).await?;
        Ok(Self { root, database, newest, is_new: cluster.is_none() })
    }

    /// The root key.
    pub const fn root(&self) -> &Keypair {
        &self.root
    }

    /// The cluster that the root key founded.
    pub fn cluster(&self) -> ClusterId {
        ClusterId::of_root(&self.root.public())
    }

    /// The database.
    pub const fn database(&self) -> &Database {
        &self.database
    }

    /// The newest configuration when the store was opened.
    pub const fn newest(&self) -> &SignedConfiguration {
        &self.newest
    }

    /// Whether the cluster was founded when the store was opened: then nobody knows more than it.
    pub const fn is_new(&self) -> bool {
        self.is_new
    }

    /// At most `limit` epochs below `before`, newest first, each with what was in force or why that cannot be read. A
    /// restored store may lack some.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn history(&self, before: u64, limit: usize) -> Result<Vec<Past>, DatabaseError> {
        let rows = self.database.configurations(before, limit).await?;
        let past = |(epoch, bytes): (u64, Vec<u8>)| (epoch, verified(epoch, &bytes, &self.root).map(|(_, past)| past));
        Ok(rows.into_iter().map(past).collect())
    }

    /// The configuration of an epoch in the history; `None` when there is none.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when it is damaged or another root's.
    pub async fn past(&self, epoch: u64) -> Result<Option<Configuration>, StoreError> {
        let bytes = self.database.configuration(epoch).await?;
        bytes.map(|bytes| verified(epoch, &bytes, &self.root).map(|(_, configuration)| configuration)).transpose()
    }

    /// The newest configuration that any manager of this database has signed, if it is above `epoch`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn newer_than(&self, epoch: u64) -> Result<Option<SignedConfiguration>, StoreError> {
        let Some((newest, bytes)) = self.database.configurations(u64::MAX, 1).await?.pop() else { return Ok(None) };
        if newest <= epoch { Ok(None) } else { Ok(Some(verified(newest, &bytes, &self.root)?.0)) }
    }

    /// Signs the settings of `order` as the epoch above `known` and above all in the database, and keeps them with an
    /// entry in the audit; on return they survive a power loss. `is_expected` is asked about the epoch below.
    ///
    /// # Errors
    /// [`SignError`]: nothing is kept.
    pub async fn sign(
        &self,
        known: u64,
        order: Order<'_>,
        is_expected: impl Fn(u64) -> bool,
        now: UnixMillis,
    ) -> Result<SignedConfiguration, SignError> {
        let mut writing = self.database.write().await?;
        let kept = configurations::newest_epoch(&mut writing).await?.unwrap_or(0);
        let current = kept.max(known);
        if !is_expected(current) {
            return Err(SignError::Stale { current });
        }
        let before = configurations::get(&mut writing, current).await?;
        // What cannot be read is changed all the same; the history tells what is wrong with it.
        let before = before.and_then(|bytes| verified(current, &bytes, &self.root).ok());
        let before = before.map(|(_, configuration)| json!(configuration.settings));
        let after = json!(order.settings);
        let signed = sign(&self.root, current + 1, (order.settings, order.revoked), now)?;
        let row = Signed { signed: &signed, issued: now, actor: &order.actor.name, reason: order.reason };
        if !configurations::insert(&mut writing, row).await? {
            return Err(SignError::Stale { current: current + 1 });
        }
        let target = signed.epoch().to_string();
        let change = Change { action: order.action, target: &target, before, after: Some(after) };
        audit::append(&mut writing, now, order.actor, change).await?;
        writing.commit().await.map_err(DatabaseError::from)?;
        Ok(signed)
    }

    /// Keeps a configuration that was signed earlier, and that members still had after this store was restored.
    /// Returns false when there is one of this epoch.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn keep(&self, signed: &SignedConfiguration, issued: UnixMillis) -> Result<bool, DatabaseError> {
        let mut writing = self.database.write().await?;
        let (actor, reason) = (Actor::manager(), Some("members had it"));
        let is_kept =
            configurations::insert(&mut writing, Signed { signed, issued, actor: &actor.name, reason }).await?;
        writing.commit().await?;
        Ok(is_kept)
    }
}

/// An epoch of the history and what was in force, or why that cannot be read.
pub type Past = (u64, Result<Configuration, StoreError>);

/// What is to be signed.
#[derive(Debug)]
pub struct Order<'a> {
    /// The new settings.
    pub settings: Settings,
    /// Who is out.
    pub revoked: Vec<Revocation>,
    /// Who wants it.
    pub actor: &'a Actor,
    /// What is done, for the audit.
    pub action: &'static str,
    /// What for, if it is no plain change.
    pub reason: Option<&'a str>,
}

/// Why settings were not signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// Another epoch is in force than was expected.
    #[error("epoch {current} is in force")]
    Stale {
        /// The epoch in force.
        current: u64,
    },
    /// A value is out of range.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// They could not be kept.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

fn failed(path: &Path, source: io::Error) -> StoreError {
    StoreError::Io { path: path.into(), source }
}

/// Makes the root key and the first configuration; goes on where an earlier start was interrupted.
async fn found(
    founding: &Path,
    key: &Path,
    database: &Database,
    first: Settings,
    now: UnixMillis,
) -> Result<Keypair, StoreError> {
    let root = identity::load_or_create(founding)?;
    let signed = sign(&root, 1, (first, Vec::new()), now)?;
    let mut writing = database.write().await?;
    if configurations::newest_epoch(&mut writing).await?.is_none() {
        configurations::claim(&mut writing, &ClusterId::of_root(&root.public()).to_string()).await?;
        let actor = Actor::manager();
        let row = Signed { signed: &signed, issued: now, actor: &actor.name, reason: Some("founded") };
        configurations::insert(&mut writing, row).await?;
        let change = Change { action: "cluster.found", target: "1", ..Change::default() };
        audit::append(&mut writing, now, &actor, change).await?;
        writing.commit().await.map_err(DatabaseError::from)?;
    } else {
        // Ours from an interrupted start, or that of another manager, which was quicker.
        drop(writing);
        check_cluster(database, &root, founding).await?;
    }
    fs::rename(founding, key).map_err(|source| failed(key, source))?;
    let folder = key.parent().unwrap_or(Path::new("."));
    fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(|source| failed(folder, source))?;
    Ok(root)
}

async fn check_cluster(database: &Database, root: &Keypair, key: &Path) -> Result<(), StoreError> {
    let of_database = database.meta(configurations::CLUSTER).await?.unwrap_or_default();
    let of_key = ClusterId::of_root(&root.public()).to_string();
    if of_key == of_database { Ok(()) } else { Err(StoreError::Foreign { key: key.into(), of_key, of_database }) }
}

async fn newest(database: &Database, root: &Keypair) -> Result<SignedConfiguration, StoreError> {
    check_cluster(database, root, Path::new(ROOT_KEY)).await?;
    let newest = database.configurations(u64::MAX, 1).await?.pop();
    let (epoch, bytes) = newest.ok_or(DatabaseError::Damaged { what: "configuration" })?;
    Ok(verified(epoch, &bytes, root)?.0)
}

fn sign(
    root: &Keypair,
    epoch: u64,
    (settings, revoked): (Settings, Vec<Revocation>),
    issued: UnixMillis,
) -> Result<SignedConfiguration, Invalid> {
    Configuration { cluster: ClusterId::of_root(&root.public()), epoch, issued, settings, revoked }.sign(root)
}

/// What the database has for `epoch`, once it has proved to be this root's.
fn verified(epoch: u64, bytes: &[u8], root: &Keypair) -> Result<(SignedConfiguration, Configuration), StoreError> {
    let refused = |refused| StoreError::Refused { epoch, refused };
    let signed = SignedConfiguration::from_bytes(bytes).map_err(|invalid| refused(invalid.into()))?;
    let configuration = Acceptance::new(ClusterId::of_root(&root.public())).verify(&signed).map_err(refused)?;
    if signed.epoch() != epoch {
        return Err(DatabaseError::Damaged { what: "epoch" }.into());
    }
    Ok((signed, configuration))
}

#[cfg(test)]
mod tests;
