//! Permits for work that may take long: so many at a time, and a share of them for each user.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use damselfly_transport::local::{Code, Failure};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// How many work at a time. Each may hold a thread that blocks, and the runtime has 512 of those.
const AT_A_TIME: usize = 64;
/// How many of these one user may have, so that there is room for others.
const PER_USER: usize = 48;
/// How many more of a user may wait; above that the answer comes at once.
const WAITING_PER_USER: usize = 256;
/// How long they wait.
const WAIT_WITHIN: Duration = Duration::from_secs(30);

/// The permits for one kind of work; cheap to clone.
#[derive(Clone)]
pub struct Permits {
    what: &'static str,
    all: Arc<Semaphore>,
    users: Arc<Mutex<HashMap<u32, Arc<Share>>>>,
}

/// What one user may have.
struct Share {
    at_work: Arc<Semaphore>,
    /// Those at work and those that wait for it.
    here: Arc<Semaphore>,
}

/// A permit; free again when the last clone is dropped. Threads that may block keep one too, so that they are bounded.
#[derive(Clone)]
pub struct Permit {
    _held: Arc<(OwnedSemaphorePermit, OwnedSemaphorePermit, OwnedSemaphorePermit)>,
}

impl Permits {
    /// Permits for `what`, in the plural.
    pub fn new(what: &'static str) -> Self {
        Self { what, all: Arc::new(Semaphore::new(AT_A_TIME)), users: Arc::default() }
    }

    /// Waits for a permit.
    ///
    /// # Errors
    /// [`Code::NoSpace`]: there was none in time, or too many wait.
    pub async fn enter(&self, uid: u32) -> Result<Permit, Failure> {
        let share = self.share(uid);
        let Ok(here) = Arc::clone(&share.here).try_acquire_owned() else { return Err(self.too_many("of this user")) };
        // The user's own first: who waits for that keeps nobody else from a permit.
        let entered = timeout(WAIT_WITHIN, async {
            let mine = Arc::clone(&share.at_work).acquire_owned().await;
            (mine, Arc::clone(&self.all).acquire_owned().await)
        });
        match entered.await {
            Ok((Ok(mine), Ok(permit))) => Ok(Permit { _held: Arc::new((here, mine, permit)) }),
            Ok(_) | Err(_) => Err(self.too_many("at once")),
        }
    }

    /// How many permits are taken.
    pub fn taken(&self) -> usize {
        AT_A_TIME - self.all.available_permits()
    }

    /// How many wait for a permit.
    pub fn waiting(&self) -> usize {
        let here = |share: &Arc<Share>| PER_USER + WAITING_PER_USER - share.here.available_permits();
        self.lock().values().map(here).sum::<usize>().saturating_sub(self.taken())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Arc<Share>>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn share(&self, uid: u32) -> Arc<Share> {
        let mut users = self.lock();
        let idle = |share: &Arc<Share>| {
            Arc::strong_count(share) == 1 && share.here.available_permits() == PER_USER + WAITING_PER_USER
        };
        users.retain(|_, share| !idle(share));
        Arc::clone(users.entry(uid).or_insert_with(|| {
            Arc::new(Share {
                at_work: Arc::new(Semaphore::new(PER_USER)),
                here: Arc::new(Semaphore::new(PER_USER + WAITING_PER_USER)),
            })
        }))
    }

    fn too_many(&self, of: &str) -> Failure {
        Failure::new(Code::NoSpace, format!("too many {} {of}", self.what))
            .with_hint("try again when some of them have ended")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_user_has_a_share_and_the_rest_is_for_others() {
        let permits = Permits::new("imports");
        let mut held = Vec::new();
        for _ in 0..PER_USER {
            held.push(permits.enter(1).await.expect("a permit"));
        }
        let refused = permits.enter(1).await.map(drop).expect_err("its share is used up");
        assert_eq!(refused.code, Code::NoSpace);
        assert!(refused.message.contains("too many imports at once"), "{refused}");
        for _ in PER_USER..AT_A_TIME {
            held.push(permits.enter(2).await.expect("a permit of another user"));
        }
        let (refused, ()) = tokio::join!(permits.enter(2), async {
            tokio::task::yield_now().await;
            assert_eq!((permits.taken(), permits.waiting()), (AT_A_TIME, 1));
        });
        assert!(refused.is_err(), "no permit is left");
        assert_eq!((permits.taken(), permits.waiting()), (AT_A_TIME, 0));
        let thread = held.swap_remove(0);
        let work = thread.clone();
        drop(thread);
        assert!(permits.enter(1).await.is_err(), "a thread still has the permit");
        let (entered, ()) = tokio::join!(permits.enter(1), async {
            tokio::time::sleep(WAIT_WITHIN / 2).await;
            drop(work);
        });
        held.push(entered.expect("who waits gets it"));
        drop(held);
        drop(permits.enter(3).await.expect("a permit"));
        drop(permits.enter(4).await.expect("a permit"));
        let known: Vec<_> = permits.users.lock().expect("sound").keys().copied().collect();
        assert_eq!(known, [4], "users without work are forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn not_too_many_wait() {
        let permits = Permits::new("exports");
        let all = (0..PER_USER + WAITING_PER_USER + 1).map(|_| permits.enter(1));
        let (mut in_time, mut late) = (Vec::new(), 0);
        for entered in futures::future::join_all(all).await {
            match entered {
                Ok(permit) => in_time.push(permit),
                Err(_) => late += 1,
            }
        }
        assert_eq!((in_time.len(), late), (PER_USER, WAITING_PER_USER + 1));
        drop(in_time);
        assert!(permits.enter(1).await.is_ok());
    }
}
