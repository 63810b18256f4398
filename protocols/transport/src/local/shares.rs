//! A limit of what goes on at once, with a share for each user.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::timeout};

/// How much of something each user has. A handle: clones share it.
#[derive(Debug, Clone)]
pub(super) struct Shares(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    per_uid: usize,
    in_all: usize,
    by_uid: Mutex<HashMap<u32, usize>>,
    freed: Arc<Notify>,
}

/// A part of a user's share; given back when dropped.
#[derive(Debug)]
pub(super) struct Part {
    shares: Shares,
    uid: u32,
}

impl Shares {
    pub(super) fn new(per_uid: usize, in_all: usize) -> Self {
        Self(Arc::new(Inner { per_uid, in_all, by_uid: Mutex::default(), freed: Arc::default() }))
    }

    /// A part, for which it waits at most `patience`.
    pub(super) async fn take(&self, uid: u32, patience: Duration) -> Option<Part> {
        let taken = async {
            loop {
                // Made before the look, so that nothing that is given back in between is missed.
                let freed = Arc::clone(&self.0.freed).notified_owned();
                match self.try_take(uid) {
                    Some(part) => return part,
                    None => freed.await,
                }
            }
        };
        timeout(patience, taken).await.ok()
    }

    fn try_take(&self, uid: u32) -> Option<Part> {
        let mut by_uid = self.by_uid();
        let own = by_uid.get(&uid).copied().unwrap_or(0);
        if own >= self.0.per_uid || by_uid.values().sum::<usize>() >= self.0.in_all {
            return None;
        }
        by_uid.insert(uid, own + 1);
        Some(Part { shares: self.clone(), uid })
    }

    fn by_uid(&self) -> MutexGuard<'_, HashMap<u32, usize>> {
        // Nothing that holds the lock can leave the map half changed.
        self.0.by_uid.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let mut by_uid = self.shares.by_uid();
        if let Some(count) = by_uid.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                by_uid.remove(&self.uid);
            }
        }
        drop(by_uid);
        self.shares.0.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_user_has_its_share_and_waits_for_more() {
        let shares = Shares::new(2, 3);
        let moment = Duration::from_secs(1);
        let mut held = vec![shares.take(1, moment).await, shares.take(1, moment).await];
        assert!(held.iter().all(Option::is_some));
        assert!(shares.take(1, moment).await.is_none(), "the user's share is used up");
        let other = shares.take(2, moment).await;
        assert!(other.is_some(), "another user has one of their own");
        assert!(shares.take(3, moment).await.is_none(), "there is no more");
        let (again, ()) = tokio::join!(shares.take(1, moment), async { drop(held.pop()) });
        assert!(again.is_some(), "what is given back is taken by who waits");
        drop((held, again, other));
        assert!(shares.by_uid().is_empty(), "users without a part are forgotten");
    }
}
