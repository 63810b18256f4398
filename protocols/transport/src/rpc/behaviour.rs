//! Request-response with a limit that answers, and one place for pending replies.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    io,
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use libp2p::{
    Multiaddr, PeerId, StreamProtocol,
    core::{Endpoint, transport::PortUse},
    request_response::{
        self as rr, Event, InboundRequestId, Message, OutboundFailure, OutboundRequestId, ProtocolSupport,
        ResponseChannel,
    },
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent,
        ToSwarm,
    },
};
use tokio::sync::{mpsc, oneshot};

use super::{
    Answer, Frame, FrameBudget, Inbound, Outgoing, RequestError,
    codec::{Codec, Codecs},
};
use crate::{
    admission::Admission,
    muxer,
    protocol::{Protocol, slow_concurrent},
};

/// What a peer above its limit is told to wait.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// How many requests of this host wait for a peer to have answered earlier ones, per protocol.
const WAITING_MAX: usize = 1024;

type Inner<P> = rr::Behaviour<Codec<P>>;
type Reply = oneshot::Sender<Result<Answer, RequestError>>;
type Answered = BoxFuture<'static, (ResponseChannel<Answer>, Answer)>;

/// A request that a peer is to answer.
struct Asked {
    slow: bool,
    reply: Reply,
}

/// One control protocol in a swarm: requests out, requests in, and the replies that are pending.
///
/// It handles all its events itself; the swarm's user sees none.
pub struct Rpc<P: Protocol> {
    inner: Inner<P>,
    codecs: Codecs,
    /// Where requests of peers go; `None` when this host does not serve the protocol.
    inbox: Option<mpsc::Sender<Inbound<P>>>,
    admission: Admission,
    /// Requests being answered, per peer; bounded by [`Protocol::CONCURRENT`] and the streams of a connection.
    serving: HashMap<PeerId, HashSet<InboundRequestId>>,
    answers: FuturesUnordered<Answered>,
    asked: HashMap<PeerId, HashMap<OutboundRequestId, Asked>>,
    /// Requests that wait, so that this host does not run into the limit of its peer.
    waiting: VecDeque<Outgoing>,
    pub(super) asked_per_peer_max: usize,
}

impl<P: Protocol> Rpc<P> {
    /// Asks, and answers into `inbox` if there is one, those that `admission` knows in a role that may ask; what waits for an answer of this host is counted in `budget`.
    pub fn new(inbox: Option<mpsc::Sender<Inbound<P>>>, admission: Admission, budget: FrameBudget) -> Self {
        let support = if inbox.is_some() { ProtocolSupport::Full } else { ProtocolSupport::Outbound };
        // More than a connection can have, because above it streams would be dropped without an answer.
        let config =
            rr::Config::default().with_request_timeout(P::TIMEOUT).with_max_concurrent_streams(2 * muxer::STREAMS_MAX);
        let codecs = Codecs::new(budget);
        Self {
            inner: Inner::<P>::with_codec(codecs.codec(), [(StreamProtocol::new(P::NAME), support)], config),
            codecs,
            inbox,
            admission,
            serving: HashMap::new(),
            answers: FuturesUnordered::new(),
            asked: HashMap::new(),
            waiting: VecDeque::new(),
            asked_per_peer_max: P::CONCURRENT,
        }
    }

    /// Sends a request, at once or when the peer has answered enough of the earlier ones.
    pub(crate) fn request(&mut self, outgoing: Outgoing) {
        if !self.inner.is_connected(&outgoing.peer) {
            return fail(outgoing.reply, RequestError::Unreachable { reason: "not connected".into() });
        }
        if self.may_ask(&outgoing) {
            return self.send(outgoing);
        }
        self.waiting.retain(|waiting| !waiting.reply.is_closed());
        if self.waiting.len() >= WAITING_MAX {
            return fail(outgoing.reply, RequestError::Busy { retry_after: RETRY_AFTER });
        }
        self.waiting.push_back(outgoing);
    }

    fn may_ask(&self, outgoing: &Outgoing) -> bool {
        let Some(asked) = self.asked.get(&outgoing.peer) else { return true };
        let slow = || asked.values().filter(|asked| asked.slow).count();
        asked.len() < self.asked_per_peer_max && (!outgoing.slow || slow() < slow_concurrent::<P>())
    }

    fn send(&mut self, outgoing: Outgoing) {
        if outgoing.reply.is_closed() {
            return;
        }
        let Outgoing { peer, bytes, slow, reply } = outgoing;
        let id = self.inner.send_request(&peer, Frame::own(bytes));
        self.asked.entry(peer).or_default().insert(id, Asked { slow, reply });
    }

    fn on_answered(&mut self, peer: PeerId, id: OutboundRequestId, result: Result<Answer, RequestError>) {
        let Some(of_peer) = self.asked.get_mut(&peer) else { return };
        let asked = of_peer.remove(&id);
        if of_peer.is_empty() {
            self.asked.remove(&peer);
        }
        if let Some(Asked { reply, .. }) = asked {
            // The caller gave up meanwhile.
            drop(reply.send(result));
        }
        self.ask_next(peer);
    }

    fn ask_next(&mut self, peer: PeerId) {
        loop {
            let next = self.waiting.iter().position(|waiting| waiting.peer == peer && self.may_ask(waiting));
            let Some(next) = next else { return };
            if let Some(outgoing) = self.waiting.remove(next) {
                if self.inner.is_connected(&peer) {
                    self.send(outgoing);
                } else {
                    fail(outgoing.reply, RequestError::Unreachable { reason: "connection closed".into() });
                }
            }
        }
    }

    fn on_request(&mut self, peer: PeerId, id: InboundRequestId, frame: Frame, channel: ResponseChannel<Answer>) {
        let roles = self.admission.roles(&peer);
        if !P::ASKED_BY.meets(roles) {
            let reason = format!("{} is for {}; this host is admitted as {roles}", P::NAME, P::ASKED_BY);
            return self.answer(channel, Answer::Refused { reason });
        }
        if self.serving.get(&peer).map_or(0, HashSet::len) >= P::CONCURRENT {
            return self.answer(channel, Answer::Busy { retry_after: RETRY_AFTER });
        }
        let Some(inbox) = &self.inbox else {
            return self.answer(channel, Answer::Refused { reason: "not served here".into() });
        };
        let (reply, answer) = oneshot::channel();
        match inbox.try_send(Inbound::new(peer, frame, reply)) {
            Ok(()) => {
                self.serving.entry(peer).or_default().insert(id);
                self.answers.push(when_answered(channel, answer).boxed());
            }
            Err(mpsc::error::TrySendError::Full(_)) => self.answer(channel, Answer::Busy { retry_after: RETRY_AFTER }),
            Err(mpsc::error::TrySendError::Closed(_)) => {
                self.answer(channel, Answer::Refused { reason: "shutting down".into() });
            }
        }
    }

    fn answer(&mut self, channel: ResponseChannel<Answer>, answer: Answer) {
        if self.inner.send_response(channel, answer).is_err() {
            tracing::debug!(protocol = P::NAME, "the asker left");
        }
    }

    fn on_served(&mut self, peer: PeerId, id: InboundRequestId) {
        if let Some(serving) = self.serving.get_mut(&peer) {
            serving.remove(&id);
            if serving.is_empty() {
                self.serving.remove(&peer);
            }
        }
    }

    fn on_event(&mut self, event: Event<Frame, Answer>) {
        match event {
            Event::Message { peer, message: Message::Request { request_id, request, channel }, .. } => {
                self.on_request(peer, request_id, request, channel);
            }
            Event::Message { peer, message: Message::Response { request_id, response }, .. } => {
                self.on_answered(peer, request_id, Ok(response));
            }
            Event::OutboundFailure { peer, request_id, error, .. } => {
                self.on_answered(peer, request_id, Err(failure::<P>(error)));
            }
            Event::InboundFailure { peer, request_id, error, .. } => {
                tracing::debug!(protocol = P::NAME, %peer, %error, "request not answered");
                self.on_served(peer, request_id);
            }
            Event::ResponseSent { peer, request_id, .. } => self.on_served(peer, request_id),
        }
    }
}

/// Waits for the program's answer; a program that drops the request refuses it.
async fn when_answered(
    channel: ResponseChannel<Answer>,
    answer: oneshot::Receiver<Answer>,
) -> (ResponseChannel<Answer>, Answer) {
    let answer = answer.await.unwrap_or_else(|_| Answer::Refused { reason: "dropped without an answer".into() });
    (channel, answer)
}

fn fail(reply: Reply, error: RequestError) {
    // The caller gave up meanwhile.
    drop(reply.send(Err(error)));
}

fn failure<P: Protocol>(error: OutboundFailure) -> RequestError {
    match error {
        OutboundFailure::Timeout => RequestError::Timeout,
        OutboundFailure::DialFailure => RequestError::Unreachable { reason: "not connected".into() },
        OutboundFailure::ConnectionClosed => RequestError::Unreachable { reason: "connection closed".into() },
        OutboundFailure::UnsupportedProtocols => {
            RequestError::Protocol { reason: format!("the peer does not serve {}", P::NAME) }
        }
        OutboundFailure::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
            RequestError::Protocol { reason: error.to_string() }
        }
        OutboundFailure::Io(error) => RequestError::Unreachable { reason: error.to_string() },
    }
}

impl<P: Protocol> NetworkBehaviour for Rpc<P> {
    type ConnectionHandler = <Inner<P> as NetworkBehaviour>::ConnectionHandler;
    type ToSwarm = Event<Frame, Answer>;

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.codecs.next_is_for(peer);
        self.inner.handle_established_inbound_connection(connection, peer, local, remote)
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.codecs.next_is_for(peer);
        self.inner.handle_established_outbound_connection(connection, peer, address, role, port)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        self.inner.on_swarm_event(event);
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, connection: ConnectionId, event: THandlerOutEvent<Self>) {
        self.inner.on_connection_handler_event(peer, connection, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        loop {
            if let Poll::Ready(Some((channel, answer))) = self.answers.poll_next_unpin(cx) {
                self.answer(channel, answer);
                continue;
            }
            match self.inner.poll(cx) {
                Poll::Ready(ToSwarm::GenerateEvent(event)) => self.on_event(event),
                other => return other,
            }
        }
    }
}
