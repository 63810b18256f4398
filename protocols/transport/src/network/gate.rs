//! The membership gate: no connection outlives the membership of its peer.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use damselfly_messages::membership::Roles;
use futures::{Stream as _, StreamExt as _, stream::BoxStream};
use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    swarm::{
        CloseConnection, ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandlerInEvent, ToSwarm,
        behaviour::{ConnectionClosed, ConnectionEstablished},
        dummy,
    },
};
use tokio::time::{MissedTickBehavior, interval};
use tokio_stream::wrappers::{IntervalStream, WatchStream};

use crate::admission::Admission;

/// How often it is looked whether a credential has expired.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Closes the connections of peers that are revoked or whose credential has expired.
pub(super) struct Behaviour {
    admission: Admission,
    /// There may be somebody to put out.
    occasions: BoxStream<'static, ()>,
    closing: VecDeque<PeerId>,
}

impl Behaviour {
    /// Must be called inside of a tokio runtime.
    pub(super) fn new(admission: Admission) -> Self {
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let changes = WatchStream::from_changes(admission.changes()).map(drop);
        let occasions = futures::stream::select(IntervalStream::new(ticks).map(drop), changes).boxed();
        Self { admission, occasions, closing: VecDeque::new() }
    }

    /// What a peer was admitted as.
    pub(super) fn roles(&self, peer: &PeerId) -> Roles {
        self.admission.roles(peer)
    }

    fn look(&mut self) {
        for (peer, reason) in self.admission.lapsed() {
            tracing::info!(%peer, %reason, "connections closed: no member any more");
            self.closing.push_back(peer);
        }
    }

    fn pass(&self, peer: &PeerId) -> Result<dummy::ConnectionHandler, ConnectionDenied> {
        self.admission.standing(peer).map(|()| dummy::ConnectionHandler).map_err(ConnectionDenied::new)
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<Self::ConnectionHandler, ConnectionDenied> {
        self.pass(&peer)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<Self::ConnectionHandler, ConnectionDenied> {
        self.pass(&peer)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            // Not before: other limits may refuse a connection, and then nobody tells that it is gone.
            FromSwarm::ConnectionEstablished(ConnectionEstablished { peer_id, .. }) => {
                self.admission.connected(&peer_id);
            }
            FromSwarm::ConnectionClosed(ConnectionClosed { peer_id, remaining_established: 0, .. }) => {
                self.admission.disconnected(&peer_id);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: Infallible) {
        match event {}
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        while let Poll::Ready(Some(())) = Pin::new(&mut self.occasions).poll_next(cx) {
            self.look();
        }
        match self.closing.pop_front() {
            Some(peer_id) => Poll::Ready(ToSwarm::CloseConnection { peer_id, connection: CloseConnection::All }),
            None => Poll::Pending,
        }
    }
}
