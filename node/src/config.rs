//! What dfdaemon is configured with.

use std::{collections::BTreeMap, path::PathBuf};

use damselfly_messages::{
    config::{QUOTA_BYTES_MAX, QUOTA_BYTES_MIN},
    membership, units,
};
use damselfly_transport::{
    addresses::any,
    dialing::DialConfig,
    local::daemon_socket_path,
    program::{
        config::{BadValue, Config, default_data_dir},
        http::HttpConfig,
    },
    trace::check_endpoint,
};
use libp2p::Multiaddr;
use serde::{Deserialize, Serialize};

use crate::limiter::Rate;

/// The port for peers.
const PEER_PORT: u16 = 4500;
/// The port for HTTP.
const HTTP_PORT: u16 = 4501;

/// The configuration file of dfdaemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    /// Where contents, the index and the host's key lie. Default `/var/lib/damselfly` for root, else
    /// `$XDG_DATA_HOME/damselfly`.
    pub data_dir: PathBuf,
    /// The local RPC's socket. Default `$DFCACHE_SOCKET`, else `$XDG_RUNTIME_DIR/damselfly/dfdaemon.sock`, else
    /// `/run/damselfly/dfdaemon.sock`, else, for a user who may not listen there,
    /// `$XDG_STATE_HOME/damselfly/dfdaemon.sock`.
    pub socket: PathBuf,
    /// Where peers reach this host, as multiaddrs. Default `/ip4/0.0.0.0/tcp/4500` and `/ip6/::/tcp/4500`. Without a
    /// cluster nothing listens.
    pub listen: Vec<Multiaddr>,
    /// What others are told to dial instead of what they see. Default none.
    pub advertise: Vec<Multiaddr>,
    /// What the host is for; its join token must grant that. Default `node`.
    pub role: Role,
    /// Most bytes sent to peers per second, such as `50MiB/s`. Default no limit.
    pub upload_rate_limit: Option<Rate>,
    /// Most bytes received from peers per second. Default no limit.
    pub download_rate_limit: Option<Rate>,
    /// Bytes of the file system that are left free, as a number or a size such as `2GiB`. Default 512 MiB.
    #[serde(deserialize_with = "units::bytes")]
    pub free_space_floor_bytes: u64,
    /// Most bytes that the store holds: 0 for no quota, else 64 MiB to 1 PiB. Of this one and the cluster's the lower one
    /// counts. A number or a size such as `500GiB`. Default 0.
    #[serde(deserialize_with = "units::bytes")]
    pub store_quota_bytes: u64,
    /// Allows to dial loopback addresses, for several programs on one host. Default false.
    pub allow_loopback: bool,
    /// Which addresses of other hosts are dialled. Default: all that hosts can have, and no names of hosts.
    pub dial: DialConfig,
    /// HTTP. Default `127.0.0.1:4501`.
    pub http: HttpConfig,
    /// What is logged, as in `RUST_LOG`, such as `info,damselfly_node=debug`. Default info.
    pub log_filter: Option<String>,
    /// The collector of traces that spans of exports go to, over OTLP/gRPC, such as `http://127.0.0.1:4317`. Default none.
    pub otlp_endpoint: Option<String>,
    /// Where the host is: `host`, `rack`, `zone`, `region`, and whatever else others should know. Default none.
    pub tags: BTreeMap<String, String>,
}

/// What a host is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Imports and exports for its users, and serves what it holds.
    #[default]
    Node,
    /// The same, and preferred by others as a parent.
    Seed,
}

impl From<Role> for membership::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Node => Self::Node,
            Role::Seed => Self::Seed,
        }
    }
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            data_dir: default_data_dir("damselfly"),
            socket: daemon_socket_path(),
            listen: any(PEER_PORT),
            advertise: Vec::new(),
            role: Role::Node,
            upload_rate_limit: None,
            download_rate_limit: None,
            free_space_floor_bytes: crate::store::Options::default().free_space_floor,
            store_quota_bytes: 0,
            allow_loopback: false,
            dial: DialConfig::default(),
            http: HttpConfig::loopback(HTTP_PORT),
            log_filter: None,
            otlp_endpoint: None,
            tags: BTreeMap::new(),
        }
    }
}

impl Config for NodeConfig {
    const RELOADED: &'static [&'static str] =
        &["download_rate_limit", "log_filter", "store_quota_bytes", "upload_rate_limit"];

    fn check(&self) -> Result<(), BadValue> {
        self.http.check()?;
        if let Err(reason) = check_endpoint(self.otlp_endpoint.as_deref().unwrap_or_default()) {
            return Err(BadValue::new("otlp_endpoint", reason));
        }
        if self.listen.is_empty() {
            return Err(BadValue::new("listen", "must have at least one address"));
        }
        if self.store_quota_bytes > 0 && !(QUOTA_BYTES_MIN..=QUOTA_BYTES_MAX).contains(&self.store_quota_bytes) {
            return Err(BadValue::new("store_quota_bytes", "must be 0, or 64 MiB to 1 PiB"));
        }
        let too_long = |text: &String| text.len() > damselfly_messages::scheduler::TAG_TEXT_MAX;
        if self.tags.len() > damselfly_messages::scheduler::TAGS_MAX
            || self.tags.iter().any(|(key, value)| too_long(key) || too_long(value))
        {
            return Err(BadValue::new("tags", "must be at most 32, of at most 128 bytes each"));
        }
        Ok(())
    }
}
