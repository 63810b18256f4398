//! Telling the owners of a new binding: the first warm owner decides, the others are told its decision.

use std::time::{Duration, Instant};

use damselfly_messages::{
    record::{Announcement, Binding, Record, Tombstone},
    scheduler::{AnnounceTask, Outcome, RequestBody, ResponseBody},
};
use libp2p::PeerId;

use super::{ANSWER_WITHIN, ASK_AGAIN, Schedulers, UNEXPECTED, Unanswered, WARM_WITHIN, no_scheduler};

/// What became of an announcement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Announced {
    /// Every reachable owner, at least one, has acknowledged it; this is the binding to keep.
    Accepted(Binding),
    /// The name stands for another content.
    Conflict(Binding),
    /// The task is deleted.
    Buried(Tombstone),
    /// An owner will not have it, for this reason.
    Refused(String),
}

/// What one owner said about a binding.
enum Decision {
    Made(Announced),
    /// Not warm: perhaps another owner is.
    Later(Duration),
    /// It judges by another ring.
    NotOwner,
}

impl Schedulers {
    /// Announces that this host holds a content under a name, and returns when the owners have acknowledged it.
    ///
    /// One owner decides about a new binding, so that two hosts that bind one name at the same time get one answer.
    ///
    /// # Errors
    /// [`Unanswered`]: no owner has heard of it.
    pub async fn announce(&self, announcement: &Announcement) -> Result<Announced, Unanswered> {
        let task = announcement.name.task_id();
        let deadline = Instant::now() + WARM_WITHIN;
        let mut announcement = announcement.clone();
        loop {
            let targets = self.targets(&task)?;
            let mut reasons = Vec::new();
            let mut wait = None;
            let candidates = targets.current().iter().map(|peer| (*peer, false));
            for (peer, stand_in) in candidates.chain(targets.stand_ins.iter().map(|peer| (*peer, true))) {
                // A stand-in decides only when no owner can be reached, not when they are busy starting.
                if stand_in && wait.is_some() {
                    break;
                }
                match self.tell(peer, &announcement, stand_in).await {
                    Ok(Decision::Made(Announced::Accepted(binding))) => {
                        announcement.binding = binding;
                        return Ok(self.tell_others(targets.current(), peer, announcement).await);
                    }
                    Ok(Decision::Made(other)) => return Ok(other),
                    Ok(Decision::Later(retry)) => wait = Some(wait.unwrap_or(retry).min(retry)),
                    Ok(Decision::NotOwner) => wait = Some(ASK_AGAIN),
                    Err(reason) => reasons.push(reason),
                }
            }
            match wait {
                None => return Err(no_scheduler(reasons)),
                Some(_) if Instant::now() >= deadline => return Err(Unanswered::Cold),
                Some(wait) => tokio::time::sleep(wait.clamp(Duration::from_millis(20), ASK_AGAIN)).await,
            }
        }
    }

    /// Tells the other owners what one has decided. Those that cannot be reached learn it from the heartbeat.
    async fn tell_others(&self, owners: &[PeerId], decided: PeerId, announcement: Announcement) -> Announced {
        let others = owners.iter().filter(|owner| **owner != decided);
        let told = futures::future::join_all(others.map(|owner| self.tell(*owner, &announcement, false))).await;
        let mut binding = announcement.binding;
        for decision in told {
            match decision {
                Ok(Decision::Made(Announced::Accepted(merged))) if merged.content == binding.content => {
                    binding.merge(&merged);
                }
                Ok(Decision::Made(Announced::Accepted(_) | Announced::Refused(_))) => {}
                Ok(Decision::Made(lost)) => return lost,
                Ok(Decision::Later(_) | Decision::NotOwner) | Err(_) => {}
            }
        }
        Announced::Accepted(binding)
    }

    async fn tell(&self, peer: PeerId, announcement: &Announcement, stand_in: bool) -> Result<Decision, String> {
        let records = vec![Record::Held(announcement.clone())];
        let body = RequestBody::AnnounceTask(AnnounceTask { records, bucket: None });
        match self.ask_one(peer, &body, stand_in, ANSWER_WITHIN).await? {
            ResponseBody::Announced(outcomes) => match outcomes.into_iter().next() {
                Some(Outcome::Accepted(binding)) => Ok(Decision::Made(Announced::Accepted(binding))),
                Some(Outcome::Conflict(winner)) => Ok(Decision::Made(Announced::Conflict(winner))),
                Some(Outcome::Buried(tombstone)) => Ok(Decision::Made(Announced::Buried(tombstone))),
                Some(Outcome::Refused(reason)) => Ok(Decision::Made(Announced::Refused(reason))),
                Some(Outcome::Cold(millis)) => Ok(Decision::Later(Duration::from_millis(millis))),
                Some(Outcome::Noted) | None => Err(UNEXPECTED.to_owned()),
            },
            ResponseBody::NotOwner(_) => Ok(Decision::NotOwner),
            _ => Err(UNEXPECTED.to_owned()),
        }
    }
}
