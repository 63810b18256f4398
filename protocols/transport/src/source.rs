//! Groups of IP addresses that count as one party when limits are shared.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The party behind an address: an IPv4 address, or the /64 of an IPv6 address, of which one host has all addresses.
pub fn source_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) if !ip.is_loopback() => Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64)).into(),
        ip => ip,
    }
}

/// The network around an address: the /24 of an IPv4 address, the /64 of an IPv6 address.
pub(crate) fn network_of(ip: IpAddr) -> IpAddr {
    match source_of(ip) {
        IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits() & (u32::MAX << 8)).into(),
        ip => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_grouped_by_who_can_have_them() {
        let table = [
            ("10.1.2.3", "10.1.2.3", "10.1.2.0", "an address, and its /24"),
            ("::ffff:10.1.2.3", "10.1.2.3", "10.1.2.0", "the same address, mapped"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::", "2001:db8:1:2::", "a host has the whole /64"),
            ("::1", "::1", "::1", "loopback"),
        ];
        for (ip, source, network, reason) in table {
            let parse = |text: &str| text.parse::<IpAddr>().expect("an address");
            assert_eq!(source_of(parse(ip)), parse(source), "{ip}: {reason}");
            assert_eq!(network_of(parse(ip)), parse(network), "{ip}: {reason}");
        }
    }
}
