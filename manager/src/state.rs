//! What the manager knows and how it changes.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use damselfly_messages::{
    config::{
        Accepted, Configuration, ConfigurationRefused, Gossip, Revocation, SchedulerEntry, SchedulerState, Settings,
        SignedConfiguration,
    },
    id::ClusterId,
    membership::ROOTS_MAX,
    wire::{Invalid, Wire as _},
};
use damselfly_transport::{
    network::{Network, PublishError},
    program::follower::Follower,
};
use libp2p::PeerId;
use prometheus_client::metrics::counter::Counter;
use tokio::{
    sync::{Mutex, watch},
    task::JoinError,
    time::sleep,
};

use crate::{
    database::{Database, DatabaseError, audit::Actor, leader::Leader, now},
    keys::Keys,
    store::{Order, Past, SignError, Store, StoreError},
};

mod roots;
use roots::RootChange;

/// How often a change is gossiped when no member listens at that moment.
const PUBLISH_TRIES: u32 = 5;

/// For so long after a start changes wait for members to say that they know no newer epoch: the store may have been
/// restored from a backup, and members would answer an epoch that is signed twice with nothing but errors.
const MEMBERS_MAY_KNOW_MORE: Duration = Duration::from_secs(5);

/// How often a database that other managers use is asked whether they have changed the configuration.
const DATABASE_INTERVAL: Duration = Duration::from_secs(1);

/// Credentials of earlier settings may hold so long.
const LONGEST_CREDENTIAL_MS: u64 = 90 * 24 * 3_600_000;

/// A change is made anew when another manager was quicker, this often.
const CHANGE_TRIES: u32 = 5;

/// What a change is for, as the audit and the history say.
#[derive(Debug)]
struct Purpose {
    action: &'static str,
    reason: Option<String>,
    roots: RootChange,
    empty: EmptyRing,
}

impl Purpose {
    /// Of a change that leaves the roots as they are, and some scheduler in the ring.
    const fn new(action: &'static str, reason: Option<String>) -> Self {
        Self { action, reason, roots: RootChange::None, empty: EmptyRing::Refused }
    }
}

/// Whether a change may leave a ring without schedulers that has some.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EmptyRing {
    /// It is refused.
    Refused,
    /// That is what is wanted.
    Allowed,
}

/// A handle to the manager's state.
#[derive(Debug, Clone)]
pub struct State {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    cluster: ClusterId,
    store: Store,
    network: Network,
    follower: Follower,
    leader: Leader,
    changes: Counter,
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
    Store(#[source] DatabaseError),
    /// The change ended early; only a defect gets here.
    #[error("the change was interrupted")]
    Interrupted(#[source] io::Error),
    /// The root key cannot be used or exchanged.
    #[error("the root key cannot be used: {0}")]
    Root(String),
    /// The configuration has no room for one root more.
    #[error("the cluster has had {ROOTS_MAX} roots, and a configuration can tell of no more")]
    TooManyRoots,
    /// It is stored but not in force here; only a defect gets here.
    #[error("the new configuration is not accepted")]
    Refused(#[from] ConfigurationRefused),
    /// No configuration is in force; only a defect gets here.
    #[error("no configuration is in force")]
    Nothing,
    /// No scheduler would be left in the ring.
    #[error("no scheduler would be left in the ring: nothing could be announced or found")]
    LastScheduler,
    /// There is no such scheduler.
    #[error("the configuration lists no scheduler {peer}")]
    NoScheduler {
        /// Who was asked for.
        peer: PeerId,
    },
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

impl ChangeError {
    fn panicked(error: JoinError) -> Self {
        Self::Interrupted(io::Error::other(error))
    }
}

impl State {
    /// The state in `store`, whose newest configuration `follower` has taken over.
    pub fn new(store: Store, network: Network, follower: Follower) -> Self {
        let cluster = store.cluster();
        let (changing, started, is_settled) = (Mutex::new(()), Instant::now(), AtomicBool::new(store.is_new()));
        let (leader, changes) = (Leader::start(store.database()), Counter::default());
        Self {
            inner: Arc::new(Inner {
                cluster,
                store,
                network,
                follower,
                leader,
                changes,
                changing,
                started,
                is_settled,
            }),
        }
    }

    /// The cluster.
    pub fn cluster(&self) -> ClusterId {
        self.inner.cluster
    }

    /// What is signed with.
    pub fn keys(&self) -> &Keys {
        self.inner.store.keys()
    }

    /// The manager's own identity.
    pub fn peer_id(&self) -> PeerId {
        self.inner.network.peer_id()
    }

    /// The configuration in force.
    pub fn current(&self) -> Option<Arc<Accepted>> {
        self.inner.follower.current()
    }

    /// What follows the configuration.
    pub fn follower(&self) -> &Follower {
        &self.inner.follower
    }

    /// The database.
    pub fn database(&self) -> &Database {
        self.inner.store.database()
    }

    /// Whether this manager is the one that publishes.
    pub fn is_publisher(&self) -> watch::Receiver<bool> {
        self.inner.leader.is_publisher()
    }

    /// Counts configurations that this manager has signed.
    pub fn changes(&self) -> &Counter {
        &self.inner.changes
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
        actor: Actor,
        empty: EmptyRing,
        is_expected: impl Fn(u64) -> bool + Send + Sync + 'static,
    ) -> Result<u64, ChangeError> {
        let purpose = Purpose { empty, ..Purpose::new("config.change", None) };
        self.order(keep_out(settings), (actor, purpose), is_expected).await
    }

    /// Takes a scheduler out of the ring or puts it back, as [`State::change`] does. Nothing changes when it is so.
    ///
    /// # Errors
    /// [`ChangeError::NoScheduler`], and those of [`State::change`].
    pub async fn set_scheduler(
        &self,
        peer: PeerId,
        to: SchedulerState,
        actor: Actor,
        empty: EmptyRing,
        is_expected: impl Fn(u64) -> bool + Send + Sync + 'static,
    ) -> Result<u64, ChangeError> {
        let current = self.current().ok_or(ChangeError::Nothing)?;
        current.configuration.settings.scheduler(&peer).ok_or(ChangeError::NoScheduler { peer })?;
        let reason = Some(format!("{peer}: {}", to.name()));
        let purpose = Purpose { empty, ..Purpose::new("scheduler.state", reason) };
        self.order(with_state(peer, to, move |state| state != to), (actor, purpose), is_expected).await
    }

    /// Changes a scheduler's state from one to another because of what was seen of it. Nothing changes when it has
    /// another one meanwhile.
    ///
    /// # Errors
    /// [`ChangeError`]: it is as before.
    pub async fn observe_scheduler(
        &self,
        peer: PeerId,
        (from, to): (SchedulerState, SchedulerState),
        because: &str,
    ) -> Result<u64, ChangeError> {
        let reason = Some(format!("{peer}: {}, {because}", to.name()));
        let purpose = Purpose::new("scheduler.state", reason);
        self.order(with_state(peer, to, move |state| state == from), (Actor::manager(), purpose), |_| true).await
    }

    /// Puts a host out with the next epoch. Returns the epoch that says so.
    ///
    /// # Errors
    /// [`ChangeError`]: it is still in.
    pub async fn revoke(&self, peer: PeerId, actor: Actor, reason: String) -> Result<u64, ChangeError> {
        let revoke = move |current: &Configuration| {
            if current.revoked.iter().any(|revoked| revoked.peer == peer) {
                return None;
            }
            let mut settings = current.settings.clone();
            settings.schedulers.retain(|scheduler| scheduler.peer_id != peer);
            // When no credential of theirs can hold any more, they need not be named.
            let holds = settings.credential_ms.max(LONGEST_CREDENTIAL_MS) + settings.grace_ms;
            let mut revoked = current.revoked.clone();
            revoked.retain(|revoked| revoked.at.0.saturating_add(holds) > now().0);
            revoked.push(Revocation { peer, at: now() });
            Some((settings, revoked))
        };
        let purpose =
            Purpose { empty: EmptyRing::Allowed, ..Purpose::new("config.revoke", Some(format!("{peer}: {reason}"))) };
        self.order(revoke, (actor, purpose), |_| true).await
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
                if settings.scheduler(&added.peer_id).is_some() {
                    return None;
                }
                settings.schedulers.push(added.clone());
                Some((settings, current.revoked.clone()))
            };
            let purpose = Purpose::new("ring.add", Some(entry.peer_id.to_string()));
            match self.order(add, (Actor::manager(), purpose), |_| true).await {
                Err(ChangeError::Unsettled { retry_after }) => sleep(retry_after).await,
                done => return done,
            }
        }
    }

    /// Signs the settings of an earlier epoch as the next one, as [`State::change`] does. Schedulers that have been
    /// revoked since do not come back with them.
    ///
    /// # Errors
    /// [`ChangeError::NoEpoch`], and those of [`State::change`].
    pub async fn roll_back(
        &self,
        epoch: u64,
        actor: Actor,
        empty: EmptyRing,
        is_expected: impl Fn(u64) -> bool + Send + Sync + 'static,
    ) -> Result<(u64, Settings), ChangeError> {
        let settings = self.settings_of(epoch).await?;
        let purpose = Purpose { empty, ..Purpose::new("config.rollback", Some(format!("back to epoch {epoch}"))) };
        let signed = self.order(back_to(settings), (actor, purpose), is_expected).await?;
        Ok((signed, self.settings_of(signed).await?))
    }

    /// The settings of an epoch in the history.
    ///
    /// # Errors
    /// [`ChangeError::NoEpoch`] and [`ChangeError::History`].
    pub async fn settings_of(&self, epoch: u64) -> Result<Settings, ChangeError> {
        let past = self.inner.store.past(epoch).await?;
        Ok(past.ok_or(ChangeError::NoEpoch { epoch })?.settings)
    }

    /// At most `limit` epochs below `before`, newest first.
    ///
    /// # Errors
    /// [`ChangeError::History`] when the database does not answer; a damaged epoch is told in its place.
    pub async fn history(&self, before: u64, limit: usize) -> Result<Vec<Past>, ChangeError> {
        Ok(self.inner.store.history(before, limit).await.map_err(StoreError::from)?)
    }

    /// Signs what `make` makes of the configuration in force, if anything. Finishes even when the caller leaves.
    async fn order(
        &self,
        make: impl Fn(&Configuration) -> Option<(Settings, Vec<Revocation>)> + Send + Sync + 'static,
        by: (Actor, Purpose),
        is_expected: impl Fn(u64) -> bool + Send + Sync + 'static,
    ) -> Result<u64, ChangeError> {
        let state = self.clone();
        let change = tokio::spawn(async move { state.try_change(&make, &by, &is_expected).await });
        change.await.unwrap_or_else(|error| Err(ChangeError::Interrupted(io::Error::other(error))))
    }

    async fn try_change(
        &self,
        make: &(impl Fn(&Configuration) -> Option<(Settings, Vec<Revocation>)> + Sync),
        (actor, purpose): &(Actor, Purpose),
        is_expected: &(impl Fn(u64) -> bool + Sync),
    ) -> Result<u64, ChangeError> {
        let _changing = self.inner.changing.lock().await;
        if let Some(retry_after) = self.unsettled() {
            return Err(ChangeError::Unsettled { retry_after });
        }
        let Inner { store, network, follower, .. } = &*self.inner;
        for _ in 0..CHANGE_TRIES {
            let in_force = &self.current().ok_or(ChangeError::Nothing)?.configuration;
            let epoch = in_force.epoch;
            if !is_expected(epoch) {
                return Err(ChangeError::Stale { current: epoch });
            }
            let Some((settings, revoked)) = make(in_force) else { return Ok(epoch) };
            let empties =
                in_force.settings.active_schedulers().next().is_some() && settings.active_schedulers().next().is_none();
            if empties && purpose.empty == EmptyRing::Refused {
                return Err(ChangeError::LastScheduler);
            }
            let next = self.next_root(purpose.roots).await?;
            let roots = purpose.roots.after(&in_force.roots, next.as_ref());
            let (action, reason) = (purpose.action, purpose.reason.as_deref());
            let new = next.as_ref().map(|(next, retired)| (next, *retired));
            let order = Order { settings, revoked, roots, next: new, actor, action, reason };
            // Made of what is in force here, so it replaces nothing else.
            let signed = match store.sign(epoch, order, |current| current == epoch, now()).await {
                Ok(signed) => signed,
                Err(SignError::Stale { .. }) => {
                    self.catch_up(epoch).await?;
                    continue;
                }
                Err(SignError::Invalid(invalid)) => return Err(ChangeError::Invalid(invalid)),
                Err(error @ SignError::OtherRoot) => return Err(ChangeError::Root(error.to_string())),
                Err(SignError::Database(error)) => return Err(ChangeError::Store(error)),
            };
            let epoch = signed.epoch();
            if let Some((next, _)) = next {
                self.follow_root(next).await?;
            }
            self.inner.changes.inc();
            follower.offer(signed.as_bytes(), self.peer_id()).await?;
            if *self.is_publisher().borrow() {
                tokio::spawn(publish(network.clone(), follower.clone(), signed));
            }
            return Ok(epoch);
        }
        Err(ChangeError::Stale { current: follower.epoch() })
    }

    /// Takes over what another manager of the same database has signed above `epoch`.
    async fn catch_up(&self, epoch: u64) -> Result<(), ChangeError> {
        if let Some(newer) = self.inner.store.newer_than(epoch).await? {
            self.inner.follower.offer(newer.as_bytes(), self.peer_id()).await?;
        }
        Ok(())
    }

    /// Takes over what other managers of the same database sign, and publishes it if that is this manager's part.
    ///
    /// Runs for ever with a shared database, and ends at once with one of this manager's own.
    pub async fn follow_database(self) {
        let Inner { store, network, follower, .. } = &*self.inner;
        while store.database().is_shared() {
            sleep(DATABASE_INTERVAL).await;
            match store.newer_than(follower.epoch()).await {
                Ok(None) => {}
                Ok(Some(signed)) => match follower.offer(signed.as_bytes(), self.peer_id()).await {
                    Ok(_) if *self.is_publisher().borrow() => {
                        tokio::spawn(publish(network.clone(), follower.clone(), signed));
                    }
                    Ok(_) => {}
                    Err(error) => tracing::warn!(epoch = signed.epoch(), %error, "another manager's change is refused"),
                },
                Err(error) => {
                    let error = damselfly_transport::reason::chain(&error);
                    tracing::warn!(error, "changes of other managers cannot be read");
                }
            }
        }
    }

    /// Keeps configurations that members know and this store does not, because it was restored from a backup.
    ///
    /// Runs until the follower ends.
    pub async fn keep_what_members_know(self) {
        let mut watch = self.inner.follower.watch();
        let mut kept = self.inner.store.newest().epoch();
        while watch.changed().await.is_ok() {
            let Some(accepted) = watch.borrow_and_update().clone() else { continue };
            let epoch = accepted.configuration.epoch;
            if epoch <= kept {
                continue;
            }
            kept = epoch;
            match self.inner.store.keep(&accepted.signed, accepted.configuration.issued).await {
                Ok(true) => tracing::warn!(epoch, "members had a newer configuration than this store: taken over"),
                // Our own change is kept already.
                Ok(false) => {}
                Err(error) => {
                    let error = damselfly_transport::reason::chain(&error);
                    tracing::error!(epoch, error, "a configuration of the members is not kept");
                }
            }
        }
    }
}

/// Other settings, and whoever is out stays out.
fn keep_out(settings: Settings) -> impl Fn(&Configuration) -> Option<(Settings, Vec<Revocation>)> + Send + Sync {
    move |current| Some((settings.clone(), current.revoked.clone()))
}

/// Earlier settings, without the schedulers that are out by now.
fn back_to(settings: Settings) -> impl Fn(&Configuration) -> Option<(Settings, Vec<Revocation>)> + Send + Sync {
    move |current| {
        let is_out = |peer: &PeerId| current.revoked.iter().any(|revoked| revoked.peer == *peer);
        let mut settings = settings.clone();
        settings.schedulers.retain(|scheduler| !is_out(&scheduler.peer_id));
        Some((settings, current.revoked.clone()))
    }
}

/// Another state of a scheduler whose present one `is_wanted` accepts.
fn with_state(
    peer: PeerId,
    to: SchedulerState,
    is_wanted: impl Fn(SchedulerState) -> bool + Send + Sync,
) -> impl Fn(&Configuration) -> Option<(Settings, Vec<Revocation>)> + Send + Sync {
    move |current| {
        let mut settings = current.settings.clone();
        settings.schedulers.iter_mut().find(|entry| entry.peer_id == peer && is_wanted(entry.state))?.state = to;
        Some((settings, current.revoked.clone()))
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
