//! Hosts tell what they hold and what they know to be deleted.

use damselfly_messages::{
    id::TaskId,
    notify,
    record::{Announcement, Holding, Record, Tombstone, is_beyond},
    scheduler::{AnnounceHost, AnnounceTask, HostAnswer, Outcome, ResponseBody},
};

use super::{
    Action, Asker, BLOCKED, Now, Reply, State,
    holder_index::Gone,
    hosts::{HostId, Kind},
    ring_history::Role,
    sweep::TOMBSTONES_KEPT_MS,
    tasks::{Bound, Keep, Task, Unbound},
    tombstones::Report,
};

/// Nothing more can be kept of anybody.
const FULL: &str = "this scheduler is full; the cluster needs more schedulers";

/// The host is one too many.
const TOO_MANY_HOSTS: Reply = Reply::Refused("this scheduler has as many hosts as it can keep");

impl State {
    /// The heartbeat. It is answered whatever the asker's epoch is; only digests of the same epoch are compared.
    pub(super) fn announce_host(&mut self, asker: Asker, heartbeat: AnnounceHost, now: Now) -> ResponseBody {
        let warm = self.ring_history.is_warm_throughout(now.at);
        let same_epoch = asker.epoch == self.ring_history.epoch();
        let Some(id) = self.hosts.hear(asker.peer, now.at, self.limits.hosts) else {
            // It has told nothing here, so nothing needs to be told again.
            return ResponseBody::Host(HostAnswer { mismatched: Vec::new(), warm, time: None });
        };
        let Some(host) = self.hosts.get_mut(id) else {
            return ResponseBody::Host(HostAnswer { mismatched: Vec::new(), warm, time: None });
        };
        host.describe(heartbeat.addresses, heartbeat.seed, &heartbeat.tags);
        (host.epoch, host.version, host.report) = (asker.epoch, heartbeat.version.into(), heartbeat.report);
        host.reported = Some(now.at);
        let told = heartbeat.buckets.filter(|_| same_epoch);
        let mismatched = told.map_or_else(Vec::new, |told| host.digests().mismatches(&told));
        ResponseBody::Host(HostAnswer { mismatched, warm, time: None })
    }

    /// Judges each record. With other epochs, one record of a task not owned here makes the answer *not owner* and
    /// nothing is taken; with the same epoch such a record is refused on its own.
    pub(super) fn announce_task(
        &mut self,
        asker: Asker,
        announce: AnnounceTask,
        now: Now,
        actions: &mut Vec<Action>,
    ) -> Result<ResponseBody, Reply> {
        let records: Vec<_> = announce.records.into_iter().map(|record| (record.task(), record)).collect();
        let keeps: Vec<_> = records.iter().map(|(task, _)| self.keep_for(asker, task, now)).collect();
        if asker.epoch != self.ring_history.epoch() && keeps.contains(&None) {
            return Ok(self.not_owner(asker));
        }
        let host = self.hosts.hear(asker.peer, now.at, self.limits.hosts).ok_or(TOO_MANY_HOSTS)?;
        if let Some(part) = announce.bucket.filter(|part| part.first)
            && let Some(host) = self.hosts.get_mut(host)
        {
            host.begin_replacing(part.bucket);
        }
        let judged = records.into_iter().zip(keeps).map(|((task, record), keep)| match keep {
            None => Outcome::Refused("not an owner of this task".into()),
            Some(keep) => self.judge(host, task, record, keep, now, actions),
        });
        let outcomes = judged.collect();
        if let Some(part) = announce.bucket.filter(|part| part.last) {
            let unrepeated = self.hosts.get_mut(host).map(|host| host.end_replacing(part.bucket));
            for task in unrepeated.unwrap_or_default() {
                self.unclaim(host, &task, Gone::Left, now);
            }
        }
        Ok(ResponseBody::Announced(outcomes))
    }

    /// In what capacity this scheduler takes a record; not at all as a former owner, the new ones should have it.
    fn keep_for(&mut self, asker: Asker, task: &TaskId, now: Now) -> Option<Keep> {
        match self.ring_history.role(task, now.at) {
            Role::Owner => Some(Keep::Owned),
            Role::Former | Role::NotOwner if asker.stand_in => {
                self.ring_history.stand_in(task, now.at);
                Some(Keep::StandIn)
            }
            Role::Former | Role::NotOwner => None,
        }
    }

    fn judge(
        &mut self,
        host: HostId,
        task: TaskId,
        record: Record,
        keep: Keep,
        now: Now,
        actions: &mut Vec<Action>,
    ) -> Outcome {
        let kind = if matches!(record, Record::Held(_)) { Kind::Held } else { Kind::Tombstone };
        let before = self.hosts.get(host).and_then(|known| known.has_told(&task));
        let full = if before == Some(kind) { None } else { self.is_full_of(kind, host) };
        self.counters.over_bounds += u64::from(full.is_some());
        let digest = record.digest();
        let outcome = match (record, full) {
            (Record::Held(_), Some(reason)) => return Outcome::Refused(reason.into()),
            (Record::Held(announcement), None) => self.judge_held(host, task, announcement, keep, now, actions),
            (Record::Deleted(tombstone), full) => self.judge_deleted(host, tombstone, keep, full, now, actions),
        };
        match &outcome {
            Outcome::Accepted(_) | Outcome::Noted => self.note(host, task, digest, kind),
            Outcome::Conflict(_) | Outcome::Buried(_) | Outcome::Cold(_) | Outcome::Refused(_) => {
                self.unclaim(host, &task, Gone::Left, now);
            }
        }
        outcome
    }

    /// Why no further record of this kind is taken of a host. A new binding displaces tombstones.
    fn is_full_of(&mut self, kind: Kind, host: HostId) -> Option<&'static str> {
        let Some(host) = self.hosts.get(host) else { return Some(FULL) };
        match kind {
            Kind::Held if host.told_len() - host.told_tombstones() >= self.limits.announcements_per_host => {
                return Some("the host has announced as many records as this scheduler keeps of one host");
            }
            Kind::Held if self.announcements >= self.limits.announcements => return Some(FULL),
            // Tombstones would be displaced for nothing.
            Kind::Held if self.lasting_bytes() >= self.limits.bytes => return Some(FULL),
            Kind::Held => {}
            Kind::Tombstone => {
                let told = host.told_tombstones();
                let max = self.limits.announced_tombstones;
                let crowded = self.announced_tombstones >= max / 2;
                if told >= max / 4 || crowded && told >= max / 2 / self.hosts.len().max(1) {
                    return Some("the host has announced as many deletes as this scheduler keeps of one host");
                }
            }
        }
        while self.estimated_bytes() >= self.limits.bytes {
            if kind == Kind::Tombstone || !self.drop_oldest_tombstone() {
                return Some(FULL);
            }
        }
        None
    }

    fn judge_held(
        &mut self,
        host: HostId,
        task: TaskId,
        announcement: Announcement,
        keep: Keep,
        now: Now,
        actions: &mut Vec<Action>,
    ) -> Outcome {
        let Announcement { name, mut binding, holding } = announcement;
        if is_beyond(binding.generation, now.wall) {
            return Outcome::Refused(BEYOND.into());
        }
        binding.accepted = binding.accepted.map(|accepted| accepted.clamp_to(now.wall));
        if !name.allows(binding.content) {
            return Outcome::Refused("the content is not the one that the name states".into());
        }
        // What was accepted before is told again after a ring change; without it, it could not be found to be deleted.
        if binding.accepted.is_none() && self.is_blocked(name.tag()) {
            return Outcome::Refused(BLOCKED.into());
        }
        if let Some(tombstone) = self.tombstone(&task).filter(|tombstone| tombstone.buries(&binding)) {
            return Outcome::Buried(tombstone);
        }
        // Even with the same content known: a tombstone that this owner has yet to hear of may bury both.
        let until_warm = self.ring_history.until_warm(&task, now.at);
        if binding.accepted.is_none() && !until_warm.is_zero() {
            return Outcome::Cold(until_warm.as_millis() as u64);
        }
        if self.tasks.get(&task).and_then(|known| known.held_by(host)).is_some_and(|held| held != binding.content) {
            self.unclaim(host, &task, Gone::Left, now);
        }
        self.drop_ended(&task, now);
        self.tombstones.on_bound(&task);
        let known = self.tasks.entry(task).or_insert_with(|| Task::new(&name, binding, keep, now.at));
        (known.keep, known.told) = (keep, now.at);
        match known.bind(binding, now.wall) {
            Ok(bound) => {
                let complete =
                    known.candidate_mut(binding.content).is_some_and(|candidate| candidate.hold(host, holding));
                if holding == Holding::Complete {
                    // The report of its end may be lost.
                    self.end_download(&task, host);
                }
                self.names.learn(task, &name, host, self.hosts.len(), self.limits.name_bytes);
                self.after_bind(host, task, &bound, complete, actions);
                Outcome::Accepted(bound.binding)
            }
            Err(Unbound::Conflict(winner)) => {
                self.counters.conflicts += 1;
                Outcome::Conflict(winner)
            }
            Err(Unbound::Rejected) => {
                Outcome::Refused("hosts reported that its bytes are not what the sha256 name says".into())
            }
            Err(Unbound::TooMany) => Outcome::Refused("the name has four other contents already".into()),
        }
    }

    /// Tells the losers, and the downloaders of the winner that there is one more parent.
    fn after_bind(&mut self, host: HostId, task: TaskId, bound: &Bound, complete: bool, actions: &mut Vec<Action>) {
        for candidate in &bound.lost {
            let losers = self.release(&task, candidate);
            if !bound.conflict {
                continue;
            }
            self.counters.conflicts += 1;
            for loser in losers.into_iter().filter(|loser| *loser != host) {
                let lost = notify::Request::ConflictLost { task, winner: bound.binding };
                self.notify(loser, lost, None, actions);
            }
        }
        if complete {
            self.downloads.offer(&task, bound.binding.content, host);
        }
    }

    fn judge_deleted(
        &mut self,
        host: HostId,
        mut tombstone: Tombstone,
        keep: Keep,
        full: Option<&'static str>,
        now: Now,
        actions: &mut Vec<Action>,
    ) -> Outcome {
        let task = tombstone.task;
        if is_beyond(tombstone.generation, now.wall) {
            return Outcome::Refused(BEYOND.into());
        }
        tombstone.deleted = tombstone.deleted.clamp_to(now.wall);
        let bound = self.tasks.contains_key(&task);
        let Some(known) = self.hosts.get(host) else { return Outcome::Refused(FULL.into()) };
        let peer = known.peer;
        if known.has_told(&task) == Some(Kind::Held) {
            // The host holds it no more, whatever generation others have.
            self.unclaim(host, &task, Gone::Left, now);
        }
        // What is bound here is deleted even where no further tombstone of the host is noted.
        if !bound && let Some(reason) = full {
            return Outcome::Refused(reason.into());
        }
        // An old one is noted as told, or its host would tell it again with each heartbeat until its clock agrees.
        if tombstone.deleted.0.saturating_add(TOMBSTONES_KEPT_MS) > now.wall.0 {
            let report = Report { tombstone, keep, peer, bound };
            self.apply_tombstone(report, Some(host), None, now, actions);
        }
        full.map_or(Outcome::Noted, |reason| Outcome::Refused(reason.into()))
    }

    /// A host gave a task up, by itself.
    pub(super) fn leave(&mut self, asker: Asker, task: TaskId, now: Now) -> Result<ResponseBody, Reply> {
        if let Some(host) = self.hosts.id(&asker.peer) {
            self.end_download(&task, host);
            self.unclaim(host, &task, Gone::Left, now);
        }
        self.admit(asker, &task, true, now)?;
        Ok(ResponseBody::Noted)
    }
}

/// A generation that cannot be.
const BEYOND: &str = "the name cannot have been deleted so often";

/// Number of verified pieces; the largest number for all of them.
pub(super) const fn pieces(holding: Holding) -> u32 {
    match holding {
        Holding::Complete => u32::MAX,
        Holding::Partial { pieces } => pieces,
    }
}
