//! How many connections each user may have, and which one ends when another needs its permit.
//!
//! A user has at most [`PER_UID`] permits. The last [`KEPT_FOR_FEW`] of all permits are for users who have fewer than [`FEW`],
//! and [`RESERVED`] more are for root and the daemon's own user, so nobody locks out anybody else. A connection without a
//! call gives way to a newer one.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, futures::OwnedNotified},
    time::timeout_at,
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// gRPC connections of one user.
pub(super) const PER_UID: usize = 128;
/// gRPC connections of all users.
pub(super) const IN_ALL: usize = 256;
/// The last permits of all, which only users with few connections get.
const KEPT_FOR_FEW: usize = 64;
/// As many are few.
const FEW: usize = 8;
/// Permits beyond all of these, for root and the daemon's own user.
const RESERVED: usize = 16;
/// Connections of one user that wait for a permit; more are told at once that the daemon is busy.
const WAITING_PER_UID: usize = 256;
/// A connection without a call is left alone for this long: its first or next call is probably under way.
const GRACE: Duration = Duration::from_secs(1);
/// How often those who wait look again, because a connection may have become idle meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// The calls of a connection.
#[derive(Debug)]
pub(super) struct Calls(Mutex<CallsState>);

#[derive(Debug, Clone, Copy)]
struct CallsState {
    under_way: usize,
    idle_since: Instant,
}

/// A call under way.
#[derive(Debug)]
pub(super) struct Call(Arc<Calls>);

impl Calls {
    fn new() -> Self {
        Self(Mutex::new(CallsState { under_way: 0, idle_since: Instant::now() }))
    }

    /// A call is under way until what is returned is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> Call {
        self.state().under_way += 1;
        Call(Arc::clone(self))
    }

    /// Since when there is no call.
    fn idle_since(&self) -> Option<Instant> {
        let state = *self.state();
        (state.under_way == 0).then_some(state.idle_since)
    }

    fn state(&self) -> MutexGuard<'_, CallsState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.under_way -= 1;
        state.idle_since = Instant::now();
    }
}

/// The permits of gRPC connections. A handle: clones share them.
#[derive(Debug, Clone)]
pub(super) struct Permits(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    own_uid: u32,
    table: Mutex<Table>,
    freed: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    taken: HashMap<u64, Taken>,
    waiting: HashMap<u32, usize>,
}

#[derive(Debug)]
struct Taken {
    uid: u32,
    calls: Arc<Calls>,
    close: CancellationToken,
}

/// A connection's permit; free again when dropped.
#[derive(Debug)]
pub(super) struct Permit {
    permits: Permits,
    number: u64,
    pub(super) calls: Arc<Calls>,
    close: CancellationToken,
}

impl Permit {
    /// Ends when the connection has to.
    pub(super) fn closing(&self) -> WaitForCancellationFutureOwned {
        self.close.clone().cancelled_owned()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.permits.table().taken.remove(&self.number);
        self.permits.0.freed.notify_waiters();
    }
}

impl Permits {
    /// For a daemon that runs as `own_uid`.
    pub(super) fn new(own_uid: u32) -> Self {
        Self(Arc::new(Inner { own_uid, table: Mutex::default(), freed: Arc::default() }))
    }

    /// A permit for a connection of this user, for which it waits at most `patience`.
    pub(super) async fn enter(&self, uid: u32, patience: Duration) -> Option<Permit> {
        let until = tokio::time::Instant::now() + patience;
        let freed = self.freed();
        if let Some(permit) = self.try_enter(uid, Instant::now()) {
            return Some(permit);
        }
        let _waiting = self.begin_to_wait(uid)?;
        let mut freed = freed;
        loop {
            let look = (tokio::time::Instant::now() + LOOK_AGAIN).min(until);
            // Whether freed or not, it is looked again.
            drop(timeout_at(look, freed).await);
            freed = self.freed();
            if let Some(permit) = self.try_enter(uid, Instant::now()) {
                return Some(permit);
            }
            if tokio::time::Instant::now() >= until {
                return None;
            }
        }
    }

    /// A permit, if there is one or an idle connection gives way.
    pub(super) fn try_enter(&self, uid: u32, now: Instant) -> Option<Permit> {
        let mut table = self.table();
        if !table.has_room(uid, self.is_privileged(uid)) {
            table.evict(uid, now)?;
        }
        let number = table.next;
        table.next += 1;
        let calls = Arc::new(Calls::new());
        let close = CancellationToken::new();
        table.taken.insert(number, Taken { uid, calls: Arc::clone(&calls), close: close.clone() });
        drop(table);
        Some(Permit { permits: self.clone(), number, calls, close })
    }

    /// Closes connections that have had no call for `max`.
    pub(super) fn close_idle(&self, now: Instant, max: Duration) {
        for taken in self.table().taken.values() {
            if taken.calls.idle_since().is_some_and(|since| now.saturating_duration_since(since) >= max) {
                taken.close.cancel();
            }
        }
    }

    fn begin_to_wait(&self, uid: u32) -> Option<Waiting> {
        let mut table = self.table();
        let count = table.waiting.entry(uid).or_default();
        if *count >= WAITING_PER_UID {
            return None;
        }
        *count += 1;
        Some(Waiting { permits: self.clone(), uid })
    }

    /// Notified from now on, not only from its first poll.
    fn freed(&self) -> OwnedNotified {
        Arc::clone(&self.0.freed).notified_owned()
    }

    fn is_privileged(&self, uid: u32) -> bool {
        uid == 0 || uid == self.0.own_uid
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing that holds the lock can leave the table half changed.
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn has_room(&self, uid: u32, is_privileged: bool) -> bool {
        let own = self.count(uid);
        let all = self.taken.len();
        let room = match () {
            () if is_privileged => IN_ALL + RESERVED,
            () if own < FEW => IN_ALL,
            () => IN_ALL - KEPT_FOR_FEW,
        };
        own < PER_UID && all < room
    }

    fn count(&self, uid: u32) -> usize {
        self.taken.values().filter(|taken| taken.uid == uid).count()
    }

    /// Takes the permit of the connection that has been idle longest: of this user when it has its share, else of the user
    /// with the most connections. Nobody takes it from somebody who has fewer.
    fn evict(&mut self, uid: u32, now: Instant) -> Option<()> {
        let mut counts: HashMap<u32, usize> = HashMap::new();
        for taken in self.taken.values() {
            *counts.entry(taken.uid).or_default() += 1;
        }
        let count = |uid: u32| counts.get(&uid).copied().unwrap_or(0);
        let own = count(uid);
        let gives_way = |taken: &Taken| taken.uid == uid || (own < PER_UID && count(taken.uid) > own);
        let idle = self.taken.iter().filter_map(|(number, taken)| {
            let since = taken.calls.idle_since().filter(|since| now.saturating_duration_since(*since) >= GRACE)?;
            gives_way(taken).then_some((*number, count(taken.uid), since))
        });
        let (number, ..) = idle.max_by(|a, b| a.1.cmp(&b.1).then_with(|| b.2.cmp(&a.2)))?;
        let evicted = self.taken.remove(&number)?;
        evicted.close.cancel();
        Some(())
    }
}

/// One that waits for a permit.
struct Waiting {
    permits: Permits,
    uid: u32,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut table = self.permits.table();
        if let Some(count) = table.waiting.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                table.waiting.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAEMON: u32 = 990;

    /// As many connections of `uid` with a call each as there is room for.
    fn busy(permits: &Permits, uid: u32) -> Vec<(Permit, Call)> {
        let enter = || permits.try_enter(uid, Instant::now());
        std::iter::from_fn(|| enter().map(|permit| (Arc::clone(&permit.calls), permit)))
            .map(|(calls, permit)| (permit, calls.begin()))
            .collect()
    }

    #[test]
    fn two_users_lock_nobody_out() {
        let permits = Permits::new(DAEMON);
        let first = busy(&permits, 1000);
        let second = busy(&permits, 1001);
        assert_eq!((first.len(), second.len()), (PER_UID, IN_ALL - KEPT_FOR_FEW - PER_UID));
        let others: Vec<_> = (0..KEPT_FOR_FEW / FEW).map(|user| busy(&permits, 2000 + user as u32)).collect();
        assert!(others.iter().all(|connections| connections.len() == FEW), "each other user has some");
        assert!(permits.try_enter(3000, Instant::now()).is_none(), "all permits are taken");
        let root = busy(&permits, 0);
        assert_eq!(root.len(), RESERVED, "root has permits of its own");
        drop(root);
        assert_eq!(busy(&permits, DAEMON).len(), RESERVED, "and so has the daemon's user");
        drop((first, second, others));
        assert!(permits.table().taken.is_empty(), "all permits are free again");
    }

    #[tokio::test]
    async fn an_idle_connection_gives_way_to_a_newer_one() {
        let permits = Permits::new(DAEMON);
        let oldest = permits.try_enter(1000, Instant::now()).expect("a permit");
        let mut calling = busy(&permits, 1000);
        assert_eq!(calling.len(), PER_UID - 1);
        assert!(permits.try_enter(1000, Instant::now()).is_none(), "it has only just come");
        let later = Instant::now() + GRACE;
        let newer = permits.try_enter(1000, later).expect("a permit");
        oldest.closing().await;
        assert!(permits.try_enter(1000, Instant::now()).is_none(), "the newer one is not idle for long");
        drop(oldest);
        assert!(permits.try_enter(1000, Instant::now()).is_none(), "its permit was given away already");
        // Its call has ended.
        let (ended, call) = calling.pop().expect("one");
        drop(call);
        newer.calls.begin();
        permits.close_idle(Instant::now() + Duration::from_secs(60), Duration::from_secs(60));
        ended.closing().await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_finds_no_place_waits_for_one_and_then_is_told() {
        let permits = Permits::new(DAEMON);
        let mut taken = busy(&permits, 1000);
        let patience = Duration::from_secs(10);
        let begun = tokio::time::Instant::now();
        assert!(permits.enter(1000, patience).await.is_none());
        assert_eq!(begun.elapsed(), patience);
        let waiting = tokio::spawn({
            let permits = permits.clone();
            async move { permits.enter(1000, patience).await }
        });
        tokio::task::yield_now().await;
        taken.pop();
        assert!(waiting.await.expect("no panic").is_some(), "a permit became free");
        assert!(permits.table().waiting.is_empty(), "nobody is counted any more");
    }
}
