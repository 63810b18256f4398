//! How much the store may hold, and which copies go when it is more.
//!
//! Only copies of what another host has are removed: entries that were fetched, and downloads that nobody goes on with.
//! What was imported here may be the only copy there is.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use damselfly_messages::{
    id::{ContentId, TaskId},
    record::UnixMillis,
};

use super::{
    Inner, Store,
    error::StoreError,
    lock, now,
    record::{Held, TaskRecord},
    state::State,
};

/// The most that a store may hold, of contents that are complete, partial, damaged or being imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// In bytes.
    pub bytes: u64,
    /// Above this part of it copies are removed,
    pub high_percent: u32,
    /// until it is no more than this one.
    pub low_percent: u32,
}

impl Quota {
    const fn part(&self, percent: u32) -> u64 {
        (self.bytes as u128 * percent as u128 / 100) as u64
    }
}

/// A store that holds more than it should, of which nothing can be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stuck {
    /// Bytes that it holds.
    pub used: u64,
    /// What it should hold no more than.
    pub quota: Quota,
}

/// What the store knows of its quota.
#[derive(Default)]
pub(super) struct Room {
    quota: Mutex<Option<Quota>>,
    /// Held by who asks for room, so that two do not get the same.
    turn: Mutex<()>,
    /// Bytes of imports that are not part of the store yet.
    importing: AtomicU64,
    /// Tasks that were removed, until somebody tells their owners.
    evicted: Mutex<Vec<TaskRecord>>,
}

/// Room for the bytes of an import, until it has become a content or was given up.
pub(super) struct Reserved {
    store: Arc<Inner>,
    bytes: u64,
}

/// A copy that may go.
struct Evictable {
    id: ContentId,
    bytes: u64,
    used: UnixMillis,
    tasks: Vec<TaskId>,
}

impl Store {
    /// Sets the quota; `None`: only the free-space floor counts. What is above it goes with [`Store::keep_quota`].
    pub fn set_quota(&self, quota: Option<Quota>) {
        *lock(&self.inner.room.quota) = quota;
    }

    /// The quota in force.
    pub fn quota(&self) -> Option<Quota> {
        *lock(&self.inner.room.quota)
    }

    /// Bytes that count: of contents, downloads and imports under way.
    pub fn used_bytes(&self) -> u64 {
        self.inner.used_bytes()
    }

    /// When the store holds more than the upper mark, removes the copies used least lately until the lower one.
    ///
    /// # Errors
    /// [`StoreError`] when it could not be made durable.
    pub fn keep_quota(&self) -> Result<(), StoreError> {
        let _turn = lock(&self.inner.room.turn);
        let Some(quota) = self.quota() else { return Ok(()) };
        let used = self.used_bytes();
        if used > quota.part(quota.high_percent) {
            self.inner.evict(used - quota.part(quota.low_percent), false)?;
        }
        Ok(())
    }

    /// The tasks that were removed for want of room since the last call: their owners are to hear of it.
    pub fn take_evicted(&self) -> Vec<TaskRecord> {
        std::mem::take(&mut *lock(&self.inner.room.evicted))
    }

    /// Whether the store is above the upper mark and has nothing that may go.
    pub fn stuck(&self) -> Option<Stuck> {
        let quota = self.quota()?;
        let used = self.used_bytes();
        let full = used > quota.part(quota.high_percent);
        (full && self.inner.evictable(&self.inner.state(), &self.inner.busy()).is_empty())
            .then_some(Stuck { used, quota })
    }

    /// Notes that the bytes of a content are used, by whatever name.
    pub fn touch_content(&self, id: ContentId) {
        let mut state = self.inner.state_mut();
        let tasks: Vec<_> = state.tasks_of(id).copied().collect();
        tasks.iter().for_each(|task| state.touch(task, now()));
    }
}

impl Inner {
    fn used_bytes(&self) -> u64 {
        let under_way = lock(&self.under_way);
        let state = self.state();
        let new = under_way.iter().filter(|(id, _)| !state.contents.contains_key(*id));
        let new: u64 = new.map(|(_, progress)| progress.manifest.layout().content_bytes()).sum();
        state.bytes() + new + self.room.importing.load(Ordering::Relaxed)
    }

    /// Has `take` take `needed` bytes when they fit into the quota, for which copies may go that nobody uses.
    ///
    /// # Errors
    /// [`StoreError::OverQuota`]: they do not fit; nothing was removed.
    pub fn with_room<T>(&self, needed: u64, take: impl FnOnce() -> T) -> Result<T, StoreError> {
        let _turn = lock(&self.room.turn);
        let Some(quota) = *lock(&self.room.quota) else { return Ok(take()) };
        let most = quota.bytes.saturating_sub(needed);
        let used = self.used_bytes();
        if needed <= quota.bytes && used > most {
            self.evict(used - most, true)?;
        }
        let used = self.used_bytes();
        if needed > quota.bytes || used > most {
            return Err(StoreError::OverQuota { needed, used, quota: quota.bytes });
        }
        Ok(take())
    }

    /// Contents that somebody reads or downloads.
    fn busy(&self) -> HashSet<ContentId> {
        let mut busy: HashSet<_> = lock(&self.under_way).keys().copied().collect();
        let readers = lock(&self.readers);
        busy.extend(readers.iter().filter(|(_, reader)| reader.strong_count() > 0).map(|(id, _)| *id));
        busy
    }

    fn evictable(&self, state: &State, busy: &HashSet<ContentId>) -> Vec<Evictable> {
        let unused = state.contents.iter().filter(|(id, _)| !busy.contains(*id) && !self.kept.contains(**id));
        let copies = unused.filter_map(|(id, content)| {
            let tasks: Vec<_> = state.tasks_of(*id).copied().collect();
            let records: Vec<_> = tasks.iter().filter_map(|task| state.tasks.get(task)).collect();
            let partial = matches!(content.record.state, Held::Partial(_));
            let mine = records.iter().any(|record| !record.fetched || record.pinned);
            if mine || records.is_empty() && !partial {
                return None;
            }
            let used = records.iter().map(|record| record.last_used).max().unwrap_or(content.record.added);
            Some(Evictable { id: *id, bytes: content.record.bytes, used, tasks })
        });
        copies.collect()
    }

    /// Removes copies of so many bytes, those first that were used least lately. `all`: or none, when they are fewer.
    fn evict(&self, bytes: u64, all: bool) -> Result<(), StoreError> {
        let busy = self.busy();
        let candidates = self.evictable(&self.state(), &busy);
        if candidates.is_empty() || all && candidates.iter().map(|copy| copy.bytes).sum::<u64>() < bytes {
            return Ok(());
        }
        let mut oldest: BinaryHeap<_> =
            candidates.iter().enumerate().map(|(place, copy)| Reverse((copy.used, place))).collect();
        let (mut chosen, mut freed) = (Vec::new(), 0);
        while freed < bytes
            && let Some(Reverse((_, place))) = oldest.pop()
        {
            let Evictable { id, bytes, tasks, .. } = &candidates[place];
            freed += bytes;
            chosen.push((*id, *bytes, tasks.clone()));
        }
        let removed = self.write(move |changes| {
            let (mut removed, mut gone, mut freed) = (Vec::new(), 0, 0);
            for (id, bytes, tasks) in chosen {
                // It may have been imported, pinned or named anew since it was looked at.
                let still = |task: &TaskId| changes.task(task).is_some_and(|now| now.fetched && !now.pinned);
                if changes.content(id).is_none() || !tasks.iter().all(still) || changes.names_of(id) != tasks.len() {
                    continue;
                }
                removed.extend(tasks.iter().filter_map(|task| changes.remove_task(task)));
                changes.drop_unnamed(id);
                (gone, freed) = (gone + 1, freed + bytes);
            }
            Ok((removed, gone, freed))
        });
        let (removed, gone, freed) = removed?;
        tracing::info!(contents = gone, bytes = freed, "copies removed for want of room");
        self.removals.evicted.fetch_add(gone, Ordering::Relaxed);
        self.removals.evicted_bytes.fetch_add(freed, Ordering::Relaxed);
        lock(&self.room.evicted).extend(removed.into_iter().map(Arc::unwrap_or_clone));
        Ok(())
    }
}

impl Reserved {
    /// No room yet.
    pub const fn new(store: Arc<Inner>) -> Self {
        Self { store, bytes: 0 }
    }

    /// Takes room for so many bytes altogether.
    ///
    /// # Errors
    /// [`StoreError::OverQuota`]: it has what it had.
    pub fn grow_to(&mut self, bytes: u64) -> Result<(), StoreError> {
        let Some(more) = bytes.checked_sub(self.bytes).filter(|more| *more > 0) else { return Ok(()) };
        let store = &self.store;
        store.with_room(more, || store.room.importing.fetch_add(more, Ordering::Relaxed))?;
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.store.room.importing.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Reserved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Reserved").field(&self.bytes).finish()
    }
}
