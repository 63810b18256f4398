//! What arrives from other programs.

use libp2p::{PeerId, gossipsub::MessageAcceptance};
use tokio::sync::{mpsc, oneshot};

use super::ConnectionLimits;
use crate::{
    protocol::{ConfigProtocol, InfoProtocol, NotifyProtocol, SchedulerProtocol},
    rpc::Inbound,
    streams::{ACCEPT_BACKLOG, Stream},
};

/// How many connects and disconnects wait for the program.
const PEER_EVENTS: usize = 1024;

/// How many questions of managers wait for the program.
const INFO: usize = 16;

/// How many gossip messages wait for the program.
const GOSSIP: usize = 256;

/// The receiving ends of everything that peers send; all bounded.
///
/// What a program does not take in time is answered *busy*, closed, or (gossip) not passed on. A receiver that is
/// dropped refuses what would have gone there.
#[derive(Debug)]
pub struct Inbox {
    /// Requests of nodes to this scheduler.
    pub scheduler: mpsc::Receiver<Inbound<SchedulerProtocol>>,
    /// Requests of schedulers to this node.
    pub notify: mpsc::Receiver<Inbound<NotifyProtocol>>,
    /// Requests for the configuration.
    pub config: mpsc::Receiver<Inbound<ConfigProtocol>>,
    /// Questions of managers to this scheduler.
    pub info: mpsc::Receiver<Inbound<InfoProtocol>>,
    /// Streams on which a peer asks for pieces.
    pub piece: mpsc::Receiver<(PeerId, Stream)>,
    /// Streams on which a peer asks what this node has.
    pub have: mpsc::Receiver<(PeerId, Stream)>,
    /// Messages of the topic, each to be judged.
    pub gossip: mpsc::Receiver<Gossip>,
    /// Peers that came and went. When the program lags by 1,024 events, later ones are lost: the truth is
    /// [`super::Network::connected`].
    pub peers: mpsc::Receiver<PeerEvent>,
}

/// The sending ends of an [`Inbox`].
#[derive(Debug)]
pub(super) struct Outlets {
    pub(super) scheduler: mpsc::Sender<Inbound<SchedulerProtocol>>,
    pub(super) notify: mpsc::Sender<Inbound<NotifyProtocol>>,
    pub(super) config: mpsc::Sender<Inbound<ConfigProtocol>>,
    pub(super) info: mpsc::Sender<Inbound<InfoProtocol>>,
    pub(super) piece: mpsc::Sender<(PeerId, Stream)>,
    pub(super) have: mpsc::Sender<(PeerId, Stream)>,
    pub(super) gossip: mpsc::Sender<Gossip>,
    pub(super) peers: mpsc::Sender<PeerEvent>,
}

pub(super) fn channels(limits: &ConnectionLimits) -> (Outlets, Inbox) {
    let requests = limits.inbox.max(1);
    let (scheduler, scheduler_inbox) = mpsc::channel(requests);
    let (notify, notify_inbox) = mpsc::channel(requests);
    let (config, config_inbox) = mpsc::channel(requests);
    let (info, info_inbox) = mpsc::channel(INFO);
    let (piece, piece_inbox) = mpsc::channel(ACCEPT_BACKLOG);
    let (have, have_inbox) = mpsc::channel(ACCEPT_BACKLOG);
    let (gossip, gossip_inbox) = mpsc::channel(GOSSIP);
    let (peers, peers_inbox) = mpsc::channel(PEER_EVENTS);
    let outlets = Outlets { scheduler, notify, config, info, piece, have, gossip, peers };
    let inbox = Inbox {
        scheduler: scheduler_inbox,
        notify: notify_inbox,
        config: config_inbox,
        info: info_inbox,
        piece: piece_inbox,
        have: have_inbox,
        gossip: gossip_inbox,
        peers: peers_inbox,
    };
    (outlets, inbox)
}

/// A peer came or went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerEvent {
    /// The first connection to the peer is up.
    Connected(PeerId),
    /// The last connection to the peer is gone.
    Disconnected(PeerId),
}

/// A message of the topic, signed by its author; it goes on to other peers only when it is accepted.
///
/// Dropping it is the same as not passing it on, without blame.
#[derive(Debug)]
pub struct Gossip {
    /// Who wrote it, as proved by the signature.
    pub author: PeerId,
    /// Who passed it to us.
    pub from: PeerId,
    /// What it says; at most [`crate::protocol::GOSSIP_BYTES_MAX`].
    pub bytes: Vec<u8>,
    pub(super) verdict: oneshot::Sender<MessageAcceptance>,
}

impl Gossip {
    /// Passes the message on.
    pub fn accept(self) {
        self.judge(MessageAcceptance::Accept);
    }

    /// Does not pass it on, and blames the peer it came from.
    pub fn reject(self) {
        self.judge(MessageAcceptance::Reject);
    }

    fn judge(self, verdict: MessageAcceptance) {
        if self.verdict.send(verdict).is_err() {
            tracing::debug!("the network has ended");
        }
    }
}
