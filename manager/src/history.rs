//! The keys and the history of signed configurations, in the database.
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
    membership::{Issuer, Root, Roots, Succession},
    record::UnixMillis,
    wire::{Invalid, Wire as _},
};
use damselfly_transport::{
    clock::Signed,
    program::identity::{self, IdentityError, KEY_FILE},
};
use serde_json::json;

use crate::{
    database::{
        Database, DatabaseError, Location,
        audit::{self, Actor, Change},
        configurations::{self, Kept, Signed as Row},
    },
    keys::{self, KeyError, Keys, Next, ROOT_KEY},
};

/// The root key until the first configuration is kept, so that a crash in between leaves neither alone.
const FOUNDING_KEY: &str = "root.key.founding";

/// Why there is no usable store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory or a key in it cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The root key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
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
    /// There is a root key, but no database or an empty one.
    #[error("{} is there, but its database is not, or is empty: restore the backup that holds both", key.display())]
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
    /// The key is another cluster's, or of a root that has handed over.
    #[error("{} is not the newest root key of cluster {of_database}, which the database holds: restore the backup that holds both, or copy the key from another manager of this database", key.display())]
    Foreign {
        /// The key file.
        key: PathBuf,
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

/// The keys and the database.
#[derive(Debug)]
pub struct Store {
    keys: Keys,
    database: Database,
    newest: SignedConfiguration,
    is_new: bool,
}

/// Refuses a root key without the file of its database, before opening that makes an empty one.
///
/// # Errors
/// [`StoreError::KeyAlone`].
pub fn check_key_not_alone(data_dir: &Path, place: &Location) -> Result<(), StoreError> {
    let Location::Sqlite(file) = place else { return Ok(()) };
    let key = data_dir.join(ROOT_KEY);
    let is_there = |path: &Path| path.try_exists().map_err(|source| failed(path, source));
    if is_there(&key)? && !is_there(file)? { Err(StoreError::KeyAlone { key }) } else { Ok(()) }
}

/// Tells the clock of `database` when its newest configuration was signed, before anything is signed by that clock.
///
/// # Errors
/// [`StoreError`].
pub async fn learn_time(database: &Database) -> Result<(), StoreError> {
    let Some(cluster) = database.meta(configurations::CLUSTER).await? else { return Ok(()) };
    let cluster = cluster.parse().map_err(|_| DatabaseError::Damaged { what: "cluster" })?;
    let Some(newest) = database.configurations(u64::MAX, 1).await?.pop() else { return Ok(()) };
    let (_, configuration) = verified(newest.epoch, &newest.signed, cluster)?;
    database.clock().learn(Signed::Configuration, configuration.issued);
    Ok(())
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
        let known = database.meta(configurations::CLUSTER).await?;
        let is_founding = founding.try_exists().map_err(|source| failed(&founding, source))?;
        let root = match (&known, key.try_exists().map_err(|source| failed(&key, source))?) {
            (Some(cluster), true) => load(data_dir, cluster, &database).await?,
            (None, true) => return Err(StoreError::KeyAlone { key }),
            (Some(cluster), false) if !is_founding => {
                return Err(StoreError::DatabaseAlone { key, cluster: cluster.clone() });
            }
            (_, false) => found(&founding, &key, &database, first, now).await?,
        };
        let keys = Keys::new(data_dir, identity::load_or_create(&data_dir.join(KEY_FILE))?, root, now)?;
        let newest = newest(&database, keys.cluster()).await?;
        Ok(Self { keys, database, newest, is_new: known.is_none() })
    }

    /// What is signed with.
    pub const fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The cluster that the first root key founded.
    pub fn cluster(&self) -> ClusterId {
        self.keys.cluster()
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
        let past = |kept: Kept| {
            let Kept { epoch, signed, actor, reason } = kept;
            let configuration = verified(epoch, &signed, self.cluster()).map(|(_, configuration)| configuration);
            Past { epoch, actor, reason, configuration }
        };
        Ok(rows.into_iter().map(past).collect())
    }

    /// The configuration of an epoch in the history; `None` when there is none.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when it is damaged or another root's.
    pub async fn past(&self, epoch: u64) -> Result<Option<Configuration>, StoreError> {
        let bytes = self.database.configuration(epoch).await?;
        bytes.map(|bytes| verified(epoch, &bytes, self.cluster()).map(|(_, configuration)| configuration)).transpose()
    }

    /// The newest configuration that any manager of this database has signed, if it is above `epoch`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn newer_than(&self, epoch: u64) -> Result<Option<SignedConfiguration>, StoreError> {
        let Some(newest) = self.database.configurations(u64::MAX, 1).await?.pop() else { return Ok(None) };
        let is_newer = newest.epoch > epoch;
        is_newer.then(|| Ok(verified(newest.epoch, &newest.signed, self.cluster())?.0)).transpose()
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
        let before = before.and_then(|bytes| verified(current, &bytes, self.cluster()).ok());
        let before = before.map(|(_, configuration)| json!(configuration.settings));
        let after = json!(order.settings);
        let issuer = order.next.map_or_else(|| self.keys.issuer(), |(next, _)| next.issuer().clone());
        if issuer.roots().count() < order.roots.count() {
            return Err(SignError::OtherRoot);
        }
        let signed = sign(&issuer, current + 1, (order.settings, order.revoked, order.roots), now)?;
        if let Some((next, retired)) = order.next {
            let succession = hex::encode(next.succession().to_bytes());
            configurations::set(&mut writing, configurations::SUCCESSION, &succession).await?;
            let retired = retired.0.to_string();
            configurations::set(&mut writing, configurations::RETIREMENT, &retired).await?;
        }
        let row = Row { signed: &signed, issued: now, actor: &order.actor.name, reason: order.reason };
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
        let is_kept = configurations::insert(&mut writing, Row { signed, issued, actor: &actor.name, reason }).await?;
        writing.commit().await?;
        Ok(is_kept)
    }
}

/// An epoch of the history.
#[derive(Debug)]
pub struct Past {
    /// The epoch.
    pub epoch: u64,
    /// Who wanted it.
    pub actor: String,
    /// What it was for, if that was written down.
    pub reason: Option<String>,
    /// What was in force, or why that cannot be read.
    pub configuration: Result<Configuration, StoreError>,
}

/// What is to be signed.
#[derive(Debug)]
pub struct Order<'a> {
    /// The new settings.
    pub settings: Settings,
    /// Who is out.
    pub revoked: Vec<Revocation>,
    /// Whose certificates count.
    pub roots: Roots,
    /// The root that is to be in use from now on, if it is another one, and when those before it are retired.
    pub next: Option<(&'a Next, UnixMillis)>,
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
    /// Another manager has a newer root key.
    #[error("the root key was exchanged by another manager: copy root.key from there, and start this one again")]
    OtherRoot,
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

/// The root key of a cluster that the database holds.
async fn load(data_dir: &Path, cluster: &str, database: &Database) -> Result<Root, StoreError> {
    let damaged = |what| DatabaseError::Damaged { what };
    let id: ClusterId = cluster.parse().map_err(|_| damaged("cluster"))?;
    let succession = match database.meta(configurations::SUCCESSION).await? {
        None => Succession::default(),
        Some(text) => {
            let bytes = hex::decode(text).map_err(|_| damaged("succession"))?;
            Succession::from_bytes(&bytes).map_err(|_| damaged("succession"))?
        }
    };
    let key = data_dir.join(ROOT_KEY);
    match keys::load(data_dir, id, succession) {
        Ok(Some(root)) => Ok(root),
        Ok(None) => Err(StoreError::DatabaseAlone { key, cluster: cluster.to_owned() }),
        Err(KeyError::Invalid(_)) => Err(StoreError::Foreign { key, of_database: cluster.to_owned() }),
        Err(error) => Err(error.into()),
    }
}

/// Makes the root key and the first configuration; goes on where an earlier start was interrupted.
async fn found(
    founding: &Path,
    key: &Path,
    database: &Database,
    first: Settings,
    now: UnixMillis,
) -> Result<Root, StoreError> {
    let root_key = identity::load_or_create(founding)?;
    let root = Root::founding(root_key.clone());
    let issuer = root.certify(root_key, now, keys::ISSUER_LIFETIME)?;
    let signed = sign(&issuer, 1, (first, Vec::new(), root.roots()?), now)?;
    let mut writing = database.write().await?;
    if configurations::newest_epoch(&mut writing).await?.is_none() {
        configurations::claim(&mut writing, &root.cluster().to_string()).await?;
        let actor = Actor::manager();
        let row = Row { signed: &signed, issued: now, actor: &actor.name, reason: Some("founded") };
        configurations::insert(&mut writing, row).await?;
        let change = Change { action: "cluster.found", target: "1", ..Change::default() };
        audit::append(&mut writing, now, &actor, change).await?;
        writing.commit().await.map_err(DatabaseError::from)?;
    } else {
        // Ours from an interrupted start, or that of another manager, which was quicker.
        drop(writing);
        let of_database = database.meta(configurations::CLUSTER).await?.unwrap_or_default();
        if of_database != root.cluster().to_string() {
            return Err(StoreError::Foreign { key: founding.into(), of_database });
        }
    }
    fs::rename(founding, key).map_err(|source| failed(key, source))?;
    let folder = key.parent().unwrap_or(Path::new("."));
    fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(|source| failed(folder, source))?;
    Ok(root)
}

async fn newest(database: &Database, cluster: ClusterId) -> Result<SignedConfiguration, StoreError> {
    let newest = database.configurations(u64::MAX, 1).await?.pop();
    let newest = newest.ok_or(DatabaseError::Damaged { what: "configuration" })?;
    Ok(verified(newest.epoch, &newest.signed, cluster)?.0)
}

fn sign(
    issuer: &Issuer,
    epoch: u64,
    (settings, revoked, roots): (Settings, Vec<Revocation>, Roots),
    issued: UnixMillis,
) -> Result<SignedConfiguration, Invalid> {
    Configuration { cluster: issuer.cluster(), epoch, issued, settings, revoked, roots }.sign(issuer)
}

/// What the database has for `epoch`, once it has proved to be this cluster's.
fn verified(epoch: u64, bytes: &[u8], cluster: ClusterId) -> Result<(SignedConfiguration, Configuration), StoreError> {
    let refused = |refused| StoreError::Refused { epoch, refused };
    let signed = SignedConfiguration::from_bytes(bytes).map_err(|invalid| refused(invalid.into()))?;
    let configuration = Acceptance::new(cluster).verify(&signed).map_err(refused)?;
    if signed.epoch() != epoch {
        return Err(DatabaseError::Damaged { what: "epoch" }.into());
    }
    Ok((signed, configuration))
}

#[cfg(test)]
mod tests;
