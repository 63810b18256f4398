//! Which addresses may be dialled.

use std::{
    io,
    net::{IpAddr, Ipv6Addr},
    pin::Pin,
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, Transport,
    core::transport::{DialOpts, ListenerId, TransportError, TransportEvent},
    multiaddr,
};

/// The one rule about addresses to dial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DialPolicy {
    /// What another host can have: no loopback, link-local, unspecified or multicast address.
    Routable,
    /// Loopback and link-local addresses too, for tests and for several programs on one host.
    Local,
}

impl DialPolicy {
    /// Whether `address` may be dialled; names are checked again as what they resolve to.
    pub fn allows(self, address: &Multiaddr) -> bool {
        address.iter().all(|part| match part {
            multiaddr::Protocol::Ip4(ip) => self.allows_ip(ip.into()),
            multiaddr::Protocol::Ip6(ip) => self.allows_ip(ip.into()),
            _ => true,
        })
    }

    fn allows_ip(self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        if ip.is_unspecified() || ip.is_multicast() {
            return false;
        }
        match self {
            Self::Local => true,
            Self::Routable => !ip.is_loopback() && !is_link_local(ip),
        }
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => Ipv6Addr::is_unicast_link_local(&ip),
    }
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
        let reason = format!("{address} is refused by the dial policy: no other host can have it");
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

    #[test]
    fn policy() {
        // (address, routable, local, why)
        let table = [
            ("/ip4/10.1.2.3/tcp/1", true, true, "private networks are where clusters live"),
            ("/ip4/127.0.0.1/tcp/1", false, true, "loopback"),
            ("/ip4/127.9.9.9/tcp/1", false, true, "all of 127/8"),
            ("/ip4/169.254.169.254/tcp/80", false, true, "link-local: metadata services"),
            ("/ip4/0.0.0.0/tcp/1", false, false, "no host"),
            ("/ip4/224.0.0.1/tcp/1", false, false, "multicast"),
            ("/ip6/::1/tcp/1", false, true, "loopback"),
            ("/ip6/fe80::1/tcp/1", false, true, "link-local"),
            ("/ip6/::ffff:127.0.0.1/tcp/1", false, true, "mapped loopback"),
            ("/ip6/2001:db8::1/tcp/1", true, true, "global"),
            ("/dns4/scheduler.example/tcp/1", true, true, "checked once more after it is resolved"),
        ];
        for (address, routable, local, why) in table {
            let address = address.parse().expect("an address");
            assert_eq!(DialPolicy::Routable.allows(&address), routable, "{address}: {why}");
            assert_eq!(DialPolicy::Local.allows(&address), local, "{address}: {why}");
        }
    }
}
