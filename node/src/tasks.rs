//! What users ask about tasks besides importing and exporting them: stat, delete, list.

use std::{collections::HashMap, sync::Arc};

use damselfly_messages::{
    id::{ContentId, TaskId},
    name::Name,
    piece::PieceLayout,
    record::{Binding, UnixMillis},
    scheduler::StatAnswer,
};
use damselfly_transport::local::{Code, Failure};

use crate::{
    announcer::Announcer,
    blocking::blocking,
    download::Downloads,
    failure::{IntoFailure as _, OrFailure as _, not_found},
    metrics::Metrics,
    schedulers::{Answer, Schedulers, Unanswered},
    store::{ContentState, QueuedDelete, Store, TaskRecord, TaskState},
};

/// Answers questions about tasks; cheap to clone.
#[derive(Clone)]
pub struct Tasks {
    /// What is here.
    pub store: Store,
    /// Who knows the rest.
    pub schedulers: Schedulers,
    /// What is about to be here.
    pub downloads: Downloads,
    /// Who tells of deletes.
    pub announcer: Announcer,
    /// Counts.
    pub metrics: Metrics,
}

/// What is known of a task.
#[derive(Debug, Clone, Copy)]
pub struct Stat {
    /// What it is bound to.
    pub binding: Binding,
    /// All of it is here.
    pub local: bool,
    /// Hosts that hold all of it.
    pub holders: u32,
    /// Whether its bytes can be had.
    pub available: bool,
}

/// What a delete did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deleted {
    /// Something was there.
    pub deleted: bool,
    /// Hosts that dropped it.
    pub holders: u32,
}

/// An entry of the local store.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its record.
    pub record: Arc<TaskRecord>,
    /// How much of its content is here.
    pub content: Option<ContentState>,
    /// Its names were lost with a damaged index; this one is its content ID.
    pub is_unnamed: bool,
}

impl Tasks {
    /// Looks a task up here, then at its owners.
    ///
    /// # Errors
    /// [`Code::NotFound`], or [`Code::NoSource`] when nobody can say.
    pub async fn stat(&self, name: &Name, local_only: bool) -> Result<Stat, Failure> {
        let here = self.store.task(&name.task_id()).filter(|record| self.is_held(record));
        let mine = here.map(|record| Stat { binding: record.binding, local: true, holders: 1, available: true });
        if local_only {
            return mine.ok_or_else(|| not_found("there is no local copy"));
        }
        match (self.schedulers.stat(name).await, mine) {
            (Ok(Answer::Found(StatAnswer::Found { candidates, holders, available })), mine) => {
                // The owners always name at least one.
                let binding = mine.map_or_else(|| candidates[0], |mine| mine.binding);
                let local = mine.is_some();
                Ok(Stat { binding, local, holders: holders.max(local.into()), available: available || local })
            }
            (Ok(_) | Err(_), Some(mine)) => Ok(mine),
            (Ok(Answer::Missing(Some(_))), None) => Err(not_found("the task was deleted")),
            (Ok(_), None) => Err(not_found("no host holds such a task")
                .with_hint("check cid and tag; dfcache ls on the importing host shows them")),
            (Err(unanswered), None) => Err(unanswered.into_failure()),
        }
    }

    fn is_held(&self, record: &TaskRecord) -> bool {
        matches!(record.state, TaskState::Queued | TaskState::Acknowledged)
            && matches!(self.store.content(record.binding.content), Some(ContentState::Complete { .. }))
    }

    /// Drops the copy here; others keep theirs.
    ///
    /// # Errors
    /// [`Failure`]: the store failed.
    pub async fn delete_here(&self, name: &Name) -> Result<Deleted, Failure> {
        // An export may have ended a moment ago, before its copy was in the store.
        let (store, task) = (self.store.clone(), name.task_id());
        self.downloads.settled(&task).await;
        let removed = blocking(move || store.remove_task(&task)).await.or_failure()?.is_some();
        if removed {
            self.metrics.deletes.inc();
            self.announcer.leave(task).await;
        }
        let removed = self.drop_partial(task).await? || removed;
        Ok(Deleted { deleted: removed, holders: removed.into() })
    }

    /// Drops what an interrupted download has left of this task.
    async fn drop_partial(&self, task: TaskId) -> Result<bool, Failure> {
        let Some((content, _)) = self.partial().into_iter().find(|(_, name)| name.task_id() == task) else {
            return Ok(false);
        };
        let store = self.store.clone();
        blocking(move || store.remove_partial(content)).await.or_failure()
    }

    /// Partial copies, and what they are called here: as they were asked for, and by their content ID after a restart.
    fn partial(&self) -> Vec<(ContentId, Name)> {
        let name = |id: ContentId| self.downloads.name_of(id).or_else(|| Name::of_content(id, "").ok());
        self.store.unnamed_partial().into_iter().filter_map(|(id, _)| Some((id, name(id)?))).collect()
    }

    /// Deletes a task in the whole cluster, for this user.
    ///
    /// # Errors
    /// [`Code::NoSource`]: it is dropped here, and the delete is queued.
    pub async fn delete_everywhere(&self, name: &Name, uid: u32) -> Result<Deleted, Failure> {
        let here = self.store.task(&name.task_id());
        let answer = match self.schedulers.delete(name, None, Some(uid)).await {
            Ok(answer) => answer,
            // There are no others.
            Err(Unanswered::NoCluster) => return self.delete_here(name).await,
            Err(unanswered) => {
                self.queue_delete(name, uid).await?;
                let why = unanswered.to_string();
                let message = format!("dropped here; the delete for the other hosts is queued: {why}");
                return Err(Failure { message, ..unanswered.into_failure() });
            }
        };
        let Some(tombstone) = answer.tombstone else {
            // The owners never heard of it: then what is here, a conflict or a queued import, is all there is.
            return self.delete_here(name).await;
        };
        if let Err(failure) = self.drop_partial(name.task_id()).await {
            // The delete itself is done.
            tracing::warn!(%failure, cid = name.cid(), "what an interrupted download left of a deleted task stays for now");
        }
        let buried = self.announcer.bury(tombstone).await.or_failure().map_err(|failure| {
            let message = format!("the other hosts delete it, but this host could not: {}", failure.message);
            Failure { message, ..failure }.with_hint("dfcache delete again when that is put right")
        })?;
        let held_here = buried || here.is_some();
        self.metrics.deletes.inc();
        let holders = answer.dropped + u32::from(held_here);
        Ok(Deleted { deleted: holders > 0 || answer.unreachable > 0, holders })
    }

    async fn queue_delete(&self, name: &Name, uid: u32) -> Result<(), Failure> {
        let (store, name) = (self.store.clone(), name.clone());
        let queued = self.announcer.clock().now();
        let delete = QueuedDelete { name, queued, uid: Some(uid) };
        blocking(move || store.queue_delete(delete)).await.or_failure()?;
        self.announcer.wake();
        Ok(())
    }

    /// Records as a task would have them, for partial copies.
    fn partial_records(&self) -> Vec<Arc<TaskRecord>> {
        let bytes: HashMap<_, _> = self.store.unnamed_partial().into_iter().collect();
        let record = |(content, name): (ContentId, Name)| {
            let content_bytes = *bytes.get(&content)?;
            let binding = Binding { content, content_bytes, generation: 0, accepted: None, expires: None };
            let (imported, last_used) = (UnixMillis(0), UnixMillis(0));
            let state = TaskState::Acknowledged;
            Some(Arc::new(TaskRecord { name, binding, state, imported, last_used, pinned: false, fetched: true }))
        };
        self.partial().into_iter().filter_map(record).collect()
    }

    /// What is here, ordered by cid and tag; partial copies too.
    pub fn list(&self, tag: Option<&str>) -> Vec<Entry> {
        let mut records = self.store.tasks();
        records.extend(self.partial_records());
        records.retain(|record| tag.is_none_or(|tag| record.name.tag() == tag));
        records.sort_by(|one, other| one.name.cmp(&other.name));
        let entry = |record: Arc<TaskRecord>| {
            let content = record.binding.content;
            Entry { content: self.store.content(content), is_unnamed: self.store.is_unnamed(content), record }
        };
        records.into_iter().map(entry).collect()
    }
}

/// The layout of a bound content; a length beyond the limit cannot get into a binding.
pub fn layout_of(binding: &Binding) -> Result<PieceLayout, Failure> {
    PieceLayout::new(binding.content_bytes).map_err(|error| Failure::new(Code::Failed, error.to_string()))
}
