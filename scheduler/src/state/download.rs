//! Downloads under way: who fetches what from whom, and who could help.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use damselfly_messages::{
    id::{ContentId, TaskId},
    piece::PieceLayout,
    record::Binding,
    scheduler::{Candidate, Parent, RegisterAnswer, RegisterPeerTask, ResponseBody},
};

use super::{Asker, BLOCKED, Now, Reply, State, hosts::HostId};
use crate::placement::{self, Offer, eighths};

/// A download that nothing was heard of for so long is over: hosts give up after 30 s without progress. One that goes on
/// after all begins again with its next report.
const STALE: Duration = Duration::from_secs(60);

/// A host that registers or reports too much is told to wait so long.
const RETRY: Duration = Duration::from_secs(1);

/// One download of one host.
#[derive(Debug)]
pub(super) struct Download {
    pub(super) host: HostId,
    pub(super) content: ContentId,
    /// Verified pieces.
    pub(super) pieces: u32,
    /// Whom it fetches from, as far as known.
    pub(super) parents: Vec<HostId>,
    /// Whom it was given.
    pub(super) given: Vec<HostId>,
    pub(super) excluded: Vec<HostId>,
    pub(super) heard: Duration,
    pub(super) notified: Duration,
}

/// All downloads.
#[derive(Debug, Default)]
pub(super) struct Downloads {
    by_task: BTreeMap<TaskId, Vec<Download>>,
    len: usize,
    /// Those for whom there may be new parents.
    pub(super) dirty: BTreeSet<(TaskId, HostId)>,
}

impl Downloads {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn of(&self, task: &TaskId, content: ContentId) -> impl Iterator<Item = &Download> {
        self.by_task.get(task).into_iter().flatten().filter(move |download| download.content == content)
    }

    pub(super) fn tasks_of(&self, host: HostId) -> Vec<TaskId> {
        let of_host = |downloads: &[Download]| downloads.iter().any(|download| download.host == host);
        self.by_task.iter().filter(|(_, downloads)| of_host(downloads)).map(|(task, _)| *task).collect()
    }

    pub(super) fn get(&self, task: &TaskId, host: HostId) -> Option<&Download> {
        self.by_task.get(task)?.iter().find(|download| download.host == host)
    }

    pub(super) fn get_mut(&mut self, task: &TaskId, host: HostId) -> Option<&mut Download> {
        self.by_task.get_mut(task)?.iter_mut().find(|download| download.host == host)
    }

    fn insert(&mut self, task: TaskId, download: Download) {
        self.by_task.entry(task).or_default().push(download);
        self.len += 1;
    }

    fn remove(&mut self, task: &TaskId, host: HostId) -> Option<Download> {
        let downloads = self.by_task.get_mut(task)?;
        let index = downloads.iter().position(|download| download.host == host)?;
        let removed = downloads.swap_remove(index);
        if downloads.is_empty() {
            self.by_task.remove(task);
        }
        self.dirty.remove(&(*task, host));
        self.len -= 1;
        Some(removed)
    }

    /// A host has become worth fetching from.
    pub(super) fn offer(&mut self, task: &TaskId, content: ContentId, parent: HostId) {
        let Some(downloads) = self.by_task.get(task) else { return };
        let concerned = downloads.iter().filter(|download| {
            download.content == content && download.host != parent && !download.given.contains(&parent)
        });
        self.dirty.extend(concerned.map(|download| (*task, download.host)));
    }
}

impl State {
    /// Answers with parents for each candidate, and makes the asker a parent of others.
    pub(super) fn register(
        &mut self,
        asker: Asker,
        register: &RegisterPeerTask,
        now: Now,
    ) -> Result<ResponseBody, Reply> {
        let task = register.name.task_id();
        self.admit(asker, &task, true, now)?;
        if self.is_blocked(register.name.tag()) {
            return Err(Reply::Refused(BLOCKED));
        }
        self.drop_ended(&task, now);
        let bindings = self.tasks.get(&task).map(|known| known.standing().map(|candidate| candidate.binding));
        let bindings: Vec<_> = bindings.into_iter().flatten().collect();
        let Some(first) = bindings.first() else {
            return Ok(ResponseBody::Registered(RegisterAnswer::Missing(self.missing(&task, now))));
        };
        let host = self.begin_download(asker, task, first.content, now)?;
        let excluded: Vec<_> = register.exclude.iter().filter_map(|peer| self.hosts.id(peer)).collect();
        if let Some(download) = self.downloads.get_mut(&task, host) {
            download.excluded = excluded;
        }
        let max = self.candidate_parents();
        let mut candidates = Vec::with_capacity(bindings.len());
        for binding in bindings {
            let parents = self.rank_parents(&task, &binding, host, max);
            if candidates.is_empty() {
                self.give(&task, host, &parents);
            }
            let parents = parents.into_iter().filter_map(|parent| self.parent(&task, &binding, parent)).collect();
            candidates.push(Candidate { binding, parents });
        }
        Ok(ResponseBody::Registered(RegisterAnswer::Found(candidates)))
    }

    /// A new download of the asker, in place of an earlier one of the same task.
    pub(super) fn begin_download(
        &mut self,
        asker: Asker,
        task: TaskId,
        content: ContentId,
        now: Now,
    ) -> Result<HostId, Reply> {
        let host = self.hosts.hear(asker.peer, now.at, self.limits.hosts).ok_or(Reply::Busy(RETRY))?;
        let before = self.downloads.get(&task, host).filter(|download| download.content == content);
        let pieces = before.map_or(0, |download| download.pieces);
        self.end_download(&task, host);
        let own = self.hosts.get(host).map_or(0, |host| host.downloads as usize);
        if self.downloads.len() >= self.limits.downloads || own >= self.limits.downloads_per_host {
            self.counters.over_bounds += 1;
            return Err(Reply::Busy(RETRY));
        }
        let (parents, given, excluded) = (Vec::new(), Vec::new(), Vec::new());
        let download = Download { host, content, pieces, parents, given, excluded, heard: now.at, notified: now.at };
        self.downloads.insert(task, download);
        // The download may have been all that kept another candidate.
        self.prune(&task, now);
        if let Some(host) = self.hosts.get_mut(host) {
            host.downloads += 1;
        }
        Ok(host)
    }

    pub(super) fn end_download(&mut self, task: &TaskId, host: HostId) {
        let Some(download) = self.downloads.remove(task, host) else { return };
        self.hosts.load(&download.parents, false);
        if let Some(host) = self.hosts.get_mut(host) {
            host.downloads = host.downloads.saturating_sub(1);
        }
    }

    pub(super) fn end_stale_downloads(&mut self, now: Now) {
        let stale = |download: &&Download| download.heard + STALE <= now.at;
        let all = self.downloads.by_task.iter();
        let stale: Vec<_> = all
            .flat_map(|(task, downloads)| downloads.iter().filter(stale).map(|download| (*task, download.host)))
            .collect();
        for (task, host) in stale {
            self.end_download(&task, host);
            self.prune(&task, now);
        }
    }

    /// Notes parents as given; the first ones carry the load until the child reports whom it uses.
    fn give(&mut self, task: &TaskId, child: HostId, parents: &[HostId]) {
        let used = self.ring_history.settings().map_or(0, |settings| settings.concurrent_parents as usize);
        let used = parents[..used.min(parents.len())].to_vec();
        self.hosts.load(&used, true);
        if let Some(download) = self.downloads.get_mut(task, child) {
            let before = std::mem::replace(&mut download.parents, used);
            download.given = parents.to_vec();
            self.hosts.load(&before, false);
        }
    }

    pub(super) fn candidate_parents(&self) -> usize {
        self.ring_history.settings().map_or(0, |settings| settings.candidate_parents as usize)
    }

    pub(super) fn rank_parents(&self, task: &TaskId, binding: &Binding, child: HostId, max: usize) -> Vec<HostId> {
        let content = binding.content;
        let Some(candidate) = self.tasks.get(task).and_then(|known| known.candidate(content)) else {
            return Vec::new();
        };
        let Some(nearby) = self.hosts.get(child).map(|host| host.locality) else { return Vec::new() };
        let excluded = self.downloads.get(task, child).map_or(&[][..], |download| &download.excluded);
        let all = PieceLayout::new(binding.content_bytes).map_or(0, |layout| layout.pieces());
        let offer = |(id, pieces): (HostId, u32)| {
            let host = self.hosts.get(id).filter(|host| !host.addresses.is_empty())?;
            let usable = id != child && !excluded.contains(&id) && !self.parent_faults.condemned(content, id);
            usable.then(|| Offer {
                host: id,
                complete: pieces == u32::MAX,
                seed: host.seed,
                eighths: eighths(pieces, all),
                distance: nearby.distance(&host.locality),
                children: host.children,
                doubts: self.parent_faults.doubts(content, id),
            })
        };
        let offers = self.live_holders(task, candidate).into_iter().filter_map(offer).collect();
        placement::rank(offers, child, self.seed, max)
    }

    pub(super) fn parent(&self, task: &TaskId, binding: &Binding, id: HostId) -> Option<Parent> {
        let host = self.hosts.get(id)?;
        let candidate = self.tasks.get(task)?.candidate(binding.content)?;
        let complete = candidate.holder(id).is_some_and(|holder| super::announce::pieces(holder.holding) == u32::MAX);
        Some(Parent { peer: host.peer, addresses: host.addresses.to_vec(), complete, seed: host.seed })
    }
}
