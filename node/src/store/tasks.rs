//! Tasks, tombstones, queued deletes and the daemon's own few values.

use std::sync::{Arc, atomic::Ordering};

use damselfly_messages::{
    id::{ContentId, TaskId},
    name::Name,
    record::{Binding, Tombstone, UnixMillis},
};

use super::{
    Store,
    changes::Changes,
    error::StoreError,
    lock,
    record::{Held, QueuedDelete, TaskRecord, TaskState},
};

impl Store {
    /// The record of a task.
    pub fn task(&self, task: &TaskId) -> Option<TaskRecord> {
        self.inner.state().tasks.get(task).map(|record| TaskRecord::clone(record))
    }

    /// Every task, in no order; a snapshot that costs a pointer each.
    pub fn tasks(&self) -> Vec<Arc<TaskRecord>> {
        self.inner.state().tasks.values().cloned().collect()
    }

    /// Puts a record in place of whatever stood under its name: a decision that was taken already.
    ///
    /// One sync, shared with whoever writes at the same time; durable when it returns. When the name stood for another
    /// content before and that has no other name, that content goes.
    ///
    /// # Errors
    /// [`StoreError::NotHeld`] when nothing is known of the content, [`StoreError::Buried`] when a tombstone beats it.
    pub fn put_task(&self, record: TaskRecord) -> Result<(), StoreError> {
        self.inner.write(move |changes| changes.put_task(record))
    }

    /// Binds a name to a content that is here already: like [`Store::put_task`], but keeps what users rely on.
    ///
    /// # Errors
    /// [`StoreError::Bound`] when the name stands for other bytes in the same or a later generation.
    pub fn bind(&self, record: TaskRecord) -> Result<(), StoreError> {
        self.inner.write(move |changes| changes.bind(record))
    }

    /// Keeps that an owner accepted a binding of this task. Returns whether the task still stands for that content and
    /// was not decided otherwise meanwhile; if not, nothing changes.
    ///
    /// # Errors
    /// As [`Store::put_task`].
    pub fn acknowledge(&self, task: &TaskId, binding: Binding) -> Result<bool, StoreError> {
        let task = *task;
        self.inner.write(move |changes| {
            let Some(record) = changes.task(&task) else { return Ok(false) };
            let decided = matches!(record.state, TaskState::Conflict { .. } | TaskState::Stale);
            if decided || record.binding.content != binding.content {
                return Ok(false);
            }
            let record = TaskRecord { binding, state: TaskState::Acknowledged, ..TaskRecord::clone(record) };
            changes.put_task(record).map(|()| true)
        })
    }

    /// Makes every acknowledged task stale, in one commit. Returns how many there were.
    ///
    /// # Errors
    /// [`StoreError`] when it could not be made durable.
    pub fn mark_stale(&self) -> Result<usize, StoreError> {
        self.inner.write(|changes| {
            let tasks = changes.base().tasks.iter();
            let acknowledged = tasks.filter(|(_, record)| record.state == TaskState::Acknowledged);
            let acknowledged: Vec<_> = acknowledged.map(|(task, _)| *task).collect();
            acknowledged.iter().for_each(|task| changes.put_state(task, TaskState::Stale));
            Ok(acknowledged.len())
        })
    }

    /// Removes a task; returns what it was. Its content goes with its last name.
    ///
    /// Readers that have the content open go on. Once this returns, the task does not come back, whatever happens.
    ///
    /// # Errors
    /// [`StoreError`] when it could not be made durable.
    pub fn remove_task(&self, task: &TaskId) -> Result<Option<TaskRecord>, StoreError> {
        let task = *task;
        let removed = self.inner.write(move |changes| Ok(changes.remove_task(&task)))?;
        Ok(removed.map(Arc::unwrap_or_clone))
    }

    /// The contents of which a part is here and that no task names: downloads under way or interrupted.
    pub fn unnamed_partial(&self) -> Vec<(ContentId, u64)> {
        let state = self.inner.state();
        let partial = |content: &super::state::Content| matches!(content.record.state, Held::Partial(_));
        let contents =
            state.contents.iter().filter(|(id, content)| partial(content) && state.tasks_of(**id).next().is_none());
        contents.map(|(id, content)| (*id, content.record.bytes)).collect()
    }

    /// Removes what is here of a content that is not complete and that no task names; whether there was something. One
    /// that is being downloaded stays.
    ///
    /// # Errors
    /// [`StoreError`] when it could not be made durable.
    pub fn remove_partial(&self, id: ContentId) -> Result<bool, StoreError> {
        if lock(&self.inner.under_way).contains_key(&id) {
            return Ok(false);
        }
        self.inner.write(move |changes| {
            let partial = changes.content(id).is_some_and(|content| matches!(content.record.state, Held::Partial(_)));
            let removed = partial && !changes.is_named(id) && !changes.is_kept(id);
            if removed {
                changes.remove_content(id);
            }
            Ok(removed)
        })
    }

    /// Notes that a task was used. Costs no sync and may be lost: see [`Store::keep_last_used`].
    pub fn touch(&self, task: &TaskId, used: UnixMillis) {
        self.inner.state_mut().touch(task, used);
    }

    /// Remembers a delete and removes the task it buries, both or neither; returns the removed task.
    ///
    /// A tombstone of a higher generation that is here already stays. A queued task that was imported after the delete
    /// stays too, with the next generation.
    ///
    /// # Errors
    /// [`StoreError`] when it could not be made durable.
    pub fn put_tombstone(&self, tombstone: Tombstone) -> Result<Option<TaskRecord>, StoreError> {
        let removed = self.inner.write(move |changes| Ok(changes.put_tombstone(tombstone)))?;
        Ok(removed.map(Arc::unwrap_or_clone))
    }

    /// The tombstone of a task.
    pub fn tombstone(&self, task: &TaskId) -> Option<Tombstone> {
        self.inner.state().tombstones.get(task).copied()
    }

    /// Every tombstone, in no order.
    pub fn tombstones(&self) -> Vec<Tombstone> {
        self.inner.state().tombstones.values().copied().collect()
    }

    /// Forgets tombstones of deletes before `limit`; returns how many.
    ///
    /// # Errors
    /// [`StoreError`] when it could not be made durable.
    pub fn forget_tombstones_before(&self, limit: UnixMillis) -> Result<usize, StoreError> {
        let forgotten = self.inner.write(move |changes| {
            let tombstones = changes.base().tombstones.values();
            let old: Vec<_> = tombstones.filter(|tombstone| tombstone.deleted < limit).map(|old| old.task).collect();
            old.iter().for_each(|task| changes.forget_tombstone(*task));
            Ok(old.len())
        })?;
        self.inner.removals.tombstones.fetch_add(forgotten as u64, Ordering::Relaxed);
        Ok(forgotten)
    }

    /// Remembers a delete that no owner could be told of. A second one of the same name changes nothing.
    ///
    /// # Errors
    /// [`StoreError`] when it could not be made durable.
    pub fn put_queued_delete(&self, delete: QueuedDelete) -> Result<(), StoreError> {
        self.inner.write(move |changes| {
            if !changes.base().queued_deletes.contains_key(&delete.name.task_id()) {
                changes.put_queued_delete(delete);
            }
            Ok(())
        })
    }

    /// Remembers a delete that no owner could be told of, and removes the task; both or neither.
    ///
    /// # Errors
    /// [`StoreError`] when it could not be made durable.
    pub fn queue_delete(&self, delete: QueuedDelete) -> Result<Option<TaskRecord>, StoreError> {
        let removed = self.inner.write(move |changes| {
            let task = delete.name.task_id();
            if !changes.base().queued_deletes.contains_key(&task) {
                changes.put_queued_delete(delete);
            }
            Ok(changes.remove_task(&task))
        })?;
        Ok(removed.map(Arc::unwrap_or_clone))
    }

    /// Every delete that waits for an owner, in no order.
    pub fn queued_deletes(&self) -> Vec<QueuedDelete> {
        self.inner.state().queued_deletes.values().cloned().collect()
    }

    /// Forgets a queued delete: an owner has been told.
    ///
    /// # Errors
    /// [`StoreError`] when it could not be made durable.
    pub fn remove_queued_delete(&self, name: &Name) -> Result<(), StoreError> {
        let task = name.task_id();
        self.inner.write(move |changes| {
            changes.remove_queued_delete(task);
            Ok(())
        })
    }

    /// Removes what has expired, and what was abandoned (see [`super::Options::abandoned_after`]). Returns the tasks.
    ///
    /// Pinned tasks stay. Costs a sync only when there is something to remove.
    ///
    /// # Errors
    /// [`StoreError`] when it could not be made durable.
    pub fn expire(&self, now: UnixMillis) -> Result<Vec<TaskRecord>, StoreError> {
        let under_way: Vec<_> = lock(&self.inner.under_way).keys().copied().collect();
        let age = self.inner.options.abandoned_after.as_millis() as u64;
        let removed = self.inner.write(move |changes| {
            let expired = |record: &TaskRecord| !record.pinned && record.binding.expires.is_some_and(|at| at <= now);
            let tasks = changes.base().tasks.iter();
            let tasks: Vec<_> = tasks.filter(|(_, record)| expired(record)).map(|(task, _)| *task).collect();
            let removed: Vec<_> = tasks.iter().filter_map(|task| changes.remove_task(task)).collect();
            let abandoned = abandoned(changes, UnixMillis(now.0.saturating_sub(age)));
            let abandoned = abandoned.into_iter().filter(|id| !under_way.contains(id) && !changes.is_kept(*id));
            let abandoned: Vec<_> = abandoned.collect();
            abandoned.iter().for_each(|id| changes.remove_content(*id));
            Ok((removed, abandoned.len() as u64))
        });
        let (removed, abandoned) = removed?;
        self.inner.removals.expired.fetch_add(removed.len() as u64, Ordering::Relaxed);
        self.inner.removals.abandoned.fetch_add(abandoned, Ordering::Relaxed);
        Ok(removed.into_iter().map(Arc::unwrap_or_clone).collect())
    }

    /// Writes the moments of last use, if there are new ones: one sync. Call it every minute or so, and before an
    /// orderly end.
    ///
    /// # Errors
    /// [`StoreError`] when it could not be made durable.
    pub fn keep_last_used(&self) -> Result<(), StoreError> {
        self.inner.write(|changes| {
            changes.put_touched();
            Ok(())
        })
    }

    /// A value that the daemon keeps here.
    ///
    /// # Errors
    /// [`StoreError`] when the index cannot be read.
    pub fn meta_get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.inner.index.meta(key)
    }

    /// Keeps a value for the daemon, or with `None` forgets it. One sync; durable when it returns.
    ///
    /// # Errors
    /// [`StoreError`] when it could not be made durable.
    pub fn meta_put(&self, key: &str, value: Option<&[u8]>) -> Result<(), StoreError> {
        let (key, value) = (key.to_owned(), value.map(<[u8]>::to_vec));
        self.inner.write(move |changes| {
            changes.put_meta(&key, value);
            Ok(())
        })
    }
}

/// Contents without a name that are older than `limit`.
fn abandoned(changes: &Changes<'_>, limit: UnixMillis) -> Vec<ContentId> {
    let state = changes.base();
    let unnamed = |id: &ContentId| state.tasks_of(*id).next().is_none() && !changes.is_named(*id);
    let contents = state.contents.iter();
    contents
        .filter(|(id, content)| match content.record.state {
            Held::Complete | Held::Partial(_) | Held::Damaged => content.record.added <= limit && unnamed(id),
        })
        .map(|(id, _)| *id)
        .collect()
}
