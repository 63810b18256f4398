//! A limit on how many pieces are served at a time, which may change, with a share for each peer.
//!
//! A peer may enter while those of it inside are at most the places that would be left: however many one peer asks for,
//! and however long it stays, there is room for one more peer.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use libp2p::PeerId;
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

#[derive(Debug)]
struct State {
    inside: usize,
    by_peer: HashMap<PeerId, usize>,
    most: usize,
}

/// Something of a peer is inside, until it is dropped.
#[derive(Debug)]
pub struct Inside {
    gate: Gate,
    peer: PeerId,
}

impl Gate {
    /// A gate for `most` at a time.
    pub fn new(most: usize) -> Self {
        let state = State { inside: 0, by_peer: HashMap::new(), most };
        Self(Arc::new(Inner { state: Mutex::new(state), freed: Notify::new() }))
    }

    /// Lets another number in from now on. Who is inside stays.
    pub fn set(&self, most: usize) {
        self.lock().most = most;
        self.0.freed.notify_waiters();
    }

    /// Waits until there is room for `peer`.
    pub async fn enter(&self, peer: PeerId) -> Inside {
        loop {
            let freed = self.0.freed.notified();
            tokio::pin!(freed);
            // From here on nothing that is freed is missed.
            freed.as_mut().enable();
            if let Some(inside) = self.try_enter(peer) {
                return inside;
            }
            freed.await;
        }
    }

    fn try_enter(&self, peer: PeerId) -> Option<Inside> {
        let mut state = self.lock();
        let left = state.most.saturating_sub(state.inside);
        let of_peer = state.by_peer.get(&peer).copied().unwrap_or(0);
        // A peer that has nothing inside may always have one.
        if left == 0 || of_peer > 0 && of_peer + 1 > left {
            return None;
        }
        state.inside += 1;
        state.by_peer.insert(peer, of_peer + 1);
        Some(Inside { gate: self.clone(), peer })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        state.inside -= 1;
        if let Some(of_peer) = state.by_peer.get_mut(&self.peer) {
            *of_peer -= 1;
            if *of_peer == 0 {
                state.by_peer.remove(&self.peer);
            }
        }
        drop(state);
        // All of them: the one that waits longest may be of a peer that has its share.
        self.gate.0.freed.notify_waiters();
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
        let first = gate.enter(PeerId::random()).await;
        let mut waiting = [Box::pin(gate.enter(PeerId::random())), Box::pin(gate.enter(PeerId::random()))];
        assert!(waiting.iter_mut().all(|waits| waits.as_mut().now_or_never().is_none()));
        gate.set(3);
        let others = waiting.map(|mut waits| waits.as_mut().now_or_never().expect("there is room now"));
        assert!(gate.enter(PeerId::random()).now_or_never().is_none());
        gate.set(1);
        drop(others);
        assert!(gate.enter(PeerId::random()).now_or_never().is_none(), "the first is still inside");
        drop(first);
        assert!(gate.enter(PeerId::random()).now_or_never().is_some());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn there_are_never_too_many_and_nobody_waits_for_ever() {
        let (gate, inside) = (Gate::new(3), Arc::new(AtomicUsize::new(0)));
        let visits = (0..200).map(|number| {
            let (gate, inside) = (gate.clone(), Arc::clone(&inside));
            tokio::spawn(async move {
                // Some give up, as those do who wait for too long.
                let entered =
                    tokio::time::timeout(Duration::from_micros(number * 50), gate.enter(PeerId::random())).await;
                let _entered = match entered {
                    Ok(entered) => entered,
                    Err(_) => gate.enter(PeerId::random()).await,
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

    #[test]
    fn one_more_peer_always_gets_in() {
        let (gate, greedy, other) = (Gate::new(64), PeerId::random(), PeerId::random());
        let inside: Vec<_> = std::iter::from_fn(|| gate.enter(greedy).now_or_never()).collect();
        assert_eq!(inside.len(), 32, "half of it");
        let beside: Vec<_> = std::iter::from_fn(|| gate.enter(other).now_or_never()).collect();
        assert_eq!(beside.len(), 16);
        assert!(gate.enter(PeerId::random()).now_or_never().is_some());
        drop((inside, beside));
        assert!(gate.lock().by_peer.is_empty() && gate.lock().inside == 0);
    }
}
