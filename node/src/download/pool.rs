//! Piece streams: how many there are to a parent, and those that wait for the next download from it.
//!
//! A stream begins with a small receive window that grows with every round trip, so a new one for each content would
//! be slow again each time.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use libp2p::PeerId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{fetch::PieceStream, lock};

/// A parent closes a stream on which nothing was asked for two minutes.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Streams kept for one parent.
const PER_PARENT_MAX: usize = 8;
/// Streams kept in all.
const ALL_MAX: usize = 128;
/// Piece streams that are open to one parent, whatever is downloaded. It takes 32 of us, news of pieces included.
const PLACES: usize = 20;
/// A download takes further streams only while more places than this are free: others want one too.
const PLACES_LEFT: usize = PLACES / 2;

/// An open stream's place among those to its parent; given back when dropped.
pub(super) type Permit = OwnedSemaphorePermit;

/// Idle streams, and places for open ones, by parent.
#[derive(Default)]
pub(super) struct Pool {
    idle: Mutex<HashMap<PeerId, Vec<(PieceStream, Instant)>>>,
    places: Mutex<HashMap<PeerId, Arc<Semaphore>>>,
}

impl Pool {
    /// A stream to `parent` that was used lately, if there is one. It may have been closed meanwhile.
    pub(super) fn take(&self, parent: &PeerId) -> Option<PieceStream> {
        let mut idle = lock(&self.idle);
        let streams = idle.get_mut(parent)?;
        // The last one used is the one least likely to be closed.
        let fresh = streams.pop().filter(|(_, since)| since.elapsed() < IDLE_MAX);
        if fresh.is_none() || streams.is_empty() {
            idle.remove(parent);
        }
        fresh.map(|(stream, _)| stream)
    }

    /// Keeps a stream on which nothing is under way, unless somebody waits for its place.
    pub(super) fn put(&self, parent: PeerId, stream: PieceStream) {
        if self.is_full(&parent) {
            return;
        }
        let mut idle = lock(&self.idle);
        for streams in idle.values_mut() {
            streams.retain(|(_, since)| since.elapsed() < IDLE_MAX);
        }
        idle.retain(|_, streams| !streams.is_empty());
        let all: usize = idle.values().map(Vec::len).sum();
        let streams = idle.entry(parent).or_default();
        if streams.len() < PER_PARENT_MAX && all < ALL_MAX {
            streams.push((stream, Instant::now()));
        }
    }

    /// Waits for a place for one more stream to `parent`: other downloads may have them all. In order of asking.
    pub(super) async fn place(&self, parent: &PeerId) -> Permit {
        match self.places(parent).acquire_owned().await {
            Ok(place) => place,
            // Nobody closes the semaphore.
            Err(_) => std::future::pending().await,
        }
    }

    /// A place for a further stream of a download that has one, if enough are left for others.
    pub(super) fn spare_place(&self, parent: &PeerId) -> Option<Permit> {
        let places = self.places(parent);
        if places.available_permits() > PLACES_LEFT { places.try_acquire_owned().ok() } else { None }
    }

    /// Whether a further stream to `parent` has to wait.
    pub(super) fn is_full(&self, parent: &PeerId) -> bool {
        self.places(parent).available_permits() == 0
    }

    fn places(&self, parent: &PeerId) -> Arc<Semaphore> {
        let mut places = lock(&self.places);
        if places.len() > ALL_MAX {
            // A semaphore with all its permits, and that nobody else has, says nothing.
            places.retain(|_, known| Arc::strong_count(known) > 1 || known.available_permits() < PLACES);
        }
        Arc::clone(places.entry(*parent).or_insert_with(|| Arc::new(Semaphore::new(PLACES))))
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn one_download_leaves_places_for_others_and_nobody_is_refused() {
        let (pool, parent) = (Pool::default(), PeerId::random());
        let further: Vec<_> = std::iter::from_fn(|| pool.spare_place(&parent)).collect();
        assert_eq!(further.len(), PLACES - PLACES_LEFT);
        let mut first = Vec::new();
        for _ in 0..PLACES_LEFT {
            first.push(pool.place(&parent).now_or_never().expect("a place is left"));
        }
        let mut waiting = Box::pin(pool.place(&parent));
        assert!(waiting.as_mut().now_or_never().is_none() && pool.spare_place(&parent).is_none());
        assert!(pool.place(&PeerId::random()).now_or_never().is_some(), "another parent has its own");
        first.pop();
        assert!(waiting.now_or_never().is_some(), "who waited is next");
    }
}
