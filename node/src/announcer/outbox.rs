//! The outbox: imports and deletes that no owner has heard of yet, and old entries that wait to be confirmed.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use damselfly_messages::{
    record::{Announcement, Holding, UnixMillis},
    scheduler::StatAnswer,
};
use futures::StreamExt as _;

use super::{Announcer, Claim, REMEMBERED, contact::Contact};
use crate::{
    blocking::blocking,
    schedulers::{Announced, Answer, Unanswered},
    store::{QueuedDelete, StoreError, TaskRecord, TaskState},
};

/// Pause after a round in which no scheduler could be reached; a scheduler that connects ends it early.
const RETRY: Duration = Duration::from_secs(1);
/// How often entries are looked at whose time is over.
const EXPIRE_EVERY: Duration = Duration::from_secs(1);
/// How often old tombstones are looked for and the time of the last contact is kept.
const TIDY_EVERY: Duration = Duration::from_secs(3600);
/// How often the moments of last use are kept.
const KEEP_USE_EVERY: Duration = Duration::from_secs(60);
/// How many owners hear at a time of what has expired.
const TOLD_AT_A_TIME: usize = 32;
/// What owners have not heard by then they learn from the heartbeat.
const TELL_WITHIN: Duration = Duration::from_secs(5);

impl Announcer {
    /// Empties the outbox whenever it can, until the daemon ends.
    pub async fn run_outbox(self) {
        loop {
            let left = self.empty_outbox().await;
            let wait = if left { RETRY } else { TIDY_EVERY };
            // Either way there is another look: a wake-up is a hint.
            let _woken = tokio::time::timeout(wait, self.inner.queued.notified()).await;
        }
    }

    /// One round. Returns whether something is left that may go through later.
    async fn empty_outbox(&self) -> bool {
        if self.inner.schedulers.accepted().is_none() {
            return false;
        }
        let mut left = false;
        for delete in self.inner.store.queued_deletes() {
            left |= !self.try_delete(&delete).await;
        }
        for record in self.inner.store.tasks() {
            if !matches!(record.state, TaskState::Queued | TaskState::Stale) {
                continue;
            }
            let Some(mut claim) = self.claim(record.task_id()) else { continue };
            // Its end must not wake this loop again.
            claim.wakes = false;
            left |= !match record.state {
                TaskState::Queued => self.try_announce(&claim, Arc::unwrap_or_clone(record)).await,
                TaskState::Stale => self.try_confirm(Arc::unwrap_or_clone(record)).await,
                TaskState::Acknowledged | TaskState::Conflict { .. } => true,
            };
        }
        left
    }

    async fn try_delete(&self, delete: &QueuedDelete) -> bool {
        let Ok(answer) = self.inner.schedulers.delete(&delete.name, Some(delete.queued), delete.uid).await else {
            return false;
        };
        if let Some(tombstone) = answer.tombstone
            && let Err(error) = self.bury(tombstone).await
        {
            tracing::error!(error = &error as &dyn std::error::Error, "cannot keep a delete");
            return false;
        }
        let (store, name) = (self.inner.store.clone(), delete.name.clone());
        let removed = blocking(move || store.remove_queued_delete(&name)).await;
        tracing::info!(cid = delete.name.cid(), tag = delete.name.tag(), "a queued delete went through");
        removed.is_ok()
    }

    async fn try_announce(&self, claim: &Claim, record: TaskRecord) -> bool {
        let task = record.task_id();
        let name = record.name.clone();
        let log = |what: &str| tracing::info!(cid = name.cid(), tag = name.tag(), "a queued import {what}");
        match self.announce_record(claim, record, false).await {
            Ok(Announced::Accepted(_)) => log("is announced now"),
            Ok(Announced::Conflict(winner)) => {
                if let Err(error) = self.lose_queued(task, winner).await {
                    tracing::error!(%task, error = &error as &dyn std::error::Error, "cannot keep a conflict");
                    return false;
                }
            }
            Ok(Announced::Buried(tombstone)) => {
                log("was deleted meanwhile");
                return self.bury(tombstone).await.is_ok();
            }
            Ok(Announced::Refused(reason)) => {
                // Asked again with the next reason to look: what they refuse now they refuse in a second too.
                tracing::warn!(cid = name.cid(), tag = name.tag(), reason, "the owners refuse a queued import");
            }
            Err(error) => {
                tracing::debug!(%task, %error, "a queued import still waits");
                return false;
            }
        }
        true
    }

    /// A queued import that lost is a conflict, whatever the precedence of what it never was accepted as.
    async fn lose_queued(
        &self,
        task: damselfly_messages::id::TaskId,
        winner: damselfly_messages::record::Binding,
    ) -> Result<(), StoreError> {
        if self.lose(task, winner).await? {
            return Ok(());
        }
        let Some(mut record) = self.inner.store.task(&task) else { return Ok(()) };
        if record.state == TaskState::Queued {
            record.state = TaskState::Conflict { winner };
            let store = self.inner.store.clone();
            blocking(move || store.put_task(record)).await?;
        }
        Ok(())
    }

    /// Announces a record that the store holds, and keeps what comes of it when it is accepted.
    ///
    /// An import that is younger than a delete it meets takes the next generation; one that is `under_way` is, whatever
    /// the clocks say.
    ///
    /// # Errors
    /// [`AnnounceError::Unanswered`]: it is still queued. [`AnnounceError::Dropped`]: it was taken away meanwhile, and no
    /// owner counts on this host.
    pub async fn announce_record(
        &self,
        _claim: &Claim,
        mut record: TaskRecord,
        under_way: bool,
    ) -> Result<Announced, AnnounceError> {
        self.delete_before(&mut record).await?;
        loop {
            let announcement =
                Announcement { name: record.name.clone(), binding: record.binding, holding: Holding::Complete };
            match self.inner.schedulers.announce(&announcement).await? {
                Announced::Accepted(binding) => {
                    let (store, task) = (self.inner.store.clone(), record.task_id());
                    if blocking(move || store.acknowledge(&task, binding)).await? {
                        return Ok(Announced::Accepted(binding));
                    }
                    self.leave(task).await;
                    // A scheduler may have told that another content won, before the owner's answer was here.
                    return match self.inner.store.task(&task).map(|record| record.state) {
                        Some(TaskState::Conflict { winner }) => Ok(Announced::Conflict(winner)),
                        _ => Err(AnnounceError::Dropped),
                    };
                }
                Announced::Buried(tombstone)
                    if record.imported > tombstone.deleted
                        || under_way && self.inner.store.task(&record.task_id()).is_some() =>
                {
                    record.binding.generation = tombstone.generation + 1;
                    record.binding.accepted = None;
                }
                other => return Ok(other),
            }
        }
    }

    /// A delete of the name that waits goes first: else what it is to delete would win over the import.
    async fn delete_before(&self, record: &mut TaskRecord) -> Result<(), Unanswered> {
        let task = record.task_id();
        let Some(delete) = self.inner.store.queued_deletes().into_iter().find(|delete| delete.name == record.name)
        else {
            return Ok(());
        };
        if !self.try_delete(&delete).await {
            return Err(Unanswered::NoScheduler("a delete of the same name still waits".into()));
        }
        if let Some(kept) = self.inner.store.task(&task).filter(|kept| kept.binding.content == record.binding.content) {
            record.binding = kept.binding;
        }
        Ok(())
    }

    /// Asks whether an old entry is still what its name stands for.
    async fn try_confirm(&self, mut record: TaskRecord) -> bool {
        match self.inner.schedulers.stat(&record.name).await {
            Ok(Answer::Found(StatAnswer::Found { candidates, .. })) => {
                let confirmed = candidates.iter().find(|binding| binding.content == record.binding.content);
                record.state = match confirmed {
                    Some(binding) => {
                        record.binding.merge(binding);
                        TaskState::Acknowledged
                    }
                    None => TaskState::Conflict { winner: candidates[0] },
                };
                let store = self.inner.store.clone();
                blocking(move || store.put_task(record)).await.is_ok()
            }
            // Nobody confirms it: it stays as it is until it is imported again.
            Ok(Answer::Found(_) | Answer::Missing(_)) => true,
            Err(_) => false,
        }
    }

    /// Removes what has expired, and now and then forgets old deletes, until the daemon ends.
    pub async fn run_expiry(self) {
        let mut tidied: Option<Instant> = None;
        let mut used_kept = Instant::now();
        loop {
            tokio::time::sleep(EXPIRE_EVERY).await;
            let (store, clock) = (self.inner.store.clone(), self.clock().clone());
            let expire = move || {
                clock.keep();
                clock.expirable().map_or_else(|| Ok(Vec::new()), |now| store.expire(now))
            };
            match blocking(expire).await {
                Ok(expired) => self.leave_all(&expired, "expired").await,
                Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "cannot expire entries"),
            }
            self.keep_quota().await;
            if used_kept.elapsed() >= KEEP_USE_EVERY {
                used_kept = Instant::now();
                let store = self.inner.store.clone();
                if let Err(error) = blocking(move || store.keep_last_used()).await {
                    tracing::error!(error = &error as &dyn std::error::Error, "cannot keep moments of last use");
                }
            }
            if tidied.is_none_or(|tidied| tidied.elapsed() >= TIDY_EVERY) && self.tidy().await {
                tidied = Some(Instant::now());
            }
        }
    }

    /// Makes room when the store is fuller than it should be, and tells the owners what went, also for others who needed
    /// room.
    async fn keep_quota(&self) {
        let store = self.inner.store.clone();
        let evicted = blocking(move || store.keep_quota().map(|()| store.take_evicted())).await;
        match evicted {
            Ok(evicted) => self.leave_all(&evicted, "evicted").await,
            Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "cannot make room"),
        }
    }

    /// Tells the owners of what was removed. Nothing is announced any more already.
    async fn leave_all(&self, removed: &[TaskRecord], why: &str) {
        let told = futures::stream::iter(removed).for_each_concurrent(TOLD_AT_A_TIME, async |record| {
            tracing::info!(cid = record.name.cid(), tag = record.name.tag(), "{why}");
            self.leave(record.task_id()).await;
        });
        if tokio::time::timeout(TELL_WITHIN, told).await.is_err() {
            tracing::info!("not every owner heard at once of what has {why}");
        }
    }

    /// Keeps the time of the last contact and forgets old deletes. Returns whether there is contact.
    async fn tidy(&self) -> bool {
        if !self.views().iter().any(|(_, view)| view.reachable) {
            return false;
        }
        let (store, clock) = (self.inner.store.clone(), self.clock().clone());
        let tidied = blocking(move || {
            Contact::keep(&store, clock.now())?;
            let Some(now) = clock.expirable() else { return Ok(false) };
            let limit = UnixMillis(now.0.saturating_sub(REMEMBERED.as_millis() as u64));
            store.forget_tombstones_before(limit).and_then(|_| store.compact())
        });
        if let Err(error) = tidied.await {
            tracing::error!(error = &error as &dyn std::error::Error, "cannot tidy up");
        }
        true
    }
}

/// Why a record is not announced.
#[derive(Debug, thiserror::Error)]
pub enum AnnounceError {
    /// No owner has heard of it.
    #[error(transparent)]
    Unanswered(#[from] Unanswered),
    /// The task was removed here while it was announced.
    #[error("the task was removed while it was announced")]
    Dropped,
    /// It was accepted, but that could not be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
}
