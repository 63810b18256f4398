//! How downloads go, and whom that makes a parent or spares as one.

use damselfly_messages::{
    id::{ContentId, TaskId},
    notify,
    piece::PieceLayout,
    record::Holding,
    scheduler::{ParentFault, PeerResult, ReportPeerResult, ReportPieceResult, ResponseBody},
};
use std::time::Duration;

use super::{Action, Asker, Now, Reply, State, hosts::HostId};

/// A downloader is told of new parents this often at most.
const NEW_PARENTS_EVERY: Duration = Duration::from_secs(2);

/// Downloaders told of new parents in one tick; the others wait for the next.
const NEW_PARENTS_PER_TICK: usize = 128;

/// Hosts that one download is spared.
const EXCLUDED_MAX: usize = 256;

impl State {
    /// Notes how a download goes. One that this scheduler does not know, because it was restarted, begins here.
    pub(super) fn report_pieces(
        &mut self,
        asker: Asker,
        report: &ReportPieceResult,
        now: Now,
    ) -> Result<ResponseBody, Reply> {
        let task = report.task;
        self.admit(asker, &task, true, now)?;
        let candidate = self.tasks.get(&task).and_then(|known| known.candidate(report.content));
        let Some(candidate) = candidate else { return Ok(ResponseBody::Noted) };
        let binding = candidate.binding;
        let reporter = self.hosts.id(&asker.peer);
        let holds = |host: &HostId| candidate.holder(*host).is_some_and(|holder| holder.holding == Holding::Complete);
        if let Some(host) = reporter.filter(holds) {
            // The last report of a download that is complete: it counts for the parents, but begins no other download.
            self.note_parents(&task, host, report, now);
            return Ok(ResponseBody::Noted);
        }
        let known = reporter
            .filter(|host| self.downloads.get(&task, *host).is_some_and(|download| download.content == report.content));
        let host = match known {
            Some(host) => host,
            None => self.begin_download(asker, task, report.content, now)?,
        };
        let all = PieceLayout::new(binding.content_bytes).map_or(0, |layout| layout.pieces());
        let Some(download) = self.downloads.get_mut(&task, host) else { return Ok(ResponseBody::Noted) };
        let first = download.pieces == 0 && report.pieces_held > 0;
        download.pieces = report.pieces_held.min(all);
        download.heard = now.at;
        if first {
            self.downloads.offer(&task, report.content, host);
        }
        self.note_parents(&task, host, report, now);
        Ok(ResponseBody::Noted)
    }

    fn note_parents(&mut self, task: &TaskId, child: HostId, report: &ReportPieceResult, now: Now) {
        let mut used = Vec::new();
        for result in &report.results {
            let Some(parent) = self.hosts.id(&result.parent).filter(|parent| *parent != child) else { continue };
            match result.fault {
                Some(fault) => self.blame(task, report.content, child, parent, fault, now),
                None if result.pieces > 0 || result.busy_millis > 0 => used.push(parent),
                None => {}
            }
        }
        if used.is_empty() || self.downloads.get(task, child).is_none() {
            return;
        }
        used.sort_unstable();
        used.dedup();
        self.hosts.load(&used, true);
        if let Some(download) = self.downloads.get_mut(task, child) {
            let before = std::mem::replace(&mut download.parents, used);
            self.hosts.load(&before, false);
        }
    }

    /// The child is given this parent no more, and may have another one instead.
    fn blame(
        &mut self,
        task: &TaskId,
        content: ContentId,
        child: HostId,
        parent: HostId,
        fault: ParentFault,
        now: Now,
    ) {
        let Some(candidate) = self.tasks.get(task).and_then(|known| known.candidate(content)) else { return };
        let is_parent = candidate.holder(parent).is_some()
            || self.downloads.of(task, content).any(|download| download.host == parent);
        if let Some(download) = self.downloads.get_mut(task, child)
            && !download.excluded.contains(&parent)
            && download.excluded.len() < EXCLUDED_MAX
        {
            download.excluded.push(parent);
            download.given.retain(|given| *given != parent);
            self.downloads.dirty.insert((*task, child));
        }
        // Only of those that could have served it: the rest is a mistake, or slander.
        match fault {
            ParentFault::Lied if is_parent => {
                self.counters.lies += 1;
                let name = |id| self.hosts.get(id).map(|host| host.peer);
                tracing::warn!(?task, ?content, child = ?name(child), parent = ?name(parent), "a child says that a parent's bytes do not verify");
                self.parent_faults.lied(content, parent, child, now.at);
            }
            ParentFault::Unreachable | ParentFault::NotHeld if is_parent => {
                self.parent_faults.failed(content, parent, child, now.at);
            }
            ParentFault::Lied | ParentFault::Unreachable | ParentFault::NotHeld => {}
        }
    }

    /// Notes how a download ended.
    pub(super) fn report_peer(
        &mut self,
        asker: Asker,
        report: &ReportPeerResult,
        now: Now,
    ) -> Result<ResponseBody, Reply> {
        let task = report.task;
        self.admit(asker, &task, true, now)?;
        let Some(host) = self.hosts.id(&asker.peer) else { return Ok(ResponseBody::Noted) };
        let fetched = self.downloads.get(&task, host).is_some_and(|download| download.content == report.content);
        if report.result == PeerResult::FalseCandidate
            && fetched
            && let Some(known) = self.tasks.get_mut(&task)
        {
            self.counters.false_candidates += 1;
            tracing::warn!(?task, content = ?report.content, reporter = %asker.peer, "a content is not what its sha256 name says");
            known.doubt(report.content, host, now.at);
        }
        self.end_download(&task, host);
        self.prune(&task, now);
        Ok(ResponseBody::Noted)
    }

    /// Tells downloaders that have fewer parents than they may of those that came since.
    pub(super) fn tell_new_parents(&mut self, now: Now, actions: &mut Vec<Action>) {
        let max = self.candidate_parents();
        let due = |(task, host): &&(TaskId, HostId)| {
            let download = self.downloads.get(task, *host);
            download.is_none_or(|download| download.notified + NEW_PARENTS_EVERY <= now.at)
        };
        let due: Vec<_> = self.downloads.dirty.iter().filter(due).take(NEW_PARENTS_PER_TICK).copied().collect();
        for (task, child) in due {
            self.downloads.dirty.remove(&(task, child));
            self.tell_child(&task, child, max, now, actions);
        }
    }

    fn tell_child(&mut self, task: &TaskId, child: HostId, max: usize, now: Now, actions: &mut Vec<Action>) {
        let Some(download) = self.downloads.get(task, child) else { return };
        let room = max.saturating_sub(download.given.len());
        let content = download.content;
        let Some(candidate) = self.tasks.get(task).and_then(|known| known.candidate(content)) else { return };
        let binding = candidate.binding;
        if room == 0 {
            return;
        }
        let mut new = self.rank_parents(task, &binding, child, max);
        new.retain(|parent| !download.given.contains(parent));
        new.truncate(room);
        if new.is_empty() {
            return;
        }
        let parents = new.iter().filter_map(|parent| self.parent(task, &binding, *parent)).collect();
        self.notify(child, notify::Request::NewParents { task: *task, content, parents }, None, actions);
        if let Some(download) = self.downloads.get_mut(task, child) {
            download.given.extend(new);
            download.notified = now.at;
        }
    }
}
