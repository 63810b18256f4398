//! What this scheduler owns, owned a moment ago, and has owned long enough.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use damselfly_messages::{
    config::{Accepted, Settings},
    id::TaskId,
};
use libp2p::PeerId;

/// How long after a ring change the former owners of a task go on answering questions about it.
pub(super) const GRACE: Duration = Duration::from_secs(15);

/// Ring changes within [`GRACE`] that are remembered; older ones only make the scheduler look colder.
const ERAS_MAX: usize = 8;

/// Without a request to stand in for this long, standing in begins anew: hosts have stopped telling.
const STAND_IN_GAP: Duration = Duration::from_secs(60);

/// A time with one ring.
#[derive(Debug)]
struct Epoch {
    accepted: Arc<Accepted>,
    began: Duration,
}

/// The present ring and those of the last 15 s.
#[derive(Debug)]
pub(super) struct RingHistory {
    me: PeerId,
    /// Oldest first.
    ring_history: VecDeque<Epoch>,
    /// For each first owner that this scheduler stands in for: since when, and when last.
    standing_in: HashMap<PeerId, (Duration, Duration)>,
}

/// What this scheduler is to a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// An owner by the present ring.
    Owner,
    /// An owner until a moment ago.
    Former,
    /// Nothing.
    NotOwner,
}

impl RingHistory {
    pub(super) fn new(me: PeerId) -> Self {
        Self { me, ring_history: VecDeque::new(), standing_in: HashMap::new() }
    }

    /// Takes over a configuration; returns whether the ring is another one.
    pub(super) fn change(&mut self, accepted: Arc<Accepted>, at: Duration) -> bool {
        if let Some(era) = self.ring_history.back_mut()
            && same_ring(&era.accepted.configuration.settings, &accepted.configuration.settings)
        {
            era.accepted = accepted;
            return false;
        }
        self.standing_in.clear();
        self.ring_history.push_back(Epoch { accepted, began: at });
        if self.ring_history.len() > ERAS_MAX {
            self.ring_history.pop_front();
        }
        true
    }

    /// Forgets rings that ended more than [`GRACE`] ago; returns whether there was one.
    pub(super) fn sweep(&mut self, at: Duration) -> bool {
        let before = self.ring_history.len();
        while self.ring_history.get(1).is_some_and(|next| next.began + GRACE <= at) {
            self.ring_history.pop_front();
        }
        self.ring_history.len() < before
    }

    pub(super) fn current(&self) -> Option<&Arc<Accepted>> {
        self.ring_history.back().map(|era| &era.accepted)
    }

    pub(super) fn epoch(&self) -> u64 {
        self.current().map_or(0, |accepted| accepted.configuration.epoch)
    }

    pub(super) fn settings(&self) -> Option<&Settings> {
        self.current().map(|accepted| &accepted.configuration.settings)
    }

    pub(super) fn owns(&self, task: &TaskId) -> bool {
        self.current().is_some_and(|accepted| accepted.ring.owns(&self.me, task))
    }

    pub(super) fn role(&self, task: &TaskId, at: Duration) -> Role {
        if self.owns(task) {
            return Role::Owner;
        }
        let ended = self.ring_history.iter().skip(1).map(|next| next.began);
        let former = self
            .ring_history
            .iter()
            .zip(ended)
            .any(|(era, ended)| ended + GRACE > at && era.accepted.ring.owns(&self.me, task));
        if former { Role::Former } else { Role::NotOwner }
    }

    /// Notes that a host asks this scheduler to stand in for the owners of `task`.
    pub(super) fn stand_in(&mut self, task: &TaskId, at: Duration) {
        let Some(owner) = self.first_owner(task) else { return };
        let (since, last) = self.standing_in.entry(owner).or_insert((at, at));
        if *last + STAND_IN_GAP < at {
            *since = at;
        }
        *last = at;
    }

    /// How long until not knowing `task` means something; zero when this scheduler is warm for it.
    ///
    /// An owner is warm when it has been one, through all ring changes, for three heartbeats. Whoever stands in is warm
    /// three heartbeats after hosts began to tell it what that owner knew.
    pub(super) fn until_warm(&self, task: &TaskId, at: Duration) -> Duration {
        let Some(warm_up) = self.settings().map(|settings| Duration::from_millis(settings.warm_up_ms())) else {
            return GRACE;
        };
        let owned = self.ring_history.iter().rev().take_while(|era| era.accepted.ring.owns(&self.me, task));
        let since = match owned.last() {
            Some(era) => Some(era.began),
            None => self.first_owner(task).and_then(|owner| self.standing_in.get(&owner)).map(|(since, _)| *since),
        };
        since.map_or(warm_up, |since| (since + warm_up).saturating_sub(at))
    }

    pub(super) fn is_warm(&self, task: &TaskId, at: Duration) -> bool {
        self.until_warm(task, at).is_zero()
    }

    /// Whether it is warm for everything it owns.
    pub(super) fn is_warm_throughout(&self, at: Duration) -> bool {
        let warm_up = self.settings().map_or(GRACE, |settings| Duration::from_millis(settings.warm_up_ms()));
        self.ring_history.back().is_some_and(|era| era.began + warm_up <= at)
    }

    fn first_owner(&self, task: &TaskId) -> Option<PeerId> {
        self.current()?.ring.owners(task).next()
    }
}

fn same_ring(one: &Settings, other: &Settings) -> bool {
    let members = |settings: &Settings| {
        let mut members: Vec<_> = settings.active_schedulers().map(|entry| (entry.peer_id, entry.weight)).collect();
        members.sort_unstable();
        members
    };
    one.replicas == other.replicas && members(one) == members(other)
}
