//! What dfmanager is configured with.

use std::{
    net::{Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use damselfly_messages::config::Settings;
use damselfly_transport::{
    addresses::any,
    dialing::DialConfig,
    program::{
        config::{BadValue, Config, default_data_dir},
        http::HttpConfig,
    },
};
use libp2p::Multiaddr;
use serde::{Deserialize, Serialize};

use crate::database::{DatabaseUrl, Location};

/// The port for peers.
const PEER_PORT: u16 = 4400;
/// The port for hosts that join.
const JOIN_PORT: u16 = 4402;
/// The port for HTTP.
const HTTP_PORT: u16 = 4401;
/// The database's file in the data directory.
pub const DATABASE: &str = "manager.db";

/// The configuration file of dfmanager.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ManagerConfig {
    /// Where the keys lie, and the database unless there is a `database_url`. Default `/var/lib/damselfly-manager` for
    /// root, else `$XDG_DATA_HOME/damselfly-manager`.
    pub data_dir: PathBuf,
    /// The PostgreSQL database that several managers may share, as `postgres://user:password@host/name`; it is shown
    /// without the password. Default: SQLite, in `manager.db` in the data directory.
    pub database_url: Option<DatabaseUrl>,
    /// Where peers reach the manager, as multiaddrs. Default `/ip4/0.0.0.0/tcp/4400` and `/ip6/::/tcp/4400`.
    pub listen: Vec<Multiaddr>,
    /// Where new hosts join, as an address and a port. Default `[::]:4402`, which is every
    /// address of this host, over IPv4 and IPv6.
    pub join_listen: SocketAddr,
    /// Where join tokens say that this is, as multiaddrs. Default: this host's addresses.
    pub join_advertise: Vec<Multiaddr>,
    /// Allows to dial loopback addresses, for several programs on one host. Default false.
    pub allow_loopback: bool,
    /// Which addresses are dialled. Default: all that other hosts can have.
    pub dial: DialConfig,
    /// HTTP. Default `127.0.0.1:4401`.
    pub http: HttpConfig,
    /// What is logged, as in `RUST_LOG`, such as `info,damselfly_node=debug`. Default info.
    pub log_filter: Option<String>,
    /// What the cluster begins with; of no effect once there is an epoch. Default: no schedulers.
    pub settings: Option<Settings>,
}

impl Default for ManagerConfig {
    fn default() -> Self {
        Self {
            data_dir: default_data_dir("damselfly-manager"),
            database_url: None,
            listen: any(PEER_PORT),
            join_listen: SocketAddr::from((Ipv6Addr::UNSPECIFIED, JOIN_PORT)),
            join_advertise: Vec::new(),
            allow_loopback: false,
            dial: DialConfig::default(),
            http: HttpConfig::loopback(HTTP_PORT),
            log_filter: None,
            settings: None,
        }
    }
}

impl ManagerConfig {
    /// Where the database is.
    pub fn place(&self) -> Location {
        match &self.database_url {
            Some(url) => Location::Postgres(url.clone()),
            None => Location::Sqlite(self.data_dir.join(DATABASE)),
        }
    }
}

impl Config for ManagerConfig {
    const RELOADED: &'static [&'static str] = &["log_filter"];

    fn check(&self) -> Result<(), BadValue> {
        self.http.check()?;
        if self.listen.is_empty() {
            return Err(BadValue::new("listen", "must have at least one address"));
        }
        if self.database_url.as_ref().is_some_and(|url| !url.is_postgres()) {
            return Err(BadValue::new("database_url", "must be like postgres://user:password@host/name"));
        }
        match self.settings.as_ref().map(Settings::validate) {
            Some(Err(invalid)) => Err(BadValue::new(format!("settings.{}", invalid.what), invalid.reason)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use damselfly_transport::program::config::{Override, Source, load};

    use super::*;

    #[test]
    fn a_password_is_not_shown_also_when_the_address_is_wrong() {
        for (url, shown) in [("postgres://df:hunter2@db/df", Some("df:***@db/df")), ("mysql://df:hunter2@db/df", None)]
        {
            let given =
                [Override::new("database_url", vec![url.to_owned()], Source::Flag("--database-url".to_owned()))];
            let text = match load::<ManagerConfig>(None, &given) {
                Ok(loaded) => format!("{} {:?}", loaded.print(), loaded.config),
                Err(error) => error.to_string(),
            };
            assert!(!text.contains("hunter2") && text.contains(shown.unwrap_or("must be like")), "{text}");
        }
    }
}
