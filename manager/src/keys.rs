//! What this manager signs with: the cluster's root key, a file, and the manager's own key, which the root certifies.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{PoisonError, RwLock},
    time::Duration,
};

use damselfly_messages::{
    id::ClusterId,
    membership::{Issuer, Root, Succession},
    record::UnixMillis,
    wire::Invalid,
};
use damselfly_transport::program::identity::{self, IdentityError};
use libp2p::identity::Keypair;
use tokio::sync::watch;

/// The file of the root key in the data directory.
pub const ROOT_KEY: &str = "root.key";
/// The next root key, until the database says that it is the root.
const NEXT_KEY: &str = "root.key.next";
/// How long the root lets a manager sign; it is certified again every day.
pub const ISSUER_LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);

/// Why a key cannot be used or made.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] IdentityError),
    /// The system refuses.
    #[error("cannot use {}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot sign, or there were too many roots.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

/// The keys of a running manager.
#[derive(Debug)]
pub struct Keys {
    data_dir: PathBuf,
    own: Keypair,
    root: RwLock<Root>,
    issuer: watch::Sender<Issuer>,
}

/// A root that is to follow the one in use. Its key is a file already.
#[derive(Debug, Clone)]
pub struct Next {
    root: Root,
    issuer: Issuer,
}

impl Next {
    /// How the cluster comes to it.
    pub const fn succession(&self) -> &Succession {
        self.root.succession()
    }

    /// This manager's key, certified by it.
    pub const fn issuer(&self) -> &Issuer {
        &self.issuer
    }
}

impl Keys {
    /// Certifies the manager's `own` key with the root.
    ///
    /// # Errors
    /// [`Invalid`] when the root cannot sign.
    pub fn new(data_dir: &Path, own: Keypair, root: Root, now: UnixMillis) -> Result<Self, Invalid> {
        let issuer = watch::Sender::new(root.certify(own.clone(), now, ISSUER_LIFETIME)?);
        Ok(Self { data_dir: data_dir.into(), own, root: RwLock::new(root), issuer })
    }

    /// The cluster.
    pub fn cluster(&self) -> ClusterId {
        self.issuer.borrow().cluster()
    }

    /// The manager's own key.
    pub const fn own(&self) -> &Keypair {
        &self.own
    }

    /// The manager's own key, certified.
    pub fn issuer(&self) -> Issuer {
        self.issuer.borrow().clone()
    }

    /// The same, and every new certificate.
    pub fn watch(&self) -> watch::Receiver<Issuer> {
        self.issuer.subscribe()
    }

    fn root(&self) -> Root {
        self.root.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Certifies the manager's key anew.
    ///
    /// # Errors
    /// [`Invalid`] when the root cannot sign.
    pub fn certify(&self, now: UnixMillis) -> Result<(), Invalid> {
        let certified = self.root().certify(self.own.clone(), now, ISSUER_LIFETIME)?;
        self.issuer.send_replace(certified);
        Ok(())
    }

    /// Makes the key of the next root, a file; that it is the root is up to the database. Blocks.
    ///
    /// # Errors
    /// [`KeyError`]: the root is as before.
    pub fn prepare(&self, now: UnixMillis) -> Result<Next, KeyError> {
        // One that is there is the rest of a rotation whose end is not known: perhaps it is the root already.
        let root = self.root().hand_over(identity::load_or_create(&self.data_dir.join(NEXT_KEY))?)?;
        let issuer = root.certify(self.own.clone(), now, ISSUER_LIFETIME)?;
        Ok(Next { root, issuer })
    }

    /// Goes on with the next root, which the database knows by now. Blocks.
    ///
    /// # Errors
    /// [`KeyError`]: it is in use, and its file has the other name until the next start.
    pub fn follow(&self, next: Next) -> Result<(), KeyError> {
        *self.root.write().unwrap_or_else(PoisonError::into_inner) = next.root;
        self.issuer.send_replace(next.issuer);
        install(&self.data_dir)
    }
}

/// The root key in a data directory, if there is one, by what the database says of it; ends a rotation that was
/// interrupted. Blocks.
///
/// # Errors
/// [`KeyError`], with [`KeyError::Invalid`] when the key is not the newest root's.
pub fn load(data_dir: &Path, cluster: ClusterId, succession: Succession) -> Result<Option<Root>, KeyError> {
    if let Some(next) = identity::load(&data_dir.join(NEXT_KEY))?
        && let Ok(root) = Root::new(next, cluster, succession.clone())
    {
        install(data_dir)?;
        return Ok(Some(root));
    }
    let key = identity::load(&data_dir.join(ROOT_KEY))?;
    Ok(key.map(|key| Root::new(key, cluster, succession)).transpose()?)
}

fn install(data_dir: &Path) -> Result<(), KeyError> {
    let path = data_dir.join(NEXT_KEY);
    fs::rename(&path, data_dir.join(ROOT_KEY)).map_err(|source| failed(&path, source))?;
    File::open(data_dir).and_then(|folder| folder.sync_all()).map_err(|source| failed(data_dir, source))
}

fn failed(path: &Path, source: io::Error) -> KeyError {
    KeyError::Io { path: path.into(), source }
}
