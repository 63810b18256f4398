//! Connections that have not said yet what they are.
//!
//! There is always room for one more: the oldest one goes, of its own user or of the user who has the most.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

const PER_UID: usize = 256;
const IN_ALL: usize = 512;

/// The newcomers there are. A handle: clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Newcomers(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// Oldest first.
    all: VecDeque<Known>,
}

#[derive(Debug)]
struct Known {
    number: u64,
    uid: u32,
    close: CancellationToken,
}

/// A connection that is a newcomer until this is dropped.
#[derive(Debug)]
pub(super) struct Newcomer {
    newcomers: Newcomers,
    number: u64,
    close: CancellationToken,
}

impl Newcomers {
    pub(super) fn enter(&self, uid: u32) -> Newcomer {
        let mut state = self.state();
        let mut counts: HashMap<u32, usize> = HashMap::new();
        for known in &state.all {
            *counts.entry(known.uid).or_default() += 1;
        }
        let loses = match () {
            () if counts.get(&uid).is_some_and(|count| *count >= PER_UID) => Some(uid),
            () if state.all.len() >= IN_ALL => counts.iter().max_by_key(|(_, count)| **count).map(|(uid, _)| *uid),
            () => None,
        };
        let oldest = loses.and_then(|uid| state.all.iter().position(|known| known.uid == uid));
        if let Some(oldest) = oldest.and_then(|at| state.all.remove(at)) {
            oldest.close.cancel();
        }
        let number = state.next;
        state.next += 1;
        let close = CancellationToken::new();
        state.all.push_back(Known { number, uid, close: close.clone() });
        Newcomer { newcomers: self.clone(), number, close }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that holds the lock can leave it half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Newcomer {
    /// Ends when the connection has to make room.
    pub(super) fn closing(&self) -> WaitForCancellationFutureOwned {
        self.close.clone().cancelled_owned()
    }
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        self.newcomers.state().all.retain(|known| known.number != self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_makes_room_of_the_user_with_the_most() {
        let newcomers = Newcomers::default();
        let honest = newcomers.enter(1);
        let mut first: Vec<_> = (0..PER_UID).map(|_| newcomers.enter(2)).collect();
        let second: Vec<_> = (0..IN_ALL - PER_UID - 1).map(|_| newcomers.enter(3)).collect();
        assert!(!first[0].close.is_cancelled(), "there was room for all");
        let late = newcomers.enter(1);
        assert!(first[0].close.is_cancelled() && !honest.close.is_cancelled() && !second[0].close.is_cancelled());
        first.push(newcomers.enter(2));
        first.push(newcomers.enter(2));
        assert!(first[1].close.is_cancelled(), "its own oldest");
        drop((honest, first, second, late));
        assert!(newcomers.state().all.is_empty(), "nobody is remembered");
    }
}
