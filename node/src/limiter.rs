//! Rate limits: token buckets that make callers wait.

use std::{
    fmt,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// A bucket holds what this time brings.
const BURST: Duration = Duration::from_millis(50);

/// Bytes per second; as text a size with `/s`, such as `50MiB/s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate(u64);

impl Rate {
    /// So many bytes per second; `None` for 0, which stands for no limit.
    pub fn from_bytes(bytes_per_second: u64) -> Option<Self> {
        (bytes_per_second > 0).then_some(Self(bytes_per_second))
    }

    /// Bytes per second.
    pub const fn bytes_per_second(self) -> u64 {
        self.0
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size = text.strip_suffix("/s").unwrap_or(text);
        let bytes: bytesize::ByteSize =
            size.parse().map_err(|_| format!("{text:?} is no rate; write a size per second such as 50MiB/s"))?;
        Self::from_bytes(bytes.as_u64()).ok_or_else(|| "a rate is more than 0; leave it out for no limit".to_owned())
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A text that reads back as the same number.
        let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
        match units.iter().find(|(_, unit)| self.0.is_multiple_of(*unit)) {
            Some((name, unit)) => write!(f, "{}{name}/s", self.0 / unit),
            None => write!(f, "{}B/s", self.0),
        }
    }
}

impl Serialize for Rate {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A rate limit that any number of tasks share, and that may change; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Limiter(Arc<Mutex<Option<Bucket>>>);

#[derive(Debug)]
struct Bucket {
    rate: f64,
    /// When the bytes that were let through so far have passed at this rate.
    free_at: Instant,
}

impl Limiter {
    /// A limiter to `rate`; `None` never waits.
    pub fn new(rate: Option<Rate>) -> Self {
        let this = Self::default();
        this.set(rate);
        this
    }

    /// Limits to another rate from now on. Who waits already waits as long as it was told.
    pub fn set(&self, rate: Option<Rate>) {
        let mut bucket = self.lock();
        match (&mut *bucket, rate) {
            (Some(bucket), Some(rate)) => bucket.rate = rate.0 as f64,
            (bucket, rate) => {
                *bucket = rate.map(|rate| Bucket { rate: rate.0 as f64, free_at: Instant::now() });
            }
        }
    }

    /// Whether it waits at present.
    pub fn is_limited(&self) -> bool {
        self.lock().is_some()
    }

    /// Waits until `bytes` more may pass. Callers pass in the order in which they came.
    pub async fn pass(&self, bytes: usize) {
        let until = self.lock().as_mut().map(|bucket| bucket.take(bytes, Instant::now()));
        if let Some(until) = until {
            tokio::time::sleep_until(until).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Bucket>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bucket {
    fn take(&mut self, bytes: usize, now: Instant) -> Instant {
        let begin = self.free_at.max(now - BURST);
        self.free_at = begin + Duration::from_secs_f64(bytes as f64 / self.rate);
        self.free_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_as_they_are_written() {
        for (text, bytes) in [("50MiB/s", 50 << 20), ("1GiB/s", 1 << 30), ("1000B/s", 1000), ("64KiB", 64 << 10)] {
            let rate: Rate = text.parse().expect(text);
            assert_eq!(rate.bytes_per_second(), bytes);
            assert_eq!(rate.to_string().parse(), Ok(rate));
        }
        assert!("0".parse::<Rate>().is_err() && "fast".parse::<Rate>().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_pass_at_the_rate() {
        let limiter = Limiter::new(Rate::from_bytes(1000));
        let start = Instant::now();
        for _ in 0..20 {
            limiter.pass(100).await;
        }
        let took = start.elapsed().as_secs_f64();
        assert!((1.9..2.1).contains(&took), "{took} s for 2,000 bytes");
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_may_change() {
        let limiter = Limiter::new(None);
        let start = Instant::now();
        limiter.pass(1_000_000).await;
        limiter.set(Rate::from_bytes(1000));
        limiter.pass(1000).await;
        limiter.set(Rate::from_bytes(500));
        limiter.pass(1000).await;
        limiter.set(None);
        limiter.pass(1_000_000).await;
        let took = start.elapsed().as_secs_f64();
        assert!((2.9..3.1).contains(&took) && !limiter.is_limited(), "{took} s");
    }
}
