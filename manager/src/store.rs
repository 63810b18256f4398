//! The root key and the history of signed configurations, as files.
//!
//! `root.key` and `configuration/<epoch>.signed` belong together: one without the other is a lost backup or a mixed-up
//! directory, and a manager that went on would split the cluster. So it does not start.

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
use damselfly_transport::program::{
    durable,
    identity::{self, IdentityError},
};
use libp2p::identity::Keypair;

const ROOT_KEY: &str = "root.key";
/// The root key until the first configuration is written, so that a crash in between leaves neither alone.
const FOUNDING_KEY: &str = "root.key.founding";
const HISTORY: &str = "configuration";
const EXTENSION: &str = "signed";

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
    /// There is a root key but no configuration.
    #[error("{} is there, but there is no configuration in {}: restore both from one backup", key.display(), history.display())]
    KeyAlone {
        /// The key file.
        key: PathBuf,
        /// Where the configurations should be.
        history: PathBuf,
    },
    /// There are configurations but no root key.
    #[error("there are configurations in {}, but {} is missing: restore both from one backup", history.display(), key.display())]
    HistoryAlone {
        /// The missing key file.
        key: PathBuf,
        /// Where the configurations are.
        history: PathBuf,
    },
    /// The newest configuration is damaged or another root's.
    #[error("{} cannot be used: {refused}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// Why.
        refused: ConfigurationRefused,
    },
    /// The first settings cannot be signed.
    #[error("no first configuration")]
    First(#[from] Invalid),
}

/// The files of a manager.
#[derive(Debug)]
pub struct Store {
    root: Keypair,
    history: PathBuf,
    newest: SignedConfiguration,
    is_new: bool,
}

impl Store {
    /// Opens the store in `data_dir`; founds the cluster with `first` settings if the directory is new.
    ///
    /// # Errors
    /// [`StoreError`]: nothing that is there is changed.
    pub fn open(data_dir: &Path, first: Settings, now: UnixMillis) -> Result<Self, StoreError> {
        identity::prepare_data_dir(data_dir)?;
        let (key, founding) = (data_dir.join(ROOT_KEY), data_dir.join(FOUNDING_KEY));
        let history = data_dir.join(HISTORY);
        identity::prepare_data_dir(&history)?;
        let epoch = newest_epoch(&history)?;
        let is_new = epoch.is_none() || founding.try_exists().map_err(|source| failed(&founding, source))?;
        let root = match (identity::load(&key)?, epoch) {
            (Some(root), Some(_)) => root,
            (Some(_), None) => return Err(StoreError::KeyAlone { key, history }),
            (None, _) if is_new => found(&founding, &key, &history, first, now)?,
            (None, _) => return Err(StoreError::HistoryAlone { key, history }),
        };
        let path = file(&history, epoch.unwrap_or(1));
        let newest = read(&path, &root)?;
        Ok(Self { root, history, newest, is_new: epoch.is_none() })
    }

    /// The root key.
    pub const fn root(&self) -> &Keypair {
        &self.root
    }

    /// The cluster that the root key founded.
    pub fn cluster(&self) -> ClusterId {
        ClusterId::of_root(&self.root.public())
    }

    /// The newest configuration when the store was opened.
    pub const fn newest(&self) -> &SignedConfiguration {
        &self.newest
    }

    /// Whether the cluster was founded when the store was opened: then nobody knows more than it.
    pub const fn is_new(&self) -> bool {
        self.is_new
    }

    /// The epochs in the history, newest first. A restored store may lack some.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the folder cannot be read.
    pub fn epochs(&self) -> Result<Vec<u64>, StoreError> {
        let mut epochs = epochs(&self.history)?;
        epochs.sort_unstable_by(|left, right| right.cmp(left));
        Ok(epochs)
    }

    /// The configuration of an epoch in the history; `None` when there is none.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when it is damaged or another root's.
    pub fn past(&self, epoch: u64) -> Result<Option<Configuration>, StoreError> {
        let path = file(&self.history, epoch);
        match verified(&path, &self.root) {
            Ok((_, configuration)) => Ok(Some(configuration)),
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Signs `settings` as `epoch` and keeps them; on return they survive a power loss.
    ///
    /// # Errors
    /// [`SignError::Invalid`] names the value and its range; [`SignError::Io`] when the epoch is taken or the disk
    /// fails. Nothing is kept then.
    pub fn sign(
        &self,
        epoch: u64,
        (settings, revoked): (Settings, Vec<Revocation>),
        now: UnixMillis,
    ) -> Result<SignedConfiguration, SignError> {
        let signed = sign(&self.root, epoch, (settings, revoked), now)?;
        self.keep(&signed)?;
        Ok(signed)
    }

    /// Keeps a configuration that was signed earlier, and that members still had after this store was restored.
    ///
    /// # Errors
    /// [`io::Error`], also when there is one of this epoch.
    pub fn keep(&self, signed: &SignedConfiguration) -> io::Result<()> {
        durable::create(&file(&self.history, signed.epoch()), signed.as_bytes(), 0o600)
    }
}

/// Why settings were not signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// A value is out of range.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// It could not be kept.
    #[error("the configuration could not be stored")]
    Io(#[from] io::Error),
}

fn failed(path: &Path, source: io::Error) -> StoreError {
    StoreError::Io { path: path.into(), source }
}

/// Makes the root key and the first configuration; goes on where an earlier start was interrupted.
fn found(founding: &Path, key: &Path, history: &Path, first: Settings, now: UnixMillis) -> Result<Keypair, StoreError> {
    let root = identity::load_or_create(founding)?;
    let path = file(history, 1);
    if !path.try_exists().map_err(|source| failed(&path, source))? {
        let signed = sign(&root, 1, (first, Vec::new()), now)?;
        durable::create(&path, signed.as_bytes(), 0o600).map_err(|source| failed(&path, source))?;
    }
    read(&path, &root)?;
    fs::rename(founding, key).map_err(|source| failed(key, source))?;
    let folder = key.parent().unwrap_or(Path::new("."));
    fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(|source| failed(folder, source))?;
    Ok(root)
}

fn sign(
    root: &Keypair,
    epoch: u64,
    (settings, revoked): (Settings, Vec<Revocation>),
    issued: UnixMillis,
) -> Result<SignedConfiguration, Invalid> {
    Configuration { cluster: ClusterId::of_root(&root.public()), epoch, issued, settings, revoked }.sign(root)
}

fn file(history: &Path, epoch: u64) -> PathBuf {
    history.join(format!("{epoch}.{EXTENSION}"))
}

fn newest_epoch(history: &Path) -> Result<Option<u64>, StoreError> {
    Ok(epochs(history)?.into_iter().max())
}

fn epochs(history: &Path) -> Result<Vec<u64>, StoreError> {
    let mut epochs = Vec::new();
    for entry in fs::read_dir(history).map_err(|source| failed(history, source))? {
        let path = entry.map_err(|source| failed(history, source))?.path();
        let is_one = path.extension().is_some_and(|extension| extension == EXTENSION);
        let epoch = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<u64>().ok());
        epochs.extend(epoch.filter(|_| is_one));
    }
    Ok(epochs)
}

fn read(path: &Path, root: &Keypair) -> Result<SignedConfiguration, StoreError> {
    verified(path, root).map(|(signed, _)| signed)
}

/// What a file holds, once it has proved to be this root's.
fn verified(path: &Path, root: &Keypair) -> Result<(SignedConfiguration, Configuration), StoreError> {
    let refused = |refused| StoreError::Refused { path: path.into(), refused };
    let bytes = fs::read(path).map_err(|source| failed(path, source))?;
    let signed = SignedConfiguration::from_bytes(&bytes).map_err(|invalid| refused(invalid.into()))?;
    let configuration = Acceptance::new(ClusterId::of_root(&root.public())).verify(&signed).map_err(refused)?;
    Ok((signed, configuration))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> Result<Store, StoreError> {
        Store::open(path, Settings::default(), UnixMillis(1))
    }

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a folder")
    }

    #[test]
    fn a_cluster_is_founded_once() {
        let folder = folder();
        let data = folder.path().join("data");
        let store = open(&data).expect("founded");
        assert!(store.newest().epoch() == 1 && store.is_new());
        let second = store.sign(2, (Settings::default(), Vec::new()), UnixMillis(2)).expect("signed");
        assert!(
            matches!(store.sign(2, (Settings::default(), Vec::new()), UnixMillis(3)), Err(SignError::Io(_))),
            "an epoch is used once"
        );
        let wrong = Settings { replicas: 9, ..Settings::default() };
        assert!(matches!(store.sign(3, (wrong, Vec::new()), UnixMillis(3)), Err(SignError::Invalid(_))));
        let again = open(&data).expect("opened");
        assert_eq!((again.cluster(), again.newest()), (store.cluster(), &second));
        assert!(!again.is_new());
    }

    #[test]
    fn key_and_history_need_each_other() {
        let folder = folder();
        for (number, lost) in [ROOT_KEY, HISTORY].into_iter().enumerate() {
            let data = folder.path().join(number.to_string());
            open(&data).expect("founded");
            fs::rename(data.join(lost), folder.path().join(lost)).expect("moved away");
            let error = open(&data).expect_err("half a store");
            match lost {
                ROOT_KEY => assert!(matches!(error, StoreError::HistoryAlone { .. })),
                _ => assert!(matches!(error, StoreError::KeyAlone { .. })),
            }
        }
    }

    #[test]
    fn another_roots_history_and_a_torn_file_are_refused() {
        let folder = folder();
        let (one, two) = (folder.path().join("1"), folder.path().join("2"));
        open(&one).expect("founded");
        open(&two).expect("founded");
        fs::copy(one.join(HISTORY).join("1.signed"), two.join(HISTORY).join("2.signed")).expect("copied");
        assert!(matches!(open(&two), Err(StoreError::Refused { .. })));
        fs::write(one.join(HISTORY).join("1.signed"), b"torn").expect("written");
        assert!(matches!(open(&one), Err(StoreError::Refused { .. })));
    }

    #[test]
    fn founding_goes_on_after_a_crash() {
        let folder = folder();
        for with_first in [false, true] {
            let data = folder.path().join(with_first.to_string());
            let cluster = open(&data).expect("founded").cluster();
            fs::rename(data.join(ROOT_KEY), data.join(FOUNDING_KEY)).expect("as if not finished");
            if !with_first {
                fs::remove_file(data.join(HISTORY).join("1.signed")).expect("as if not written");
            }
            assert_eq!(open(&data).expect("founded").cluster(), cluster);
            assert!(!data.join(FOUNDING_KEY).exists());
        }
    }
}
