//! Decides which HTTP connections may stay when there are too many. Pure: the caller owns the connections.
//!
//! Three rules keep one client from shutting out the others. A connection that waits for its client (for a request, for
//! the rest of a body, or for the client to read) makes room for a newer one, the longest wait first. One source has at
//! most [`PER_SOURCE_MAX`] connections, and when all places are taken, the source with the most connections loses one. A
//! connection for which there is no room at all still gets one of [`MONITORING_PLACES`], where only monitoring is answered.

use std::{collections::HashMap, hash::Hash, net::IpAddr, sync::Arc, time::Instant};

use super::activity::Activity;

/// Connections at once, monitoring aside.
pub(super) const CONNECTIONS_MAX: usize = 256;
/// Those of one source: an IPv4 address, or an IPv6 /64. Twice the event streams of a whole console behind one proxy.
pub(super) const PER_SOURCE_MAX: usize = 128;
/// Connections that are kept for monitoring when all others are busy.
pub(super) const MONITORING_PLACES: usize = 16;

/// What a connection may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Everything.
    Ordinary,
    /// One request for `/healthz`, `/readyz` or `/metrics`.
    Monitoring,
}

/// Where a new connection goes, and which one ends for it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Room<K> {
    pub(super) kind: Kind,
    pub(super) evicted: Option<K>,
}

#[derive(Debug)]
struct Slot {
    source: IpAddr,
    kind: Kind,
    entered: Instant,
    activity: Arc<Activity>,
}

/// The connections there are.
#[derive(Debug)]
pub(super) struct Slots<K> {
    taken: HashMap<K, Slot>,
}

impl<K: Copy + Eq + Hash> Slots<K> {
    pub(super) fn new() -> Self {
        Self { taken: HashMap::new() }
    }

    /// Finds room for a connection from `source`. What is evicted has left already; the caller ends it.
    pub(super) fn make_room(&mut self, source: IpAddr) -> Room<K> {
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        for place in self.taken.values().filter(|place| place.kind == Kind::Ordinary) {
            *counts.entry(place.source).or_default() += 1;
        }
        let all: usize = counts.values().sum();
        let own = counts.get(&source).copied().unwrap_or(0);
        if own < PER_SOURCE_MAX && all < CONNECTIONS_MAX {
            return Room { kind: Kind::Ordinary, evicted: None };
        }
        let is_candidate = |place: &Slot| own < PER_SOURCE_MAX || place.source == source;
        let count = |place: &Slot| counts.get(&place.source).copied().unwrap_or(0);
        let ordinary = self.taken.iter().filter(|(_, place)| place.kind == Kind::Ordinary && is_candidate(place));
        let waiting = ordinary.filter_map(|(key, place)| Some((key, place, place.activity.waits_since()?)));
        // Of the source with the most connections, the one that has waited longest.
        let longest = waiting
            .max_by(|(_, a, a_since), (_, b, b_since)| count(a).cmp(&count(b)).then_with(|| b_since.cmp(a_since)));
        match longest.map(|(key, ..)| *key) {
            Some(key) => {
                self.taken.remove(&key);
                Room { kind: Kind::Ordinary, evicted: Some(key) }
            }
            None => Room { kind: Kind::Monitoring, evicted: self.oldest_of_monitoring() },
        }
    }

    /// The oldest monitoring connection, when all of their places are taken.
    fn oldest_of_monitoring(&mut self) -> Option<K> {
        let monitoring = || self.taken.iter().filter(|(_, place)| place.kind == Kind::Monitoring);
        if monitoring().count() < MONITORING_PLACES {
            return None;
        }
        let oldest = monitoring().min_by_key(|(_, place)| place.entered).map(|(key, _)| *key)?;
        self.taken.remove(&oldest);
        Some(oldest)
    }

    pub(super) fn enter(&mut self, key: K, source: IpAddr, kind: Kind, activity: Arc<Activity>) {
        self.taken.insert(key, Slot { source, kind, entered: Instant::now(), activity });
    }

    pub(super) fn leave(&mut self, key: &K) {
        self.taken.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table that is driven as the server drives it.
    struct Server {
        places: Slots<usize>,
        next: usize,
    }

    impl Server {
        fn new() -> Self {
            Self { places: Slots::new(), next: 0 }
        }

        /// One connection that works on a request when `is_busy`; its number and what happened.
        fn connect(&mut self, host: u8, is_busy: bool) -> (usize, Room<usize>) {
            let source = IpAddr::from([10, 0, 0, host]);
            let room = self.places.make_room(source);
            let activity = Arc::new(Activity::new());
            if is_busy {
                // Never ends: the request is under way for as long as the test runs.
                std::mem::forget(activity.answering());
            }
            self.next += 1;
            self.places.enter(self.next, source, room.kind, activity);
            (self.next, room)
        }
    }

    fn ordinary(evicted: Option<usize>) -> Room<usize> {
        Room { kind: Kind::Ordinary, evicted }
    }

    #[test]
    fn a_source_that_has_its_share_replaces_its_own_longest_wait() {
        let mut server = Server::new();
        let (other, _) = server.connect(2, false);
        let (busy, _) = server.connect(1, true);
        for _ in 1..PER_SOURCE_MAX {
            assert_eq!(server.connect(1, false).1, ordinary(None));
        }
        assert_eq!(
            server.connect(1, false).1,
            ordinary(Some(busy + 1)),
            "not the older one of {other}, nor the busy one"
        );
        assert_eq!(server.connect(2, false).1, ordinary(None), "others are not affected");
    }

    #[test]
    fn when_all_places_are_taken_the_source_with_the_most_loses_one() {
        let mut server = Server::new();
        server.connect(1, false);
        let first = server.connect(2, false).0;
        for _ in 1..PER_SOURCE_MAX {
            server.connect(2, false);
        }
        for _ in 0..CONNECTIONS_MAX - PER_SOURCE_MAX - 1 {
            server.connect(3, false);
        }
        assert_eq!(server.connect(4, false).1, ordinary(Some(first)), "the single one of another source stays");
    }

    #[test]
    fn monitoring_has_places_when_everything_else_is_busy() {
        let mut server = Server::new();
        for host in [1, 2] {
            for _ in 0..PER_SOURCE_MAX {
                assert_eq!(server.connect(host, true).1, ordinary(None));
            }
        }
        let monitoring = |evicted| Room { kind: Kind::Monitoring, evicted };
        let first = server.connect(3, true);
        assert_eq!(first.1, monitoring(None));
        for _ in 1..MONITORING_PLACES {
            assert_eq!(server.connect(3, true).1, monitoring(None));
        }
        assert_eq!(server.connect(4, false).1, monitoring(Some(first.0)), "the oldest goes");
        server.places.leave(&1);
        assert_eq!(server.connect(4, false).1, ordinary(None), "a place became free");
    }
}
