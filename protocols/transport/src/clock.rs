//! Trusted wall time: the system clock, checked against everything else that tells the time.
//!
//! [`Clock`] is the one place that reads the system's wall clock for a decision. It compares it with
//!
//! - the monotonic clock: a system clock that was moved while the program ran, or between two runs since the same boot of
//!   the machine, shows as a step;
//! - the schedulers' time, which heartbeats bring: most of them confirm or deny the system clock;
//! - what the cluster has signed: a credential or a configuration is not from the future, so while nothing has confirmed
//!   the system clock, the time of the newest one is a floor;
//! - the time of a manager that has just renewed this host's credential.
//!
//! [`Clock::now`] is the best estimate, for stamps and for judging credentials. [`Clock::expirable`] is the time by which
//! entries may be removed; there is none while these clocks disagree by more than [`TOLERANCE`]. How they are weighed is
//! in `judge`, which is pure.
//!
//! A process that is started with [`SHIFT_VARIABLE`] reads an offset to the system clock from a file: see there.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use damselfly_messages::{membership::CLOCK_LEEWAY, record::UnixMillis};
use libp2p::PeerId;
use serde::{Deserialize, Serialize};

mod judge;
mod source;

pub use judge::{ClockProblem, Signed};
use judge::{Judge, Moment, Reading};
pub use source::{Manual, SHIFT_VARIABLE, TimeSource};

use crate::program::durable;

/// Clocks that differ by no more agree.
pub const TOLERANCE: Duration = CLOCK_LEEWAY;
/// Where a program keeps, in its data directory, what it knows of the time since the boot of the machine.
const CLOCK_FILE: &str = "clock.json";
/// Longest such file.
const CLOCK_FILE_BYTES_MAX: u64 = 4096;
/// What is kept is written again when it has drifted by more.
const DRIFT_KEPT: Duration = Duration::from_secs(60);
/// A different one after each boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Trusted wall time; cheap to clone.
#[derive(Clone)]
pub struct Clock {
    inner: Arc<Inner>,
}

struct Inner {
    source: Box<dyn TimeSource>,
    /// None in tests, and where nothing is kept.
    file: Option<PathBuf>,
    state: Mutex<State>,
}

struct State {
    judge: Judge,
    problem: Option<ClockProblem>,
    kept: Option<Kept>,
}

/// What is known of the time since a boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    boot: String,
    elapsed_ms: u64,
    wall_ms: u64,
    is_confirmed: bool,
}

impl Kept {
    fn moment(&self) -> Moment {
        Moment { wall: UnixMillis(self.wall_ms), elapsed: Duration::from_millis(self.elapsed_ms) }
    }
}

impl Clock {
    /// The system's clock, with nothing known of earlier runs.
    pub fn system() -> Self {
        Self::with_source(source::configured())
    }

    /// A clock of its own, for tests.
    pub fn with_source(source: impl TimeSource + 'static) -> Self {
        Self::new(Box::new(source), None)
    }

    /// The system's clock, with what an earlier run has kept in `data_dir` since the boot of the machine.
    ///
    /// A file that cannot be used is as good as none: the cluster's other clocks are asked then.
    pub fn open(data_dir: &Path) -> Self {
        Self::open_with(source::configured(), data_dir)
    }

    fn open_with(source: impl TimeSource + 'static, data_dir: &Path) -> Self {
        let clock = Self::new(Box::new(source), Some(data_dir.join(CLOCK_FILE)));
        clock.keep();
        clock
    }

    fn new(source: Box<dyn TimeSource>, file: Option<PathBuf>) -> Self {
        let now = Moment { wall: source.wall(), elapsed: source.elapsed() };
        let kept = file
            .as_deref()
            .and_then(load)
            .filter(|kept| boot().is_some_and(|boot| boot == kept.boot) && kept.moment().elapsed <= now.elapsed);
        let judge = match &kept {
            Some(kept) => Judge::resumed(kept.moment(), kept.is_confirmed),
            None => Judge::new(now),
        };
        let state = Mutex::new(State { judge, problem: None, kept });
        let clock = Self { inner: Arc::new(Inner { source, file, state }) };
        clock.read();
        clock
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn moment(&self) -> Moment {
        Moment { wall: self.inner.source.wall(), elapsed: self.inner.source.elapsed() }
    }

    fn read(&self) -> Reading {
        let now = self.moment();
        let mut state = self.lock();
        let reading = state.judge.read(now);
        let is_news = state.problem.map(|before| before.kind()) != reading.problem.map(|problem| problem.kind());
        state.problem = reading.problem;
        drop(state);
        match reading.problem {
            Some(problem) if is_news => tracing::warn!("{problem}"),
            None if is_news => tracing::info!("the clocks agree again"),
            _ => {}
        }
        reading
    }

    /// The best estimate of the time.
    pub fn now(&self) -> UnixMillis {
        self.read().now
    }

    /// The time by which something may be removed because it has expired; `None` while the clocks disagree.
    ///
    /// Of clocks that agree it is the one that is furthest behind.
    pub fn expirable(&self) -> Option<UnixMillis> {
        self.read().expirable
    }

    /// The time, if nothing speaks against it: what others may be told.
    pub fn vouched(&self) -> Option<UnixMillis> {
        let reading = self.read();
        (reading.problem.is_none() && reading.is_known).then_some(reading.now)
    }

    /// Time that only goes forward, also while the machine sleeps.
    pub fn elapsed(&self) -> Duration {
        self.inner.source.elapsed()
    }

    /// What is wrong with the system clock, as far as it is known.
    pub fn problem(&self) -> Option<ClockProblem> {
        self.read().problem
    }

    /// Says that there are others to ask: this is a member's clock.
    ///
    /// Once this is called, nothing expires before a scheduler or a manager has confirmed the time since the boot.
    pub fn require_confirmation(&self) {
        self.lock().judge.require_confirmation();
    }

    /// Whether a confirmation is required and missing.
    pub fn is_unconfirmed(&self) -> bool {
        !self.read().is_known
    }

    /// Takes over the time of something that the cluster has signed and that is in force here; it replaces the earlier
    /// one of its kind.
    pub fn learn(&self, signed: Signed, at: UnixMillis) {
        let now = self.moment();
        self.lock().judge.learn(signed, at, now);
    }

    /// Takes over the time of a credential that a peer shows, which the cluster has signed, unless this host's own clock
    /// is confirmed. Returns whether it counts: then the time is not before it.
    pub fn learn_from_peer(&self, at: UnixMillis, limit: UnixMillis) -> bool {
        let now = self.moment();
        at <= limit && self.lock().judge.learn_from_peer(at, now)
    }

    /// Takes over the time of a manager that has just signed something for this host. Returns false when it contradicts
    /// a clock that was confirmed otherwise.
    pub fn confirm(&self, at: UnixMillis) -> bool {
        let now = self.moment();
        self.lock().judge.confirm(at, now)
    }

    /// Takes over the time that a scheduler has just told; none when it doubts its own clock.
    pub fn hear(&self, scheduler: PeerId, at: impl Into<Option<UnixMillis>>) {
        let now = self.moment();
        self.lock().judge.hear(scheduler, at.into(), now);
        self.read();
    }

    /// Writes what is known of the time since the boot, if it is worth it. Blocks.
    pub fn keep(&self) {
        let Some(file) = &self.inner.file else { return };
        self.read();
        let mut state = self.lock();
        let (moment, is_confirmed) = state.judge.known();
        let Some(boot) = boot() else { return };
        let is_same = state.kept.as_ref().is_some_and(|kept| {
            let drift = kept.moment().at(moment.elapsed).0.abs_diff(moment.wall.0);
            kept.boot == boot && kept.is_confirmed == is_confirmed && drift <= DRIFT_KEPT.as_millis() as u64
        });
        if is_same {
            return;
        }
        let elapsed_ms = moment.elapsed.as_millis() as u64;
        let kept = Kept { boot, elapsed_ms, wall_ms: moment.wall.0, is_confirmed };
        let written = serde_json::to_vec(&kept).map_err(io::Error::from);
        match written.and_then(|bytes| durable::replace(file, &bytes, 0o600)) {
            Ok(()) => state.kept = Some(kept),
            // A later start then asks the cluster for the time.
            Err(error) => tracing::debug!(path = %file.display(), %error, "the time is not kept"),
        }
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock").field("source", &self.inner.source).finish_non_exhaustive()
    }
}

fn boot() -> Option<String> {
    fs::read_to_string(BOOT_ID).ok().map(|id| id.trim().to_owned())
}

fn load(file: &Path) -> Option<Kept> {
    let length = fs::symlink_metadata(file).ok().filter(fs::Metadata::is_file)?.len();
    if length > CLOCK_FILE_BYTES_MAX {
        return None;
    }
    serde_json::from_slice(&fs::read(file).ok()?).ok()
}

#[cfg(test)]
mod tests;
