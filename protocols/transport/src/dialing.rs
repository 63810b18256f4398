//! Which addresses may be dialled.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    pin::Pin,
    str::FromStr,
    sync::Arc,
    task::{Context, Poll},
};

use ipnet::IpNet;
use libp2p::{
    Multiaddr, Transport,
    core::transport::{DialOpts, ListenerId, TransportError, TransportEvent},
    multiaddr,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// What to do when [`DialPolicy::allows`] refuses an address.
pub(crate) const REFUSED_HINT: &str = "see [dial] networks in the configuration; loopback addresses, for a cluster on one \
                                       host, need `allow_loopback` (--allow-loopback) in each program";

/// Where clouds keep credentials of their hosts: services that believe whoever reaches them. Those at link-local
/// addresses are refused as such.
const METADATA_SERVICES: [IpAddr; 5] = [
    // Azure.
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    // Alibaba.
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    // Oracle.
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    // Amazon.
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254)),
    // Google.
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x0254)),
];

/// The `[dial]` part of a program's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DialConfig {
    /// The networks whose addresses are dialled, in CIDR notation, such as `10.0.0.0/8`. Default: all that other hosts can
    /// have, without loopback, link-local and cloud metadata addresses.
    pub networks: Vec<Network>,
    /// Dials names that hosts announce, such as `/dns/node.example/tcp/4500`. Names of schedulers and managers are always
    /// dialled: they are in the signed configuration and in join tokens. Default false.
    pub member_names: bool,
}

/// A network in CIDR notation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network(IpNet);

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no network in CIDR notation, such as 10.0.0.0/8 or fd00::/8");
        text.parse().map(|network: IpNet| Self(network.trunc())).map_err(|_| wrong())
    }
}

impl TryFrom<String> for Network {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.to_string()
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The one rule about addresses to dial; cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DialPolicy {
    /// Loopback and link-local addresses too, for tests and for several programs on one host.
    allow_loopback: bool,
    /// Empty: every network.
    networks: Arc<[Network]>,
    member_names: bool,
}

impl DialPolicy {
    /// As configured; `allow_loopback` allows loopback and link-local addresses too, whatever the networks are.
    pub fn new(allow_loopback: bool, config: &DialConfig) -> Self {
        Self { allow_loopback, networks: config.networks.clone().into(), member_names: config.member_names }
    }

    /// What another host can have: no loopback, link-local, metadata, unspecified or multicast address.
    pub fn routable() -> Self {
        Self::new(false, &DialConfig::default())
    }

    /// Loopback and link-local addresses too.
    pub fn local() -> Self {
        Self::new(true, &DialConfig::default())
    }

    /// Whether `address` may be dialled; names are checked again as what they resolve to.
    pub fn allows(&self, address: &Multiaddr) -> bool {
        address.iter().all(|part| match part {
            multiaddr::Protocol::Ip4(ip) => self.allows_ip(ip.into()),
            multiaddr::Protocol::Ip6(ip) => self.allows_ip(ip.into()),
            _ => true,
        })
    }

    /// Whether `address` is on this host, and refused: the cluster seems to be meant for one host.
    pub fn refuses_loopback(&self, address: &Multiaddr) -> bool {
        let is_loopback = |ip: IpAddr| embedded(ip).is_loopback();
        !self.allows(address)
            && address.iter().any(|part| match part {
                multiaddr::Protocol::Ip4(ip) => is_loopback(ip.into()),
                multiaddr::Protocol::Ip6(ip) => is_loopback(ip.into()),
                _ => false,
            })
    }

    /// Whether `address` may be dialled that a host has announced, whose word alone it is.
    pub fn allows_of_member(&self, address: &Multiaddr) -> bool {
        self.allows(address) && (self.member_names || !has_name(address))
    }

    fn allows_ip(&self, ip: IpAddr) -> bool {
        let ip = embedded(ip);
        if !is_unicast(ip) || METADATA_SERVICES.contains(&ip) {
            return false;
        }
        let is_listed = self.networks.iter().any(|network| network.0.contains(&ip));
        if ip.is_loopback() || is_link_local(ip) {
            return self.allow_loopback || (is_listed && !is_metadata_range(ip));
        }
        self.networks.is_empty() || is_listed
    }
}

/// The IPv4 address in an IPv6 address that leads to it: mapped, or by way of NAT64 (64:ff9b::/96).
fn embedded(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) if ip.octets()[..12] == [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0] => {
            let [.., a, b, c, d] = ip.octets();
            Ipv4Addr::new(a, b, c, d).into()
        }
        ip => ip,
    }
}

fn is_unicast(ip: IpAddr) -> bool {
    match ip {
        // 0.0.0.0/8 is this host itself, 240.0.0.0/4 is reserved, with the broadcast address at its end.
        IpAddr::V4(ip) => ip.octets()[0] != 0 && ip.octets()[0] < 224,
        IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_multicast(),
    }
}

/// Whether a listener on `[::]` fails because this system has no IPv6.
pub(crate) fn is_without_ipv6(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::AFNOSUPPORT | Errno::PROTONOSUPPORT | Errno::ADDRNOTAVAIL))
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => Ipv6Addr::is_unicast_link_local(&ip),
    }
}

/// 169.254.169.0/24 and 169.254.170.0/24, where clouds have their metadata services.
fn is_metadata_range(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(ip) if matches!(ip.octets(), [169, 254, 169 | 170, _]))
}

fn has_name(address: &Multiaddr) -> bool {
    use multiaddr::Protocol::{Dns, Dns4, Dns6, Dnsaddr};
    address.iter().any(|part| matches!(part, Dns(_) | Dns4(_) | Dns6(_) | Dnsaddr(_)))
}

/// A transport that dials only what the policy allows.
pub(crate) struct Policed<T> {
    inner: T,
    policy: DialPolicy,
}

impl<T> Policed<T> {
    pub(crate) fn new(inner: T, policy: DialPolicy) -> Self {
        Self { inner, policy }
    }
}

impl<T: Transport<Error = io::Error> + Unpin> Transport for Policed<T> {
    type Output = T::Output;
    type Error = io::Error;
    type ListenerUpgrade = T::ListenerUpgrade;
    type Dial = T::Dial;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<io::Error>> {
        self.inner.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.remove_listener(id)
    }

    fn dial(&mut self, address: Multiaddr, opts: DialOpts) -> Result<Self::Dial, TransportError<io::Error>> {
        if self.policy.allows(&address) {
            return self.inner.dial(address, opts);
        }
        let reason = format!("{address} is refused by the dial policy: {REFUSED_HINT}");
        Err(TransportError::Other(io::Error::new(io::ErrorKind::AddrNotAvailable, reason)))
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        Pin::new(&mut self.inner).poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Multiaddr {
        text.parse().expect("an address")
    }

    #[test]
    fn policy() {
        // (address, routable, local, why)
        let table = [
            ("/ip4/10.1.2.3/tcp/1", true, true, "private networks are where clusters live"),
            ("/ip4/127.0.0.1/tcp/1", false, true, "loopback"),
            ("/ip4/127.9.9.9/tcp/1", false, true, "all of 127/8"),
            ("/ip4/169.254.169.254/tcp/80", false, true, "link-local: metadata services"),
            ("/ip4/168.63.129.16/tcp/80", false, false, "a metadata service elsewhere"),
            ("/ip6/fd00:ec2::254/tcp/80", false, false, "the same over IPv6"),
            ("/ip4/0.0.0.0/tcp/1", false, false, "no host"),
            ("/ip4/0.0.0.1/tcp/1", false, false, "this network"),
            ("/ip4/255.255.255.255/tcp/1", false, false, "broadcast"),
            ("/ip4/224.0.0.1/tcp/1", false, false, "multicast"),
            ("/ip6/::1/tcp/1", false, true, "loopback"),
            ("/ip6/fe80::1/tcp/1", false, true, "link-local"),
            ("/ip6/::ffff:127.0.0.1/tcp/1", false, true, "mapped loopback"),
            ("/ip6/64:ff9b::7f00:1/tcp/1", false, true, "loopback by way of NAT64"),
            ("/ip6/2001:db8::1/tcp/1", true, true, "global"),
            ("/ip6/fd12::1/tcp/1", true, true, "a private network"),
            ("/dns4/scheduler.example/tcp/1", true, true, "checked once more after it is resolved"),
        ];
        for (text, routable, local, why) in table {
            assert_eq!(DialPolicy::routable().allows(&address(text)), routable, "{text}: {why}");
            assert_eq!(DialPolicy::local().allows(&address(text)), local, "{text}: {why}");
            let is_loopback = why.contains("loopback") || why.contains("127/8");
            assert_eq!(DialPolicy::routable().refuses_loopback(&address(text)), is_loopback, "{text}: {why}");
            assert!(!DialPolicy::local().refuses_loopback(&address(text)), "{text}: {why}");
        }
    }

    #[test]
    fn only_listed_networks_are_dialled() {
        let networks = ["10.1.0.0/16", "fd12::/16", "169.254.0.0/16"];
        let networks = networks.map(|text| text.parse().expect("a network")).to_vec();
        let policy = DialPolicy::new(false, &DialConfig { networks, member_names: false });
        let table = [
            ("/ip4/10.1.2.3/tcp/1", true, "listed"),
            ("/ip6/::ffff:10.1.2.3/tcp/1", true, "the same, mapped"),
            ("/ip4/10.2.0.1/tcp/1", false, "another private network"),
            ("/ip4/8.8.8.8/tcp/1", false, "the Internet"),
            ("/ip6/fd12::1/tcp/1", true, "listed"),
            ("/ip6/fd13::1/tcp/1", false, "not listed"),
            ("/ip4/169.254.7.7/tcp/1", true, "link-local, listed by name"),
            ("/ip4/169.254.169.254/tcp/80", false, "but never a metadata service"),
            ("/ip4/127.0.0.1/tcp/1", false, "loopback needs allow_loopback"),
        ];
        for (text, expected, why) in table {
            assert_eq!(policy.allows(&address(text)), expected, "{text}: {why}");
        }
    }

    #[test]
    fn names_of_members_are_dialled_on_request_only() {
        let name = address("/dns4/internal.example/tcp/80");
        assert!(DialPolicy::routable().allows(&name), "of a scheduler, in the signed configuration");
        assert!(!DialPolicy::routable().allows_of_member(&name), "of a host, which has only said so");
        assert!(DialPolicy::routable().allows_of_member(&address("/ip4/10.0.0.1/tcp/1")));
        let names = DialConfig { member_names: true, ..DialConfig::default() };
        assert!(DialPolicy::new(false, &names).allows_of_member(&name));
    }

    #[test]
    fn networks_are_written_in_cidr_notation() {
        let config: DialConfig = toml::from_str("networks = ['10.1.2.3/8', 'fd00::/8']").expect("read");
        assert_eq!(config.networks.iter().map(Network::to_string).collect::<Vec<_>>(), ["10.0.0.0/8", "fd00::/8"]);
        let error = toml::from_str::<DialConfig>("networks = ['10.0.0.0']").expect_err("no length");
        assert!(error.to_string().contains("10.0.0.0/8"), "{error}");
    }
}
