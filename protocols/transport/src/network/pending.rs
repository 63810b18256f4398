//! Room for connections that are being set up, which is shared between those who may be strangers.
//!
//! There is always room for one more: the oldest handshake that has not proved anything ends for it, of the same address,
//! of the same network (a /24 or /64), or of the network with the most. Addresses at which members were seen have room of
//! their own, so a flood from elsewhere does not keep members out.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    net::IpAddr,
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent,
        ToSwarm,
        behaviour::{ConnectionEstablished, ListenFailure},
        dummy,
    },
};

use super::config::ConnectionLimits;
use crate::{
    connection::{LOOPBACK_FACTOR, ip_of},
    handshakes::Handshakes,
    source::{network_of, source_of},
};

/// What one network may have, in multiples of what one address may have.
const PER_NETWORK_FACTOR: usize = 2;
/// Addresses of members that are remembered; above it the one that was seen least lately is forgotten.
const MEMBERS_MAX: usize = 4096;

/// Counts the inbound connections under way, and ends the oldest ones that are too many.
#[derive(Debug)]
pub(super) struct Behaviour {
    pending: Pending,
    handshakes: Handshakes,
}

/// The connections under way. Pure: the caller ends what it is told to.
#[derive(Debug)]
struct Pending {
    /// Of strangers; members have half of that for themselves.
    all: usize,
    per_source: usize,
    /// Oldest first.
    under_way: VecDeque<UnderWay>,
    members: Members,
}

#[derive(Debug, Clone)]
struct UnderWay {
    connection: ConnectionId,
    remote: Multiaddr,
    source: IpAddr,
    is_member: bool,
}

impl Pending {
    fn new(all: u32, per_source: u32) -> Self {
        let members = Members::default();
        Self { all: all as usize, per_source: per_source as usize, under_way: VecDeque::new(), members }
    }

    /// Takes a connection in; returns the one that ends for it.
    fn enter(&mut self, connection: ConnectionId, remote: &Multiaddr) -> Option<UnderWay> {
        let ip = ip_of(remote)?.to_canonical();
        let is_member = self.members.contains(&ip);
        // A member's address is its own: who else is in its /64 takes nothing of it.
        let source = if is_member { ip } else { source_of(ip) };
        let evicted = self.too_many(source, is_member).and_then(|at| self.under_way.remove(at));
        self.under_way.push_back(UnderWay { connection, remote: remote.clone(), source, is_member });
        evicted
    }

    /// Which one there is no room for beside one more of `source`.
    fn too_many(&self, source: IpAddr, is_member: bool) -> Option<usize> {
        let factor = if source.is_loopback() { LOOPBACK_FACTOR as usize } else { 1 };
        let per_source = self.per_source * factor;
        if self.count(|known| known.source == source) >= per_source {
            return self.oldest(|known| known.source == source);
        }
        let of_kind = |known: &UnderWay| known.is_member == is_member;
        let network = network_of(source);
        let is_near = |known: &UnderWay| of_kind(known) && network_of(known.source) == network;
        if !is_member && self.count(is_near) >= per_source * PER_NETWORK_FACTOR {
            return self.oldest(is_near);
        }
        let max = if is_member { self.all.div_ceil(2) } else { self.all };
        if self.count(of_kind) < max {
            return None;
        }
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        for known in self.under_way.iter().filter(|known| of_kind(known)) {
            *counts.entry(network_of(known.source)).or_default() += 1;
        }
        let (largest, _) = counts.into_iter().max_by_key(|(_, count)| *count)?;
        self.oldest(|known| of_kind(known) && network_of(known.source) == largest)
    }

    fn count(&self, is_counted: impl Fn(&UnderWay) -> bool) -> usize {
        self.under_way.iter().filter(|known| is_counted(known)).count()
    }

    fn oldest(&self, is_meant: impl Fn(&UnderWay) -> bool) -> Option<usize> {
        self.under_way.iter().position(is_meant)
    }

    fn leave(&mut self, connection: ConnectionId) {
        self.under_way.retain(|known| known.connection != connection);
    }
}

/// Where members were seen.
#[derive(Debug, Default)]
struct Members {
    /// With the number of the occasion.
    seen: HashMap<IpAddr, u64>,
    occasions: u64,
}

impl Members {
    fn contains(&self, source: &IpAddr) -> bool {
        self.seen.contains_key(source)
    }

    fn note(&mut self, source: IpAddr) {
        self.occasions += 1;
        self.seen.insert(source, self.occasions);
        if self.seen.len() > MEMBERS_MAX
            && let Some(oldest) = self.seen.iter().min_by_key(|(_, occasion)| **occasion).map(|(source, _)| *source)
        {
            self.seen.remove(&oldest);
        }
    }
}

impl Behaviour {
    pub(super) fn new(limits: &ConnectionLimits, handshakes: Handshakes) -> Self {
        Self { pending: Pending::new(limits.pending, limits.pending_per_ip), handshakes }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        connection: ConnectionId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        if let Some(evicted) = self.pending.enter(connection, remote) {
            tracing::debug!(from = %evicted.remote, "a handshake that takes long is ended for a newer one");
            self.handshakes.end(&evicted.remote);
        }
        Ok(())
    }

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.pending.leave(connection);
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(ConnectionEstablished { connection_id, endpoint, .. }) => {
                self.pending.leave(connection_id);
                if let Some(ip) = ip_of(endpoint.get_remote_address()) {
                    self.pending.members.note(ip.to_canonical());
                }
            }
            FromSwarm::ListenFailure(ListenFailure { connection_id, .. }) => self.pending.leave(connection_id),
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The connections of a test, numbered as they come.
    struct Arrivals {
        pending: Pending,
        next: usize,
    }

    impl Arrivals {
        fn new() -> Self {
            Self { pending: Pending::new(128, 32), next: 0 }
        }

        /// One connection from `ip`; the address of the one that ended for it.
        fn arrive(&mut self, ip: &str) -> Option<IpAddr> {
            self.next += 1;
            let ip: IpAddr = ip.parse().expect("an address");
            let remote = Multiaddr::from(ip).with(libp2p::multiaddr::Protocol::Tcp(self.next as u16));
            self.pending.enter(ConnectionId::new_unchecked(self.next), &remote).map(|evicted| evicted.source)
        }

        fn from(&self, ip: &str) -> usize {
            let ip: IpAddr = ip.parse().expect("an address");
            self.pending.count(|known| known.source == ip)
        }
    }

    #[test]
    fn one_address_replaces_its_own_oldest() {
        for (ip, most, reason) in
            [("10.0.0.1", 32, "the limit"), ("2001:db8::", 32, "a /64 is one host"), ("127.0.0.1", 96, "a testnet")]
        {
            let mut arrivals = Arrivals::new();
            arrivals.arrive("192.0.2.1");
            for _ in 0..most {
                assert_eq!(arrivals.arrive(ip), None, "{ip}: {reason}");
            }
            assert_eq!(arrivals.arrive(ip), Some(ip.parse().expect("an address")), "{ip}: {reason}");
            assert_eq!((arrivals.from(ip), arrivals.from("192.0.2.1")), (most, 1), "{ip}: {reason}");
        }
        let mut arrivals = Arrivals::new();
        for host in 0..40 {
            arrivals.arrive(&format!("2001:db8::{host:x}"));
            arrivals.arrive("::ffff:10.0.0.1");
        }
        assert_eq!((arrivals.from("2001:db8::"), arrivals.from("10.0.0.1")), (32, 32));
    }

    #[test]
    fn one_network_does_not_take_all_the_room() {
        let mut arrivals = Arrivals::new();
        for host in 0..=255 {
            arrivals.arrive(&format!("203.0.113.{host}"));
        }
        assert_eq!(arrivals.pending.under_way.len(), 64, "a /24 has twice what an address has");
        assert_eq!(arrivals.arrive("10.0.0.1"), None);
    }

    #[test]
    fn a_flood_from_everywhere_ends_its_own_and_keeps_no_member_out() {
        let mut arrivals = Arrivals::new();
        arrivals.pending.members.note("10.0.0.5".parse().expect("an address"));
        arrivals.arrive("10.0.0.5");
        arrivals.arrive("192.0.2.1");
        for round in 0..10_000 {
            arrivals.arrive(&format!("203.0.{}.1", round % 200));
            arrivals.arrive(&format!("198.51.100.{}", round % 200));
        }
        assert_eq!(arrivals.from("10.0.0.5"), 1, "a member's address has room of its own");
        assert_eq!(arrivals.pending.under_way.len(), 128 + 1);
        assert_eq!(arrivals.arrive("10.0.0.5"), None, "also for one more");
    }

    #[test]
    fn a_flood_from_member_addresses_is_bounded_too() {
        let mut arrivals = Arrivals::new();
        for host in 0..200 {
            let ip = format!("10.0.{host}.1");
            arrivals.pending.members.note(ip.parse().expect("an address"));
            arrivals.arrive(&ip);
        }
        assert_eq!(arrivals.pending.under_way.len(), 64);
        assert_eq!(arrivals.arrive("192.0.2.1"), None, "newcomers have theirs");
        let first = arrivals.pending.under_way[0].connection;
        arrivals.pending.leave(first);
        assert_eq!(arrivals.arrive("10.0.0.1"), None, "one has ended");
    }

    #[test]
    fn a_flood_from_its_own_ipv6_network_keeps_no_member_out() {
        let mut arrivals = Arrivals::new();
        arrivals.pending.members.note("2001:db8::5".parse().expect("an address"));
        arrivals.arrive("2001:db8::5");
        for host in 0..1000 {
            arrivals.arrive(&format!("2001:db8::1:{host:x}"));
        }
        assert_eq!(arrivals.from("2001:db8::5"), 1, "a member's address is its own");
    }

    #[test]
    fn members_are_remembered_within_bounds() {
        let mut members = Members::default();
        let ip = |number: u32| IpAddr::from(number.to_be_bytes());
        for number in 0..=MEMBERS_MAX as u32 {
            members.note(ip(number));
            members.note(ip(0));
        }
        assert!(members.contains(&ip(0)) && !members.contains(&ip(1)) && members.contains(&ip(2)));
    }
}
