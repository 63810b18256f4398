//! What is known of one task: its candidate contents, who holds them, and which one stands.

use std::{cmp::Ordering, time::Duration};

use damselfly_messages::{
    id::ContentId,
    name::{Name, NameDigest},
    record::{Binding, Holding, Tombstone, UnixMillis},
    scheduler::CANDIDATES_MAX,
};

use super::hosts::HostId;

/// For how long a content is refused that hosts reported to be another one than its sha256 name says.
const REJECTED_FOR: Duration = Duration::from_secs(3600);

/// Reporters of a false candidate that are remembered.
const REPORTERS_MAX: usize = 64;

/// Why this scheduler keeps a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// It is an owner.
    Owned,
    /// It was an owner before the last ring change.
    Former,
    /// Hosts that reach no owner told it.
    StandIn,
}

/// A host that announced a content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) host: HostId,
    pub(super) holding: Holding,
}

/// Reports against a candidate.
#[derive(Debug, Default)]
struct Doubt {
    reporters: Vec<HostId>,
    rejected: Option<Duration>,
}

/// One content of a task.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) binding: Binding,
    /// Sorted by host.
    pub(super) holders: Vec<Holder>,
    /// Since when nobody is left, of whom some did not say goodbye.
    pub(super) orphaned: Option<Duration>,
    /// A holder's lease ended: it may come back.
    pub(super) lapsed: bool,
    doubt: Option<Box<Doubt>>,
}

impl Candidate {
    fn new(binding: Binding) -> Self {
        Self { binding, holders: Vec::new(), orphaned: None, lapsed: false, doubt: None }
    }

    pub(super) fn is_rejected(&self) -> bool {
        self.doubt.as_ref().is_some_and(|doubt| doubt.rejected.is_some())
    }

    pub(super) fn holder(&self, host: HostId) -> Option<&Holder> {
        self.holders.binary_search_by_key(&host, |holder| holder.host).ok().map(|index| &self.holders[index])
    }

    /// Adds or updates a holder; returns whether it is new as a complete one.
    pub(super) fn hold(&mut self, host: HostId, holding: Holding) -> bool {
        self.orphaned = None;
        match self.holders.binary_search_by_key(&host, |holder| holder.host) {
            Ok(index) => {
                let before = std::mem::replace(&mut self.holders[index].holding, holding);
                before != Holding::Complete && holding == Holding::Complete
            }
            Err(index) => {
                if self.holders.is_empty() {
                    self.holders.reserve_exact(1);
                }
                self.holders.insert(index, Holder { host, holding });
                holding == Holding::Complete
            }
        }
    }

    pub(super) fn unhold(&mut self, host: HostId) -> bool {
        let found = self.holders.binary_search_by_key(&host, |holder| holder.host);
        found.map(|index| self.holders.remove(index)).is_ok()
    }

    /// Better candidates are less: fewer reports, earlier accepted, smaller content.
    /// Its last holder lapsed, and would have given it up since then: its name is free.
    pub(super) fn has_ended(&self, wall: UnixMillis) -> bool {
        self.orphaned.is_some() && self.binding.expires.is_some_and(|end| end <= wall)
    }

    fn rank(&self) -> (bool, usize, u64, ContentId) {
        let reports = self.doubt.as_ref().map_or(0, |doubt| doubt.reporters.len());
        let accepted = self.binding.accepted.map_or(u64::MAX, |at| at.0);
        (self.is_rejected(), reports, accepted, self.binding.content)
    }
}

/// A task with at least one candidate.
#[derive(Debug)]
pub(super) struct Task {
    /// Best first; one, except for sha256 names.
    pub(super) candidates: Vec<Candidate>,
    pub(super) keep: Keep,
    /// When a host last told of it.
    pub(super) told: Duration,
    many: bool,
}

/// A record that stands, and what fell because of it.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) binding: Binding,
    pub(super) lost: Vec<Candidate>,
    /// The losers are in conflict; else they are refused when they are told again.
    pub(super) conflict: bool,
}

/// Why a record does not stand.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unbound {
    /// This one stands.
    Conflict(Binding),
    /// Hosts reported that it is not what its name says.
    Rejected,
    /// Four candidates precede it.
    TooMany,
}

impl Task {
    pub(super) fn new(name: &Name, binding: Binding, keep: Keep, told: Duration) -> Self {
        let many = matches!(name.digest(), Some(NameDigest::Sha256(_)));
        // Not four, which is what a push would reserve: most tasks ever have one.
        Self { candidates: vec![Candidate::new(binding)], keep, told, many }
    }

    /// Those that can be fetched, best first.
    pub(super) fn standing(&self) -> impl Iterator<Item = &Candidate> {
        self.candidates.iter().filter(|candidate| !candidate.is_rejected())
    }

    pub(super) fn candidate(&self, content: ContentId) -> Option<&Candidate> {
        self.candidates.iter().find(|candidate| candidate.binding.content == content)
    }

    pub(super) fn candidate_mut(&mut self, content: ContentId) -> Option<&mut Candidate> {
        self.candidates.iter_mut().find(|candidate| candidate.binding.content == content)
    }

    /// The content that `host` announced.
    pub(super) fn held_by(&self, host: HostId) -> Option<ContentId> {
        let held = self.candidates.iter().find(|candidate| candidate.holder(host).is_some());
        held.map(|candidate| candidate.binding.content)
    }

    /// Judges an announced binding against what stands. One without acceptance is accepted at `wall` if it stands.
    pub(super) fn bind(&mut self, offered: Binding, wall: UnixMillis) -> Result<Bound, Unbound> {
        let accepted = accept(offered, wall);
        if let Some(known) = self.candidate_mut(offered.content) {
            if known.is_rejected() {
                return Err(Unbound::Rejected);
            }
            known.binding.merge(&offered);
            known.binding = accept(known.binding, wall);
            let binding = known.binding;
            self.sort();
            return Ok(Bound { binding, lost: Vec::new(), conflict: false });
        }
        if self.many { self.join(accepted) } else { self.contend(offered, accepted) }
    }

    /// One content stands under a plain name.
    fn contend(&mut self, offered: Binding, accepted: Binding) -> Result<Bound, Unbound> {
        let stronger = |candidate: &Candidate| candidate.binding.precedence(&offered) == Ordering::Greater;
        if let Some(winner) = self.candidates.iter().find(|candidate| stronger(candidate)) {
            return Err(Unbound::Conflict(winner.binding));
        }
        let lost = std::mem::replace(&mut self.candidates, vec![Candidate::new(accepted)]);
        Ok(Bound { binding: accepted, lost, conflict: true })
    }

    /// Several stand under a name that the manifest cannot prove; the same four at every owner.
    fn join(&mut self, accepted: Binding) -> Result<Bound, Unbound> {
        self.candidates.push(Candidate::new(accepted));
        self.sort();
        let lost = self.candidates.split_off(self.candidates.len().min(CANDIDATES_MAX));
        if lost.iter().any(|candidate| candidate.binding.content == accepted.content) {
            return Err(Unbound::TooMany);
        }
        Ok(Bound { binding: accepted, lost, conflict: false })
    }

    fn sort(&mut self) {
        self.candidates.sort_by_key(Candidate::rank);
    }

    /// Notes that the whole of a candidate was not what its sha256 name says.
    ///
    /// It goes to the end, and with more reporters than complete holders it is given out no more.
    pub(super) fn doubt(&mut self, content: ContentId, reporter: HostId, at: Duration) {
        if !self.many {
            return;
        }
        let Some(candidate) = self.candidate_mut(content) else { return };
        let complete = candidate.holders.iter().filter(|holder| holder.holding == Holding::Complete).count();
        let doubt = candidate.doubt.get_or_insert_default();
        if !doubt.reporters.contains(&reporter) && doubt.reporters.len() < REPORTERS_MAX {
            doubt.reporters.push(reporter);
        }
        if doubt.reporters.len() > complete {
            doubt.rejected = Some(at);
        }
        self.sort();
    }

    /// Forgets rejections that are old enough to be tried again.
    pub(super) fn forgive(&mut self, at: Duration) {
        let rejected = |doubt: &Doubt| doubt.rejected.is_some_and(|since| since + REJECTED_FOR <= at);
        for candidate in &mut self.candidates {
            if candidate.doubt.as_deref().is_some_and(rejected) {
                candidate.doubt = None;
            }
        }
    }

    /// Takes out the candidates that a tombstone buries.
    pub(super) fn apply_tombstone(&mut self, tombstone: &Tombstone) -> Vec<Candidate> {
        self.candidates.extract_if(.., |candidate| tombstone.buries(&candidate.binding)).collect()
    }
}

fn accept(mut binding: Binding, wall: UnixMillis) -> Binding {
    binding.accepted = binding.accepted.or(Some(wall));
    binding
}
