//! What the handle asks of the worker.

use libp2p::{Multiaddr, PeerId, StreamProtocol};
use tokio::sync::oneshot;

use crate::{
    protocol::ControlKind,
    rpc::Outgoing,
    streams::{OpenError, Stream},
};

/// How many commands wait for the worker; a caller waits above it, within its own deadline.
pub(super) const BACKLOG: usize = 256;

/// One thing for the worker to do; answers go to the reply, or nowhere when the caller left.
#[derive(Debug)]
pub(super) enum Command {
    Connect { peer: PeerId, addresses: Vec<Multiaddr>, reply: oneshot::Sender<Result<(), ConnectError>> },
    Disconnect { peer: PeerId },
    Request { kind: ControlKind, outgoing: Outgoing },
    OpenStream { peer: PeerId, protocol: StreamProtocol, reply: oneshot::Sender<Result<Stream, OpenError>> },
    Publish { bytes: Vec<u8>, reply: oneshot::Sender<Result<(), PublishError>> },
    SetExplicitPeers { peers: Vec<PeerId> },
    Shutdown { reply: oneshot::Sender<()> },
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// No address was given, or the dial policy refuses all of them.
    #[error("no address to dial: {reason}")]
    NoAddress {
        /// Which were refused.
        reason: String,
    },
    /// Another host answered at the address; the address is out of date.
    #[error("{obtained} answered instead, at {address}")]
    WrongPeer {
        /// Who is there.
        obtained: PeerId,
        /// Where.
        address: Multiaddr,
    },
    /// A limit of this host was reached.
    #[error("refused by this host: {reason}")]
    Limit {
        /// Which limit.
        reason: String,
    },
    /// No address answered as it should.
    #[error("dial failed: {reason}")]
    Failed {
        /// One reason per address.
        reason: String,
    },
    /// The peer did not answer in time; the dial may still succeed.
    #[error("no connection in time")]
    Timeout,
    /// This program's network has ended.
    #[error("the network is shut down")]
    Shutdown,
}

/// Why a message was not published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// This network has no topic.
    #[error("no gossip topic is configured")]
    NoTopic,
    /// Nobody we are connected to listens; they will learn by pulling.
    #[error("no peer listens to the topic")]
    NoPeers,
    /// The message exceeds [`crate::protocol::GOSSIP_BYTES_MAX`].
    #[error("the message is too large")]
    TooLarge,
    /// The queues to all peers are full, or the message could not be signed.
    #[error("not published: {reason}")]
    Failed {
        /// What happened.
        reason: String,
    },
    /// This program's network has ended.
    #[error("the network is shut down")]
    Shutdown,
}
