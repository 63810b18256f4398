//! Weighs the clocks against each other. Pure: the caller passes what the clocks show.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    time::Duration,
};

use damselfly_messages::record::UnixMillis;
use libp2p::PeerId;

use super::TOLERANCE;

/// A step of the system clock that nobody confirms or denies is believed after this time: a machine without a clock of
/// its own boots with a wrong time and gets the right one later.
const STEP_BELIEVED_AFTER: Duration = Duration::from_secs(24 * 3600);
/// What a scheduler has said counts for this time.
const HEARD_FOR: Duration = Duration::from_secs(10 * 60);
/// Schedulers whose time is kept; the oldest is forgotten.
const HEARD_MAX: usize = 64;

/// The wall clock and the monotonic clock at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment {
    pub(super) wall: UnixMillis,
    pub(super) elapsed: Duration,
}

impl Moment {
    /// The wall time when the monotonic clock shows `elapsed`.
    pub(super) fn at(self, elapsed: Duration) -> UnixMillis {
        let since = elapsed.saturating_sub(self.elapsed).as_millis() as u64;
        UnixMillis(self.wall.0.saturating_add(since))
    }
}

/// What the cluster has signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signed {
    /// This host's own credential, by the time from which it is valid.
    Credential,
    /// The configuration in force, by the time of its issue.
    Configuration,
    /// A peer's credential.
    PeerCredential,
}

/// What is wrong with the system clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockProblem {
    /// It shows a time before something that the cluster has signed.
    Behind {
        /// By how much.
        by: Duration,
    },
    /// It was moved, and nobody has confirmed its new time.
    Stepped {
        /// Milliseconds, negative when it went back.
        by_ms: i64,
    },
    /// No time is shown by most of the schedulers.
    Disputed,
    /// Most schedulers show another time.
    Differs {
        /// Milliseconds, negative when it is behind them.
        by_ms: i64,
    },
}

impl ClockProblem {
    /// Names the kind.
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Behind { .. } => "behind",
            Self::Stepped { .. } => "stepped",
            Self::Differs { .. } => "differs",
            Self::Disputed => "disputed",
        }
    }
}

impl fmt::Display for ClockProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = |by_ms: i64| if by_ms < 0 { "behind" } else { "ahead of" };
        match self {
            Self::Behind { by } => write!(
                f,
                "the system clock is {} s behind what the cluster has signed, which is not valid yet by it; the signed \
                 time is used, and nothing expires",
                by.as_secs()
            ),
            Self::Stepped { by_ms } => write!(
                f,
                "the system clock was moved by {} s; until the cluster confirms it, the time before goes on, and nothing \
                 expires",
                by_ms / 1000
            ),
            Self::Disputed => f.write_str("the schedulers' clocks disagree with each other, so nothing expires"),
            Self::Differs { by_ms } => write!(
                f,
                "the system clock is {} s {} the schedulers' time; theirs is used, and nothing expires",
                by_ms.unsigned_abs() / 1000,
                direction(*by_ms)
            ),
        }
    }
}

/// What follows from all clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    pub(super) now: UnixMillis,
    pub(super) expirable: Option<UnixMillis>,
    /// It is confirmed, or need not be.
    pub(super) is_known: bool,
    pub(super) problem: Option<ClockProblem>,
}

/// A system clock that has left the time which it showed before.
#[derive(Debug, Clone, Copy)]
struct Step {
    /// Milliseconds.
    by: i64,
    since: Duration,
}

/// Weighs the clocks.
///
/// The anchor is the time that is believed. It goes forward with the monotonic clock, and follows the system clock as
/// long as that agrees with it; else it waits for somebody who says which of the two is right.
#[derive(Debug)]
pub(super) struct Judge {
    anchor: Moment,
    /// A scheduler or a manager has agreed with the anchor since the boot.
    is_confirmed: bool,
    needs_confirmation: bool,
    step: Option<Step>,
    signed: BTreeMap<Signed, Moment>,
    heard: HashMap<PeerId, Moment>,
}

impl Judge {
    pub(super) fn new(now: Moment) -> Self {
        Self::resumed(now, false)
    }

    /// Goes on from what an earlier run of the same boot believed.
    pub(super) fn resumed(anchor: Moment, is_confirmed: bool) -> Self {
        Self {
            anchor,
            is_confirmed,
            needs_confirmation: false,
            step: None,
            signed: BTreeMap::new(),
            heard: HashMap::new(),
        }
    }

    pub(super) fn require_confirmation(&mut self) {
        self.needs_confirmation = true;
    }

    /// The anchor, and whether it is confirmed.
    pub(super) const fn known(&self) -> (Moment, bool) {
        (self.anchor, self.is_confirmed)
    }

    pub(super) fn learn(&mut self, signed: Signed, at: UnixMillis, now: Moment) {
        self.signed.insert(signed, Moment { wall: at, elapsed: now.elapsed });
    }

    pub(super) fn learn_from_peer(&mut self, at: UnixMillis, now: Moment) -> bool {
        if self.is_confirmed || self.consensus(now.elapsed).is_some() {
            return false;
        }
        let known = self.signed.get(&Signed::PeerCredential).map(|known| known.at(now.elapsed));
        if known.is_none_or(|known| known < at) {
            self.learn(Signed::PeerCredential, at, now);
        }
        true
    }

    pub(super) fn confirm(&mut self, at: UnixMillis, now: Moment) -> bool {
        let believed = self.anchor.at(now.elapsed);
        if agree(at, now.wall) {
            self.set_anchor(now);
        } else if agree(at, believed) {
            // The system clock is denied.
            self.step.iter_mut().for_each(|step| step.since = now.elapsed);
        } else if self.is_confirmed || self.consensus(now.elapsed).is_some() {
            return false;
        } else {
            self.set_anchor(Moment { wall: at, elapsed: now.elapsed });
        }
        self.is_confirmed = true;
        true
    }

    /// A scheduler that doubts its clock now tells none.
    pub(super) fn hear(&mut self, scheduler: PeerId, at: Option<UnixMillis>, now: Moment) {
        self.heard.retain(|_, heard| is_fresh(heard, now.elapsed));
        let Some(at) = at else {
            self.heard.remove(&scheduler);
            return;
        };
        if self.heard.len() >= HEARD_MAX
            && !self.heard.contains_key(&scheduler)
            && let Some(oldest) = self.heard.iter().min_by_key(|(_, heard)| heard.elapsed).map(|(peer, _)| *peer)
        {
            self.heard.remove(&oldest);
        }
        self.heard.insert(scheduler, Moment { wall: at, elapsed: now.elapsed });
    }

    pub(super) fn read(&mut self, now: Moment) -> Reading {
        let heard = self.consensus(now.elapsed);
        let believed = self.anchor.at(now.elapsed);
        if agree(now.wall, believed)
            || heard.is_some_and(|heard| agree(heard, now.wall))
            || self.believes_step(now, believed, heard)
        {
            self.set_anchor(now);
        }
        let believed = self.anchor.at(now.elapsed);
        self.is_confirmed |= heard.is_some_and(|heard| agree(heard, believed));
        let base = heard.filter(|heard| !agree(*heard, believed)).unwrap_or(believed);
        let floor = self.signed.values().map(|signed| signed.at(now.elapsed)).max();
        let floor = floor.filter(|_| !self.is_confirmed).unwrap_or(UnixMillis(0));
        let is_disputed = heard.is_none() && self.heard.values().any(|heard| is_fresh(heard, now.elapsed));
        let disputed = is_disputed.then_some(ClockProblem::Disputed);
        let problem = problem(now.wall, believed, heard, floor).or(disputed);
        let is_known = self.is_confirmed || !self.needs_confirmation;
        let least = now.wall.min(believed).min(heard.unwrap_or(believed));
        let expirable = (problem.is_none() && is_known).then_some(least);
        Reading { now: base.max(floor), expirable, is_known, problem }
    }

    fn set_anchor(&mut self, anchor: Moment) {
        self.anchor = anchor;
        self.step = None;
    }

    /// Whether the system clock has stayed long enough where it was moved to.
    fn believes_step(&mut self, now: Moment, believed: UnixMillis, heard: Option<UnixMillis>) -> bool {
        let by = difference(now.wall, believed);
        match self.step {
            Some(step) if step.by.abs_diff(by) <= TOLERANCE.as_millis() as u64 => {
                heard.is_none() && now.elapsed.saturating_sub(step.since) >= STEP_BELIEVED_AFTER
            }
            _ => {
                self.step = Some(Step { by, since: now.elapsed });
                false
            }
        }
    }

    /// The time that most of the schedulers show which have been heard lately.
    fn consensus(&self, elapsed: Duration) -> Option<UnixMillis> {
        let fresh = self.heard.values().filter(|heard| is_fresh(heard, elapsed));
        let mut times: Vec<_> = fresh.map(|heard| heard.at(elapsed)).collect();
        times.sort_unstable();
        let median = *times.get(times.len().checked_sub(1)? / 2)?;
        let agreeing = times.iter().filter(|time| agree(**time, median)).count();
        (2 * agreeing > times.len()).then_some(median)
    }
}

fn is_fresh(heard: &Moment, elapsed: Duration) -> bool {
    elapsed.saturating_sub(heard.elapsed) < HEARD_FOR
}

fn agree(one: UnixMillis, other: UnixMillis) -> bool {
    one.0.abs_diff(other.0) <= TOLERANCE.as_millis() as u64
}

/// How far `time` is ahead of `of`, in milliseconds.
fn difference(time: UnixMillis, of: UnixMillis) -> i64 {
    let by = i64::try_from(time.0.abs_diff(of.0)).unwrap_or(i64::MAX);
    if time < of { -by } else { by }
}

fn problem(
    system: UnixMillis,
    believed: UnixMillis,
    heard: Option<UnixMillis>,
    floor: UnixMillis,
) -> Option<ClockProblem> {
    match heard {
        Some(heard) if !agree(system, heard) => Some(ClockProblem::Differs { by_ms: difference(system, heard) }),
        _ if !agree(system, believed) => Some(ClockProblem::Stepped { by_ms: difference(system, believed) }),
        _ if floor > system && !agree(system, floor) => {
            Some(ClockProblem::Behind { by: Duration::from_millis(floor.0 - system.0) })
        }
        _ => None,
    }
}
