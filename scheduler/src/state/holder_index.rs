//! Keeps hosts and tasks consistent: what a host told is in its digests, and it is a holder of what it told it holds.

use std::sync::Arc;

use damselfly_messages::{id::TaskId, notify, record::Tombstone};
use libp2p::{Multiaddr, PeerId};

use super::{
    Action, DeleteId, Now, State,
    hosts::{HostId, Kind},
    tasks::Candidate,
    tombstones::Report,
};

/// Why a host is no holder any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gone {
    /// It said so, or told something else.
    Left,
    /// Its lease ended: it may come back.
    Lapsed,
}

impl State {
    /// Notes a record as told, word for word.
    pub(super) fn note(&mut self, host: HostId, task: TaskId, digest: u64, kind: Kind) {
        let owned = self.ring_history.owns(&task);
        let Some(known) = self.hosts.get_mut(host) else { return };
        let before = known.tell(task, digest, kind, owned);
        if before != Some(kind) {
            self.count_announced(&task, kind);
            if let Some(before) = before {
                self.count_withdrawn(&task, before, Gone::Left);
            }
        }
    }

    fn count_announced(&mut self, task: &TaskId, kind: Kind) {
        match kind {
            Kind::Held => self.announcements += 1,
            Kind::Tombstone => {
                self.announced_tombstones += 1;
                self.tombstones.on_announced(task);
            }
        }
    }

    fn count_withdrawn(&mut self, task: &TaskId, kind: Kind, why: Gone) {
        match kind {
            Kind::Held => self.announcements -= 1,
            Kind::Tombstone => {
                self.announced_tombstones -= 1;
                self.tombstones.on_withdrawn(task, why);
            }
        }
    }

    /// Forgets what a host told of a task, and that it is a holder.
    pub(super) fn unclaim(&mut self, host: HostId, task: &TaskId, why: Gone, now: Now) {
        self.untell(host, task, why);
        let Some(known) = self.tasks.get_mut(task) else { return };
        for candidate in &mut known.candidates {
            if candidate.unhold(host) && why == Gone::Lapsed {
                candidate.lapsed = true;
            }
        }
        self.prune(task, now);
    }

    fn untell(&mut self, host: HostId, task: &TaskId, why: Gone) {
        let owned = self.ring_history.owns(task);
        if let Some(kind) = self.hosts.get_mut(host).and_then(|host| host.untell(task, owned)) {
            self.count_withdrawn(task, kind, why);
        }
    }

    /// Drops candidates that nobody has or fetches, unless a holder may come back; then the task without candidates.
    pub(super) fn prune(&mut self, task: &TaskId, now: Now) {
        let Some(known) = self.tasks.get_mut(task) else { return };
        let downloads = &self.downloads;
        known.candidates.retain_mut(|candidate| {
            if !candidate.holders.is_empty() || downloads.of(task, candidate.binding.content).next().is_some() {
                candidate.orphaned = None;
                return true;
            }
            candidate.orphaned = candidate.orphaned.or(Some(now.at));
            candidate.lapsed || candidate.is_rejected()
        });
        if known.candidates.is_empty() {
            self.tasks.remove(task);
        }
    }

    /// Drops candidates whose holders are away and that have expired meanwhile.
    pub(super) fn drop_ended(&mut self, task: &TaskId, now: Now) {
        let Some(known) = self.tasks.get_mut(task) else { return };
        known.candidates.retain(|candidate| !candidate.has_ended(now.wall));
        if known.candidates.is_empty() {
            self.tasks.remove(task);
        }
    }

    /// Ends what remains of a candidate that was taken out of its task; returns the hosts that had or fetched it.
    pub(super) fn release(&mut self, task: &TaskId, candidate: &Candidate) -> Vec<HostId> {
        let mut hosts: Vec<_> = candidate.holders.iter().map(|holder| holder.host).collect();
        for host in &hosts {
            self.untell(*host, task, Gone::Left);
        }
        let content = candidate.binding.content;
        let fetching: Vec<_> = self.downloads.of(task, content).map(|download| download.host).collect();
        for host in fetching {
            self.end_download(task, host);
            if !hosts.contains(&host) {
                hosts.push(host);
            }
        }
        hosts
    }

    /// Whether a tombstone known here buries what it should.
    pub(super) fn tombstone(&self, task: &TaskId) -> Option<Tombstone> {
        let kept = self.tombstones.get(task)?;
        Some(Tombstone { task: *task, generation: kept.generation, deleted: kept.deleted })
    }

    /// Keeps a tombstone and tells the holders of what it buries, except one; returns whom it told.
    pub(super) fn apply_tombstone(
        &mut self,
        report: Report,
        except: Option<HostId>,
        delete: Option<DeleteId>,
        now: Now,
        actions: &mut Vec<Action>,
    ) -> Vec<PeerId> {
        let tombstone = report.tombstone;
        let task = tombstone.task;
        while !self.tombstones.contains(&task) && self.tombstones.len() >= self.limits.tombstones {
            if !self.drop_oldest_tombstone() {
                break;
            }
        }
        self.tombstones.put(report, now.at);
        let buried = self.tasks.get_mut(&task).map(|known| known.apply_tombstone(&tombstone)).unwrap_or_default();
        let mut told = Vec::new();
        for candidate in &buried {
            let hosts = self.release(&task, candidate);
            for host in hosts.into_iter().filter(|host| Some(*host) != except) {
                told.extend(self.notify(host, notify::Request::DropTask(tombstone), delete, actions));
            }
        }
        self.prune(&task, now);
        told
    }

    /// Makes room by what is worth least; returns whether there was a tombstone.
    pub(super) fn drop_oldest_tombstone(&mut self) -> bool {
        let dropped = self.tombstones.drop_oldest();
        self.counters.forgotten_tombstones += u64::from(dropped);
        dropped
    }

    /// Tells a host something; returns its name if it is known.
    pub(super) fn notify(
        &self,
        host: HostId,
        request: notify::Request,
        delete: Option<DeleteId>,
        actions: &mut Vec<Action>,
    ) -> Option<PeerId> {
        let host = self.hosts.get(host)?;
        let addresses: Arc<[Multiaddr]> = Arc::clone(&host.addresses);
        actions.push(Action::Notify { peer: host.peer, addresses, request, delete });
        Some(host.peer)
    }
}
