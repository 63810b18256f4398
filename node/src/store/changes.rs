//! One change to the store: decided on what the last commit left and what others change in the same commit.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use damselfly_messages::{
    id::{ContentId, TaskId},
    manifest::Manifest,
    name::Name,
    record::{Binding, Tombstone, UnixMillis},
};

use super::{
    disk::{At, Disk, Folder},
    error::StoreError,
    io_error,
    record::{ContentRecord, Held, Location, QueuedDelete, TaskRecord, TaskState},
    retain::KeptContents,
    state::{Content, Overlay, State},
};

/// Changes that will be committed together, seen as if they were done already.
///
/// Only one thread at a time has one, and the folder of complete contents changes only through it. That is what keeps
/// a file from being dropped and brought back at once.
pub(super) struct Changes<'a> {
    base: &'a State,
    overlay: Overlay,
    disk: &'a Disk,
    serials: &'a AtomicU64,
    kept: &'a KeptContents,
}

impl<'a> Changes<'a> {
    pub fn new(base: &'a State, disk: &'a Disk, serials: &'a AtomicU64, kept: &'a KeptContents) -> Self {
        Self { base, overlay: Overlay::default(), disk, serials, kept }
    }

    pub fn into_overlay(self) -> Overlay {
        self.overlay
    }

    /// Does all of `change` or, when it fails, nothing of it.
    pub fn attempt<R>(&mut self, change: impl FnOnce(&mut Self) -> Result<R, StoreError>) -> Result<R, StoreError> {
        let before = self.overlay.clone();
        let result = change(self);
        if result.is_err() {
            // A folder that was changed stays to be synced: that costs little and can only help.
            let sync_contents = self.overlay.sync_contents;
            self.overlay = Overlay { sync_contents, ..before };
        }
        result
    }

    pub fn base(&self) -> &State {
        self.base
    }

    pub fn content(&self, id: ContentId) -> Option<&Content> {
        match self.overlay.contents.get(&id) {
            Some(content) => content.as_ref(),
            None => self.base.contents.get(&id),
        }
    }

    pub fn task(&self, task: &TaskId) -> Option<&Arc<TaskRecord>> {
        match self.overlay.tasks.get(task) {
            Some(record) => record.as_ref(),
            None => self.base.tasks.get(task),
        }
    }

    pub fn tombstone(&self, task: &TaskId) -> Option<&Tombstone> {
        match self.overlay.tombstones.get(task) {
            Some(tombstone) => tombstone.as_ref(),
            None => self.base.tombstones.get(task),
        }
    }

    pub fn is_named(&self, id: ContentId) -> bool {
        let unchanged = |task: &&TaskId| !self.overlay.tasks.contains_key(*task);
        self.base.tasks_of(id).any(|task| unchanged(&task))
            || self.overlay.tasks.values().flatten().any(|record| record.binding.content == id)
    }

    /// How many names a content has.
    pub fn names_of(&self, id: ContentId) -> usize {
        let unchanged = self.base.tasks_of(id).filter(|task| !self.overlay.tasks.contains_key(*task)).count();
        unchanged + self.overlay.tasks.values().flatten().filter(|record| record.binding.content == id).count()
    }

    /// Binds a name, unless it stands for other bytes or is deleted.
    pub fn bind(&mut self, mut record: TaskRecord) -> Result<(), StoreError> {
        if let Some(old) = self.task(&record.task_id()) {
            let stands = match old.state {
                TaskState::Queued | TaskState::Acknowledged => true,
                TaskState::Conflict { .. } | TaskState::Stale => false,
            };
            let other = old.binding.content != record.binding.content;
            if stands && other && old.binding.generation >= record.binding.generation {
                return Err(StoreError::Bound(Box::new(TaskRecord::clone(old))));
            }
            if !other {
                record.pinned |= old.pinned;
                record.fetched &= old.fetched;
                record.binding.merge(&old.binding);
            }
        }
        self.put_task(record)
    }

    /// Puts a record, whatever stood under its name. The content that loses its last name goes.
    pub fn put_task(&mut self, record: TaskRecord) -> Result<(), StoreError> {
        let (task, content) = (record.task_id(), record.binding.content);
        if let Some(tombstone) = self.tombstone(&task).filter(|tombstone| tombstone.buries(&record.binding)) {
            return Err(StoreError::Buried(*tombstone));
        }
        if self.content(content).is_none() {
            return Err(StoreError::NotHeld(content));
        }
        let old = self.task(&task).map(|old| old.binding.content);
        self.overlay.tasks.insert(task, Some(Arc::new(record)));
        if let Some(old) = old.filter(|old| *old != content) {
            self.drop_unnamed(old);
        }
        Ok(())
    }

    /// Puts a record that a damaged index had, unless what is here is newer. Its content may be taken in later.
    pub fn put_recovered(&mut self, record: &Arc<TaskRecord>) {
        let task = record.task_id();
        let is_older = |old: &Arc<TaskRecord>| {
            (old.binding.generation, old.last_used) >= (record.binding.generation, record.last_used)
                && old.state == record.state
        };
        if self.task(&task).is_some_and(is_older)
            || self.tombstone(&task).is_some_and(|tombstone| tombstone.buries(&record.binding))
        {
            return;
        }
        let before = self.task(&task).map(|old| old.binding.content);
        self.overlay.tasks.insert(task, Some(record.clone()));
        if let Some(before) = before.filter(|before| *before != record.binding.content) {
            self.drop_unnamed(before);
        }
    }

    /// Gives a content that no name is left of its content ID for a name, and marks it.
    pub fn name_adopted(&mut self, id: ContentId, content_bytes: u64, now: UnixMillis) -> Result<(), StoreError> {
        if self.is_named(id) {
            return Ok(());
        }
        let name = Name::parse(&id.to_string(), "")?;
        let buried = self.tombstone(&name.task_id()).map_or(0, |tombstone| tombstone.generation);
        let binding = Binding { content: id, content_bytes, generation: buried + 1, accepted: None, expires: None };
        let state = TaskState::Queued;
        self.put_task(TaskRecord {
            name,
            binding,
            state,
            imported: now,
            last_used: now,
            pinned: false,
            fetched: false,
        })?;
        self.mark_adopted(id, true);
        Ok(())
    }

    fn mark_adopted(&mut self, id: ContentId, adopted: bool) {
        if let Some(content) = self.content(id).filter(|content| content.record.adopted != adopted) {
            let record = ContentRecord { adopted, ..content.record.clone() };
            self.put_record(id, record);
        }
    }

    /// Removes a task, and its content with the last name.
    pub fn remove_task(&mut self, task: &TaskId) -> Option<Arc<TaskRecord>> {
        let old = self.task(task)?.clone();
        self.overlay.tasks.insert(*task, None);
        self.drop_unnamed(old.binding.content);
        Some(old)
    }

    /// Drops a content unless it has a name or somebody keeps it.
    pub fn drop_unnamed(&mut self, id: ContentId) {
        if !self.is_named(id) && !self.kept.contains(id) && self.content(id).is_some() {
            self.remove_content(id);
        }
    }

    pub fn remove_content(&mut self, id: ContentId) {
        self.overlay.contents.insert(id, None);
        self.overlay.manifests.remove(&id);
    }

    pub fn put_tombstone(&mut self, tombstone: Tombstone) -> Option<Arc<TaskRecord>> {
        let stronger = |old: &&Tombstone| (old.generation, old.deleted) >= (tombstone.generation, tombstone.deleted);
        if self.tombstone(&tombstone.task).filter(stronger).is_none() {
            self.overlay.tombstones.insert(tombstone.task, Some(tombstone));
        }
        let buried = self.task(&tombstone.task).filter(|record| tombstone.buries(&record.binding))?;
        if buried.state != TaskState::Queued || buried.imported <= tombstone.deleted {
            return self.remove_task(&tombstone.task);
        }
        // Imported after the delete, so not meant by it.
        let mut record = TaskRecord::clone(buried);
        record.binding.generation = tombstone.generation + 1;
        record.binding.accepted = None;
        self.overlay.tasks.insert(tombstone.task, Some(Arc::new(record)));
        None
    }

    /// Changes where a task stands with its owners, and nothing else.
    pub fn put_state(&mut self, task: &TaskId, state: TaskState) {
        if let Some(record) = self.task(task) {
            let record = TaskRecord { state, ..TaskRecord::clone(record) };
            self.overlay.tasks.insert(*task, Some(Arc::new(record)));
        }
    }

    pub fn is_kept(&self, id: ContentId) -> bool {
        self.kept.contains(id)
    }

    pub fn forget_tombstone(&mut self, task: TaskId) {
        self.overlay.tombstones.insert(task, None);
    }

    pub fn put_queued_delete(&mut self, delete: QueuedDelete) {
        self.overlay.queued_deletes.insert(delete.name.task_id(), Some(delete));
    }

    pub fn remove_queued_delete(&mut self, task: TaskId) {
        self.overlay.queued_deletes.insert(task, None);
    }

    pub fn put_meta(&mut self, key: &str, value: Option<Vec<u8>>) {
        self.overlay.meta.insert(key.to_owned(), value);
    }

    /// Makes a content complete and binds names to it. `from` is its whole and synced file, and stays where it is when
    /// the content is here already.
    pub fn complete(
        &mut self,
        manifest: &Manifest,
        from: &At,
        tasks: Vec<TaskRecord>,
        now: UnixMillis,
    ) -> Result<(), StoreError> {
        let id = manifest.content();
        let new = !self.is_complete(id);
        if new {
            self.put_content(manifest, Held::Complete, now);
        }
        let is_named = !tasks.is_empty();
        tasks.into_iter().try_for_each(|task| self.bind(task))?;
        if !new && is_named {
            // Whoever names it knows it.
            self.mark_adopted(id, false);
        }
        if new {
            // Last, because it is the one thing here that cannot be taken back.
            self.disk.rename(from, &Folder::Contents.of(id)).map_err(io_error("rename", from))?;
            self.overlay.sync_contents = true;
        }
        Ok(())
    }

    pub fn is_complete(&self, id: ContentId) -> bool {
        self.content(id).is_some_and(|content| content.record.state == Held::Complete)
    }

    /// Records a content with its manifest.
    pub fn put_content(&mut self, manifest: &Manifest, state: Held, now: UnixMillis) {
        let bytes = manifest.layout().content_bytes();
        let added = self.content(manifest.content()).map_or(now, |old| old.record.added);
        let adopted = self.content(manifest.content()).is_some_and(|old| old.record.adopted);
        let record = ContentRecord { bytes, state, added, location: Location::Store, adopted };
        self.put_record(manifest.content(), record);
        self.overlay.manifests.insert(manifest.content(), manifest.clone());
    }

    /// Records a content whose manifest is known.
    pub fn put_record(&mut self, id: ContentId, record: ContentRecord) {
        let serial = match self.content(id) {
            Some(old) if old.record.state == record.state => old.serial,
            _ => self.serials.fetch_add(1, Ordering::Relaxed),
        };
        self.overlay.contents.insert(id, Some(Content { record, serial }));
    }

    /// Writes the moments of last use that so far only memory knows.
    pub fn put_touched(&mut self) {
        let touched: HashSet<TaskId> = self.base.touched.clone();
        for task in touched {
            if let (None, Some(record)) = (self.overlay.tasks.get(&task), self.base.tasks.get(&task)) {
                self.overlay.tasks.insert(task, Some(record.clone()));
            }
        }
    }
}
