//! What is known of a task.

use std::collections::BTreeMap;

use damselfly_messages::{
    id::TaskId,
    name::Name,
    piece::PieceLayout,
    scheduler::{Missing, ResponseBody, StatAnswer},
};

use super::{
    Asker, Now, Reply, State,
    announce::pieces,
    hosts::HostId,
    tasks::{Candidate, Task},
};

impl State {
    pub(super) fn stat(&mut self, asker: Asker, name: &Name, now: Now) -> Result<ResponseBody, Reply> {
        let task = name.task_id();
        self.admit(asker, &task, true, now)?;
        self.drop_ended(&task, now);
        let found = self.tasks.get(&task).and_then(|known| self.found(&task, known));
        Ok(ResponseBody::Stat(found.unwrap_or_else(|| StatAnswer::Missing(self.missing(&task, now)))))
    }

    pub(super) fn missing(&self, task: &TaskId, now: Now) -> Missing {
        Missing { warm: self.ring_history.is_warm(task, now.at), deleted: self.tombstone(task) }
    }

    fn found(&self, task: &TaskId, known: &Task) -> Option<StatAnswer> {
        let (mut candidates, mut holders, mut available) = (Vec::new(), 0, false);
        for candidate in known.standing() {
            candidates.push(candidate.binding);
            let live = self.live_holders(task, candidate);
            let complete = live.values().filter(|pieces| **pieces == u32::MAX).count() as u32;
            holders += complete;
            available |= complete > 0 || together_complete(candidate, &live);
        }
        (!candidates.is_empty()).then_some(StatAnswer::Found { candidates, holders, available })
    }

    /// Hosts that hold or fetch a candidate and are not suspect, with the pieces they have.
    pub(super) fn live_holders(&self, task: &TaskId, candidate: &Candidate) -> BTreeMap<HostId, u32> {
        let announced = candidate.holders.iter().map(|holder| (holder.host, pieces(holder.holding)));
        let content = candidate.binding.content;
        let fetching = self.downloads.of(task, content).map(|download| (download.host, download.pieces));
        let mut live = BTreeMap::new();
        for (host, pieces) in announced.chain(fetching) {
            if self.hosts.get(host).is_some_and(|host| !host.suspect) {
                let most = live.entry(host).or_insert(0);
                *most = pieces.max(*most);
            }
        }
        live
    }
}

/// Whether partial holders may have every piece together.
///
/// Only their numbers are known here, so this can be wrong in one direction: an export that could succeed is never
/// given up because of it.
pub(super) fn together_complete(candidate: &Candidate, live: &BTreeMap<HostId, u32>) -> bool {
    let Ok(layout) = PieceLayout::new(candidate.binding.content_bytes) else { return false };
    let pieces = live.values().map(|pieces| u64::from(*pieces)).sum::<u64>();
    !live.is_empty() && pieces >= layout.pieces().into()
}
