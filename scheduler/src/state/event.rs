//! What the state hears and what it wants done.

use std::{sync::Arc, time::Duration};

use damselfly_messages::{
    config::Accepted,
    notify,
    record::UnixMillis,
    scheduler::{Request, Response},
};
use libp2p::{Multiaddr, PeerId};

/// The moment of an event, by both clocks. The state has none of its own.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Since some fixed moment, never going back: for leases, deadlines and warmth.
    pub at: Duration,
    /// Wall-clock time: for acceptance and deletion, which hosts compare.
    pub wall: UnixMillis,
}

/// Names one request until its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AskId(pub u64);

/// Names one delete under way, so that the answers of holders find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeleteId(pub u64);

/// Something that happened.
#[derive(Debug)]
pub enum Event {
    /// A peer asks; the addresses in a heartbeat are already those at which others reach it.
    Asked {
        /// For the reply.
        ask: AskId,
        /// Who asks, as proved by its key.
        peer: PeerId,
        /// What.
        request: Request,
    },
    /// A holder answered a [`Action::Notify`] that belongs to a delete, or did not.
    Notified {
        /// The delete.
        delete: DeleteId,
        /// The holder.
        peer: PeerId,
        /// Whether it answered that it has dropped the task.
        answered: bool,
    },
    /// The last connection to a peer is gone.
    Disconnected(PeerId),
    /// Another configuration is in force.
    Configured(Arc<Accepted>),
    /// Time passed; expected every [`TICK`].
    Tick,
}

/// How often the state wants [`Event::Tick`].
pub const TICK: Duration = Duration::from_millis(500);

/// Something to do for the I/O shell.
#[derive(Debug)]
pub enum Action {
    /// Answer a request; exactly one for each.
    Reply {
        /// Which.
        ask: AskId,
        /// How.
        reply: Reply,
    },
    /// Tell a host something; without an answer in time it is forgotten, unless `delete` wants to know.
    Notify {
        /// The host.
        peer: PeerId,
        /// Where to dial it if there is no connection.
        addresses: Arc<[Multiaddr]>,
        /// What.
        request: notify::Request,
        /// Report the outcome to this delete.
        delete: Option<DeleteId>,
    },
    /// This peer has a newer configuration.
    Pull {
        /// Whom to ask.
        from: PeerId,
        /// The epoch it has.
        epoch: u64,
    },
}

/// How a request is answered.
#[derive(Debug, PartialEq)]
pub enum Reply {
    /// With a response.
    Response(Response),
    /// Not now; ask again after this time.
    Busy(Duration),
    /// Not at all, for this reason.
    Refused(&'static str),
}

/// How much remote parties may fill.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Records of contents told by all hosts together; 1,000,000.
    pub announcements: usize,
    /// Records of contents told by one host; 200,000.
    pub announcements_per_host: usize,
    /// Tombstones kept; 250,000.
    pub tombstones: usize,
    /// Tombstones told by all hosts together, each host's own; 500,000. A quarter of one host, and half of them are
    /// divided equally.
    pub announced_tombstones: usize,
    /// Hosts; 20,000.
    pub hosts: usize,
    /// Estimated bytes of everything kept but names; 400 MiB.
    pub bytes: usize,
    /// Estimated bytes of names, which are kept for people; 64 MiB.
    pub name_bytes: usize,
    /// Downloads under way; 200,000.
    pub downloads: usize,
    /// Downloads of one host; 1,024.
    pub downloads_per_host: usize,
    /// Deletes that wait for holders; 256.
    pub deletes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            announcements: 1_000_000,
            announcements_per_host: 200_000,
            tombstones: 250_000,
            announced_tombstones: 500_000,
            hosts: 20_000,
            bytes: 400 << 20,
            name_bytes: 64 << 20,
            downloads: 200_000,
            downloads_per_host: 1_024,
            deletes: 256,
        }
    }
}
