//! Keeps one address from taking all the room for connections that are being set up.

use std::{
    collections::HashMap,
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

use crate::connection::{LOOPBACK_FACTOR, ip_of};

/// The address has as many connections under way as it may have.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("{ip} sets up {max} connections already")]
struct TooMany {
    ip: IpAddr,
    max: u32,
}

/// Counts the inbound connections under way by their IP address, and denies those above the limit.
#[derive(Debug)]
pub(super) struct Behaviour {
    per_ip: u32,
    /// Bounded by the limit for all of them together, which the field before this one checks.
    pending: HashMap<ConnectionId, IpAddr>,
}

impl Behaviour {
    pub(super) fn new(per_ip: u32) -> Self {
        Self { per_ip, pending: HashMap::new() }
    }

    fn admit(&mut self, connection: ConnectionId, remote: &Multiaddr) -> Result<(), TooMany> {
        let Some(ip) = ip_of(remote) else { return Ok(()) };
        let max = if ip.is_loopback() { self.per_ip * LOOPBACK_FACTOR } else { self.per_ip };
        if self.pending.values().filter(|known| **known == ip).count() >= max as usize {
            return Err(TooMany { ip, max });
        }
        self.pending.insert(connection, ip);
        Ok(())
    }

    fn forget(&mut self, connection: ConnectionId) {
        self.pending.remove(&connection);
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
        self.admit(connection, remote).map_err(ConnectionDenied::new)
    }

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.forget(connection);
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
            FromSwarm::ConnectionEstablished(ConnectionEstablished { connection_id, .. })
            | FromSwarm::ListenFailure(ListenFailure { connection_id, .. }) => self.forget(connection_id),
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

    #[test]
    fn one_address_leaves_room_for_others() {
        let address = |text: &str| text.parse::<Multiaddr>().expect("an address");
        // (the address, how many are admitted, why)
        let table = [
            ("/ip4/10.0.0.1/tcp/1", 2, "the limit"),
            ("/ip6/::ffff:10.0.0.2/tcp/1", 2, "another address has its own"),
            ("/ip4/10.0.0.2/tcp/1", 0, "the same address, mapped"),
            ("/ip4/127.0.0.1/tcp/1", 6, "a testnet"),
        ];
        let mut pending = Behaviour::new(2);
        let mut id = 0;
        let mut admit = |pending: &mut Behaviour, from: &str| {
            id += 1;
            pending.admit(ConnectionId::new_unchecked(id), &address(from)).is_ok()
        };
        for (from, expected, why) in table {
            let admitted = (0..20).filter(|_| admit(&mut pending, from)).count();
            assert_eq!(admitted, expected, "{from}: {why}");
        }
        pending.forget(ConnectionId::new_unchecked(1));
        assert!(admit(&mut pending, "/ip4/10.0.0.1/tcp/2"), "one has ended");
        assert!(!admit(&mut pending, "/ip4/10.0.0.1/tcp/3"));
    }
}
