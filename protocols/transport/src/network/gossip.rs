//! How much is gossiped, and who gossips what nobody wants.

use std::{
    collections::{BTreeMap, HashMap},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use libp2p::{PeerId, gossipsub::MessageAcceptance};

/// Rejected messages of one peer within [`REJECTED_WITHIN`]; with the last of them it is not heard for [`UNHEARD_FOR`].
pub(super) const REJECTED_MAX: u32 = 4;
const REJECTED_WITHIN: Duration = Duration::from_secs(60);
const UNHEARD_FOR: Duration = Duration::from_secs(600);
/// Peers whose rejected messages are counted; above it the one that was counted first is forgotten.
const OFFENDERS_MAX: usize = 1024;

/// Peers whose messages were rejected. Pure: the caller passes the time.
#[derive(Debug, Default)]
pub(super) struct Offenders(HashMap<PeerId, Offences>);

#[derive(Debug, Clone, Copy)]
struct Offences {
    rejected: u32,
    since: Instant,
}

impl Offences {
    fn is_unheard(&self) -> bool {
        self.rejected >= REJECTED_MAX
    }

    fn ends(&self) -> Instant {
        self.since + if self.is_unheard() { UNHEARD_FOR } else { REJECTED_WITHIN }
    }
}

impl Offenders {
    /// Counts a rejected message; returns whether its peer is not to be heard from now on.
    pub(super) fn on_rejected(&mut self, peer: PeerId, now: Instant) -> bool {
        if self.0.len() >= OFFENDERS_MAX && !self.0.contains_key(&peer) {
            // Those that are not heard stay: somebody has to say when they are heard again.
            let counted = self.0.iter().filter(|(_, known)| !known.is_unheard());
            let Some(first) = counted.min_by_key(|(_, known)| known.since).map(|(peer, _)| *peer) else { return false };
            self.0.remove(&first);
        }
        let known = self.0.entry(peer).or_insert(Offences { rejected: 0, since: now });
        let was_unheard = known.is_unheard();
        known.rejected = known.rejected.saturating_add(1);
        if known.is_unheard() && !was_unheard {
            known.since = now;
            return true;
        }
        false
    }

    /// Forgets what was long ago; returns who is heard again.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<PeerId> {
        let ended = self.0.extract_if(|_, known| known.ends() <= now);
        ended.filter(|(_, known)| known.is_unheard()).map(|(peer, _)| peer).collect()
    }
}

/// Counted by the worker, read by the handles.
#[derive(Debug, Default)]
pub(super) struct GossipCounters {
    accepted: AtomicU64,
    ignored: AtomicU64,
    rejected: AtomicU64,
    published: AtomicU64,
    unpublished: AtomicU64,
}

/// Gossip messages since the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GossipCounts {
    /// Messages of others, by what came of them: `accepted` were passed on, `ignored` were not, `rejected` are blamed on
    /// the sender.
    pub received: BTreeMap<&'static str, u64>,
    /// Messages of this program's own: `ok` or `failed`.
    pub published: BTreeMap<&'static str, u64>,
}

impl GossipCounters {
    pub(super) fn on_verdict(&self, verdict: &MessageAcceptance) {
        let counter = match verdict {
            MessageAcceptance::Accept => &self.accepted,
            MessageAcceptance::Ignore => &self.ignored,
            MessageAcceptance::Reject => &self.rejected,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn on_published(&self, ok: bool) {
        let counter = if ok { &self.published } else { &self.unpublished };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn counts(&self) -> GossipCounts {
        let read = |(name, counter): (_, &AtomicU64)| (name, counter.load(Ordering::Relaxed));
        let received = [("accepted", &self.accepted), ("ignored", &self.ignored), ("rejected", &self.rejected)];
        let published = [("ok", &self.published), ("failed", &self.unpublished)];
        GossipCounts { received: received.map(read).into(), published: published.map(read).into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_is_rejected_too_often_is_not_heard_for_a_while() {
        let mut offenders = Offenders::default();
        let start = Instant::now();
        let peer = PeerId::random();
        for _ in 1..REJECTED_MAX {
            assert!(!offenders.on_rejected(peer, start), "a mistake or two");
        }
        assert_eq!(offenders.expire(start + REJECTED_WITHIN), [], "it was heard all the time");
        for _ in 1..REJECTED_MAX {
            assert!(!offenders.on_rejected(peer, start), "counted from the beginning");
        }
        assert!(offenders.on_rejected(peer, start), "and now it is too much");
        assert!(!offenders.on_rejected(peer, start), "known already");
        assert_eq!(offenders.expire(start + REJECTED_WITHIN), []);
        assert_eq!(offenders.expire(start + UNHEARD_FOR), [peer]);
        for _ in 0..2 * OFFENDERS_MAX {
            offenders.on_rejected(PeerId::random(), start);
        }
        assert_eq!(offenders.0.len(), OFFENDERS_MAX);
    }
}
