//! The configuration files of the programs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use damselfly_messages::config::{SchedulerEntry, Settings};
use serde::Serialize;

/// The configuration of a scheduler or node.
#[derive(Debug, Serialize)]
pub(crate) struct Daemon {
    pub(crate) data_dir: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) socket: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) upload_rate_limit: Option<String>,
    pub(crate) listen: Vec<String>,
    /// Schedulers have none: the settings say where they are.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) advertise: Vec<String>,
    pub(crate) allow_loopback: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) free_space_floor_bytes: Option<u64>,
    pub(crate) http: Http,
}

#[derive(Debug, Serialize)]
pub(crate) struct Http {
    pub(crate) listen: String,
}

/// The configuration of the manager.
#[derive(Debug, Serialize)]
pub(crate) struct Manager {
    pub(crate) data_dir: PathBuf,
    pub(crate) listen: Vec<String>,
    pub(crate) join_listen: String,
    pub(crate) allow_loopback: bool,
    pub(crate) http: Http,
    pub(crate) settings: Settings,
}

/// What a testnet begins with: a warm-up of three seconds.
pub(crate) fn settings(schedulers: Vec<SchedulerEntry>) -> Settings {
    Settings { schedulers, heartbeat_ms: 1_000, lease_ms: 5_000, ..Settings::default() }
}

pub(crate) fn write(path: &Path, config: &impl Serialize) -> anyhow::Result<()> {
    let text = toml::to_string(config).context("a configuration cannot be written")?;
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// The multiaddr of a loopback port.
pub(crate) fn address(port: u16) -> String {
    format!("/ip4/127.0.0.1/tcp/{port}")
}
