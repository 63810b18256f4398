//! Hosts tell what they hold and what they know to be deleted.

use damselfly_messages::{
    id::TaskId,
    notify,
    record::{Announcement, Holding, Record, Tombstone},
    scheduler::{AnnounceHost, AnnounceTask, HostAnswer, Outcome, ResponseBody},
};

use super::{
    Action, Asker, BLOCKED, Now, Reply, State,
    claims::Gone,
    eras::Role,
    hosts::{HostId, Locality},
    sweep::TOMBSTONES_KEPT_MS,
    tasks::{Bound, CLOCK_LEEWAY_MS, Keep, Task, Unbound, clamp},
};

/// The host is one too many.
const TOO_MANY_HOSTS: Reply = Reply::Refused("this scheduler has as many hosts as it can keep");

impl State {
    /// The heartbeat. It is answered whatever the asker's epoch is; only digests of the same epoch are compared.
    pub(super) fn announce_host(&mut self, asker: Asker, heartbeat: AnnounceHost, now: Now) -> ResponseBody {
        let warm = self.eras.is_warm_throughout(now.at);
        let same_epoch = asker.epoch == self.eras.epoch();
        let Some(id) = self.hosts.hear(asker.peer, now.at, self.limits.hosts) else {
            // It has told nothing here, so nothing needs to be told again.
            return ResponseBody::Host(HostAnswer { mismatched: Vec::new(), warm, time: None });
        };
        let Some(host) = self.hosts.get_mut(id) else {
            return ResponseBody::Host(HostAnswer { mismatched: Vec::new(), warm, time: None });
        };
        host.describe(heartbeat.addresses, heartbeat.seed, Locality::of(&heartbeat.tags));
        (host.epoch, host.version, host.report) = (asker.epoch, heartbeat.version.into(), heartbeat.report);
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
        if asker.epoch != self.eras.epoch() && keeps.contains(&None) {
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
        match self.eras.role(task, now.at) {
            Role::Owner => Some(Keep::Owned),
            Role::Former | Role::Stranger if asker.stand_in => {
                self.eras.stand_in(task, now.at);
                Some(Keep::StandIn)
            }
            Role::Former | Role::Stranger => None,
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
        let new = self.hosts.get(host).is_none_or(|known| !known.has_told(&task));
        if new && let Some(reason) = self.is_full(host) {
            self.counters.over_bounds += 1;
            return Outcome::Refused(reason.into());
        }
        let digest = record.digest();
        let outcome = match record {
            Record::Held(announcement) => self.judge_held(host, task, announcement, keep, now, actions),
            Record::Deleted(tombstone) => self.judge_deleted(host, tombstone, keep, now, actions),
        };
        match &outcome {
            Outcome::Accepted(_) | Outcome::Noted => self.note(host, task, digest),
            Outcome::Conflict(_) | Outcome::Buried(_) | Outcome::Cold(_) | Outcome::Refused(_) => {
                self.unclaim(host, &task, Gone::Left, now);
            }
        }
        outcome
    }

    fn is_full(&self, host: HostId) -> Option<&'static str> {
        let told = self.hosts.get(host).map_or(0, |host| host.told_len());
        if told >= self.limits.announcements_per_host {
            Some("the host has announced as many records as this scheduler keeps of one host")
        } else if self.announcements >= self.limits.announcements || self.estimated_bytes() >= self.limits.bytes {
            Some("this scheduler is full; the cluster needs more schedulers")
        } else {
            None
        }
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
        if is_beyond(binding.generation, now) {
            return Outcome::Refused(BEYOND.into());
        }
        binding.accepted = binding.accepted.map(|accepted| clamp(accepted, now.wall));
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
        let until_warm = self.eras.until_warm(&task, now.at);
        if binding.accepted.is_none() && !until_warm.is_zero() {
            return Outcome::Cold(until_warm.as_millis() as u64);
        }
        if self.tasks.get(&task).and_then(|known| known.held_by(host)).is_some_and(|held| held != binding.content) {
            self.unclaim(host, &task, Gone::Left, now);
        }
        self.drop_ended(&task, now);
        let known = self.tasks.entry(task).or_insert_with(|| Task::new(&name, binding, keep, now.at));
        (known.keep, known.told) = (keep, now.at);
        match known.bind(binding, now.wall) {
            Ok(bound) => {
                let complete =
                    known.candidate_mut(binding.content).is_some_and(|candidate| candidate.hold(host, holding));
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
        now: Now,
        actions: &mut Vec<Action>,
    ) -> Outcome {
        if is_beyond(tombstone.generation, now) {
            return Outcome::Refused(BEYOND.into());
        }
        tombstone.deleted = clamp(tombstone.deleted, now.wall);
        // An old one is noted as told, or its host would tell it again with each heartbeat until its clock agrees.
        if tombstone.deleted.0.saturating_add(TOMBSTONES_KEPT_MS) > now.wall.0 {
            self.bury(tombstone, keep, Some(host), None, now, actions);
        }
        // The host holds it no more, whatever generation others have.
        self.unclaim(host, &tombstone.task, Gone::Left, now);
        Outcome::Noted
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

/// Whether a name would have been deleted more often than once in each millisecond since 1970.
///
/// Without a bound a single host could use up all generations of a name, and nobody could bind it any more. With this one
/// the next generation is always there a moment later, so that a false one is no more than a delete.
const fn is_beyond(generation: u64, now: Now) -> bool {
    generation > now.wall.0.saturating_add(CLOCK_LEEWAY_MS)
}

/// Number of verified pieces; the largest number for all of them.
pub(super) const fn pieces(holding: Holding) -> u32 {
    match holding {
        Holding::Complete => u32::MAX,
        Holding::Partial { pieces } => pieces,
    }
}
