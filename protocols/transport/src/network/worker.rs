//! The only place that touches the swarm.

use std::{
    collections::{HashMap, HashSet},
    ops::ControlFlow,
    sync::Arc,
    time::Instant,
};

use damselfly_messages::membership::{Role, Roles};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use libp2p::{
    Multiaddr, PeerId, Swarm,
    core::ConnectedPoint,
    gossipsub::{self, IdentTopic, MessageAcceptance, MessageId},
    identify, ping,
    swarm::{
        ConnectionId, DialError, SwarmEvent,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    PeerEvent, Peers,
    behaviour::{Behaviour, BehaviourEvent},
    command::{Command, ConnectError, PublishError},
    gossip::{GossipCounters, Offenders},
    inbox::Gossip,
};
use crate::{
    dialing::{DialPolicy, REFUSED_HINT},
    error_chain::{chain, tally},
    muxer::GrowthBudget,
};

/// How many gossip messages may be with the program, waiting for its verdict.
const VERDICTS_MAX: usize = 1024;

type Verdict = (MessageId, PeerId, MessageAcceptance);
type ConnectReply = oneshot::Sender<Result<(), ConnectError>>;

/// A dial, and everyone who waits for it.
#[derive(Debug, Default)]
struct Dial {
    waiting: Vec<ConnectReply>,
}

/// What the worker shows to all handles, always up to date.
#[derive(Debug)]
pub(super) struct Views {
    pub(super) peers: watch::Sender<Arc<Peers>>,
    pub(super) listeners: watch::Sender<Vec<Multiaddr>>,
    pub(super) observed: watch::Sender<Option<Multiaddr>>,
    pub(super) gossip: Arc<GossipCounters>,
}

/// Drives the swarm; every step is synchronous, so nothing can stall it.
pub(super) struct Worker {
    pub(super) swarm: Swarm<Behaviour>,
    commands: mpsc::Receiver<Command>,
    policy: DialPolicy,
    growth: GrowthBudget,
    topic: Option<IdentTopic>,
    views: Views,
    peer_events: mpsc::Sender<PeerEvent>,
    gossip: mpsc::Sender<Gossip>,
    verdicts: FuturesUnordered<BoxFuture<'static, Verdict>>,
    /// At most one dial per peer; bounded by the gate's pending connections.
    dials: HashMap<PeerId, Dial>,
    dialling: HashMap<ConnectionId, PeerId>,
    explicit: HashSet<PeerId>,
    offenders: Offenders,
}

impl Worker {
    pub(super) fn new(
        swarm: Swarm<Behaviour>,
        commands: mpsc::Receiver<Command>,
        policy: DialPolicy,
        growth: GrowthBudget,
        topic: Option<&str>,
        views: Views,
        (peer_events, gossip): (mpsc::Sender<PeerEvent>, mpsc::Sender<Gossip>),
    ) -> Self {
        Self {
            swarm,
            commands,
            policy,
            growth,
            topic: topic.map(IdentTopic::new),
            views,
            peer_events,
            gossip,
            verdicts: FuturesUnordered::new(),
            dials: HashMap::new(),
            dialling: HashMap::new(),
            explicit: HashSet::new(),
            offenders: Offenders::default(),
        }
    }

    /// Runs until shutdown, or until the last handle is gone; the reply is for the one who asked for it.
    pub(super) async fn run(mut self) -> Option<oneshot::Sender<()>> {
        loop {
            let step = tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => self.on_command(command),
                    None => ControlFlow::Break(None),
                },
                event = self.swarm.select_next_some() => {
                    self.on_event(event);
                    ControlFlow::Continue(())
                }
                Some(verdict) = self.verdicts.next() => {
                    self.report(verdict);
                    ControlFlow::Continue(())
                }
            };
            if let ControlFlow::Break(reply) = step {
                self.views.peers.send_replace(Arc::default());
                self.views.listeners.send_replace(Vec::new());
                return reply;
            }
        }
    }

    fn on_command(&mut self, command: Command) -> ControlFlow<Option<oneshot::Sender<()>>> {
        match command {
            Command::Connect { peer, addresses, reply } => self.connect(peer, addresses, reply),
            Command::Disconnect { peer } => {
                // Not connected: nothing to do.
                let _ = self.swarm.disconnect_peer_id(peer);
            }
            Command::Request { kind, outgoing } => self.swarm.behaviour_mut().request(kind, outgoing),
            Command::OpenStream { peer, protocol, reply } => {
                self.swarm.behaviour_mut().streams.open(peer, protocol, reply);
            }
            Command::Publish { bytes, reply } => drop(reply.send(self.publish(bytes))),
            Command::SetExplicitPeers { peers } => self.set_explicit_peers(peers),
            Command::Shutdown { reply } => return ControlFlow::Break(Some(reply)),
        }
        ControlFlow::Continue(())
    }

    fn connect(&mut self, peer: PeerId, addresses: Vec<Multiaddr>, reply: ConnectReply) {
        if self.swarm.is_connected(&peer) {
            return drop(reply.send(Ok(())));
        }
        if let Some(dial) = self.dials.get_mut(&peer) {
            dial.waiting.retain(|waiting| !waiting.is_closed());
            return dial.waiting.push(reply);
        }
        let (allowed, refused): (Vec<_>, Vec<_>) =
            addresses.into_iter().partition(|address| self.policy.allows(address));
        if allowed.is_empty() {
            let reason = match &refused[..] {
                [] => "none is known".to_owned(),
                _ => format!("the dial policy refuses {}: {REFUSED_HINT}", list(&refused)),
            };
            return drop(reply.send(Err(ConnectError::NoAddress { reason })));
        }
        // A port of its own: the listener's would make the second connection to a peer fail.
        let opts =
            DialOpts::peer_id(peer).condition(PeerCondition::Always).addresses(allowed).allocate_new_port().build();
        let id = opts.connection_id();
        match self.swarm.dial(opts) {
            Ok(()) => {
                self.dialling.insert(id, peer);
                self.dials.insert(peer, Dial { waiting: vec![reply] });
            }
            Err(error) => drop(reply.send(Err(connect_error(error)))),
        }
    }

    fn publish(&mut self, bytes: Vec<u8>) -> Result<(), PublishError> {
        let topic = self.topic.clone().ok_or(PublishError::NoTopic)?;
        let published = self.swarm.behaviour_mut().gossip.publish(topic, bytes);
        self.views.gossip.on_published(published.is_ok());
        match published {
            Ok(_) => Ok(()),
            Err(gossipsub::PublishError::NoPeersSubscribedToTopic) => Err(PublishError::NoPeers),
            Err(gossipsub::PublishError::MessageTooLarge) => Err(PublishError::TooLarge),
            Err(error) => Err(PublishError::Failed { reason: error.to_string() }),
        }
    }

    fn set_explicit_peers(&mut self, peers: Vec<PeerId>) {
        let gossip = &mut self.swarm.behaviour_mut().gossip;
        // A scheduler has thousands, and each one that comes or goes gives a new set.
        let peers: HashSet<_> = peers.into_iter().collect();
        self.explicit.difference(&peers).for_each(|gone| gossip.remove_explicit_peer(gone));
        peers.difference(&self.explicit).for_each(|new| gossip.add_explicit_peer(new));
        self.growth.set_hubs(peers.iter().copied());
        self.explicit = peers;
    }

    pub(super) fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour(event),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, num_established, .. } => {
                self.dialling.remove(&connection_id);
                self.on_connected(peer_id, &endpoint, num_established.get() == 1);
            }
            SwarmEvent::ConnectionClosed { peer_id, num_established: 0, cause, .. } => {
                tracing::debug!(peer = %peer_id, ?cause, "disconnected");
                self.views.peers.send_modify(|peers| drop(Arc::make_mut(peers).remove(&peer_id)));
                self.tell(PeerEvent::Disconnected(peer_id));
            }
            SwarmEvent::OutgoingConnectionError { connection_id, error, .. } => {
                self.on_dial_error(connection_id, error)
            }
            SwarmEvent::IncomingConnectionError { error, send_back_addr, .. } => {
                tracing::debug!(from = %send_back_addr, %error, "incoming connection refused");
            }
            SwarmEvent::NewListenAddr { address, .. } => self.views.listeners.send_modify(|all| all.push(address)),
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                self.views.listeners.send_modify(|all| all.retain(|known| *known != address));
            }
            SwarmEvent::ListenerClosed { addresses, reason, .. } => {
                tracing::warn!(?addresses, ?reason, "listener closed");
                self.views.listeners.send_modify(|all| all.retain(|known| !addresses.contains(known)));
            }
            SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "listener failed"),
            _ => {}
        }
    }

    fn on_connected(&mut self, peer: PeerId, endpoint: &ConnectedPoint, first: bool) {
        if first {
            self.hear_again();
            let address = endpoint.get_remote_address().clone();
            tracing::debug!(%peer, %address, "connected");
            self.views.peers.send_modify(|peers| drop(Arc::make_mut(peers).insert(peer, address)));
            self.tell(PeerEvent::Connected(peer));
        }
        if let Some(dial) = self.dials.remove(&peer) {
            dial.waiting.into_iter().for_each(|reply| drop(reply.send(Ok(()))));
        }
    }

    /// Fails those who wait for this dial, and only for this: gossip dials on its own, without addresses.
    fn on_dial_error(&mut self, connection: ConnectionId, error: DialError) {
        let Some(peer) = self.dialling.remove(&connection) else { return };
        let Some(dial) = self.dials.remove(&peer) else { return };
        let error = connect_error(error);
        tracing::debug!(%peer, %error, "dial failed");
        dial.waiting.into_iter().for_each(|reply| drop(reply.send(Err(error.clone()))));
    }

    fn tell(&self, event: PeerEvent) {
        if let Err(mpsc::error::TrySendError::Full(event)) = self.peer_events.try_send(event) {
            tracing::warn!(?event, "the program lags behind; it will not hear of this event");
        }
    }

    fn on_behaviour(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Ping(ping::Event { peer, connection, result: Err(error) }) => {
                tracing::debug!(%peer, %error, "connection is dead");
                self.swarm.close_connection(connection);
            }
            BehaviourEvent::Identify(identify::Event::Received { info, .. }) => {
                self.views.observed.send_if_modified(|observed| {
                    let new = observed.as_ref() != Some(&info.observed_addr);
                    *observed = Some(info.observed_addr);
                    new
                });
            }
            BehaviourEvent::Gossip(gossipsub::Event::Message { propagation_source, message_id, message }) => {
                self.on_gossip(propagation_source, message_id, message);
            }
            BehaviourEvent::Gossip(_)
            | BehaviourEvent::Ping(_)
            | BehaviourEvent::Identify(_)
            | BehaviourEvent::Scheduler(_)
            | BehaviourEvent::Notify(_)
            | BehaviourEvent::Config(_)
            | BehaviourEvent::Info(_) => {}
            BehaviourEvent::Gate(never)
            | BehaviourEvent::Limits(never)
            | BehaviourEvent::Pending(never)
            | BehaviourEvent::Streams(never) => match never {},
        }
    }

    fn on_gossip(&mut self, from: PeerId, id: MessageId, message: gossipsub::Message) {
        self.hear_again();
        // Not connected here, it may be anything; what it says is judged by its signature then.
        let author_roles = message.source.map_or(Roles::NONE, |author| self.swarm.behaviour().roles(&author));
        if !author_roles.is_empty() && !author_roles.contains(Role::Manager) {
            tracing::debug!(%from, author = ?message.source, "gossip refused: only managers author it");
            // One that only passes it on may not know who the author is.
            let is_own = message.source == Some(from);
            let verdict = if is_own { MessageAcceptance::Reject } else { MessageAcceptance::Ignore };
            return self.report((id, from, verdict));
        }
        let (verdict, judged) = oneshot::channel();
        // Strict validation: a message without an author does not get here.
        let author = message.source.unwrap_or(from);
        let gossip = Gossip { author, from, bytes: message.data, verdict };
        if self.verdicts.len() >= VERDICTS_MAX || self.gossip.try_send(gossip).is_err() {
            tracing::debug!(%from, "gossip not taken by the program");
            self.report((id, from, MessageAcceptance::Ignore));
            return;
        }
        let verdict = async move { (id, from, judged.await.unwrap_or(MessageAcceptance::Ignore)) };
        self.verdicts.push(verdict.boxed());
    }

    fn report(&mut self, (id, from, verdict): Verdict) {
        self.views.gossip.on_verdict(&verdict);
        let is_rejected = matches!(verdict, MessageAcceptance::Reject);
        let known = self.swarm.behaviour_mut().gossip.report_message_validation_result(&id, &from, verdict);
        if !known {
            tracing::debug!(%id, "the verdict came too late");
        }
        if is_rejected && self.offenders.on_rejected(from, Instant::now()) {
            tracing::warn!(peer = %from, "disconnected, and its gossip is not heard for ten minutes: too much was rejected");
            self.swarm.behaviour_mut().gossip.blacklist_peer(&from);
            // It may have left by itself.
            let _ = self.swarm.disconnect_peer_id(from);
        }
    }

    fn hear_again(&mut self) {
        for peer in self.offenders.expire(Instant::now()) {
            self.swarm.behaviour_mut().gossip.remove_blacklisted_peer(&peer);
        }
    }
}

fn list(addresses: &[Multiaddr]) -> String {
    addresses.iter().map(Multiaddr::to_string).collect::<Vec<_>>().join(", ")
}

fn connect_error(error: DialError) -> ConnectError {
    match error {
        DialError::WrongPeerId { obtained, address } => ConnectError::WrongPeer { obtained, address },
        DialError::NoAddresses => ConnectError::NoAddress { reason: "none is known".into() },
        DialError::Denied { cause } => ConnectError::Limit { reason: cause.to_string() },
        DialError::Transport(errors) => {
            for (address, error) in &errors {
                tracing::debug!(%address, reason = chain(error), "not dialled");
            }
            ConnectError::Failed { reason: tally(errors.iter().map(|(_, error)| chain(error)), "address", "addresses") }
        }
        error @ (DialError::LocalPeerId { .. } | DialError::DialPeerConditionFalse(_) | DialError::Aborted) => {
            ConnectError::Failed { reason: error.to_string() }
        }
    }
}
