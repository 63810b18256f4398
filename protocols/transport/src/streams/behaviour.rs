//! The side of streams that lives in the swarm.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use super::{
    Acceptor, Acceptors, Open, OpenError, Opener,
    handler::{Handler, OpenReply, Opening},
};
use crate::admission::Admission;
use libp2p::{
    Multiaddr, PeerId, StreamProtocol,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler, THandlerInEvent, ToSwarm,
        behaviour::{ConnectionClosed, ConnectionEstablished},
    },
};

/// Opens streams on existing connections and hands accepted ones to the program.
pub struct Behaviour {
    acceptors: Acceptors,
    open: Arc<Open>,
    connections: HashMap<PeerId, Vec<ConnectionId>>,
    /// Bounded by the slots of the peers.
    openings: VecDeque<(PeerId, ConnectionId, Opening)>,
}

impl Behaviour {
    /// Accepts streams of `served` protocols into their channels, from peers that may open them, and at most `per_peer_max` open streams of each peer;
    /// as many may be opened to it.
    pub fn new(served: Vec<Acceptor>, per_peer_max: usize, admission: Admission) -> Self {
        Self {
            acceptors: Acceptors { served: served.into(), admission },
            open: Open::new(per_peer_max),
            connections: HashMap::new(),
            openings: VecDeque::new(),
        }
    }

    /// Opens a stream on the oldest connection to `peer`; the answer goes to `reply`.
    pub fn open(&mut self, peer: PeerId, protocol: StreamProtocol, reply: OpenReply) {
        let Some(connection) = self.connections.get(&peer).and_then(|connections| connections.first()) else {
            drop(reply.send(Err(OpenError::NotConnected)));
            return;
        };
        match self.open.try_take(peer, Opener::Us) {
            Some(slot) => self.openings.push_back((peer, *connection, Opening { protocol, slot, reply })),
            None => drop(reply.send(Err(OpenError::Busy))),
        }
    }

    fn on_closed(&mut self, peer: PeerId, connection: ConnectionId) {
        if let Some(connections) = self.connections.get_mut(&peer) {
            connections.retain(|id| *id != connection);
            if connections.is_empty() {
                self.connections.remove(&peer);
            }
        }
    }

    fn handler(&self, peer: PeerId) -> Handler {
        Handler::new(peer, self.acceptors.clone(), self.open.clone())
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<Handler, ConnectionDenied> {
        Ok(self.handler(peer))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<Handler, ConnectionDenied> {
        Ok(self.handler(peer))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(ConnectionEstablished { peer_id, connection_id, .. }) => {
                self.connections.entry(peer_id).or_default().push(connection_id);
            }
            FromSwarm::ConnectionClosed(ConnectionClosed { peer_id, connection_id, .. }) => {
                self.on_closed(peer_id, connection_id);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: Infallible) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        match self.openings.pop_front() {
            Some((peer_id, connection, event)) => {
                Poll::Ready(ToSwarm::NotifyHandler { peer_id, handler: NotifyHandler::One(connection), event })
            }
            // Woken by the worker, which polls the swarm after each command.
            None => Poll::Pending,
        }
    }
}
