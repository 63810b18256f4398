//! The task behind a [`super::Follower`].

use std::{collections::HashSet, sync::Arc, time::Duration};

use libp2p::PeerId;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    POLL_INTERVAL, Role, Shared, URGENT_POLL_INTERVAL,
    connections::{Connections, Target},
    gossip,
    pulls::Pulls,
};
use crate::{
    network::{Gossip, Network, Peers},
    program::cluster::PeerAddress,
    protocol::ConfigProtocol,
    rpc::Inbound,
};

/// How long a dial may take.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// All connections are looked at no more often: a scheduler has thousands, and after its start they come all at once.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// How many gossip messages are judged at once; above it the inbox fills, and then messages are not passed on.
const JUDGED_AT_ONCE: usize = 8;

/// What the task listens to.
pub(super) struct Inputs {
    pub(super) gossip: mpsc::Receiver<Gossip>,
    pub(super) requests: mpsc::Receiver<Inbound<ConfigProtocol>>,
    pub(super) hints: mpsc::Receiver<(PeerId, u64)>,
}

pub(super) struct Worker {
    shared: Arc<Shared>,
    network: Network,
    connections: Connections,
    seen: HashSet<PeerId>,
    gossip_peers: Vec<PeerId>,
    pulls: Pulls,
    judging: JoinSet<()>,
    dials: JoinSet<PeerId>,
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, network: Network, role: Role, bootstrap: Vec<PeerAddress>) -> Self {
        let connections = Connections::new(network.peer_id(), role, bootstrap);
        Self {
            shared,
            network,
            connections,
            seen: HashSet::new(),
            gossip_peers: Vec::new(),
            pulls: Pulls::default(),
            judging: JoinSet::new(),
            dials: JoinSet::new(),
        }
    }

    /// Runs until the network ends; dropping it ends everything that it has begun.
    pub(super) async fn run(mut self, mut inputs: Inputs) {
        let mut connected = self.network.connected();
        let mut current = self.shared.current.subscribe();
        let mut peers = Arc::default();
        // Something has changed, so there may be somebody to ask, to dial or to gossip with.
        let (mut is_stale, mut looked, mut polled) = (true, None::<Instant>, Instant::now());
        loop {
            let may_look = looked.map_or_else(Instant::now, |looked| looked + LOOK_INTERVAL);
            if is_stale && may_look <= Instant::now() {
                (is_stale, looked) = (false, Some(Instant::now()));
                peers = Arc::clone(&connected.borrow_and_update());
                self.on_peers(&peers);
                self.gossip_directly(&peers).await;
                self.dial(&peers);
            }
            let dial = self.connections.next();
            let poll = polled + if self.shared.epoch() == 0 { URGENT_POLL_INTERVAL } else { POLL_INTERVAL };
            tokio::select! {
                changed = connected.changed(), if !is_stale => match changed {
                    Ok(()) => is_stale = true,
                    Err(_) => return,
                },
                Ok(()) = current.changed() => is_stale = true,
                () = sleep_until(dial.unwrap_or_else(Instant::now)), if dial.is_some() && !is_stale => is_stale = true,
                () = sleep_until(may_look), if is_stale => {}
                Some(dialled) = self.dials.join_next() => {
                    self.on_dialled(dialled.ok());
                    is_stale = true;
                }
                peer = self.pulls.done() => self.pulls.on_done(peer, &self.network, &self.shared),
                Some(_) = self.judging.join_next() => {}
                Some(gossip) = inputs.gossip.recv(), if self.judging.len() < JUDGED_AT_ONCE => self.on_gossip(gossip),
                Some(request) = inputs.requests.recv() => if let Some((peer, epoch)) = self.shared.answer(request) {
                    self.on_hint(peer, epoch);
                },
                Some((peer, epoch)) = inputs.hints.recv() => self.on_hint(peer, epoch),
                () = sleep_until(poll) => {
                    polled = Instant::now();
                    self.poll(&peers);
                }
            }
        }
    }

    /// Asks peers that are new.
    fn on_peers(&mut self, peers: &Peers) {
        self.seen.retain(|peer| peers.contains_key(peer));
        let accepted = self.shared.current.borrow().clone();
        for peer in peers.keys() {
            if self.seen.insert(*peer) && self.connections.is_source(peer, accepted.as_deref()) {
                self.pulls.ask(*peer, &self.network, &self.shared);
            }
        }
    }

    async fn gossip_directly(&mut self, peers: &Peers) {
        let accepted = self.shared.current.borrow().clone();
        let gossip_peers = self.connections.gossip_peers(peers, accepted.as_deref());
        if gossip_peers != self.gossip_peers {
            self.gossip_peers.clone_from(&gossip_peers);
            self.network.set_explicit_peers(gossip_peers).await;
        }
    }

    fn dial(&mut self, peers: &Peers) {
        let accepted = self.shared.current.borrow().clone();
        for Target { peer, addresses } in self.connections.due(peers, accepted.as_deref(), Instant::now()) {
            let network = self.network.clone();
            self.dials.spawn(async move {
                if let Err(error) = network.connect(peer, addresses, DIAL_TIMEOUT).await {
                    tracing::debug!(%peer, %error, "not connected");
                }
                peer
            });
        }
    }

    fn on_dialled(&mut self, peer: Option<PeerId>) {
        if let Some(peer) = peer {
            self.connections.on_dialled(peer, Instant::now());
        }
    }

    fn on_gossip(&mut self, gossip: Gossip) {
        self.judging.spawn(gossip::judge(gossip, self.network.clone(), Arc::clone(&self.shared)));
    }

    fn on_hint(&mut self, peer: PeerId, epoch: u64) {
        if epoch > self.shared.epoch() {
            self.pulls.ask(peer, &self.network, &self.shared);
        }
    }

    /// Asks one of those that should know; another one each time.
    fn poll(&mut self, peers: &Peers) {
        let accepted = self.shared.current.borrow().clone();
        let known = peers.keys().filter(|peer| self.connections.is_source(peer, accepted.as_deref()));
        let known: Vec<_> = known.copied().collect();
        if !known.is_empty() {
            let peer = known[rand::random_range(0..known.len())];
            self.pulls.ask(peer, &self.network, &self.shared);
        }
    }
}
