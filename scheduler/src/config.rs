//! What `dfscheduler.toml` says.

use std::path::PathBuf;

use damselfly_transport::{
    addresses::any,
    dialing::DialConfig,
    program::{
        config::{BadValue, Config, default_data_dir},
        http::HttpConfig,
        identity::KEY_FILE,
        membership::CONFIGURATION_FILE,
    },
    trace::check_endpoint,
};
use libp2p::Multiaddr;
use serde::{Deserialize, Serialize};

/// The configuration of `dfscheduler`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SchedulerConfig {
    /// Where to listen for members, as multiaddrs. Default `/ip4/0.0.0.0/tcp/4600` and `/ip6/::/tcp/4600`.
    pub listen: Vec<Multiaddr>,
    /// Where others reach it, instead of what the manager sees and `listen` says. Default none.
    pub advertise: Vec<Multiaddr>,
    /// Directory for the key and the newest signed configuration; everything else is in memory. Default
    /// `/var/lib/damselfly-scheduler` for root, else `$XDG_DATA_HOME/damselfly-scheduler`.
    pub data_dir: PathBuf,
    /// File with the identity key, made when it is missing. Default `identity.key` in the data directory.
    pub identity_file: Option<PathBuf>,
    /// Whether hosts may be at loopback and link-local addresses: only in tests and testnets. Default false.
    pub allow_loopback: bool,
    /// Which addresses of hosts are dialled, and given to others. Default: all that hosts can have, and no names of hosts.
    pub dial: DialConfig,
    /// Connections at once. Default 20,480; the limit of open files may lower it.
    pub connections: u32,
    /// Metrics and health. Default `127.0.0.1:4601`.
    pub http: HttpConfig,
    /// What is logged, as in `RUST_LOG`, such as `info,damselfly_node=debug`. Default info.
    pub log_filter: Option<String>,
    /// The collector of traces that spans of exports go to, over OTLP/gRPC, such as `http://127.0.0.1:4317`. Default none.
    pub otlp_endpoint: Option<String>,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            listen: any(4600),
            advertise: Vec::new(),
            data_dir: default_data_dir("damselfly-scheduler"),
            identity_file: None,
            allow_loopback: false,
            dial: DialConfig::default(),
            connections: 20_480,
            http: HttpConfig::loopback(4601),
            log_filter: None,
            otlp_endpoint: None,
        }
    }
}

impl Config for SchedulerConfig {
    const RELOADED: &'static [&'static str] = &["log_filter"];

    fn check(&self) -> Result<(), BadValue> {
        self.http.check()?;
        if let Err(reason) = check_endpoint(self.otlp_endpoint.as_deref().unwrap_or_default()) {
            return Err(BadValue::new("otlp_endpoint", reason));
        }
        if self.listen.is_empty() {
            return Err(BadValue::new("listen", "needs at least one address"));
        }
        if !(64..=65_536).contains(&self.connections) {
            return Err(BadValue::new("connections", "must be within 64–65,536"));
        }
        Ok(())
    }
}

impl SchedulerConfig {
    /// Where the identity key is.
    pub fn key_file(&self) -> PathBuf {
        self.identity_file.clone().unwrap_or_else(|| self.data_dir.join(KEY_FILE))
    }

    /// Where the newest signed configuration is kept.
    pub fn stored_configuration(&self) -> PathBuf {
        self.data_dir.join(CONFIGURATION_FILE)
    }
}

#[cfg(test)]
mod tests {
    use damselfly_transport::program::config;

    use super::*;

    #[test]
    fn a_file_is_read_and_what_it_cannot_say_is_refused() {
        let table = [
            ("allow_loopback = true\n[http]\nlisten = '127.0.0.1:0'", true, "a testnet"),
            ("listens = []", false, "an unknown key"),
            ("listen = []", false, "nowhere to listen"),
            ("connections = 1", false, "too few"),
            ("[cluster]", false, "what a token says"),
        ];
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("dfscheduler.toml");
        for (text, accepted, reason) in table {
            std::fs::write(&path, text).expect("written");
            assert_eq!(config::load::<SchedulerConfig>(Some(&path), &[]).is_ok(), accepted, "{reason}");
        }
    }
}
