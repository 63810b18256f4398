//! Piece streams that wait for the next download from the same parent.
//!
//! A stream begins with a small receive window that grows with every round trip, so a new one for each content would
//! be slow again each time.

use std::{
    collections::HashMap,
    sync::Mutex,
    time::{Duration, Instant},
};

use libp2p::PeerId;

use super::{fetch::PieceStream, lock};

/// A parent closes a stream on which nothing was asked for two minutes.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Streams kept for one parent.
const PER_PARENT_MAX: usize = 8;
/// Streams kept in all.
const ALL_MAX: usize = 128;

/// Idle streams by parent.
#[derive(Default)]
pub(super) struct Pool(Mutex<HashMap<PeerId, Vec<(PieceStream, Instant)>>>);

impl Pool {
    /// A stream to `parent` that was used lately, if there is one. It may have been closed meanwhile.
    pub(super) fn take(&self, parent: &PeerId) -> Option<PieceStream> {
        let mut idle = lock(&self.0);
        let streams = idle.get_mut(parent)?;
        // The last one used is the one least likely to be closed.
        let fresh = streams.pop().filter(|(_, since)| since.elapsed() < IDLE_MAX);
        if fresh.is_none() || streams.is_empty() {
            idle.remove(parent);
        }
        fresh.map(|(stream, _)| stream)
    }

    /// Keeps a stream on which nothing is under way.
    pub(super) fn put(&self, parent: PeerId, stream: PieceStream) {
        let mut idle = lock(&self.0);
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
}
