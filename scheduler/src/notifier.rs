//! Tells hosts what they should know: so many at a time, each within a deadline.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use damselfly_messages::notify;
use damselfly_transport::{network::Network, protocol::NotifyProtocol};
use libp2p::{Multiaddr, PeerId};
use tokio::{task::JoinSet, time::timeout};

use crate::state::DeleteId;

/// Notifications under way at once.
const CONCURRENT: usize = 256;

/// Notifications that wait; one of 20,000 hosts each. Above it they are not sent: hosts learn with their next heartbeat.
const WAITING_MAX: usize = 20_000;

/// From the dial to the answer.
const WITHIN: Duration = Duration::from_secs(5);

/// How a notification that belongs to a delete ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome {
    pub(crate) delete: DeleteId,
    pub(crate) peer: PeerId,
    pub(crate) answered: bool,
}

#[derive(Debug)]
struct Notification {
    peer: PeerId,
    addresses: Arc<[Multiaddr]>,
    request: notify::Request,
    delete: Option<DeleteId>,
}

/// Sends notifications. Deletes go first, for somebody waits for them.
#[derive(Debug)]
pub(crate) struct Notifier {
    network: Network,
    running: JoinSet<Option<Outcome>>,
    urgent: VecDeque<Notification>,
    waiting: VecDeque<Notification>,
}

impl Notifier {
    pub(crate) fn new(network: Network) -> Self {
        Self { network, running: JoinSet::new(), urgent: VecDeque::new(), waiting: VecDeque::new() }
    }

    /// Takes a notification on; false when too many wait.
    pub(crate) fn send(
        &mut self,
        peer: PeerId,
        addresses: Arc<[Multiaddr]>,
        request: notify::Request,
        delete: Option<DeleteId>,
    ) -> bool {
        let queue = if delete.is_some() { &mut self.urgent } else { &mut self.waiting };
        if queue.len() >= WAITING_MAX {
            return false;
        }
        queue.push_back(Notification { peer, addresses, request, delete });
        self.start();
        true
    }

    /// How many wait, and how many are under way.
    pub(crate) fn queued(&self) -> (usize, usize) {
        (self.urgent.len() + self.waiting.len(), self.running.len())
    }

    /// The next outcome that a delete waits for; `None` when nothing is under way. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Option<Outcome> {
        loop {
            let ended = self.running.join_next().await?;
            self.start();
            if let Ok(Some(outcome)) = ended {
                return Some(outcome);
            }
        }
    }

    fn start(&mut self) {
        while self.running.len() < CONCURRENT {
            let Some(next) = self.urgent.pop_front().or_else(|| self.waiting.pop_front()) else { return };
            self.running.spawn(tell(self.network.clone(), next));
        }
    }
}

async fn tell(network: Network, notification: Notification) -> Option<Outcome> {
    let Notification { peer, addresses, request, delete } = notification;
    let told = timeout(WITHIN, async {
        network.connect_host(peer, addresses.to_vec(), WITHIN).await.map_err(|error| error.to_string())?;
        network.request::<NotifyProtocol>(peer, &request, WITHIN).await.map_err(|error| error.to_string())
    });
    let answered = match told.await {
        Ok(Ok(_)) => true,
        Ok(Err(reason)) => {
            tracing::debug!(host = %peer, reason, "host not told");
            false
        }
        Err(_) => {
            tracing::debug!(host = %peer, "host not told in time");
            false
        }
    };
    delete.map(|delete| Outcome { delete, peer, answered })
}
