//! The network of a program: one worker with the swarm on a thread of its own, and handles to it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use damselfly_messages::wire::Wire;
use libp2p::{Multiaddr, PeerId, StreamProtocol, multiaddr};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

mod behaviour;
mod command;
mod config;
mod gate;
mod gossip;
mod inbox;
mod pending;
mod start;
#[cfg(test)]
mod tests;
mod worker;

pub use command::{ConnectError, PublishError};
pub use config::{ConnectionLimits, NetworkConfig, Serves, StartError};
pub use gossip::GossipCounts;
pub use inbox::{Gossip, Inbox, PeerEvent};
pub use start::start;

use crate::{
    admission::Admission,
    dialing::DialPolicy,
    protocol::Control,
    rpc::{self, Outgoing, RequestError},
    streams::{OpenError, Stream},
};
use command::Command;
use gossip::GossipCounters;

/// Connected peers, each with the address that this host sees it at.
///
/// For a peer that dialled us its port is of no use: only the IP is where others reach it.
pub type Peers = HashMap<PeerId, Multiaddr>;

/// How long a caller without a deadline of its own waits for the worker, which answers within milliseconds.
const WORKER_TIMEOUT: Duration = Duration::from_secs(10);

/// A handle to the network worker; when the last one is dropped, the worker ends.
#[derive(Debug, Clone)]
pub struct Network {
    peer: PeerId,
    dial: DialPolicy,
    admission: Admission,
    commands: mpsc::Sender<Command>,
    peers: watch::Receiver<Arc<Peers>>,
    listeners: watch::Receiver<Vec<Multiaddr>>,
    observed: watch::Receiver<Option<Multiaddr>>,
    gossip: Arc<GossipCounters>,
}

impl Network {
    /// Who is admitted, and as what.
    pub const fn admission(&self) -> &Admission {
        &self.admission
    }

    /// This host.
    pub fn peer_id(&self) -> PeerId {
        self.peer
    }

    /// Where this host listens, with its PeerId, ports resolved.
    pub fn listeners(&self) -> Vec<Multiaddr> {
        let listeners = self.listeners.borrow();
        listeners.iter().map(|address| address.clone().with(multiaddr::Protocol::P2p(self.peer))).collect()
    }

    /// How a peer saw this host's address last: the IP is what others reach it at, the port is any.
    pub fn observed(&self) -> watch::Receiver<Option<Multiaddr>> {
        self.observed.clone()
    }

    /// The connected peers; always the truth, and cheap to look at.
    pub fn connected(&self) -> watch::Receiver<Arc<Peers>> {
        self.peers.clone()
    }

    /// Whether there is a connection to `peer`.
    pub fn is_connected(&self, peer: &PeerId) -> bool {
        self.peers.borrow().contains_key(peer)
    }

    /// The address that this host sees `peer` at.
    pub fn remote_address(&self, peer: &PeerId) -> Option<Multiaddr> {
        self.peers.borrow().get(peer).cloned()
    }

    /// Connects to `peer` at one of `addresses`, which may end with its PeerId; returns at once when connected.
    ///
    /// Concurrent calls for one peer share the first one's dial. A dropped call does not end it.
    ///
    /// # Errors
    /// [`ConnectError`], with one reason per address.
    pub async fn connect(&self, peer: PeerId, addresses: Vec<Multiaddr>, within: Duration) -> Result<(), ConnectError> {
        if self.is_connected(&peer) {
            return Ok(());
        }
        let ask = self.ask(|reply| Command::Connect { peer, addresses, reply });
        timeout(within, ask).await.map_err(|_| ConnectError::Timeout)?.unwrap_or(Err(ConnectError::Shutdown))
    }

    /// The same for a host, at addresses that are its own word: names among them are dialled only if that is configured.
    ///
    /// # Errors
    /// [`ConnectError`], with one reason per address.
    pub async fn connect_host(
        &self,
        peer: PeerId,
        addresses: Vec<Multiaddr>,
        within: Duration,
    ) -> Result<(), ConnectError> {
        let (allowed, refused): (Vec<_>, Vec<_>) =
            addresses.into_iter().partition(|address| self.dial.allows_of_member(address));
        if allowed.is_empty()
            && let Some(first) = refused.first()
            && !self.is_connected(&peer)
        {
            let reason = format!("the dial policy refuses {first}: see [dial] in the configuration");
            return Err(ConnectError::NoAddress { reason });
        }
        self.connect(peer, allowed, within).await
    }

    /// Asks `peer` and waits for its response; the peer must be connected.
    ///
    /// # Errors
    /// [`RequestError::Unreachable`] at once without a connection, the others as they say. After a timeout it is not
    /// known whether the request took effect.
    pub async fn request<P: Control>(
        &self,
        peer: PeerId,
        request: &P::Request,
        within: Duration,
    ) -> Result<P::Response, RequestError> {
        let bytes = request.to_bytes();
        if bytes.len() > P::REQUEST_BYTES_MAX {
            let reason = format!("the request has {} bytes, more than {}", bytes.len(), P::REQUEST_BYTES_MAX);
            return Err(RequestError::Protocol { reason });
        }
        let outgoing = |reply| Outgoing { peer, bytes, slow: P::is_slow(request), reply };
        let ask = self.ask(|reply| Command::Request { kind: P::KIND, outgoing: outgoing(reply) });
        let ended = || Err(RequestError::Unreachable { reason: "the network is shut down".into() });
        let answer = timeout(within, ask).await.map_err(|_| RequestError::Timeout)?.unwrap_or_else(ended)?;
        rpc::response::<P>(answer)
    }

    /// Opens a stream to `peer`; the peer must be connected.
    ///
    /// A peer with too many open streams closes it at once: an end before the first byte means *busy*.
    ///
    /// # Errors
    /// [`OpenError`], [`OpenError::NotConnected`] at once.
    pub async fn open_stream(
        &self,
        peer: PeerId,
        protocol: StreamProtocol,
        within: Duration,
    ) -> Result<Stream, OpenError> {
        let ask = self.ask(|reply| Command::OpenStream { peer, protocol, reply });
        // No answer at all: the connection ended on the way.
        timeout(within, ask).await.map_err(|_| OpenError::Timeout)?.unwrap_or(Err(OpenError::NotConnected))
    }

    /// Closes all connections to `peer`.
    pub async fn disconnect(&self, peer: PeerId) {
        self.tell(Command::Disconnect { peer }).await;
    }

    /// Sends `bytes`, signed, to everyone who listens to the topic.
    ///
    /// # Errors
    /// [`PublishError`]; peers that missed a message learn by pulling.
    pub async fn publish(&self, bytes: Vec<u8>) -> Result<(), PublishError> {
        let ask = self.ask(|reply| Command::Publish { bytes, reply });
        timeout(WORKER_TIMEOUT, ask).await.ok().flatten().unwrap_or(Err(PublishError::Shutdown))
    }

    /// How many gossip messages came, and what came of them.
    pub fn gossip_counts(&self) -> GossipCounts {
        self.gossip.counts()
    }

    /// Replaces the set of peers that get every gossip message directly; both sides must list each other.
    ///
    /// Between them and this host no contents move: connections with them get no part of what windows may grow.
    pub async fn set_explicit_peers(&self, peers: Vec<PeerId>) {
        self.tell(Command::SetExplicitPeers { peers }).await;
    }

    /// Closes all connections and listeners, and returns when they are closed.
    pub async fn shutdown(&self) {
        let ask = self.ask(|reply| Command::Shutdown { reply });
        // Ended already, or stuck: there is nothing more to do for the caller.
        drop(timeout(WORKER_TIMEOUT, ask).await);
    }

    async fn tell(&self, command: Command) {
        if !matches!(timeout(WORKER_TIMEOUT, self.commands.send(command)).await, Ok(Ok(()))) {
            tracing::debug!("the network worker has ended or is stuck");
        }
    }

    /// Sends a command and waits for its answer; `None` when the worker has ended or forgot the question.
    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.ok()?;
        answer.await.ok()
    }
}
