//! What a host says about itself.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use damselfly_messages::{info::HostReport, membership::host_tags, record::BucketDigests, scheduler::AnnounceHost};
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
    /// The tags in its configuration.
    pub tags: BTreeMap<String, String>,
}

impl Host {
    /// The heartbeat of this host.
    pub fn announcement(&self, network: &Network, buckets: Option<BucketDigests>, report: HostReport) -> AnnounceHost {
        AnnounceHost {
            addresses: self.addresses(network),
            seed: self.seed,
            tags: host_tags(&network.admission().own_tags(), &self.tags),
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
        let mut addresses = seen_at(&listeners);
        if self.allow_loopback {
            addresses.extend(listeners.into_iter().map(without_peer));
        }
        addresses.dedup();
        addresses.truncate(ADDRESSES_MAX);
        addresses
    }
}

/// The ports of `listeners`, each with the IP that stands for the one that the host is seen at, of IPv4 and IPv6.
fn seen_at(listeners: &[Multiaddr]) -> Vec<Multiaddr> {
    let kinds = [IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from(Ipv6Addr::UNSPECIFIED)];
    let at = |ip: IpAddr| {
        let is_of_kind = |address: &&Multiaddr| match address.iter().next() {
            Some(Protocol::Ip4(_)) => ip.is_ipv4(),
            Some(Protocol::Ip6(_)) => ip.is_ipv6(),
            _ => false,
        };
        let port = listeners.iter().filter(is_of_kind).find_map(port_of)?;
        Some(Multiaddr::from(ip).with(Protocol::Tcp(port)))
    };
    kinds.into_iter().filter_map(at).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_address_is_announced_with_the_port_that_listens_there() {
        let table: [(&[&str], &[&str], &str); 4] = [
            (&["/ip4/10.0.0.7/tcp/1", "/ip6/2001:db8::7/tcp/2"], &["/ip4/0.0.0.0/tcp/1", "/ip6/::/tcp/2"], "both"),
            (&["/ip6/::1/tcp/2", "/ip6/2001:db8::7/tcp/2"], &["/ip6/::/tcp/2"], "IPv6 alone"),
            (&["/ip4/127.0.0.1/tcp/1"], &["/ip4/0.0.0.0/tcp/1"], "IPv4 alone"),
            (&[], &[], "no listener"),
        ];
        let parse = |all: &[&str]| all.iter().map(|text| text.parse().expect("an address")).collect::<Vec<Multiaddr>>();
        for (listeners, expected, reason) in table {
            assert_eq!(seen_at(&parse(listeners)), parse(expected), "{reason}");
        }
    }
}
