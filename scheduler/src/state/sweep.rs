//! What time and new configurations do to the state.

use std::{sync::Arc, time::Duration};

use damselfly_messages::{config::Accepted, id::TaskId, notify};

use super::{Action, Now, State, holder_index::Gone, hosts::HostId, tasks::Keep};

/// Tombstones are kept for 30 days after the delete.
pub(super) const TOMBSTONES_KEPT_MS: u64 = 30 * 24 * 3_600_000;

/// A binding whose holders are away is kept this long: its name is not free, and it is *unavailable*, not missing.
const ORPHANS_KEPT: Duration = Duration::from_secs(24 * 3600);

/// What is told to a scheduler that stands in is kept this long after it was told last.
const STAND_IN_KEPT: Duration = Duration::from_secs(600);

/// How often downloads are looked at that may have ended without a word.
const SWEEP_DOWNLOADS_EVERY: Duration = Duration::from_secs(5);

/// How often everything is looked at.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

impl State {
    pub(super) fn on_configured(&mut self, accepted: Arc<Accepted>, now: Now, actions: &mut Vec<Action>) {
        let epoch = accepted.configuration.epoch;
        if self.ring_history.change(accepted, now.at) {
            self.resort();
        }
        // A hint: who misses it learns of the epoch with the next heartbeat.
        let live = self.hosts.iter().filter(|(_, host)| !host.suspect).map(|(id, _)| id);
        for host in live.collect::<Vec<_>>() {
            self.notify(host, notify::Request::NewEpoch(epoch), None, actions);
        }
    }

    /// Sorts everything anew by what the ring says, and counts only what is owned now.
    fn resort(&mut self) {
        let keep = |task: &TaskId, before: Keep| match (self.ring_history.owns(task), before) {
            (true, _) => Keep::Owned,
            (false, Keep::Owned) => Keep::Former,
            (false, other) => other,
        };
        self.tasks.iter_mut().for_each(|(task, known)| known.keep = keep(task, known.keep));
        self.tombstones.sort(keep);
        self.hosts.iter_mut().for_each(|host| host.recount(|task| self.ring_history.owns(task)));
    }

    pub(super) fn on_tick(&mut self, now: Now, actions: &mut Vec<Action>) {
        self.sweep_deletes(now, actions);
        self.lapse_hosts(now);
        self.tell_new_parents(now, actions);
        if self.ring_history.sweep(now.at) {
            self.drop_former(now);
        }
        if self.swept_downloads + SWEEP_DOWNLOADS_EVERY <= now.at {
            self.swept_downloads = now.at;
            self.end_stale_downloads(now);
        }
        if self.swept + SWEEP_EVERY <= now.at {
            self.swept = now.at;
            self.sweep_all(now);
        }
    }

    fn lapse_hosts(&mut self, now: Now) {
        let Some(settings) = self.ring_history.settings() else { return };
        let lease = Duration::from_millis(settings.lease_ms);
        for id in self.hosts.lapsed(lease, now.at) {
            self.counters.lapsed_hosts += 1;
            self.forget_host(id, now);
        }
    }

    fn forget_host(&mut self, id: HostId, now: Now) {
        let Some(host) = self.hosts.get(id) else { return };
        tracing::info!(host = %host.peer, records = host.told_len(), "the host's lease has ended");
        for task in host.told_tasks() {
            self.unclaim(id, &task, Gone::Lapsed, now);
        }
        for task in self.downloads.tasks_of(id) {
            self.end_download(&task, id);
            self.prune(&task, now);
        }
        self.hosts.remove(id);
    }

    /// The time is over in which former owners answer.
    fn drop_former(&mut self, now: Now) {
        let owned_before = |keep| keep == Keep::Former;
        let tasks: Vec<_> =
            self.tasks.iter().filter(|(_, known)| owned_before(known.keep)).map(|(id, _)| *id).collect();
        for task in tasks {
            self.drop_task(&task);
        }
        self.counters.forgotten_tombstones += self.tombstones.retain(|kept| !owned_before(kept.keep)) as u64;
        self.drop_told_of_strangers(now);
    }

    /// Forgets records about tasks of which nothing is kept; only possible for tasks that are not owned.
    fn drop_told_of_strangers(&mut self, now: Now) {
        let hosts: Vec<_> = self.hosts.iter().map(|(id, host)| (id, host.told_tasks())).collect();
        for (host, tasks) in hosts {
            let kept = |task: &TaskId| self.tasks.contains_key(task) || self.tombstones.contains(task);
            let stray: Vec<_> = tasks.into_iter().filter(|task| !kept(task) && !self.ring_history.owns(task)).collect();
            for task in stray {
                self.unclaim(host, &task, Gone::Left, now);
            }
        }
    }

    fn drop_task(&mut self, task: &TaskId) {
        let Some(known) = self.tasks.remove(task) else { return };
        self.counters.forgotten_tasks += 1;
        for candidate in &known.candidates {
            self.release(task, candidate);
        }
    }

    fn sweep_all(&mut self, now: Now) {
        self.parent_faults.sweep(now.at);
        let crowded = self.bytes_without_tombstones() > self.limits.bytes / 4 * 3;
        let kept = if crowded { Duration::ZERO } else { ORPHANS_KEPT };
        let mut dropped = Vec::new();
        for (task, known) in &mut self.tasks {
            known.forgive(now.at);
            if known.keep != Keep::Owned && known.told + STAND_IN_KEPT <= now.at {
                dropped.push(*task);
            }
            let orphan = |since: Option<Duration>| since.is_some_and(|since| since + kept <= now.at);
            known.candidates.retain(|candidate| {
                !candidate.has_ended(now.wall) && (candidate.is_rejected() || !orphan(candidate.orphaned))
            });
        }
        for task in dropped {
            self.drop_task(&task);
        }
        let tasks = self.tasks.len();
        self.tasks.retain(|_, known| !known.candidates.is_empty());
        self.counters.forgotten_tasks += (tasks - self.tasks.len()) as u64;
        self.names.retain(|task| self.tasks.contains_key(task));
        let forgotten = self.tombstones.retain(|kept| {
            let stale = kept.keep != Keep::Owned && kept.told + STAND_IN_KEPT <= now.at;
            !stale && kept.deleted.0.saturating_add(TOMBSTONES_KEPT_MS) > now.wall.0
        });
        self.counters.forgotten_tombstones += forgotten as u64;
        if forgotten > 0 {
            self.drop_told_of_strangers(now);
        }
    }
}
