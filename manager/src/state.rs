//! What the manager knows and how it changes.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use damselfly_messages::{config::Accepted, id::ClusterId};
use damselfly_transport::{network::Network, program::follower::Follower};
use libp2p::PeerId;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::{Mutex, watch};

use crate::{
    database::{Database, audit::Actor, leader::Leader},
    history::{Order, SignError, Store},
    keys::Keys,
};

mod changes;
mod edit;
mod error;
mod patch;
mod roots;
mod sync;

use edit::Edit;
pub use error::ChangeError;
pub use patch::SettingsPatch;
use roots::RootChange;
use sync::publish;

/// For so long after a start changes wait for members to say that they know no newer epoch: the store may have been
/// restored from a backup, and members would answer an epoch that is signed twice with nothing but errors.
const MEMBERS_MAY_KNOW_MORE: Duration = Duration::from_secs(5);

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

    /// Signs what `make` makes of the configuration in force, if anything. Finishes even when the caller leaves.
    async fn order(
        &self,
        make: impl Edit,
        by: (Actor, Purpose),
        is_expected: impl Fn(u64) -> bool + Send + Sync + 'static,
    ) -> Result<u64, ChangeError> {
        let state = self.clone();
        let change = tokio::spawn(async move { state.try_change(&make, &by, &is_expected).await });
        change.await.unwrap_or_else(|error| Err(ChangeError::Interrupted(io::Error::other(error))))
    }

    async fn try_change(
        &self,
        make: &impl Edit,
        (actor, purpose): &(Actor, Purpose),
        is_expected: &(impl Fn(u64) -> bool + Sync),
    ) -> Result<u64, ChangeError> {
        let _changing = self.inner.changing.lock().await;
        if let Some(retry_after) = self.unsettled() {
            return Err(ChangeError::Unsettled { retry_after });
        }
        let Inner { store, network, follower, .. } = &*self.inner;
        if network.admission().is_revoked(&self.peer_id()) {
            return Err(ChangeError::Revoked);
        }
        for _ in 0..CHANGE_TRIES {
            let in_force = &self.current().ok_or(ChangeError::Nothing)?.configuration;
            let epoch = in_force.epoch;
            if !is_expected(epoch) {
                return Err(ChangeError::Stale { current: epoch });
            }
            let Some((settings, revoked)) = make(in_force)? else { return Ok(epoch) };
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
            let signed = match store.sign(epoch, order, |current| current == epoch, store.database().now()).await {
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
}
