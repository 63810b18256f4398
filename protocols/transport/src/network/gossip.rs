//! How much is gossiped.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use libp2p::gossipsub::MessageAcceptance;

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
