//! Cluster-wide deletes: a tombstone, then word from every holder.

use std::{collections::BTreeSet, time::Duration};

use damselfly_messages::{
    id::TaskId,
    record::Tombstone,
    scheduler::{DeleteAnswer, DeleteTask, ResponseBody},
};
use libp2p::PeerId;

use super::{Action, AskId, Asker, DeleteId, Now, Reply, State, ring_history::Role, tasks::Keep, tombstones::Report};

/// Each holder has 5 s of its own; with very many of them the asker must still get an answer in time.
const ALL_WITHIN: Duration = Duration::from_secs(15);

/// The next try after this when too many deletes wait.
const RETRY: Duration = Duration::from_secs(1);

/// A delete that waits for holders.
#[derive(Debug)]
pub(super) struct Pending {
    ask: AskId,
    tombstone: Tombstone,
    waiting: BTreeSet<PeerId>,
    dropped: u32,
    unreachable: u32,
    warm: bool,
    deadline: Duration,
}

impl State {
    /// Buries the task and asks its holders to drop it; `None` while they have yet to answer.
    ///
    /// The asker is not told: it drops the task by the answer, and is not counted.
    pub(super) fn delete(
        &mut self,
        ask: AskId,
        asker: Asker,
        delete: DeleteTask,
        now: Now,
        actions: &mut Vec<Action>,
    ) -> Result<Option<ResponseBody>, Reply> {
        let task = delete.task;
        // A former owner knows holders that the new ones may not have heard of yet.
        self.admit(asker, &task, true, now)?;
        let warm = self.ring_history.is_warm(&task, now.at);
        let nothing = |tombstone| DeleteAnswer { tombstone, dropped: 0, unreachable: 0, warm };
        let Some(generation) = self.deletable(&task, &delete) else {
            let bound = self.tasks.contains_key(&task);
            let known = self.tombstone(&task).filter(|_| !bound);
            return Ok(Some(ResponseBody::Deleted(nothing(known))));
        };
        if self.deletes.len() >= self.limits.deletes {
            return Err(Reply::Busy(RETRY));
        }
        let keep = match self.ring_history.role(&task, now.at) {
            Role::Owner => Keep::Owned,
            Role::Former => Keep::Former,
            Role::NotOwner => Keep::StandIn,
        };
        let id = DeleteId(self.next_delete);
        self.next_delete += 1;
        // What was imported after the delete was asked for is not meant by it, however long it had to wait.
        let deleted = delete.asked.map_or(now.wall, |asked| asked.min(now.wall));
        let tombstone = Tombstone { task, generation, deleted };
        self.deletions.remember(asker.peer, delete, tombstone, now.wall);
        let host = self.hosts.id(&asker.peer);
        let report = Report { tombstone, keep, peer: asker.peer, bound: true };
        let waiting: BTreeSet<_> = self.apply_tombstone(report, host, Some(id), now, actions).into_iter().collect();
        if waiting.is_empty() {
            return Ok(Some(ResponseBody::Deleted(nothing(Some(tombstone)))));
        }
        let deadline = now.at + ALL_WITHIN;
        self.deletes.insert(id, Pending { ask, tombstone, waiting, dropped: 0, unreachable: 0, warm, deadline });
        Ok(None)
    }

    /// The generation to bury; `None` when there is nothing, or only what was accepted after the delete was asked for.
    fn deletable(&self, task: &TaskId, delete: &DeleteTask) -> Option<u64> {
        let meant = |accepted| delete.asked.is_none_or(|asked| accepted <= Some(asked));
        let candidates = &self.tasks.get(task)?.candidates;
        let bindings = candidates.iter().map(|candidate| &candidate.binding);
        bindings.filter(|binding| meant(binding.accepted)).map(|binding| binding.generation).max()
    }

    pub(super) fn on_notified(&mut self, id: DeleteId, peer: &PeerId, answered: bool, actions: &mut Vec<Action>) {
        let Some(pending) = self.deletes.get_mut(&id) else { return };
        if !pending.waiting.remove(peer) {
            return;
        }
        *(if answered { &mut pending.dropped } else { &mut pending.unreachable }) += 1;
        if pending.waiting.is_empty() {
            self.finish_delete(id, actions);
        }
    }

    /// Answers deletes whose time is over.
    pub(super) fn sweep_deletes(&mut self, now: Now, actions: &mut Vec<Action>) {
        let over = self.deletes.iter().filter(|(_, pending)| pending.deadline <= now.at);
        for id in over.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.finish_delete(id, actions);
        }
    }

    fn finish_delete(&mut self, id: DeleteId, actions: &mut Vec<Action>) {
        let Some(pending) = self.deletes.remove(&id) else { return };
        let answer = DeleteAnswer {
            tombstone: Some(pending.tombstone),
            dropped: pending.dropped,
            unreachable: pending.unreachable + pending.waiting.len() as u32,
            warm: pending.warm,
        };
        actions.push(Action::Reply { ask: pending.ask, reply: self.respond(ResponseBody::Deleted(answer)) });
    }
}
