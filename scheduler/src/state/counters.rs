//! Numbers for the metrics.

use super::State;

/// What happened since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Records refused or removed because another content stands under their name.
    pub conflicts: u64,
    /// Notifications sent to hosts.
    pub notifications: u64,
    /// Reports that a parent's bytes did not verify.
    pub lies: u64,
    /// Reports that a content is not what its sha256 name says.
    pub false_candidates: u64,
    /// Records refused because a bound was reached.
    pub over_bounds: u64,
    /// Hosts whose lease ended.
    pub lapsed_hosts: u64,
    /// Tasks forgotten because nobody holds them any more, or others own them.
    pub forgotten_tasks: u64,
    /// Tombstones forgotten because they are old, others own them, or there was no room for them.
    pub forgotten_tombstones: u64,
}

/// How much there is now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Tasks that are bound to a content.
    pub tasks: usize,
    /// Records of contents told by hosts.
    pub announcements: usize,
    /// Hosts with a live lease.
    pub hosts: usize,
    /// Those of them whose connection has ended.
    pub suspect_hosts: usize,
    /// Tombstones.
    pub tombstones: usize,
    /// Tombstones told by hosts: several may tell the same one.
    pub announced_tombstones: usize,
    /// Downloads under way.
    pub downloads: usize,
    /// Estimated bytes of memory but for names.
    pub bytes: usize,
    /// Estimated bytes of names.
    pub name_bytes: usize,
}

// Bytes per entry, measured with random tasks and rounded up: B-tree nodes are two thirds full.
const ANNOUNCEMENT_BYTES: usize = 100;
const TASK_BYTES: usize = 300;
const TOMBSTONE_BYTES: usize = 260;
const HOST_BYTES: usize = 4_096;
const DOWNLOAD_BYTES: usize = 640;

impl State {
    /// What happened since the start.
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How much there is now.
    pub fn gauges(&self) -> Gauges {
        Gauges {
            tasks: self.tasks.len(),
            announcements: self.announcements,
            hosts: self.hosts.len(),
            suspect_hosts: self.hosts.iter().filter(|(_, host)| host.suspect).count(),
            tombstones: self.tombstones.len(),
            announced_tombstones: self.announced_tombstones,
            downloads: self.downloads.len(),
            bytes: self.estimated_bytes(),
            name_bytes: self.names.bytes(),
        }
    }

    /// An upper estimate. Further candidates of a task are not counted: each has announcements of its own.
    pub(super) fn estimated_bytes(&self) -> usize {
        self.lasting_bytes() + self.tombstones.len() * TOMBSTONE_BYTES
    }

    /// Estimated bytes of what no new name displaces.
    pub(super) fn lasting_bytes(&self) -> usize {
        self.bytes_without_tombstones() + self.announced_tombstones * ANNOUNCEMENT_BYTES
    }

    /// Estimated bytes of what is not about deletes.
    pub(super) fn bytes_without_tombstones(&self) -> usize {
        self.announcements * ANNOUNCEMENT_BYTES
            + self.tasks.len() * TASK_BYTES
            + self.hosts.len() * HOST_BYTES
            + self.downloads.len() * DOWNLOAD_BYTES
    }
}
