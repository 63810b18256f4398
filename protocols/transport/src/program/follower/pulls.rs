//! Asking peers for the configuration.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use damselfly_messages::config::Request;
use libp2p::PeerId;
use tokio::task::JoinSet;

use super::Shared;
use crate::{
    network::Network,
    protocol::{ConfigProtocol, Protocol as _},
    rpc::RequestError,
};

/// How many peers are asked at once.
const CONCURRENT: usize = 4;

/// How many peers wait to be asked; later ones are left out, for the poll comes round.
const WAITING_MAX: usize = 256;

/// A busy peer is asked again, this often at most.
const TRIES: u32 = 3;

/// Pulls under way and to come, at most one per peer.
#[derive(Debug, Default)]
pub(super) struct Pulls {
    running: JoinSet<PeerId>,
    known: HashSet<PeerId>,
    waiting: VecDeque<PeerId>,
}

impl Pulls {
    /// Asks `peer`, unless that is under way.
    pub(super) fn ask(&mut self, peer: PeerId, network: &Network, shared: &Arc<Shared>) {
        if self.waiting.len() >= WAITING_MAX || !self.known.insert(peer) {
            return;
        }
        self.waiting.push_back(peer);
        self.fill(network, shared);
    }

    /// Waits until one is done; for ever when there is none.
    pub(super) async fn done(&mut self) -> PeerId {
        loop {
            match self.running.join_next().await {
                Some(Ok(peer)) => return peer,
                // It was cancelled or has panicked; the poll asks again.
                Some(Err(_)) => self.known.clear(),
                None => std::future::pending().await,
            }
        }
    }

    pub(super) fn on_done(&mut self, peer: PeerId, network: &Network, shared: &Arc<Shared>) {
        self.known.remove(&peer);
        self.fill(network, shared);
    }

    fn fill(&mut self, network: &Network, shared: &Arc<Shared>) {
        while self.running.len() < CONCURRENT {
            let Some(peer) = self.waiting.pop_front() else { return };
            let (network, shared) = (network.clone(), Arc::clone(shared));
            self.running.spawn(async move {
                pull(peer, &network, &shared).await;
                peer
            });
        }
    }
}

/// Asks `peer` for a configuration newer than ours and takes it over.
pub(super) async fn pull(peer: PeerId, network: &Network, shared: &Arc<Shared>) {
    for _ in 0..TRIES {
        let request = Request { known_epoch: shared.epoch(), renewed: None };
        match network.request::<ConfigProtocol>(peer, &request, ConfigProtocol::TIMEOUT).await {
            Ok(response) => {
                match response.newer {
                    None => shared.hear(peer),
                    Some(newer) => match shared.offer(newer, peer).await {
                        Ok(()) => shared.hear(peer),
                        Err(error) => tracing::warn!(%peer, %error, "configuration refused"),
                    },
                }
                return;
            }
            Err(RequestError::Busy { retry_after }) => {
                tokio::time::sleep(retry_after.min(Duration::from_secs(5))).await;
            }
            Err(error) => {
                tracing::debug!(%peer, %error, "configuration not pulled");
                return;
            }
        }
    }
}
