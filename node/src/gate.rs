//! A limit on how many work at a time, which may change.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Lets so many in at a time; cheap to clone.
#[derive(Debug, Clone)]
pub struct Gate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    /// Somebody may get in now.
    freed: Notify,
}

#[derive(Debug, Clone, Copy)]
struct State {
    inside: usize,
    most: usize,
}

/// Somebody is inside, until it is dropped.
#[derive(Debug)]
pub struct Inside(Gate);

impl Gate {
    /// A gate for `most` at a time.
    pub fn new(most: usize) -> Self {
        Self(Arc::new(Inner { state: Mutex::new(State { inside: 0, most }), freed: Notify::new() }))
    }

    /// Lets another number in from now on. Who is inside stays.
    pub fn set(&self, most: usize) {
        self.lock().most = most;
        self.0.freed.notify_waiters();
    }

    /// Waits until there is room.
    pub async fn enter(&self) -> Inside {
        loop {
            let freed = self.0.freed.notified();
            tokio::pin!(freed);
            // From here on nothing that is freed is missed.
            freed.as_mut().enable();
            if let Some(inside) = self.try_enter() {
                return inside;
            }
            freed.await;
        }
    }

    fn try_enter(&self) -> Option<Inside> {
        let mut state = self.lock();
        if state.inside >= state.most {
            return None;
        }
        state.inside += 1;
        Some(Inside(self.clone()))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.lock().inside -= 1;
        self.0.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn the_limit_may_change_while_some_wait() {
        let gate = Gate::new(1);
        let first = gate.enter().await;
        let mut waiting = [Box::pin(gate.enter()), Box::pin(gate.enter())];
        assert!(waiting.iter_mut().all(|waits| waits.as_mut().now_or_never().is_none()));
        gate.set(3);
        let others = waiting.map(|mut waits| waits.as_mut().now_or_never().expect("there is room now"));
        assert!(gate.enter().now_or_never().is_none());
        gate.set(1);
        drop(others);
        assert!(gate.enter().now_or_never().is_none(), "the first is still inside");
        drop(first);
        assert!(gate.enter().now_or_never().is_some());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn there_are_never_too_many_and_nobody_waits_for_ever() {
        let (gate, inside) = (Gate::new(3), Arc::new(AtomicUsize::new(0)));
        let visits = (0..200).map(|number| {
            let (gate, inside) = (gate.clone(), Arc::clone(&inside));
            tokio::spawn(async move {
                // Some give up, as those do who wait for too long.
                let entered = tokio::time::timeout(Duration::from_micros(number * 50), gate.enter()).await;
                let _entered = match entered {
                    Ok(entered) => entered,
                    Err(_) => gate.enter().await,
                };
                assert!(inside.fetch_add(1, Ordering::SeqCst) < 3);
                tokio::task::yield_now().await;
                inside.fetch_sub(1, Ordering::SeqCst);
            })
        });
        let visited = tokio::time::timeout(Duration::from_secs(30), futures::future::join_all(visits)).await;
        for visit in visited.expect("nobody waits for ever") {
            visit.expect("never more than three");
        }
    }
}
