//! Follows the cluster's signed configuration.
//!
//! [`Follower`] is a handle; one task behind it connects, pulls and listens to gossip. What is accepted is stored
//! durably before anyone sees it, so a program that restarts never goes back to a lower epoch.

use std::{
    collections::HashSet,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use damselfly_messages::{
    config::{Acceptance, Accepted, ConfigurationRefused, Request, Response, SignedConfiguration, Verdict},
    id::ClusterId,
    wire::{Invalid, Wire as _},
};
use futures::StreamExt as _;
use libp2p::PeerId;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

mod connections;
mod gossip;
mod pulls;
#[cfg(test)]
mod tests;
mod worker;

use super::{cluster::PeerAddress, durable};
use crate::{
    admission::Admission,
    network::{Gossip, Network},
    protocol::{ConfigProtocol, Protocol as _},
    rpc::Inbound,
};

/// How many peers are shown a renewed credential at once.
const SHOWN_AT_ONCE: usize = 16;

/// How many hints wait for the task; later ones are dropped, for the next heartbeat brings them again.
const HINTS: usize = 64;

/// Without news, somebody is asked this often.
const POLL_INTERVAL: Duration = Duration::from_secs(60);
/// The same while there is no configuration at all: in a cluster that starts, the first peer asked may have none yet.
const URGENT_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// What the program is to the cluster; decides whom it stays connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Stays connected to two schedulers; while there is none, to whom it can reach.
    Node,
    /// Stays connected to all other schedulers and to its bootstrap peers.
    Scheduler,
    /// Stays connected to all schedulers.
    Manager,
}

/// What a follower needs to know.
#[derive(Debug, Clone)]
pub struct FollowerConfig {
    /// Whose configuration it is.
    pub cluster: ClusterId,
    /// What the program is.
    pub role: Role,
    /// Members to ask first.
    pub bootstrap: Vec<PeerAddress>,
    /// The file that keeps the newest configuration; none: the program keeps it itself.
    pub stored: Option<PathBuf>,
}

/// The gossip topic of a cluster, for [`crate::network::NetworkConfig`].
pub fn topic(cluster: &ClusterId) -> String {
    format!("damselfly/config/1/{cluster}")
}

/// A handle to the task that follows the configuration; the task ends with the last handle or with the network.
///
/// The network must be started with [`topic`] and, in schedulers and managers, with `serves.config`.
#[derive(Debug, Clone)]
pub struct Follower {
    shared: Arc<Shared>,
    hints: mpsc::Sender<(PeerId, u64)>,
    network: Network,
    _stop: Arc<DropGuard>,
}

/// What the handles and the task share.
#[derive(Debug)]
struct Shared {
    /// Hears first who is out.
    admission: Admission,
    acceptance: Mutex<Acceptance>,
    stored: Option<PathBuf>,
    current: watch::Sender<Option<Arc<Accepted>>>,
    /// Schedulers that have been asked and had nothing newer, or whose newer one was taken over.
    heard: Mutex<HashSet<PeerId>>,
    warnings: gossip::Warnings,
}

impl Follower {
    /// Takes over the stored configuration, and starts to follow; `gossip` and `requests` are the inbox's.
    ///
    /// A stored file that cannot be used is set aside and logged: the configuration is pulled again.
    ///
    /// # Errors
    /// [`io::Error`]: the stored file cannot be read or set aside.
    pub fn start(
        config: FollowerConfig,
        network: Network,
        gossip: mpsc::Receiver<Gossip>,
        requests: mpsc::Receiver<Inbound<ConfigProtocol>>,
    ) -> io::Result<Self> {
        let FollowerConfig { cluster, role, bootstrap, stored } = config;
        let shared = Arc::new(Shared {
            admission: network.admission().clone(),
            acceptance: Mutex::new(Acceptance::new(cluster)),
            stored,
            current: watch::Sender::new(None),
            heard: Mutex::default(),
            warnings: gossip::Warnings::default(),
        });
        shared.restore()?;
        let stop = CancellationToken::new();
        let (hints, hinted) = mpsc::channel(HINTS);
        let worker = worker::Worker::new(Arc::clone(&shared), network.clone(), role, bootstrap);
        let inputs = worker::Inputs { gossip, requests, hints: hinted };
        tokio::spawn(stop.clone().run_until_cancelled_owned(worker.run(inputs)));
        Ok(Self { shared, hints, network, _stop: Arc::new(stop.drop_guard()) })
    }

    /// What is in force, and every change of it.
    pub fn watch(&self) -> watch::Receiver<Option<Arc<Accepted>>> {
        self.shared.current.subscribe()
    }

    /// What is in force.
    pub fn current(&self) -> Option<Arc<Accepted>> {
        self.shared.current.borrow().clone()
    }

    /// The epoch in force; 0 before the first.
    pub fn epoch(&self) -> u64 {
        self.shared.epoch()
    }

    /// Whether every scheduler of the configuration in force has been asked since the start whether it knows a newer one;
    /// false while there are no schedulers.
    pub fn is_confirmed(&self) -> bool {
        let current = self.current();
        let schedulers = current.as_ref().map_or(&[][..], |accepted| accepted.ring.members());
        let heard = self.shared.heard.lock().unwrap_or_else(PoisonError::into_inner);
        !schedulers.is_empty() && schedulers.iter().all(|peer| heard.contains(peer))
    }

    /// `peer` says that there is an `epoch`; if it is news, the configuration is pulled from there. Never waits.
    pub fn hint(&self, peer: PeerId, epoch: u64) {
        if epoch > self.epoch() && self.hints.try_send((peer, epoch)).is_err() {
            tracing::debug!(%peer, epoch, "too many hints");
        }
    }

    /// Takes a configuration over that came in some other way, as the bytes of a [`SignedConfiguration`].
    ///
    /// Returns when it is stored and in force, or was known.
    ///
    /// # Errors
    /// [`ConfigurationRefused`]: what is in force stays.
    pub async fn offer(&self, bytes: &[u8], from: PeerId) -> Result<(), ConfigurationRefused> {
        self.shared.offer(SignedConfiguration::from_bytes(bytes)?, from).await
    }

    /// Shows this host's credential, which was renewed, to everyone who is connected: else they would put it out when the
    /// one has expired that they know.
    pub async fn show_renewed(&self) {
        let request = Request { known_epoch: self.epoch(), renewed: self.network.admission().own() };
        let peers: Vec<_> = self.network.connected().borrow().keys().copied().collect();
        let shown = futures::stream::iter(peers).for_each_concurrent(SHOWN_AT_ONCE, async |peer| {
            if let Err(error) = self.network.request::<ConfigProtocol>(peer, &request, ConfigProtocol::TIMEOUT).await {
                // When they put it out, it connects again.
                tracing::debug!(%peer, %error, "the renewed credential was not shown");
            }
        });
        shown.await;
    }

    /// Lets `peer`, which runs an older epoch, know that there is a newer one here: it will ask for it.
    pub async fn tell(&self, peer: PeerId) {
        let request = Request { known_epoch: self.epoch(), renewed: None };
        if let Err(error) = self.network.request::<ConfigProtocol>(peer, &request, ConfigProtocol::TIMEOUT).await {
            tracing::debug!(%peer, %error, "a member that is behind was not told");
        }
    }

    /// Answers a request that did not come by way of the inbox.
    pub fn answer(&self, request: Inbound<ConfigProtocol>) {
        if let Some((peer, epoch)) = self.shared.answer(request) {
            self.hint(peer, epoch);
        }
    }
}

impl Shared {
    fn epoch(&self) -> u64 {
        self.current.borrow().as_ref().map_or(0, |accepted| accepted.configuration.epoch)
    }

    /// Notes that `peer` has nothing newer. Of others than schedulers it says nothing, and those are not kept.
    fn hear(&self, peer: PeerId) {
        let current = self.current.borrow().clone();
        if current.is_some_and(|accepted| accepted.ring.members().contains(&peer)) {
            self.heard.lock().unwrap_or_else(PoisonError::into_inner).insert(peer);
        }
    }

    /// Takes over what an earlier run has stored.
    fn restore(&self) -> io::Result<()> {
        let Some(path) = &self.stored else { return Ok(()) };
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut acceptance = self.acceptance.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = SignedConfiguration::from_bytes(&bytes)
            .map_err(ConfigurationRefused::from)
            .and_then(|signed| acceptance.offer_at(&signed, self.admission.clock().now()));
        match taken {
            Ok(_) => {
                let current = acceptance.current().cloned();
                current.iter().for_each(|accepted| self.admission.follow(&accepted.configuration));
                self.current.send_replace(current);
            }
            Err(error) => {
                let aside = path.with_extension("refused");
                tracing::warn!(path = %path.display(), aside = %aside.display(), %error, "stored configuration set aside");
                std::fs::rename(path, aside)?;
            }
        }
        Ok(())
    }

    /// Checking signs, computing the ring and syncing a file take too long for an async thread.
    async fn offer(self: &Arc<Self>, signed: SignedConfiguration, from: PeerId) -> Result<(), ConfigurationRefused> {
        let shared = Arc::clone(self);
        tokio::task::spawn_blocking(move || shared.take_over(&signed, from))
            .await
            .unwrap_or_else(|error| Err(Invalid::new("configuration", error.to_string()).into()))
    }

    fn take_over(&self, signed: &SignedConfiguration, from: PeerId) -> Result<(), ConfigurationRefused> {
        // Held while the file is written: epochs reach the disk in their order.
        let mut acceptance = self.acceptance.lock().unwrap_or_else(PoisonError::into_inner);
        match acceptance.offer_at(signed, self.admission.clock().now())? {
            Verdict::Known => Ok(()),
            Verdict::Newer(accepted) => {
                self.store(signed);
                let epoch = accepted.configuration.epoch;
                tracing::info!(epoch, schedulers = accepted.ring.members().len(), %from, "configuration taken over");
                self.admission.follow(&accepted.configuration);
                self.current.send_replace(Some(accepted));
                Ok(())
            }
        }
    }

    /// A full disk must not keep a host from following; after a restart it pulls again.
    fn store(&self, signed: &SignedConfiguration) {
        let Some(path) = &self.stored else { return };
        if let Err(error) = durable::replace(path, signed.as_bytes(), 0o600) {
            tracing::error!(path = %path.display(), %error, "the configuration is not stored");
        }
    }

    /// Answers; returns who has asked and its epoch when that is news.
    fn answer(&self, request: Inbound<ConfigProtocol>) -> Option<(PeerId, u64)> {
        let (asked, peer) = match request.decode() {
            Ok(asked) => (asked, request.peer()),
            Err(invalid) => {
                request.refuse(invalid.to_string());
                return None;
            }
        };
        if let Some(renewed) = &asked.renewed
            && let Err(refused) = self.admission.judge(peer, renewed)
        {
            request.refuse(refused.to_string());
            return None;
        }
        let current = self.current.borrow().clone();
        let epoch = current.as_ref().map_or(0, |accepted| accepted.configuration.epoch);
        let newer = current.filter(|_| epoch > asked.known_epoch).map(|accepted| accepted.signed.clone());
        request.respond(Response { epoch, newer });
        (asked.known_epoch > epoch).then_some((peer, asked.known_epoch))
    }
}
