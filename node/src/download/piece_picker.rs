//! Which piece to ask of which parent next. Pure: no clock, no I/O.
//!
//! Rarest first, ties in a run that begins at a random piece: several downloaders of one source begin at different
//! places and soon have something to give each other, while each writes its file nearly in order. The last piece comes
//! first, because the content's length is a claim until it has verified. At the end, pieces that are late are asked of
//! a second parent.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap, HashSet},
    time::{Duration, Instant},
};

use damselfly_messages::{
    piece::{PieceIndex, PieceLayout},
    scheduler::{ParentFault, ParentResult},
};
use libp2p::PeerId;

/// Requests that a new parent gets at a time, before it has shown how fast it is.
const OUTSTANDING_FIRST: usize = 8;
/// Bytes of these requests, at most, but two pieces.
const OUTSTANDING_FIRST_BYTES: usize = 16 << 20;
/// Most bytes asked of one parent at a time. Pieces that have arrived and are being verified count too.
const OUTSTANDING_BYTES_MAX: usize = 64 << 20;
/// An answer faster than this lets a parent have one request more, one twice as slow one less.
const ANSWER_TARGET: Duration = Duration::from_millis(400);
/// What is asked of a parent arrives within this time at its measured rate, or it is asked less.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);
/// Requests that would take longer than this at the parent's measured rate are withdrawn: pieces that are complete soon are
/// worth more than many that have only begun.
const WITHDRAWN_ABOVE: Duration = Duration::from_secs(8);
/// Not before this time: a parent that only falters is not slow, and each withdrawal costs a stream.
const WITHDRAWN_AFTER: Duration = Duration::from_secs(3);
/// A rate is known when it was measured for this long.
const MEASURED_FOR: Duration = Duration::from_secs(1);
/// A parent that sends again after so long a silence was paused.
const PAUSED_AFTER: Duration = Duration::from_secs(5);
/// A piece may be asked of a second parent, before the pieces that nobody was asked for, when the first parent has had it
/// for this long and is slower than the second one by [`SLOW_FACTOR`].
const SLOW_AFTER: Duration = Duration::from_secs(5);
/// See [`SLOW_AFTER`].
const SLOW_FACTOR: f64 = 4.0;
/// What is left of a piece that arrived from another parent is received when that takes less than this.
const DUPLICATE_WITHIN: Duration = Duration::from_secs(1);
/// A parent that has sent nothing for this long is given up when another one has pieces that are missing.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// One stream of a parent that sends on others may be silent for this long.
const STREAM_SILENCE_MAX: Duration = Duration::from_secs(60);
/// So many times as slow as the quickest answer so far, and [`QUEUE_MIN`], an answer has waited behind others: more
/// requests would only wait longer, in memory.
const QUEUE_FACTOR: u32 = 3;
/// See [`QUEUE_FACTOR`].
const QUEUE_MIN: Duration = Duration::from_millis(20);
/// How many missing pieces are compared for rarity.
const RARITY_WINDOW: usize = 256;
/// A piece may be asked of a second parent when the first one, with more to do, has had it for this long.
const LATE_AFTER: Duration = Duration::from_millis(500);
/// With two or more to do, for this long.
const BEHIND_AFTER: Duration = Duration::from_millis(100);
/// A parent that takes longer seems stuck.
const STUCK_AFTER: Duration = Duration::from_secs(1);
/// For so long after it was asked for it, only who gave the manifest is asked for the last piece: one that puts it off for
/// ever must not hold up the download.
const AUTHOR_ALONE: Duration = Duration::from_secs(3);
/// A parent that failed is left alone for so long, and twice as long each time, up to [`REST_MAX`].
const REST_FIRST: Duration = Duration::from_millis(500);
/// See [`REST_FIRST`].
const REST_MAX: Duration = Duration::from_secs(8);

/// The state of one download: which pieces are missing, which parents have which, and what is under way.
#[derive(Debug)]
pub struct PiecePicker {
    layout: PieceLayout,
    /// Missing and asked of nobody.
    wanted: BTreeSet<u32>,
    /// Missing and asked of one or two parents.
    asked: HashMap<u32, Asked>,
    /// Verified pieces.
    held: u32,
    parents: HashMap<PeerId, Parent>,
    /// Parents that may not come back, whatever the scheduler says.
    excluded: HashSet<PeerId>,
    /// How often a parent failed in a row, and until when it is left alone.
    failed: HashMap<PeerId, (u32, Instant)>,
    /// Who gave the manifest: the last piece, which proves its length, is first asked of it alone.
    author: Option<Author>,
    /// Where the run of equally rare pieces begins.
    start: u32,
    /// When a byte arrived last.
    last_progress: Instant,
    /// When a parent answered last that it is busy.
    last_busy: Option<Instant>,
}

/// What to do about a piece that is arriving, or is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receiving {
    /// Go on.
    Wanted,
    /// Reset the stream: the piece arrived elsewhere, or the parent was asked for more than it can send.
    Withdrawn,
    /// The parent is silent.
    Silent,
}

#[derive(Debug, Clone, Copy, Default)]
struct Asked {
    copies: u8,
}

#[derive(Debug)]
struct Author {
    peer: PeerId,
    /// Set when it was asked for the last piece.
    alone_until: Option<Instant>,
}

#[derive(Debug)]
struct Parent {
    has: Has,
    outstanding: HashMap<u32, Request>,
    /// When its last piece verified.
    gave: Option<Instant>,
    /// When its last byte arrived.
    heard: Option<Instant>,
    meter: Meter,
    allowed: usize,
    /// The shortest time from a request to its verified piece.
    quickest: Duration,
    /// Asked nothing before this moment.
    rests_until: Option<Instant>,
    total: Tally,
    unreported: Tally,
}

/// A piece that was asked for and has not verified.
#[derive(Debug, Clone, Copy)]
struct Request {
    since: Instant,
    received_bytes: u64,
}

/// Measures the rate at which a parent sends.
#[derive(Debug)]
struct Meter {
    since: Instant,
    bytes: u64,
    /// Bytes per second before `since`.
    rate: Option<f64>,
}

#[derive(Debug)]
enum Has {
    All,
    Some(BTreeSet<u32>),
}

/// What a parent gave.
#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    pieces: u32,
    bytes: u64,
    busy: Duration,
}

impl PiecePicker {
    /// A picker for the pieces in `missing`, which begins its run at piece `start`, any number.
    pub fn new(layout: PieceLayout, missing: impl IntoIterator<Item = PieceIndex>, start: u32, now: Instant) -> Self {
        let wanted: BTreeSet<_> = missing.into_iter().map(PieceIndex::get).collect();
        Self {
            held: layout.pieces() - wanted.len() as u32,
            start: start % layout.pieces().max(1),
            layout,
            wanted,
            asked: HashMap::new(),
            parents: HashMap::new(),
            excluded: HashSet::new(),
            failed: HashMap::new(),
            author: None,
            last_progress: now,
            last_busy: None,
        }
    }

    /// Has the last piece asked of who gave the manifest: when it does not verify, it is clear who lied.
    pub const fn prove_first_by(&mut self, author: PeerId) {
        self.author = Some(Author { peer: author, alone_until: None });
    }

    /// Verified pieces so far.
    pub const fn held(&self) -> u32 {
        self.held
    }

    /// Whether nothing is missing.
    pub const fn is_complete(&self) -> bool {
        self.held == self.layout.pieces()
    }

    /// When the last byte arrived.
    pub const fn last_progress(&self) -> Instant {
        self.last_progress
    }

    /// When a parent answered last that it is busy.
    pub const fn last_busy(&self) -> Option<Instant> {
        self.last_busy
    }

    /// Adds a parent; `complete` if it has every piece. Returns whether it is new here and welcome.
    pub fn add_parent(&mut self, peer: PeerId, complete: bool, now: Instant) -> bool {
        if self.excluded.contains(&peer) || self.failed.get(&peer).is_some_and(|(_, until)| now < *until) {
            return false;
        }
        if let Some(parent) = self.parents.get_mut(&peer) {
            if complete {
                parent.has = Has::All;
            }
            return false;
        }
        let has = if complete { Has::All } else { Has::Some(BTreeSet::new()) };
        let parent = Parent {
            has,
            outstanding: HashMap::new(),
            gave: None,
            heard: None,
            meter: Meter { since: now, bytes: 0, rate: None },
            allowed: OUTSTANDING_FIRST.min((OUTSTANDING_FIRST_BYTES / self.layout.piece_bytes() as usize).max(2)),
            quickest: ANSWER_TARGET,
            rests_until: None,
            total: Tally::default(),
            unreported: Tally::default(),
        };
        self.parents.insert(peer, parent);
        true
    }

    /// The parent has these pieces too.
    pub fn parent_has(&mut self, peer: &PeerId, pieces: &[PieceIndex]) {
        if let Some(Parent { has: Has::Some(some), .. }) = self.parents.get_mut(peer) {
            some.extend(pieces.iter().map(|index| index.get()));
        }
    }

    /// The parent has every piece.
    pub fn parent_has_all(&mut self, peer: &PeerId) {
        if let Some(parent) = self.parents.get_mut(peer) {
            parent.has = Has::All;
        }
    }

    /// Parents that are asked now.
    pub fn parents(&self) -> impl Iterator<Item = &PeerId> {
        self.parents.keys()
    }

    /// Parents not to be offered again.
    pub const fn excluded(&self) -> &HashSet<PeerId> {
        &self.excluded
    }

    /// How many pieces `peer` may be asked at a time.
    pub fn allowed(&self, peer: &PeerId) -> usize {
        self.parents.get(peer).map_or(0, |parent| parent.allowed)
    }

    /// The next piece to ask of `peer`, and notes that it is asked.
    pub fn next(&mut self, peer: &PeerId, now: Instant) -> Option<PieceIndex> {
        let parent = self.parents.get(peer)?;
        if parent.outstanding.len() >= parent.allowed || parent.rests_until.is_some_and(|until| now < until) {
            return None;
        }
        let index = self.choose_slow(peer, parent, now).or_else(|| self.choose_wanted(peer, parent, now));
        let index = index.or_else(|| self.choose_late(peer, parent, now))?;
        self.wanted.remove(&index);
        let is_last = index + 1 == self.layout.pieces();
        if let Some(author) = self.author.as_mut().filter(|author| is_last && author.peer == *peer) {
            author.alone_until.get_or_insert(now + AUTHOR_ALONE);
        }
        let asked = self.asked.entry(index).or_default();
        asked.copies += 1;
        let parent = self.parents.get_mut(peer)?;
        if parent.outstanding.is_empty() {
            parent.meter.restart(now);
        }
        parent.outstanding.insert(index, Request { since: now, received_bytes: 0 });
        self.layout.index(index).ok()
    }

    /// The piece that a much slower parent has had for the longest time; at most two have it at a time.
    fn choose_slow(&self, peer: &PeerId, parent: &Parent, now: Instant) -> Option<u32> {
        let rate = parent.meter.rate(now)?;
        let is_slow = |other: &Parent| other.meter.rate(now).is_some_and(|of_other| of_other * SLOW_FACTOR < rate);
        let others = self.parents.iter().filter(|(other, state)| *other != peer && is_slow(state));
        let requests = others.flat_map(|(_, other)| &other.outstanding).filter(|(index, request)| {
            let is_late = now.saturating_duration_since(request.since) >= SLOW_AFTER;
            is_late && self.asked_once(index) && parent.has(**index) && !self.is_anothers(peer, **index, now)
        });
        requests.min_by_key(|(index, request)| (request.since, **index)).map(|(index, _)| *index)
    }

    fn choose_wanted(&self, peer: &PeerId, parent: &Parent, now: Instant) -> Option<u32> {
        let last = self.layout.pieces().checked_sub(1)?;
        if self.wanted.contains(&last) && parent.has(last) && !self.is_anothers(peer, last, now) {
            return Some(last);
        }
        let run = self.wanted.range(self.start..).chain(self.wanted.range(..self.start));
        let may = |index: &&u32| parent.has(**index) && !self.is_anothers(peer, **index, now);
        let mut candidates = run.filter(may).take(RARITY_WINDOW).peekable();
        let first = **candidates.peek()?;
        if self.parents.values().all(|parent| matches!(parent.has, Has::All)) {
            return Some(first);
        }
        // `min_by_key` keeps the first of equals: the order of the run.
        candidates.min_by_key(|index| self.copies_of(**index)).copied()
    }

    /// Whether only who gave the manifest may be asked for this piece now, and that is not `peer`.
    fn is_anothers(&self, peer: &PeerId, index: u32, now: Instant) -> bool {
        index + 1 == self.layout.pieces()
            && self.author.as_ref().is_some_and(|author| {
                let is_parent = self.parents.get(&author.peer).is_some_and(|author| author.has(index));
                author.peer != *peer && is_parent && author.alone_until.is_none_or(|until| now < until)
            })
    }

    fn copies_of(&self, index: u32) -> usize {
        self.parents.values().filter(|parent| parent.has(index)).count()
    }

    /// A piece that another parent has had for too long; at most two have it at a time.
    ///
    /// Of one that seems stuck the oldest. Of one with more to do the newest, which it would come to last: the older ones
    /// arrive meanwhile.
    fn choose_late(&self, peer: &PeerId, parent: &Parent, now: Instant) -> Option<u32> {
        let mine = parent.outstanding.len();
        let (mut oldest, mut newest) = (None, None);
        let may = |index: &u32| parent.has(*index) && !self.is_anothers(peer, *index, now);
        for (_, other) in self.parents.iter().filter(|(other, _)| *other != peer) {
            let alone: Vec<_> = other.outstanding.iter().filter(|(index, _)| self.asked_once(index)).collect();
            for (index, Request { since, .. }) in alone.iter().copied().filter(|(index, _)| may(index)) {
                let age = now.saturating_duration_since(*since);
                if age >= STUCK_AFTER {
                    oldest = oldest.into_iter().chain([(*since, *index)]).min();
                } else if age >= LATE_AFTER && alone.len() > mine || age >= BEHIND_AFTER && alone.len() > mine + 1 {
                    newest = newest.max(Some((*since, *index)));
                }
            }
        }
        oldest.or(newest).map(|(_, index)| index)
    }

    fn asked_once(&self, index: &u32) -> bool {
        self.asked.get(index).is_some_and(|asked| asked.copies == 1)
    }

    /// Bytes of a piece arrived from `peer`, not verified yet. That is progress; what a parent is asked follows its rate.
    pub fn on_bytes(&mut self, peer: &PeerId, index: PieceIndex, bytes: u64, now: Instant) -> Receiving {
        self.last_progress = now;
        let Some(parent) = self.parents.get_mut(peer) else { return Receiving::Withdrawn };
        let heard = parent.heard.replace(now);
        if heard.is_some_and(|heard| now.saturating_duration_since(heard) >= PAUSED_AFTER) {
            // A pause says nothing about the rate.
            parent.meter.restart(now);
        }
        if let Some(request) = parent.outstanding.get_mut(&index.get()) {
            request.received_bytes += bytes;
        }
        if let Some(rate) = parent.meter.count(bytes, now) {
            let within = rate * ANSWERED_WITHIN.as_secs_f64() / f64::from(self.layout.piece_bytes());
            parent.allowed = parent.allowed.min((within.ceil() as usize).max(1));
        }
        let is_withdrawn = self.is_duplicate(peer, index.get(), now) || self.is_surplus(peer, index.get(), now);
        if is_withdrawn { Receiving::Withdrawn } else { Receiving::Wanted }
    }

    /// What to do about a piece of `peer` of which nothing has arrived since `waiting`.
    pub fn while_silent(&self, peer: &PeerId, index: PieceIndex, waiting: Instant, now: Instant) -> Receiving {
        let Some(parent) = self.parents.get(peer) else { return Receiving::Withdrawn };
        let heard = parent.heard.map_or(waiting, |heard| heard.max(waiting));
        let is_stuck = now.saturating_duration_since(waiting) >= STREAM_SILENCE_MAX && heard > waiting;
        if is_stuck || self.is_duplicate(peer, index.get(), now) {
            return Receiving::Withdrawn;
        }
        let is_silent = now.saturating_duration_since(heard) >= SILENCE_MAX && !self.is_only_source(peer);
        if is_silent { Receiving::Silent } else { Receiving::Wanted }
    }

    /// Whether the piece arrived elsewhere, and `peer` needs long for the rest of it.
    fn is_duplicate(&self, peer: &PeerId, index: u32, now: Instant) -> bool {
        let Some(parent) = self.parents.get(peer).filter(|_| !self.asked.contains_key(&index)) else { return false };
        let Some(request) = parent.outstanding.get(&index) else { return false };
        let rate = parent.meter.rate(now).unwrap_or_default();
        self.remaining(index, request) > rate * DUPLICATE_WITHIN.as_secs_f64()
    }

    /// Whether `peer` was asked for so much that others of its pieces should come first.
    fn is_surplus(&self, peer: &PeerId, index: u32, now: Instant) -> bool {
        let Some(parent) = self.parents.get(peer) else { return false };
        let (Some(request), Some(rate)) = (parent.outstanding.get(&index), parent.meter.rate(now)) else {
            return false;
        };
        let most = rate * WITHDRAWN_ABOVE.as_secs_f64();
        if now.saturating_duration_since(request.since) < WITHDRAWN_AFTER {
            return false;
        }
        if parent.outstanding.len() as f64 * f64::from(self.layout.piece_bytes()) <= most {
            return false;
        }
        // The last piece proves the length, so it is kept first; then those of which most has arrived. Of those that arrive
        // side by side it does not matter which part came a moment ago.
        let last = self.layout.pieces() - 1;
        let part_bytes = u64::from(self.layout.piece_bytes()) / 8;
        let rank = |index: u32, request: &Request| (index != last, Reverse(request.received_bytes / part_bytes), index);
        let own = rank(index, request);
        let first = parent.outstanding.iter().filter(|(index, request)| rank(**index, request) < own);
        let first_bytes: f64 = first.map(|(index, request)| self.remaining(*index, request)).sum();
        first_bytes > 0.0 && first_bytes + self.remaining(index, request) > most
    }

    /// Bytes of a piece that have not arrived.
    fn remaining(&self, index: u32, request: &Request) -> f64 {
        let bytes = self.layout.index(index).map_or(0, |index| self.layout.bytes(index) as u64);
        bytes.saturating_sub(request.received_bytes) as f64
    }

    /// A piece of `peer` arrived and verified. Returns whether it was still missing.
    pub fn on_piece(&mut self, peer: &PeerId, index: PieceIndex, now: Instant) -> bool {
        let bytes = self.layout.bytes(index) as u64;
        let allowed_max = (OUTSTANDING_BYTES_MAX / self.layout.piece_bytes() as usize).max(2);
        if let Some(parent) = self.parents.get_mut(peer)
            && let Some(request) = parent.outstanding.remove(&index.get())
        {
            parent.on_answer(now.saturating_duration_since(request.since), allowed_max);
            parent.count(bytes);
            parent.gave = Some(now);
            self.failed.remove(peer);
        }
        let missing = self.asked.remove(&index.get()).is_some() || self.wanted.remove(&index.get());
        if missing {
            self.held += 1;
            self.last_progress = now;
        }
        missing
    }

    /// The parent asks to be left alone for a while; the piece is wanted again.
    pub fn on_busy(&mut self, peer: &PeerId, index: PieceIndex, until: Instant, now: Instant) {
        self.on_no_room(peer, index, until);
        self.last_busy = Some(now);
        if let Some(parent) = self.parents.get_mut(peer) {
            parent.heard = Some(now);
        }
    }

    /// There is no memory for the rest of the piece; it is wanted again, and the parent is asked for less.
    pub fn on_no_room(&mut self, peer: &PeerId, index: PieceIndex, until: Instant) {
        self.give_back(peer, index);
        if let Some(parent) = self.parents.get_mut(peer) {
            parent.allowed = (parent.allowed / 2).max(1);
            parent.rests_until = Some(until);
        }
    }

    /// The parent will not answer this request; the piece is wanted again.
    pub fn give_back(&mut self, peer: &PeerId, index: PieceIndex) {
        if let Some(parent) = self.parents.get_mut(peer)
            && parent.outstanding.remove(&index.get()).is_some()
        {
            release(&mut self.asked, &mut self.wanted, index.get());
        }
    }

    /// A held piece turned out to be damaged.
    pub fn want_again(&mut self, index: PieceIndex) {
        if self.wanted.insert(index.get()) {
            self.held -= 1;
        }
    }

    /// Own limits made it wait: that is no stall, and nobody's fault.
    pub fn on_own_delay(&mut self, now: Instant) {
        self.last_progress = now;
        if let Some(until) = self.author.as_mut().and_then(|author| author.alone_until.as_mut()) {
            *until = (*until).max(now + AUTHOR_ALONE);
        }
    }

    /// Parents that owe a piece for so long that another one was asked for it, and have given nothing meanwhile.
    pub fn silent(&self, now: Instant) -> Vec<PeerId> {
        let silent = |parent: &Parent| {
            let stuck = |since: Instant| now.saturating_duration_since(since) >= STUCK_AFTER;
            let unanswered = |since: Instant| parent.gave.is_none_or(|gave| gave < since);
            parent.outstanding.values().any(|request| stuck(request.since) && unanswered(request.since))
        };
        self.parents.iter().filter(|(_, parent)| silent(parent)).map(|(peer, _)| *peer).collect()
    }

    /// Whether this one is a parent, and has given nothing yet.
    pub fn is_idle(&self, peer: &PeerId) -> bool {
        self.parents.get(peer).is_some_and(|parent| parent.gave.is_none())
    }

    /// Takes a parent out: a liar for good, also one that was out already, any other for a while that grows each time.
    /// `None` when that is no news.
    pub fn remove_parent(&mut self, peer: &PeerId, fault: ParentFault, now: Instant) -> Option<ParentResult> {
        let parent = self.parents.remove(peer);
        if parent.is_none() && (fault != ParentFault::Lied || self.excluded.contains(peer)) {
            return None;
        }
        for index in parent.iter().flat_map(|parent| parent.outstanding.keys()) {
            release(&mut self.asked, &mut self.wanted, *index);
        }
        match fault {
            ParentFault::Lied => drop(self.excluded.insert(*peer)),
            ParentFault::Unreachable | ParentFault::NotHeld => {
                let (times, until) = self.failed.entry(*peer).or_insert((0, now));
                *until = now + (REST_FIRST * 2u32.pow((*times).min(6))).min(REST_MAX);
                *times += 1;
            }
        }
        Some(parent.map(|parent| parent.unreported).unwrap_or_default().report(*peer, Some(fault)))
    }

    /// What each parent did since the last call.
    pub fn take_results(&mut self) -> Vec<ParentResult> {
        self.parents
            .iter_mut()
            .filter(|(_, parent)| parent.unreported.pieces > 0)
            .map(|(peer, parent)| std::mem::take(&mut parent.unreported).report(*peer, None))
            .collect()
    }

    /// Whether some parent has a piece that is missing.
    pub fn has_sources(&self) -> bool {
        self.has_sources_beside(None)
    }

    /// Whether no other parent has a piece that is missing: then it is waited for as long as the download lasts.
    pub fn is_only_source(&self, peer: &PeerId) -> bool {
        !self.has_sources_beside(Some(peer))
    }

    fn has_sources_beside(&self, peer: Option<&PeerId>) -> bool {
        self.parents.iter().filter(|(other, _)| Some(*other) != peer).any(|(_, parent)| match &parent.has {
            Has::All => true,
            Has::Some(some) => some.iter().any(|index| self.wanted.contains(index) || self.asked.contains_key(index)),
        })
    }
}

fn release(asked: &mut HashMap<u32, Asked>, wanted: &mut BTreeSet<u32>, index: u32) {
    let Some(entry) = asked.get_mut(&index) else { return };
    entry.copies -= 1;
    if entry.copies == 0 {
        asked.remove(&index);
        wanted.insert(index);
    }
}

impl Meter {
    /// Begins to measure at `now`, after a time in which nothing was asked.
    const fn restart(&mut self, now: Instant) {
        self.since = now;
        self.bytes = 0;
    }

    /// Counts what arrived. Returns the rate in bytes per second when enough time has passed for a new one.
    fn count(&mut self, bytes: u64, now: Instant) -> Option<f64> {
        self.bytes += bytes;
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed < MEASURED_FOR {
            return None;
        }
        self.rate = Some(self.bytes as f64 / elapsed.as_secs_f64());
        self.restart(now);
        self.rate
    }

    /// Bytes per second; `None` when it is not known.
    fn rate(&self, now: Instant) -> Option<f64> {
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed >= MEASURED_FOR { Some(self.bytes as f64 / elapsed.as_secs_f64()) } else { self.rate }
    }
}

impl Parent {
    fn has(&self, index: u32) -> bool {
        match &self.has {
            Has::All => true,
            Has::Some(some) => some.contains(&index),
        }
    }

    fn on_answer(&mut self, took: Duration, allowed_max: usize) {
        self.quickest = self.quickest.min(took);
        if took <= ANSWER_TARGET.min(QUEUE_FACTOR * self.quickest + QUEUE_MIN) {
            self.allowed = (self.allowed + 1).min(allowed_max);
        } else if took > 2 * ANSWER_TARGET {
            self.allowed = (self.allowed - 1).max(1);
        }
        self.unreported.busy += took;
        self.total.busy += took;
    }

    fn count(&mut self, bytes: u64) {
        for tally in [&mut self.total, &mut self.unreported] {
            tally.pieces += 1;
            tally.bytes += bytes;
        }
    }
}

impl Tally {
    fn report(self, parent: PeerId, fault: Option<ParentFault>) -> ParentResult {
        ParentResult {
            parent,
            pieces: self.pieces,
            bytes: self.bytes,
            busy_millis: self.busy.as_millis() as u64,
            fault,
        }
    }
}

#[cfg(test)]
mod tests;
