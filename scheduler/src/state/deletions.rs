//! What was deleted lately and by whom: for the manager's audit, which decides nothing.

use std::{collections::VecDeque, time::Duration};

use damselfly_messages::{
    info::{DELETIONS_MAX, Deletion, DeletionsAnswer},
    record::{Tombstone, UnixMillis},
    scheduler::DeleteTask,
};
use libp2p::PeerId;

/// Those that are remembered, until the manager has asked for them.
const REMEMBERED_MAX: usize = 4_096;
/// For how long they are told: the manager knows of older ones no more whether it has noted them.
const TOLD: Duration = Duration::from_secs(7 * 24 * 3600);

/// The latest deletes, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Deletions {
    latest: VecDeque<(Deletion, UnixMillis)>,
}

impl Deletions {
    /// Remembers a delete that has buried something.
    pub(super) fn remember(&mut self, peer: PeerId, delete: DeleteTask, tombstone: Tombstone, wall: UnixMillis) {
        if self.latest.len() >= REMEMBERED_MAX {
            self.latest.pop_front();
        }
        // By the clock, so that they are in order across a start too.
        let number = self.latest.back().map_or(0, |(last, _)| last.number + 1).max(wall.0);
        let DeleteTask { name, uid, .. } = delete;
        self.latest.push_back((Deletion { number, peer, uid, name, tombstone }, wall));
    }

    /// The first of those after a number.
    pub(super) fn after(&self, number: u64, wall: UnixMillis) -> DeletionsAnswer {
        let since = UnixMillis(wall.0.saturating_sub(TOLD.as_millis() as u64));
        let begin = self.latest.partition_point(|(deletion, _)| deletion.number <= number);
        let rest = self.latest.range(begin..).filter(|(_, at)| *at >= since);
        DeletionsAnswer { items: rest.take(DELETIONS_MAX).map(|(deletion, _)| deletion.clone()).collect() }
    }
}
