//! Where the files of a cluster are, and `cluster.json`.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use damselfly_transport::program::{durable, identity};
use serde::{Deserialize, Serialize};

/// The longest path of a Unix socket on Linux.
const SOCKET_BYTES_MAX: usize = 107;

/// What `cluster.json` says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClusterFile {
    /// The cluster's ID.
    pub cluster_id: String,
    /// The manager.
    pub manager: ManagerEntry,
    /// Every scheduler.
    pub schedulers: Vec<SchedulerEntry>,
    /// Every node, seeds too.
    pub nodes: Vec<NodeEntry>,
}

/// What only `cluster.json` of a cluster in containers says.
#[derive(Deserialize)]
struct Containers {
    docker: serde_json::Value,
}

/// The manager in `cluster.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ManagerEntry {
    /// Its URL.
    pub http: String,
    /// The file with the token that may do everything.
    pub admin_token_file: PathBuf,
    /// Its process when it was started.
    pub pid: u32,
    /// Its configuration file.
    pub config: PathBuf,
    /// Its identity.
    pub peer_id: String,
    /// Where peers reach it, as a full multiaddr.
    pub listen: String,
    /// URL of its metrics.
    pub metrics: String,
}

/// A scheduler in `cluster.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SchedulerEntry {
    /// `scheduler-1` and so on.
    pub name: String,
    /// Its identity.
    pub peer_id: String,
    /// Where peers reach it, as a full multiaddr.
    pub listen: String,
    /// Its process when it was started.
    pub pid: u32,
    /// URL of its metrics.
    pub metrics: String,
    /// Its configuration file.
    pub config: PathBuf,
}

/// A node in `cluster.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeEntry {
    /// `node-1` or `seed-1` and so on.
    pub name: String,
    /// `node` or `seed`.
    pub role: String,
    /// Its identity.
    pub peer_id: String,
    /// Where peers reach it, as a full multiaddr.
    pub listen: String,
    /// Where its CLI reaches it.
    pub socket: PathBuf,
    /// The folder with one file per content.
    pub store: PathBuf,
    /// Its process when it was started.
    pub pid: u32,
    /// URL of its metrics.
    pub metrics: String,
    /// Its configuration file.
    pub config: PathBuf,
}

/// The folder of a cluster.
#[derive(Debug, Clone)]
pub struct Layout {
    dir: PathBuf,
}

/// The folder that commands without `--dir` use: one per user.
pub fn default_dir() -> PathBuf {
    env::temp_dir().join(format!("damselfly-testnet-{}", rustix::process::getuid().as_raw()))
}

impl Layout {
    /// The cluster in `dir`, which is made if it is missing.
    ///
    /// # Errors
    /// When the folder belongs to somebody else, or cannot be made.
    pub fn create(dir: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let dir = fs::canonicalize(dir)?;
        let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(&dir)?);
        if owner != rustix::process::geteuid().as_raw() {
            bail!("{} belongs to another user: choose another folder with --dir", dir.display());
        }
        Ok(Self { dir })
    }

    /// The cluster in `dir`, which has one.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(dir: &Path) -> anyhow::Result<(Self, ClusterFile)> {
        let layout = Self { dir: fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned()) };
        match layout.read()? {
            Some(cluster) => Ok((layout, cluster)),
            None => bail!("there is no cluster in {}: start one with `testnet up`", dir.display()),
        }
    }

    /// Whether it is the folder of commands without `--dir`.
    pub(crate) fn is_default(&self) -> bool {
        fs::canonicalize(default_dir()).is_ok_and(|dir| dir == self.dir)
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What `cluster.json` says, if there is one.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&self) -> anyhow::Result<Option<ClusterFile>> {
        let path = self.file();
        match fs::read(&path) {
            Ok(bytes) if serde_json::from_slice(&bytes).is_ok_and(|one: Containers| one.docker.is_object()) => {
                bail!("the cluster in {} runs in containers: say --docker too", self.dir.display())
            }
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| format!("cannot read {}", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Writes `cluster.json`.
    pub(crate) fn write(&self, cluster: &ClusterFile) -> anyhow::Result<()> {
        durable::replace(&self.file(), &serde_json::to_vec_pretty(cluster)?, 0o600).context("cannot write cluster.json")
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.dir.join("cluster.json")
    }

    /// Held by the process in whose foreground the cluster runs.
    pub(crate) fn lock(&self) -> PathBuf {
        self.dir.join("up.lock")
    }

    /// The folder of one program, made if it is missing.
    pub(crate) fn program(&self, name: &str) -> anyhow::Result<PathBuf> {
        let folder = self.dir.join(name);
        identity::prepare_data_dir(&folder)?;
        Ok(folder)
    }

    pub(crate) fn config(&self, name: &str) -> PathBuf {
        self.dir.join(name).join("config.toml")
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.dir.join(name).join("log")
    }

    pub(crate) fn data(&self, name: &str) -> PathBuf {
        self.dir.join(name).join("data")
    }

    /// Beside the node's data, or, where that path is too long for a socket, in the user's short default folder.
    pub(crate) fn socket(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.dir.join(name).join("sock");
        if path.as_os_str().len() <= SOCKET_BYTES_MAX {
            return Ok(path);
        }
        let short = Path::new("/tmp").join(format!("damselfly-sockets-{}", rustix::process::getuid().as_raw()));
        identity::prepare_data_dir(&short)?;
        let hash = blake3::hash(path.as_os_str().as_encoded_bytes()).to_hex();
        Ok(short.join(&hash[..16]))
    }
}
