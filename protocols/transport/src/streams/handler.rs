//! The side of streams that lives in a connection's task.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
    vec,
};

use libp2p::{
    PeerId, StreamProtocol,
    core::{
        UpgradeInfo,
        upgrade::{InboundUpgrade, OutboundUpgrade},
    },
    swarm::{
        ConnectionHandler, ConnectionHandlerEvent, StreamUpgradeError, SubstreamProtocol,
        handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound},
    },
};
use tokio::sync::oneshot;

use super::{Acceptors, Open, OpenError, Slot, Stream};

/// Where the opener waits.
pub(super) type OpenReply = oneshot::Sender<Result<Stream, OpenError>>;

/// A stream to be opened, with its place in the count.
#[derive(Debug)]
pub struct Opening {
    pub(super) protocol: StreamProtocol,
    pub(super) slot: Slot,
    pub(super) reply: OpenReply,
}

/// Opens and accepts the streams of one connection.
pub struct Handler {
    peer: PeerId,
    acceptors: Acceptors,
    open: Arc<Open>,
    /// Bounded by the streams that may be open to a peer, because each holds a slot.
    openings: VecDeque<Opening>,
}

impl Handler {
    pub(super) fn new(peer: PeerId, acceptors: Acceptors, open: Arc<Open>) -> Self {
        Self { peer, acceptors, open, openings: VecDeque::new() }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Opening;
    type ToBehaviour = Infallible;
    type InboundProtocol = Offer;
    type OutboundProtocol = Offer;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Opening;

    fn listen_protocol(&self) -> SubstreamProtocol<Offer> {
        SubstreamProtocol::new(Offer(self.acceptors.protocols()), ())
    }

    fn on_behaviour_event(&mut self, opening: Opening) {
        self.openings.push_back(opening);
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ConnectionHandlerEvent<Offer, Opening, Infallible>> {
        // A caller that has given up meanwhile costs no stream.
        self.openings.retain(|opening| !opening.reply.is_closed());
        match self.openings.pop_front() {
            Some(opening) => Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                protocol: SubstreamProtocol::new(Offer(vec![opening.protocol.clone()]), opening),
            }),
            None => Poll::Pending,
        }
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Offer, Offer, (), Opening>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (stream, protocol), ..
            }) => {
                self.acceptors.accept(&protocol, self.peer, stream, &self.open);
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol: (stream, _), info }) => {
                let Opening { slot, reply, .. } = info;
                // Nobody waits any more: dropping the stream resets it.
                drop(reply.send(Ok(Stream { inner: stream, _slot: slot })));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info, error }) => {
                drop(info.reply.send(Err(failure(info.protocol, error))));
            }
            _ => {}
        }
    }
}

fn failure(protocol: StreamProtocol, error: StreamUpgradeError<Infallible>) -> OpenError {
    match error {
        StreamUpgradeError::Timeout => OpenError::Timeout,
        StreamUpgradeError::NegotiationFailed => OpenError::Unsupported { protocol },
        StreamUpgradeError::Io(error) => OpenError::Failed { reason: error.to_string() },
        StreamUpgradeError::Apply(never) => match never {},
    }
}

/// The protocols a side offers for a stream: all that it serves, or the one it asks for. The stream itself is handed over
/// as it is.
#[derive(Debug, Clone)]
pub struct Offer(Vec<StreamProtocol>);

impl UpgradeInfo for Offer {
    type Info = StreamProtocol;
    type InfoIter = vec::IntoIter<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.clone().into_iter()
    }
}

impl InboundUpgrade<libp2p::Stream> for Offer {
    type Output = (libp2p::Stream, StreamProtocol);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Self::Error>>;

    fn upgrade_inbound(self, stream: libp2p::Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((stream, protocol)))
    }
}

impl OutboundUpgrade<libp2p::Stream> for Offer {
    type Output = (libp2p::Stream, StreamProtocol);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Self::Error>>;

    fn upgrade_outbound(self, stream: libp2p::Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((stream, protocol)))
    }
}
