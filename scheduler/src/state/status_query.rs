//! What the manager asks, for people.

use std::{cmp::Reverse, ops::Bound, sync::Arc};

use damselfly_messages::{
    id::TaskId,
    info::{
        CandidateState, HOLDERS_MAX, HOSTS_MAX, HostState, HostsAnswer, PartialHolder, Request, Response, Share,
        TaskFilter, TaskState, TasksAnswer,
    },
    name::Name,
};
use libp2p::PeerId;

use super::{
    Now, State,
    hosts::Host,
    tasks::{Candidate, Task},
};

/// Tasks that are looked at for one answer: the state does nothing else meanwhile.
const LOOKED_AT_MAX: usize = 50_000;

impl State {
    /// Answers a question that changes nothing.
    pub fn status_of(&self, request: &Request, now: Now) -> Response {
        match request {
            Request::Hosts { after } => Response::Hosts(self.inform_of_hosts(*after, now)),
            Request::Tasks { after, limit, of } => Response::Tasks(self.inform_of_tasks(*after, *limit, of)),
            Request::Deletions { after } => Response::Deletions(self.deletions.after(*after, now.wall)),
        }
    }

    fn inform_of_hosts(&self, after: Option<PeerId>, now: Now) -> HostsAnswer {
        let after = after.map(PeerId::to_bytes);
        let hosts = self.hosts.iter().map(|(_, host)| (host.peer.to_bytes(), host));
        let mut hosts: Vec<_> = hosts.filter(|(key, _)| after.as_ref().is_none_or(|after| key > after)).collect();
        let more = hosts.len() > HOSTS_MAX;
        if more {
            // Only the first ones are told, so only they are sorted.
            hosts.select_nth_unstable_by(HOSTS_MAX, |(one, _), (other, _)| one.cmp(other));
            hosts.truncate(HOSTS_MAX);
        }
        hosts.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        let gauges = self.gauges();
        HostsAnswer {
            epoch: self.ring_history.epoch(),
            tasks: gauges.tasks as u64,
            announcements: gauges.announcements as u64,
            tombstones: gauges.tombstones as u64,
            downloads: gauges.downloads as u64,
            hosts: gauges.hosts as u64,
            warm: self.ring_history.is_warm_throughout(now.at),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            items: hosts.into_iter().map(|(_, host)| describe(host, now)).collect(),
            more,
            shares: self.shares(),
        }
    }

    /// What remote parties may fill, and how far they have.
    fn shares(&self) -> Vec<Share> {
        let limits = self.limits;
        let shares = [
            ("announcements", self.announcements, limits.announcements),
            ("bytes", self.lasting_bytes(), limits.bytes),
            ("downloads", self.downloads.len(), limits.downloads),
            ("hosts", self.hosts.len(), limits.hosts),
            ("tombstones", self.tombstones.len(), limits.tombstones),
        ];
        shares.map(|(what, used, max)| Share { what: what.to_owned(), used: used as u64, max: max as u64 }).into()
    }

    fn inform_of_tasks(&self, after: Option<TaskId>, limit: usize, of: &TaskFilter) -> TasksAnswer {
        if let Some(task) = of.task {
            let known = self.tasks.get(&task).filter(|known| self.fits(&task, known, of));
            let items = known.map(|known| self.task_state(task, known, true)).into_iter().collect();
            return TasksAnswer { items, more_after: None };
        }
        let begin = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut answer = TasksAnswer::default();
        for (looked, (task, known)) in self.tasks.range((begin, Bound::Unbounded)).enumerate() {
            if self.fits(task, known, of) {
                answer.items.push(self.task_state(*task, known, false));
            }
            if answer.items.len() == limit || looked + 1 == LOOKED_AT_MAX {
                let is_last = self.tasks.last_key_value().is_some_and(|(last, _)| last == task);
                answer.more_after = (!is_last).then_some(*task);
                break;
            }
        }
        answer
    }

    /// Lists are short of partial holders: there may be many tasks in one.
    fn task_state(&self, task: TaskId, known: &Task, in_full: bool) -> TaskState {
        let candidates = known.standing().map(|candidate| self.candidate_state(&task, candidate, in_full)).collect();
        let name = self.names.get(&task).and_then(|(cid, tag)| Name::parse(cid, tag).ok());
        TaskState { task, candidates, name }
    }

    fn fits(&self, task: &TaskId, known: &Task, of: &TaskFilter) -> bool {
        let is_bound = |content| known.standing().any(|candidate| candidate.binding.content == content);
        of.fits_name(self.names.get(task)) && of.content.is_none_or(is_bound)
    }

    fn candidate_state(&self, task: &TaskId, candidate: &Candidate, in_full: bool) -> CandidateState {
        let live = self.live_holders(task, candidate);
        let mut partial: Vec<_> = live
            .iter()
            .filter(|(_, pieces)| in_full && **pieces != u32::MAX)
            .filter_map(|(host, pieces)| Some(PartialHolder { peer: self.hosts.get(*host)?.peer, pieces: *pieces }))
            .collect();
        partial.sort_unstable_by_key(|holder| Reverse(holder.pieces));
        partial.truncate(HOLDERS_MAX);
        let complete = live.iter().filter(|(_, pieces)| **pieces == u32::MAX);
        let peers: Vec<_> = complete.filter_map(|(host, _)| Some(self.hosts.get(*host)?.peer)).collect();
        CandidateState {
            binding: candidate.binding,
            holders: peers.len() as u32,
            available: !peers.is_empty() || super::query::together_complete(candidate, &live),
            peers: peers.into_iter().take(HOLDERS_MAX).collect(),
            partial,
        }
    }
}

fn describe(host: &Host, now: Now) -> HostState {
    HostState {
        peer: host.peer,
        epoch: host.epoch,
        version: host.version.to_string(),
        seed: host.seed,
        suspect: host.suspect,
        heard_ago: now.at.saturating_sub(host.heard()),
        children: host.children,
        downloads: host.downloads,
        report: host.report,
        reported_ago: host.reported.map(|at| now.at.saturating_sub(at)),
        records: host.told_len() as u64,
        tags: Arc::clone(&host.tags),
    }
}
