//! What a program says when it starts its network.

use std::{io, time::Duration};

use libp2p::{Multiaddr, identity::Keypair};

use crate::{admission::Admission, connection::TransportError, dialing::DialPolicy};

/// A connection without streams is closed after this time.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(600);

/// Everything the network needs to know.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// The key that this host's PeerId is made of.
    pub keypair: Keypair,
    /// Who is admitted; shows this host's own credential.
    pub admission: Admission,
    /// Where to listen; port 0 is any free one. May be empty.
    pub listen: Vec<Multiaddr>,
    /// What this program answers; it may ask everything.
    pub serves: Serves,
    /// The gossip topic to subscribe to; none: no gossip is heard.
    pub topic: Option<String>,
    /// How much remote parties may take.
    pub limits: ConnectionLimits,
    /// What may be dialled.
    pub dial: DialPolicy,
}

/// Which protocols a program answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Serves {
    /// `/damselfly/scheduler/1`
    pub scheduler: bool,
    /// `/damselfly/notify/1`
    pub notify: bool,
    /// `/damselfly/config/1`
    pub config: bool,
    /// `/damselfly/info/1`
    pub info: bool,
    /// `/damselfly/piece/1`
    pub piece: bool,
    /// `/damselfly/have/1`
    pub have: bool,
}

/// How much of this host remote parties may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Connections at once; default 512.
    pub connections: u32,
    /// Connections with one peer at once; default 4.
    pub connections_per_peer: u32,
    /// Connections being set up at once, each way; default 128. Above it the oldest inbound one ends. Addresses at which
    /// members were seen have half as many of their own.
    pub pending: u32,
    /// Those of them that come from one IPv4 address or IPv6 /64; default 32, twice as many from one /24, and three times
    /// as many from loopback, where a whole testnet may be.
    pub pending_per_ip: u32,
    /// Piece and have streams at once with one peer, each way; default 32.
    pub streams_per_peer: usize,
    /// Requests of peers that wait for the program, per protocol; above it the answer is busy. Default 256.
    pub inbox: usize,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            connections: 512,
            connections_per_peer: 4,
            pending: 128,
            pending_per_ip: 32,
            streams_per_peer: 32,
            inbox: 256,
        }
    }
}

/// Why the network did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The transport could not be made.
    #[error("no transport")]
    Transport(#[from] TransportError),
    /// The gossip configuration is not accepted.
    #[error("no gossip: {0}")]
    Gossip(String),
    /// An address could not be listened on.
    #[error("cannot listen on {address}: {reason}")]
    Listen {
        /// As configured.
        address: Multiaddr,
        /// What the system says.
        reason: String,
    },
    /// The listeners were not up in time.
    #[error("the listeners were not up within {} s", .0.as_secs())]
    Timeout(Duration),
    /// No thread or runtime for the network.
    #[error("no thread for the network")]
    Thread(#[source] io::Error),
}
