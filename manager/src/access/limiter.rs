//! How often something may be tried.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Keys that are remembered; beyond that the one that was seen least lately is forgotten.
const KEYS_MAX: usize = 4096;

/// Lets each key try so often at once, and once more after each pause.
#[derive(Debug)]
pub struct Limiter<K> {
    tries: u32,
    pause: Duration,
    /// When each key will have all its tries again.
    full: Mutex<HashMap<K, Instant>>,
}

impl<K: Hash + Eq + Clone> Limiter<K> {
    /// `tries` at once, and one more after each `pause`.
    pub fn new(tries: u32, pause: Duration) -> Self {
        Self { tries, pause, full: Mutex::default() }
    }

    /// Counts a try of `key`.
    ///
    /// # Errors
    /// How long to wait; it is not counted.
    pub fn try_now(&self, key: &K, now: Instant) -> Result<(), Duration> {
        let mut full = self.full.lock().unwrap_or_else(PoisonError::into_inner);
        let at = full.get(key).copied().map_or(now, |at| at.max(now));
        let room = self.pause * (self.tries - 1);
        let ahead = at - now;
        if ahead > room {
            return Err(ahead - room);
        }
        if full.len() >= KEYS_MAX && !full.contains_key(key) {
            full.retain(|_, at| *at > now);
            if full.len() >= KEYS_MAX
                && let Some(key) = full.iter().min_by_key(|(_, at)| **at).map(|(key, _)| key.clone())
            {
                full.remove(&key);
            }
        }
        full.insert(key.clone(), at + self.pause);
        Ok(())
    }

    /// Gives `key` all its tries again.
    pub fn forgive(&self, key: &K) {
        self.full.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_are_counted_for_each_key() {
        let (limiter, start, pause) =
            (Limiter::new(3, Duration::from_secs(10)), Instant::now(), Duration::from_secs(10));
        for _ in 0..3 {
            assert_eq!(limiter.try_now(&"a", start), Ok(()));
        }
        assert_eq!(limiter.try_now(&"a", start), Err(pause));
        assert_eq!(limiter.try_now(&"b", start), Ok(()), "others go on");
        assert_eq!(limiter.try_now(&"a", start + pause), Ok(()), "one more after the pause");
        assert!(limiter.try_now(&"a", start + pause).is_err());
        limiter.forgive(&"a");
        assert_eq!(limiter.try_now(&"a", start + pause), Ok(()));
    }

    #[test]
    fn keys_are_bounded_and_the_busiest_is_remembered() {
        let (limiter, start) = (Limiter::new(3, Duration::from_secs(10)), Instant::now());
        while limiter.try_now(&usize::MAX, start).is_ok() {}
        for key in 0..2 * KEYS_MAX {
            assert_eq!(limiter.try_now(&key, start), Ok(()));
        }
        assert_eq!(limiter.full.lock().expect("sound").len(), KEYS_MAX);
        assert!(limiter.try_now(&usize::MAX, start).is_err());
    }
}
