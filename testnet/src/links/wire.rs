//! One direction of a link: how late, how fast, and whether at all.

use std::{
    num::NonZeroU64,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

/// What is read at once when there is no limit.
const PORTION_BYTES: usize = 256 << 10;
/// A limited wire carries so many portions a second.
const PORTIONS_PER_SECOND: u64 = 50;

/// How a wire carries bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shape {
    /// Each byte arrives so much later.
    pub(crate) delay: Duration,
    /// So many bytes a second at most, of all connections together.
    pub(crate) bytes_per_second: Option<NonZeroU64>,
    /// Nothing arrives until this ends; what is under way is kept.
    pub(crate) is_stalled: bool,
}

/// Shared by all connections that go over it.
#[derive(Debug)]
pub(crate) struct Wire {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    shape: Shape,
    /// What was let through before has passed by then.
    free_at: Instant,
}

impl Wire {
    pub(crate) fn new(shape: Shape) -> Self {
        Self { state: Mutex::new(State { shape, free_at: Instant::now() }), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self, shape: Shape) {
        self.state().shape = shape;
        self.wake();
    }

    /// Has those who wait look again.
    pub(super) fn wake(&self) {
        // Not between the look and the wait of one of them, who would miss it.
        drop(self.state());
        self.changed.notify_all();
    }

    pub(super) fn delay(&self) -> Duration {
        self.state().shape.delay
    }

    #[cfg(test)]
    pub(super) fn is_stalled(&self) -> bool {
        self.state().shape.is_stalled
    }

    /// How much to take at once.
    pub(super) fn portion(&self) -> usize {
        match self.state().shape.bytes_per_second {
            None => PORTION_BYTES,
            Some(rate) => {
                usize::try_from(rate.get() / PORTIONS_PER_SECOND).unwrap_or(usize::MAX).clamp(1, PORTION_BYTES)
            }
        }
    }

    /// Waits until something may pass, or `is_over`.
    pub(super) fn wait(&self, is_over: impl Fn() -> bool) {
        let blocked = |state: &mut State| state.shape.is_stalled && !is_over();
        drop(self.changed.wait_while(self.state(), blocked).unwrap_or_else(PoisonError::into_inner));
    }

    /// Takes the time that so many bytes need.
    pub(super) fn pace(&self, bytes: usize) {
        let free_at = {
            let mut state = self.state();
            let Some(rate) = state.shape.bytes_per_second else { return };
            state.free_at =
                state.free_at.max(Instant::now()) + Duration::from_secs_f64(bytes as f64 / rate.get() as f64);
            state.free_at
        };
        thread::sleep(free_at.saturating_duration_since(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };

    use super::*;

    #[test]
    fn a_limited_wire_takes_its_time() {
        let wire = Wire::new(Shape { bytes_per_second: NonZeroU64::new(100_000), ..Shape::default() });
        assert_eq!(wire.portion(), 2_000);
        let begun = Instant::now();
        for _ in 0..5 {
            wire.pace(wire.portion());
        }
        assert!(begun.elapsed() >= Duration::from_millis(100), "{:?}", begun.elapsed());
    }

    #[test]
    fn a_stalled_wire_holds_until_it_is_mended_or_over() {
        let stalled = Shape { is_stalled: true, ..Shape::default() };
        for is_mended in [true, false] {
            let (wire, over) = (Arc::new(Wire::new(stalled)), Arc::new(AtomicBool::new(false)));
            let waiting = thread::spawn({
                let (wire, over) = (wire.clone(), over.clone());
                move || wire.wait(|| over.load(Ordering::SeqCst))
            });
            wire.wake();
            assert!(!waiting.is_finished());
            if is_mended {
                wire.set(Shape::default());
            } else {
                over.store(true, Ordering::SeqCst);
                wire.wake();
            }
            waiting.join().expect("no panic");
        }
    }
}
