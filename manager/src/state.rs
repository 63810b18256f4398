//! What the manager knows and how it changes.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use damselfly_messages::{
    config::{
        Accepted, Configuration, ConfigurationRefused, Gossip, Revocation, SchedulerEntry, Settings,
        SignedConfiguration,
    },
    id::ClusterId,
    record::UnixMillis,
    wire::{Invalid, Wire as _},
};
use damselfly_transport::{
    network::{Network, PublishError},
    program::follower::Follower,
};
use libp2p::PeerId;
use tokio::{sync::Mutex, task::spawn_blocking, time::sleep};

use crate::store::{SignError, Store, StoreError};

/// How often a change is gossiped when no member listens at that moment.
const PUBLISH_TRIES: u32 = 5;

/// For so long after a start changes wait for members to say that they know no newer epoch: the store may have been
/// restored from a backup, and members would answer an epoch that is signed twice with nothing but errors.
const MEMBERS_MAY_KNOW_MORE: Duration = Duration::from_secs(5);

/// Credentials of earlier settings may hold so long.
const LONGEST_CREDENTIAL_MS: u64 = 90 * 24 * 3_600_000;

/// A handle to the manager's state.
#[derive(Debug, Clone)]
pub struct State {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    cluster: ClusterId,
    store: Arc<Store>,
    network: Network,
    follower: Follower,
    /// Held during a change: epochs are given out one by one.
    changing: Mutex<()>,
    started: Instant,
    /// What is in force is the newest that there is.
    is_settled: AtomicBool,
}

/// Why the configuration was not changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// Somebody else has changed it meanwhile.
    #[error("epoch {current} is in force")]
    Stale {
        /// The epoch in force.
        current: u64,
    },
    /// Members may know a newer one; they are being asked.
    #[error("the manager has just started and asks the members whether they know a newer configuration")]
    Unsettled {
        /// It is known by then.
        retry_after: Duration,
    },
    /// A value is out of range.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// It could not be kept.
    #[error("the configuration could not be stored")]
    Store(#[source] io::Error),
    /// It is stored but not in force here; only a defect gets here.
    #[error("the new configuration is not accepted")]
    Refused(#[from] ConfigurationRefused),
    /// No configuration is in force; only a defect gets here.
    #[error("no configuration is in force")]
    Nothing,
    /// There is nothing to roll back to.
    #[error("there is no epoch {epoch} in the history")]
    NoEpoch {
        /// What was asked for.
        epoch: u64,
    },
    /// The history cannot be read.
    #[error("the history cannot be read")]
    History(#[from] StoreError),
}

/// An epoch of the history and what was in force, or why that cannot be read.
pub type Past = (u64, Result<Configuration, StoreError>);

impl State {
    /// The state in `store`, whose newest configuration `follower` has taken over.
    pub fn new(store: Store, network: Network, follower: Follower) -> Self {
        let cluster = store.cluster();
        let (changing, started, is_settled) = (Mutex::new(()), Instant::now(), AtomicBool::new(store.is_new()));
        let store = Arc::new(store);
        Self { inner: Arc::new(Inner { cluster, store, network, follower, changing, started, is_settled }) }
    }

    /// The cluster.
    pub fn cluster(&self) -> ClusterId {
        self.inner.cluster
    }

    /// What follows the configuration.
    pub fn follower(&self) -> &Follower {
        &self.inner.follower
    }

    /// The manager's own identity.
    pub fn peer_id(&self) -> PeerId {
        self.inner.network.peer_id()
    }

    /// The configuration in force.
    pub fn current(&self) -> Option<Arc<Accepted>> {
        self.inner.follower.current()
    }

    /// How long it may take until the configuration in force is known to be the newest; `None` when it is.
    pub fn unsettled(&self) -> Option<Duration> {
        let Inner { follower, started, is_settled, .. } = &*self.inner;
        let left = MEMBERS_MAY_KNOW_MORE.saturating_sub(started.elapsed());
        // For good: schedulers that join later know no more than this manager.
        if left.is_zero() || follower.is_confirmed() {
            is_settled.store(true, Ordering::Relaxed);
        }
        (!is_settled.load(Ordering::Relaxed)).then_some(left)
    }

    /// Signs `settings` as the next epoch, keeps them, and tells everyone.
    ///
    /// `is_expected` is asked about the epoch in force. Returns the new epoch when it is durable and in force here;
    /// members follow. Finishes even when the caller leaves.
    ///
    /// # Errors
    /// [`ChangeError`]: nothing has changed.
    pub async fn change(
        &self,
        settings: Settings,
        is_expected: impl Fn(u64) -> bool + Send + 'static,
    ) -> Result<u64, ChangeError> {
        self.change_to(move |current| Some((settings, current.revoked.clone())), is_expected).await
    }

    /// Puts a host out with the next epoch. Returns the epoch that says so.
    ///
    /// # Errors
    /// [`ChangeError`]: it is still in.
    pub async fn revoke(&self, peer: PeerId) -> Result<u64, ChangeError> {
        let revoke = move |current: &Configuration| {
            let now = UnixMillis::from(SystemTime::now());
            if current.revoked.iter().any(|revoked| revoked.peer == peer) {
                return None;
            }
            let mut settings = current.settings.clone();
            settings.schedulers.retain(|scheduler| scheduler.peer_id != peer);
            // When no credential of theirs can hold any more, they need not be named.
            let holds = settings.credential_ms.max(LONGEST_CREDENTIAL_MS) + settings.grace_ms;
            let mut revoked = current.revoked.clone();
            revoked.retain(|revoked| revoked.at.0.saturating_add(holds) > now.0);
            revoked.push(Revocation { peer, at: now });
            Some((settings, revoked))
        };
        self.change_to(revoke, |_| true).await
    }

    /// Adds a scheduler to the ring unless it is there. Returns the epoch in force then.
    ///
    /// # Errors
    /// [`ChangeError`]: it is not in the ring.
    pub async fn add_scheduler(&self, entry: SchedulerEntry) -> Result<u64, ChangeError> {
        loop {
            let added = entry.clone();
            let add = move |current: &Configuration| {
                let mut settings = current.settings.clone();
                if settings.schedulers.iter().any(|known| known.peer_id == added.peer_id) {
                    return None;
                }
                settings.schedulers.push(added);
                Some((settings, current.revoked.clone()))
            };
            match self.change_to(add, |_| true).await {
                Err(ChangeError::Unsettled { retry_after }) => sleep(retry_after).await,
                done => return done,
            }
        }
    }

    /// Signs what `make` makes of the configuration in force, if anything. Finishes even when the caller leaves.
    async fn change_to(
        &self,
        make: impl FnOnce(&Configuration) -> Option<(Settings, Vec<Revocation>)> + Send + 'static,
        is_expected: impl Fn(u64) -> bool + Send + 'static,
    ) -> Result<u64, ChangeError> {
        let state = self.clone();
        let change = tokio::spawn(async move { state.try_change(make, is_expected).await });
        change.await.unwrap_or_else(|error| Err(ChangeError::Store(io::Error::other(error))))
    }

    /// Signs the settings of an earlier epoch as the next one, as [`State::change`] does.
    ///
    /// # Errors
    /// [`ChangeError::NoEpoch`], and those of [`State::change`].
    pub async fn roll_back(
        &self,
        epoch: u64,
        is_expected: impl Fn(u64) -> bool + Send + 'static,
    ) -> Result<(u64, Settings), ChangeError> {
        let past = self.read_history(move |store| store.past(epoch)).await?;
        let settings = past.ok_or(ChangeError::NoEpoch { epoch })?.settings;
        Ok((self.change(settings.clone(), is_expected).await?, settings))
    }

    /// At most `limit` epochs below `before`, newest first.
    ///
    /// # Errors
    /// [`ChangeError::History`] when the folder cannot be read; a damaged epoch is told in its place.
    pub async fn history(&self, before: u64, limit: usize) -> Result<Vec<Past>, ChangeError> {
        self.read_history(move |store| {
            let epochs = store.epochs()?.into_iter().filter(|epoch| *epoch < before);
            // What went between the two readings is left out.
            let past = |epoch| Some((epoch, store.past(epoch).transpose()?));
            Ok(epochs.filter_map(past).take(limit).collect())
        })
        .await
    }

    async fn read_history<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, ChangeError> {
        let store = Arc::clone(&self.inner.store);
        let read = spawn_blocking(move || read(&store)).await;
        Ok(read.map_err(|error| ChangeError::Store(io::Error::other(error)))??)
    }

    async fn try_change(
        &self,
        make: impl FnOnce(&Configuration) -> Option<(Settings, Vec<Revocation>)>,
        is_expected: impl Fn(u64) -> bool,
    ) -> Result<u64, ChangeError> {
        let _changing = self.inner.changing.lock().await;
        if let Some(retry_after) = self.unsettled() {
            return Err(ChangeError::Unsettled { retry_after });
        }
        let current = self.inner.follower.epoch();
        if !is_expected(current) {
            return Err(ChangeError::Stale { current });
        }
        let in_force = self.current().ok_or(ChangeError::Nothing)?;
        let Some(made) = make(&in_force.configuration) else { return Ok(current) };
        let store = Arc::clone(&self.inner.store);
        let signing = spawn_blocking(move || store.sign(current + 1, made, UnixMillis::from(SystemTime::now())));
        let signed =
            signing.await.map_err(|error| ChangeError::Store(io::Error::other(error)))?.map_err(
                |error| match error {
                    SignError::Invalid(invalid) => ChangeError::Invalid(invalid),
                    SignError::Io(error) => ChangeError::Store(error),
                },
            )?;
        self.inner.follower.offer(signed.as_bytes(), self.peer_id()).await?;
        tokio::spawn(publish(self.inner.network.clone(), self.inner.follower.clone(), signed));
        Ok(current + 1)
    }

    /// Keeps configurations that members know and this store does not, because it was restored from a backup.
    ///
    /// Runs until the follower ends.
    pub async fn keep_what_members_know(self) {
        let mut watch = self.inner.follower.watch();
        let mut kept = self.inner.store.newest().epoch();
        while watch.changed().await.is_ok() {
            let Some(accepted) = watch.borrow_and_update().clone() else { continue };
            let (epoch, signed, store) =
                (accepted.configuration.epoch, accepted.signed.clone(), Arc::clone(&self.inner.store));
            if epoch <= kept {
                continue;
            }
            kept = epoch;
            match spawn_blocking(move || store.keep(&signed)).await {
                Ok(Ok(())) => tracing::warn!(epoch, "members had a newer configuration than this store: taken over"),
                // Our own change is kept already.
                Ok(Err(error)) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Ok(Err(error)) => tracing::error!(epoch, %error, "a configuration of the members is not kept"),
                Err(error) => tracing::error!(epoch, %error, "a configuration of the members is not kept"),
            }
        }
    }
}

/// Gossips `signed`; who misses it learns by pulling.
async fn publish(network: Network, follower: Follower, signed: SignedConfiguration) {
    let message = Gossip::of(&signed).to_bytes();
    for _ in 0..PUBLISH_TRIES {
        if follower.epoch() > signed.epoch() {
            return;
        }
        match network.publish(message.clone()).await {
            Ok(()) => return,
            Err(PublishError::NoPeers) => sleep(Duration::from_secs(1)).await,
            Err(error) => return tracing::warn!(epoch = signed.epoch(), %error, "the change is not gossiped"),
        }
    }
    tracing::info!(epoch = signed.epoch(), "no member listens; members will pull the change");
}
