//! Where a host can be dialled by others.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libp2p::{Multiaddr, multiaddr::Protocol};

use crate::{connection::ip_of, dialing::DialPolicy};

/// The port of a host that announces no address at all.
const DEFAULT_PORT: u16 = 4500;

/// Every address of this host at `port`, over IPv4 and IPv6.
pub fn any(port: u16) -> Vec<Multiaddr> {
    let kinds = [IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from(Ipv6Addr::UNSPECIFIED)];
    kinds.into_iter().map(|ip| Multiaddr::from(ip).with(Protocol::Tcp(port))).collect()
}

/// Of what a host announces, what others can dial; `observed` is the address that it is seen at.
///
/// An unspecified IP (`0.0.0.0`, `::`) stands for *the one you see me at*, if that is of the same kind: containers and hosts
/// behind them do not know their own, and a port on which a host listens over IPv4 says nothing about IPv6.
pub fn reachable(announced: Vec<Multiaddr>, observed: Option<&Multiaddr>, policy: &DialPolicy) -> Vec<Multiaddr> {
    let seen = observed.and_then(ip_of);
    let announced = match (announced.is_empty(), seen) {
        (true, Some(seen)) => vec![Multiaddr::from(seen).with(Protocol::Tcp(DEFAULT_PORT))],
        _ => announced,
    };
    let mut reachable = Vec::with_capacity(announced.len());
    for address in announced {
        let address = match (ip_of(&address), seen) {
            (Some(ip), Some(seen)) if ip.is_unspecified() && ip.is_ipv4() == seen.is_ipv4() => with_ip(&address, seen),
            _ => address,
        };
        if policy.allows(&address) && !reachable.contains(&address) {
            reachable.push(address);
        }
    }
    reachable
}

fn with_ip(address: &Multiaddr, ip: IpAddr) -> Multiaddr {
    address.iter().skip(1).fold(Multiaddr::from(ip), Multiaddr::with)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_can_dial() {
        type Row = (&'static [&'static str], Option<&'static str>, bool, &'static [&'static str], &'static str);
        let table: [Row; 11] = [
            (&["/ip4/10.0.0.7/tcp/1"], None, false, &["/ip4/10.0.0.7/tcp/1"], "as announced"),
            (
                &["/ip4/0.0.0.0/tcp/1"],
                Some("/ip4/10.0.0.7/tcp/999"),
                false,
                &["/ip4/10.0.0.7/tcp/1"],
                "the observed IP with the announced port",
            ),
            (&["/ip4/0.0.0.0/tcp/1"], None, false, &[], "unknown"),
            (&[], Some("/ip4/10.0.0.7/tcp/9"), false, &["/ip4/10.0.0.7/tcp/4500"], "the default port"),
            (&["/ip4/127.0.0.1/tcp/1"], None, false, &[], "loopback is nobody else's"),
            (&["/ip4/127.0.0.1/tcp/1"], None, true, &["/ip4/127.0.0.1/tcp/1"], "but for a testnet"),
            (
                &["/ip6/::/tcp/1", "/ip4/0.0.0.0/tcp/1"],
                Some("/ip6/::ffff:10.0.0.7/tcp/9"),
                false,
                &["/ip4/10.0.0.7/tcp/1"],
                "both listeners of one host, seen through a mapped address",
            ),
            (
                &["/ip4/0.0.0.0/tcp/1", "/ip6/::/tcp/2"],
                Some("/ip6/2001:db8::7/tcp/9"),
                false,
                &["/ip6/2001:db8::7/tcp/2"],
                "the port at which it listens over IPv6",
            ),
            (
                &["/ip4/0.0.0.0/tcp/1"],
                Some("/ip6/2001:db8::7/tcp/9"),
                false,
                &[],
                "it does not listen where it is seen",
            ),
            (&[], Some("/ip6/2001:db8::7/tcp/9"), false, &["/ip6/2001:db8::7/tcp/4500"], "the default"),
            (&["/dns4/a.example/tcp/1"], None, false, &["/dns4/a.example/tcp/1"], "a name"),
        ];
        let parse = |text: &&str| text.parse::<Multiaddr>().expect("an address");
        for (announced, observed, allow_loopback, expected, reason) in table {
            let policy = if allow_loopback { DialPolicy::local() } else { DialPolicy::routable() };
            let observed = observed.as_ref().map(parse);
            let reachable = reachable(announced.iter().map(parse).collect(), observed.as_ref(), &policy);
            assert_eq!(reachable, expected.iter().map(parse).collect::<Vec<_>>(), "{reason}");
        }
    }
}
