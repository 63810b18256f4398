//! Tells the owners what this host holds, and tells them again when they forgot or changed.
//!
//! The [`Ledger`] knows what each scheduler is to know. A heartbeat carries digests of that; buckets that differ are
//! sent again. What no owner has accepted yet waits in the outbox, which is the store's queued tasks and deletes.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use damselfly_messages::{
    id::TaskId,
    membership::{Refused, Standing},
    name::NameDigest,
    record::{Announcement, Binding, CLOCK_LEEWAY_MS, Holding, Record, Tombstone, is_beyond},
    scheduler::{AnnounceTask, BucketPart, Outcome, RequestBody, ResponseBody},
};
use damselfly_transport::{clock::Clock, dialing::DialPolicy, network::Network};
use libp2p::PeerId;
use tokio::sync::Notify;

use crate::{
    blocking::blocking,
    host::Host,
    metrics::Metrics,
    schedulers::{Announced, Schedulers},
    store::{ContentState, Store, StoreError, TaskRecord, TaskState},
};

mod contact;
mod heartbeat;
mod ledger;
mod outbox;
#[cfg(test)]
mod tests;

pub use heartbeat::SchedulerView;
use ledger::Ledger;
pub use outbox::AnnounceError;

/// Records in one message: well under its limit even with the longest names.
const RECORDS_PER_MESSAGE: usize = 500;
/// A scheduler is not asked again for so long to take a record that it refused: it is full, or the name has other contents.
const REFUSED_FOR: Duration = Duration::from_secs(10 * 60);
/// For so long a delete is remembered, and a host may be away before what it holds is stale.
const REMEMBERED: Duration = Duration::from_secs(30 * 24 * 3600);

/// A handle to the announcer; cheap to clone.
#[derive(Clone)]
pub struct Announcer {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    schedulers: Schedulers,
    network: Network,
    host: Host,
    metrics: Metrics,
    /// Follows the store: see [`Announcer::follow`].
    ledger: Mutex<Ledger>,
    contact: contact::Contact,
    /// Tasks that somebody announces right now, so that the outbox leaves them alone.
    claimed: Mutex<HashSet<TaskId>>,
    /// Something waits in the outbox.
    queued: Notify,
    views: heartbeat::Views,
    /// Reports say how long ago this was.
    started: Instant,
}

/// Why this host does not do what a scheduler says of a delete.
#[derive(Debug, thiserror::Error)]
pub enum ObeyError {
    /// It cannot be true.
    #[error("the delete cannot have happened: {0}")]
    Implausible(&'static str),
    /// It could not be made durable.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How records are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// In addition to what the owner knows.
    News,
    /// As all that there is in this bucket.
    Bucket(u8),
    /// To a scheduler that stands in for the owners.
    AsStandIn,
}

/// A task that its owner announces itself; the outbox leaves it alone until this is dropped.
pub struct Claim {
    inner: Arc<Inner>,
    task: TaskId,
    /// The outbox looks again when this ends.
    wakes: bool,
}

impl Drop for Claim {
    fn drop(&mut self) {
        lock(&self.inner.claimed).remove(&self.task);
        if self.wakes {
            self.inner.queued.notify_one();
        }
    }
}

impl Announcer {
    /// An announcer of what `store` holds. Reads all its records, and follows it from now on. Blocks.
    ///
    /// # Errors
    /// [`StoreError`]: what the host held when it was last in touch with others cannot be told.
    pub fn new(
        store: Store,
        schedulers: Schedulers,
        network: Network,
        host: Host,
        metrics: Metrics,
    ) -> Result<Self, StoreError> {
        let contact = contact::Contact::load(&store)?;
        // Before anything is told. What expired while this host was down would still have been bound first.
        let clock = network.admission().clock();
        if let Some(now) = clock.expirable() {
            store.expire(now)?;
        }
        contact.mark_stale_if_away(&store, clock.now())?;
        let inner = Inner {
            store,
            schedulers,
            network,
            host,
            metrics,
            ledger: Mutex::new(Ledger::new()),
            contact,
            claimed: Mutex::default(),
            queued: Notify::new(),
            views: heartbeat::Views::default(),
            started: Instant::now(),
        };
        let this = Self { inner: Arc::new(inner) };
        let announcer = Arc::downgrade(&this.inner);
        this.inner.store.watch(move |tasks| {
            if let Some(inner) = announcer.upgrade() {
                follow(&inner.store, &mut lock(&inner.ledger), tasks);
            }
        });
        let tasks: Vec<_> = this.inner.store.tasks().iter().map(|record| record.task_id()).collect();
        let tombstones: Vec<_> = this.inner.store.tombstones().iter().map(|tombstone| tombstone.task).collect();
        for tasks in [tasks, tombstones] {
            follow(&this.inner.store, &mut lock(&this.inner.ledger), &tasks);
        }
        Ok(this)
    }

    /// The host's clock.
    pub fn clock(&self) -> &Clock {
        self.inner.network.admission().clock()
    }

    /// How this host stands as a member.
    ///
    /// # Errors
    /// [`Refused`]: others refuse it now.
    pub fn standing(&self) -> Result<Standing, Refused> {
        self.inner.network.admission().own_standing()
    }

    /// Takes a task out of the outbox's hands; `None` when somebody else has it.
    pub fn claim(&self, task: TaskId) -> Option<Claim> {
        lock(&self.inner.claimed).insert(task).then(|| Claim { inner: Arc::clone(&self.inner), task, wakes: true })
    }

    /// Which addresses this host dials, as far as loopback is concerned.
    pub fn dial_policy(&self) -> DialPolicy {
        if self.inner.host.allow_loopback { DialPolicy::local() } else { DialPolicy::routable() }
    }

    /// What each scheduler said last.
    pub fn views(&self) -> Vec<(PeerId, SchedulerView)> {
        self.inner.views.all()
    }

    /// Wakes the outbox: something was queued.
    pub fn wake(&self) {
        self.inner.queued.notify_one();
    }

    /// Tells the owners of a task that this host holds now, by a binding that they decided before.
    pub async fn announce_known(&self, task: TaskId) {
        let Some(record) = self.inner.store.task(&task) else { return };
        let announcement =
            Announcement { name: record.name.clone(), binding: record.binding, holding: Holding::Complete };
        let outcome = match self.inner.schedulers.announce(&announcement).await {
            Ok(Announced::Accepted(binding)) => Outcome::Accepted(binding),
            Ok(Announced::Conflict(winner)) => Outcome::Conflict(winner),
            Ok(Announced::Buried(tombstone)) => Outcome::Buried(tombstone),
            Ok(Announced::Refused(reason)) => Outcome::Refused(reason),
            // The heartbeat tells it as soon as somebody listens.
            Err(error) => return tracing::debug!(%task, %error, "a task is announced later"),
        };
        self.take_over(&Record::Held(announcement), outcome).await;
    }

    /// This host holds the task no more, without a delete: tells the owners at once.
    pub async fn leave(&self, task: TaskId) {
        self.inner.schedulers.report_all(task, RequestBody::LeaveTask(task)).await;
    }

    /// A delete was decided: drops the task durably and remembers the delete. Returns whether the task was here.
    ///
    /// # Errors
    /// [`StoreError`]: the task is still here.
    pub async fn bury(&self, tombstone: Tombstone) -> Result<bool, StoreError> {
        let store = self.inner.store.clone();
        let held = blocking(move || store.put_tombstone(tombstone)).await?.is_some();
        self.inner.schedulers.recent().forget(&tombstone.task);
        Ok(held)
    }

    /// Drops a task because a scheduler says that it was deleted. Returns whether the task was here.
    ///
    /// A scheduler is believed that a delete happened, but not what no delete can be: a generation beyond the clock would
    /// block the name for ever, and a time in the future would keep the tombstone for ever.
    ///
    /// # Errors
    /// [`ObeyError`]: the task is still here.
    pub async fn obey(&self, tombstone: Tombstone) -> Result<bool, ObeyError> {
        let now = self.clock().now();
        if is_beyond(tombstone.generation, now) {
            return Err(ObeyError::Implausible("the name cannot have been deleted so often"));
        }
        let held = self.inner.store.task(&tombstone.task).filter(|record| tombstone.buries(&record.binding));
        // Of several contents under a sha256 name one may have been accepted after the delete of the others.
        let is_single = |record: &TaskRecord| !matches!(record.name.digest(), Some(NameDigest::Sha256(_)));
        let accepted = held.filter(|record| is_single(record)).and_then(|record| record.binding.accepted);
        if accepted.is_some_and(|accepted| accepted.0 > tombstone.deleted.0.saturating_add(CLOCK_LEEWAY_MS)) {
            return Err(ObeyError::Implausible("the name was bound after it"));
        }
        let deleted = tombstone.deleted.clamp_to(now);
        Ok(self.bury(Tombstone { deleted, ..tombstone }).await?)
    }

    /// Another content stands under the task's name: keeps the entry as a conflict. Returns whether this host lost.
    ///
    /// # Errors
    /// [`StoreError`]: the entry is as before.
    pub async fn lose(&self, task: TaskId, winner: Binding) -> Result<bool, StoreError> {
        let Some(mut record) = self.inner.store.task(&task) else { return Ok(false) };
        let loses = record.binding.content != winner.content
            && winner.precedence(&record.binding) == std::cmp::Ordering::Greater;
        if !loses || matches!(record.state, TaskState::Conflict { .. }) {
            return Ok(false);
        }
        tracing::warn!(cid = record.name.cid(), tag = record.name.tag(), ours = %record.binding, %winner, "conflict: the name stands for another content");
        self.inner.metrics.conflicts.inc();
        record.state = TaskState::Conflict { winner };
        let store = self.inner.store.clone();
        blocking(move || store.put_task(record)).await?;
        Ok(true)
    }

    /// Sends records to a scheduler and takes over what it says of them.
    async fn send(&self, scheduler: PeerId, records: &[Arc<Record>], told: Told) -> Result<(), String> {
        let bucket = if let Told::Bucket(bucket) = told { Some(bucket) } else { None };
        // A bucket that has become empty is a part too.
        let parts = records.len().div_ceil(RECORDS_PER_MESSAGE).max(usize::from(bucket.is_some()));
        for part in 0..parts {
            let start = part * RECORDS_PER_MESSAGE;
            let chunk = &records[start..records.len().min(start + RECORDS_PER_MESSAGE)];
            let part = bucket.map(|bucket| BucketPart { bucket, first: part == 0, last: part + 1 == parts });
            let records = chunk.iter().map(|record| Record::clone(record)).collect();
            let body = RequestBody::AnnounceTask(AnnounceTask { records, bucket: part });
            match self.inner.schedulers.ask(scheduler, &body, told == Told::AsStandIn).await? {
                ResponseBody::Announced(outcomes) => {
                    self.inner.metrics.announced.inc_by(chunk.len() as u64);
                    for (record, outcome) in chunk.iter().zip(outcomes) {
                        if !self.take_over(record, outcome).await {
                            lock(&self.inner.ledger).refuse(&scheduler, record, Instant::now() + REFUSED_FOR);
                        }
                    }
                }
                ResponseBody::NotOwner(_) => return Err("its configuration is another one".to_owned()),
                _ => return Err("it answered something else".to_owned()),
            }
        }
        Ok(())
    }

    /// Does what a scheduler has decided on a record; false when it need not be told the record again soon, because it refuses
    /// it, or says what cannot be.
    async fn take_over(&self, record: &Record, outcome: Outcome) -> bool {
        let task = record.task();
        let mut is_settled = true;
        let done = match (record, outcome) {
            (Record::Held(held), Outcome::Accepted(binding)) if binding != held.binding => {
                self.merge(task, binding).await
            }
            (Record::Held(_), Outcome::Conflict(winner)) => self.lose(task, winner).await.map(drop),
            (Record::Held(_), Outcome::Buried(tombstone)) if tombstone.task == task => {
                match self.obey(tombstone).await {
                    Ok(_) => Ok(()),
                    Err(ObeyError::Store(error)) => Err(error),
                    Err(error @ ObeyError::Implausible(_)) => {
                        tracing::warn!(%task, %error, "a scheduler's word on a delete is not taken");
                        is_settled = false;
                        Ok(())
                    }
                }
            }
            (_, Outcome::Refused(reason)) => {
                tracing::debug!(%task, reason, "a scheduler refuses a record");
                is_settled = false;
                Ok(())
            }
            _ => Ok(()),
        };
        if let Err(error) = done {
            tracing::error!(%task, error = &error as &dyn std::error::Error, "cannot keep what a scheduler decided");
        }
        is_settled
    }

    /// Takes over what an owner knows better about a binding of ours.
    async fn merge(&self, task: TaskId, binding: Binding) -> Result<(), StoreError> {
        let Some(mut record) = self.inner.store.task(&task) else { return Ok(()) };
        if record.binding.content != binding.content || matches!(record.state, TaskState::Conflict { .. }) {
            return Ok(());
        }
        let before = record.binding;
        record.binding.merge(&binding);
        if record.binding == before {
            return Ok(());
        }
        let store = self.inner.store.clone();
        blocking(move || store.put_task(record)).await
    }
}

/// Makes the ledger say of these tasks what the store says. With the ledger locked, so that of two changes the later one
/// stands.
fn follow(store: &Store, ledger: &mut Ledger, tasks: &[TaskId]) {
    for task in tasks {
        let record = store.task(task).and_then(|record| ledger_record(store, &record));
        match (record, store.tombstone(task)) {
            (Some(record), _) => ledger.put(record),
            (None, Some(tombstone)) => ledger.put(Record::Deleted(tombstone)),
            (None, None) => drop(ledger.remove(task)),
        }
    }
}

/// What the owners are to know of a task; `None` when nothing.
fn ledger_record(store: &Store, record: &TaskRecord) -> Option<Record> {
    let complete = matches!(store.content(record.binding.content), Some(ContentState::Complete { .. }));
    let accepted = match record.state {
        TaskState::Acknowledged => true,
        // Imported again: it stays announced meanwhile.
        TaskState::Queued => record.binding.accepted.is_some(),
        TaskState::Conflict { .. } | TaskState::Stale => false,
    };
    let announced = accepted && complete;
    announced.then(|| {
        Record::Held(Announcement { name: record.name.clone(), binding: record.binding, holding: Holding::Complete })
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
