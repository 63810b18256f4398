//! The index in memory, and changes to it that are not durable yet.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use damselfly_messages::{
    id::{ContentId, TaskId},
    manifest::Manifest,
    record::{Tombstone, UnixMillis},
};

use super::record::{ContentRecord, QueuedDelete, TaskRecord};

/// Everything durable that is small, as the last commit left it.
#[derive(Default)]
pub(super) struct State {
    /// Changed by [`State::put_content`] alone.
    pub contents: HashMap<ContentId, Content>,
    /// The lengths of all contents together.
    bytes: u64,
    pub tasks: HashMap<TaskId, Arc<TaskRecord>>,
    pub tombstones: HashMap<TaskId, Tombstone>,
    pub queued_deletes: HashMap<TaskId, QueuedDelete>,
    /// The tasks of each content.
    names: HashMap<ContentId, BTreeSet<TaskId>>,
    /// Tasks whose `last_used` is newer here than in the index.
    pub touched: HashSet<TaskId>,
}

/// A content and which of its lives this is: a content that was dropped and came back has another serial.
#[derive(Debug, Clone)]
pub(super) struct Content {
    pub record: ContentRecord,
    pub serial: u64,
}

impl State {
    /// The lengths of all contents together, of partial ones too: their space is reserved.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Puts a content in place of what stood there, or with `None` removes it.
    pub fn put_content(&mut self, id: ContentId, content: Option<Content>) {
        self.bytes += content.as_ref().map_or(0, |content| content.record.bytes);
        let before = match content {
            Some(content) => self.contents.insert(id, content),
            None => self.contents.remove(&id),
        };
        self.bytes -= before.map_or(0, |before| before.record.bytes);
    }

    pub fn insert_task(&mut self, task: TaskId, record: Arc<TaskRecord>) {
        let content = record.binding.content;
        if let Some(old) = self.tasks.insert(task, record) {
            self.forget_name(old.binding.content, &task);
        }
        self.names.entry(content).or_default().insert(task);
    }

    pub fn remove_task(&mut self, task: &TaskId) {
        if let Some(old) = self.tasks.remove(task) {
            self.forget_name(old.binding.content, task);
        }
        self.touched.remove(task);
    }

    /// Notes a later use of a task, in memory only.
    pub fn touch(&mut self, task: &TaskId, used: UnixMillis) {
        if let Some(record) = self.tasks.get_mut(task).filter(|record| record.last_used < used) {
            Arc::make_mut(record).last_used = used;
            self.touched.insert(*task);
        }
    }

    fn forget_name(&mut self, content: ContentId, task: &TaskId) {
        if let Some(tasks) = self.names.get_mut(&content) {
            tasks.remove(task);
            if tasks.is_empty() {
                self.names.remove(&content);
            }
        }
    }

    /// The tasks that are bound to `content` here.
    pub fn tasks_of(&self, content: ContentId) -> impl Iterator<Item = &TaskId> {
        self.names.get(&content).into_iter().flatten()
    }

    /// Whether a content was adopted and has no name but its content ID.
    pub fn is_unnamed(&self, id: ContentId) -> bool {
        let adopted = self.contents.get(&id).is_some_and(|content| content.record.adopted);
        let by_id = |task: &TaskId| {
            self.tasks
                .get(task)
                .is_some_and(|record| record.name.tag().is_empty() && record.name.cid() == id.to_string())
        };
        adopted && self.tasks_of(id).all(by_id)
    }

    /// Everything, as changes to an empty index.
    pub fn to_overlay(&self) -> Overlay {
        Overlay {
            contents: self.contents.iter().map(|(id, content)| (*id, Some(content.clone()))).collect(),
            tasks: self.tasks.iter().map(|(task, record)| (*task, Some(record.clone()))).collect(),
            tombstones: self.tombstones.iter().map(|(task, tombstone)| (*task, Some(*tombstone))).collect(),
            queued_deletes: self.queued_deletes.iter().map(|(task, old)| (*task, Some(old.clone()))).collect(),
            ..Overlay::default()
        }
    }

    /// Takes over changes that are durable now.
    pub fn apply(&mut self, overlay: Overlay) {
        for (id, content) in overlay.contents {
            self.put_content(id, content);
        }
        for (task, record) in overlay.tasks {
            match record {
                Some(record) => self.insert_task(task, record),
                None => self.remove_task(&task),
            }
        }
        for (task, tombstone) in overlay.tombstones {
            match tombstone {
                Some(tombstone) => self.tombstones.insert(task, tombstone),
                None => self.tombstones.remove(&task),
            };
        }
        for (task, delete) in overlay.queued_deletes {
            match delete {
                Some(delete) => self.queued_deletes.insert(task, delete),
                None => self.queued_deletes.remove(&task),
            };
        }
    }
}

/// New values of what a commit changes; `None` removes.
#[derive(Default, Clone)]
pub(super) struct Overlay {
    pub contents: HashMap<ContentId, Option<Content>>,
    pub manifests: HashMap<ContentId, Manifest>,
    pub tasks: HashMap<TaskId, Option<Arc<TaskRecord>>>,
    pub tombstones: HashMap<TaskId, Option<Tombstone>>,
    pub queued_deletes: HashMap<TaskId, Option<QueuedDelete>>,
    pub meta: HashMap<String, Option<Vec<u8>>>,
    /// The folder of complete contents has new entries, which must last before the index names them.
    pub sync_contents: bool,
}

impl Overlay {
    /// Whether something is removed or to be: that must work when nothing else does.
    pub fn removes(&self) -> bool {
        self.contents.values().any(Option::is_none)
            || self.tasks.values().any(Option::is_none)
            || !self.tombstones.is_empty()
            || !self.queued_deletes.is_empty()
    }

    pub fn is_empty(&self) -> bool {
        self.contents.is_empty()
            && self.tasks.is_empty()
            && self.tombstones.is_empty()
            && self.queued_deletes.is_empty()
            && self.meta.is_empty()
    }
}
