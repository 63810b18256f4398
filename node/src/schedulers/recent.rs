//! Holders learned lately: what exports live on while no scheduler can be reached.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use damselfly_messages::{
    id::TaskId,
    scheduler::{Candidate, PARENTS_MAX, Parent},
};

/// How long holders are remembered.
const REMEMBERED: Duration = Duration::from_secs(600);
/// Most tasks whose holders are remembered.
const TASKS_MAX: usize = 10_000;

/// Who held which content in the last ten minutes.
#[derive(Default)]
pub struct RecentHolders(Mutex<HashMap<TaskId, (Vec<Candidate>, Instant)>>);

impl RecentHolders {
    /// Remembers the answer of an owner.
    pub fn learn(&self, task: TaskId, candidates: &[Candidate]) {
        if candidates.iter().all(|candidate| candidate.parents.is_empty()) {
            return;
        }
        let now = Instant::now();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= TASKS_MAX {
            known.retain(|_, (_, since)| now.duration_since(*since) < REMEMBERED);
        }
        if known.len() < TASKS_MAX {
            known.insert(task, (candidates.to_vec(), now));
        }
    }

    /// Remembers further parents of a content.
    pub fn add(&self, task: TaskId, content: damselfly_messages::id::ContentId, parents: &[Parent]) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((candidates, since)) = known.get_mut(&task) else { return };
        let Some(candidate) = candidates.iter_mut().find(|candidate| candidate.binding.content == content) else {
            return;
        };
        *since = Instant::now();
        for parent in parents {
            candidate.parents.retain(|other| other.peer != parent.peer);
            candidate.parents.push(parent.clone());
        }
        let excess = candidate.parents.len().saturating_sub(PARENTS_MAX);
        candidate.parents.drain(..excess);
    }

    /// What is remembered of a task.
    pub fn of(&self, task: &TaskId) -> Option<Vec<Candidate>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (candidates, since) = known.get(task)?;
        (since.elapsed() < REMEMBERED).then(|| candidates.clone())
    }

    /// Forgets a task, because it was deleted.
    pub fn forget(&self, task: &TaskId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(task);
    }
}
