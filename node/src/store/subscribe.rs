//! Telling who follows the store which tasks have changed: every commit passes here, so no change is forgotten.

use std::collections::BTreeSet;

use damselfly_messages::id::TaskId;

use super::{
    Inner, Store,
    record::Held,
    state::{Overlay, State},
};

pub(super) type Watcher = Box<dyn Fn(&[TaskId]) + Send + Sync>;

impl Store {
    /// From now on `on_change` hears of each task whose binding, state or tombstone changes, and of each task whose
    /// content becomes complete or stops being so. The first one to call this is the only one.
    ///
    /// It is called after the change can be seen and before whoever made it goes on. It must not change the store.
    pub fn watch(&self, on_change: impl Fn(&[TaskId]) + Send + Sync + 'static) {
        if self.inner.watcher.set(Box::new(on_change)).is_err() {
            tracing::error!("the store is watched already");
        }
    }
}

impl Inner {
    pub(super) fn tell(&self, tasks: &BTreeSet<TaskId>) {
        if let Some(watcher) = self.watcher.get().filter(|_| !tasks.is_empty()) {
            watcher(&tasks.iter().copied().collect::<Vec<_>>());
        }
    }
}

impl State {
    /// The tasks that are others after `overlay`, which has not been applied yet.
    pub(super) fn concerned(&self, overlay: &Overlay) -> BTreeSet<TaskId> {
        let mut tasks: BTreeSet<TaskId> = overlay.tombstones.keys().copied().collect();
        for (task, record) in &overlay.tasks {
            // Moments of last use concern nobody.
            let stays = match (self.tasks.get(task), record) {
                (Some(old), Some(new)) => old.binding == new.binding && old.state == new.state,
                (None, None) => true,
                (Some(_), None) | (None, Some(_)) => false,
            };
            if !stays {
                tasks.insert(*task);
            }
        }
        for (id, content) in &overlay.contents {
            let was = self.contents.get(id).is_some_and(|content| content.record.state == Held::Complete);
            let is = content.as_ref().is_some_and(|content| content.record.state == Held::Complete);
            if was != is {
                tasks.extend(self.tasks_of(*id));
            }
        }
        tasks
    }

    /// Every task that there is or was.
    pub(super) fn known(&self) -> impl Iterator<Item = TaskId> {
        self.tasks.keys().chain(self.tombstones.keys()).copied()
    }
}
