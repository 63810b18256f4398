//! What a host says about itself.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use damselfly_messages::{
    info::HostReport,
    record::BucketDigests,
    scheduler::{AnnounceHost, TAGS_MAX},
};
use damselfly_transport::network::Network;
use libp2p::{Multiaddr, multiaddr::Protocol};

/// Most addresses a host announces.
const ADDRESSES_MAX: usize = 16;

/// The part of the configuration that others learn.
#[derive(Debug, Clone, Default)]
pub struct Host {
    /// Where others reach it; empty: at the IP it is seen at and its own port.
    pub advertise: Vec<Multiaddr>,
    /// Loopback addresses are fine: a testnet.
    pub allow_loopback: bool,
    /// It has the role seed.
    pub seed: bool,
    /// Its locality.
    pub tags: BTreeMap<String, String>,
}

impl Host {
    /// The heartbeat of this host.
    pub fn announcement(&self, network: &Network, buckets: Option<BucketDigests>, report: HostReport) -> AnnounceHost {
        AnnounceHost {
            addresses: self.addresses(network),
            seed: self.seed,
            tags: self.tags.iter().take(TAGS_MAX).map(|(key, value)| (key.clone(), value.clone())).collect(),
            buckets,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            report,
        }
    }

    /// Where others can dial this host.
    pub fn addresses(&self, network: &Network) -> Vec<Multiaddr> {
        if !self.advertise.is_empty() {
            return self.advertise.iter().take(ADDRESSES_MAX).cloned().collect();
        }
        let listeners = network.listeners();
        // Schedulers put the IP in that they see this host at: a host behind others does not know its own.
        let port = listeners.iter().find_map(port_of);
        let any = Multiaddr::from(IpAddr::from(Ipv4Addr::UNSPECIFIED));
        let mut addresses: Vec<_> = port.map(|port| any.with(Protocol::Tcp(port))).into_iter().collect();
        if self.allow_loopback {
            addresses.extend(listeners.into_iter().map(without_peer));
        }
        addresses.dedup();
        addresses.truncate(ADDRESSES_MAX);
        addresses
    }
}

fn port_of(address: &Multiaddr) -> Option<u16> {
    address.iter().find_map(|part| match part {
        Protocol::Tcp(port) => Some(port),
        _ => None,
    })
}

fn without_peer(address: Multiaddr) -> Multiaddr {
    address.into_iter().filter(|part| !matches!(part, Protocol::P2p(_))).collect()
}
