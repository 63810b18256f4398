//! Keeps hosts and tasks consistent: what a host told is in its digests, and it is a holder of what it told it holds.

use std::sync::Arc;

use damselfly_messages::{id::TaskId, notify, record::Tombstone};
use libp2p::{Multiaddr, PeerId};

use super::{Action, DeleteId, Grave, Now, State, hosts::HostId, tasks::Candidate, tasks::Keep};

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
    pub(super) fn note(&mut self, host: HostId, task: TaskId, digest: u64) {
        let owned = self.eras.owns(&task);
        if let Some(host) = self.hosts.get_mut(host)
            && host.tell(task, digest, owned)
        {
            self.announcements += 1;
        }
    }

    /// Forgets what a host told of a task, and that it is a holder.
    pub(super) fn unclaim(&mut self, host: HostId, task: &TaskId, why: Gone, now: Now) {
        self.untell(host, task);
        let Some(known) = self.tasks.get_mut(task) else { return };
        for candidate in &mut known.candidates {
            if candidate.unhold(host) && why == Gone::Lapsed {
                candidate.lapsed = true;
            }
        }
        self.prune(task, now);
    }

    fn untell(&mut self, host: HostId, task: &TaskId) {
        let owned = self.eras.owns(task);
        if let Some(host) = self.hosts.get_mut(host)
            && host.untell(task, owned)
        {
            self.announcements -= 1;
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
            self.untell(*host, task);
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
        let grave = self.graves.get(task)?;
        Some(Tombstone { task: *task, generation: grave.generation, deleted: grave.deleted })
    }

    /// Keeps a tombstone and tells the holders of what it buries, except one; returns whom it told.
    pub(super) fn bury(
        &mut self,
        tombstone: Tombstone,
        keep: Keep,
        except: Option<HostId>,
        delete: Option<DeleteId>,
        now: Now,
        actions: &mut Vec<Action>,
    ) -> Vec<PeerId> {
        let task = tombstone.task;
        let grave =
            self.graves.entry(task).or_insert(Grave { generation: 0, deleted: tombstone.deleted, keep, told: now.at });
        if tombstone.generation > grave.generation {
            (grave.generation, grave.deleted) = (tombstone.generation, tombstone.deleted);
        }
        (grave.keep, grave.told) = (keep, now.at);
        let buried = self.tasks.get_mut(&task).map(|known| known.bury(&tombstone)).unwrap_or_default();
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
