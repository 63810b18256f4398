//! Limits how often peers that claim a newer configuration are asked for it.
//!
//! A claim costs nothing, so each peer has a turn of its own: one that claims what it does not have delays nobody else.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use libp2p::PeerId;

/// One peer is asked this often at most.
const SAME_PEER_EVERY: Duration = Duration::from_secs(5);

/// All peers together are asked this often at most in one second, so that a change costs 20,000 hosts no storm.
const PER_SECOND: usize = 8;

/// Peers that were asked within [`SAME_PEER_EVERY`].
#[derive(Debug, Default)]
pub(super) struct Pulls {
    asked: HashMap<PeerId, Duration>,
    /// The same, the earliest first; at most [`PER_SECOND`] for each of those seconds.
    order: VecDeque<(PeerId, Duration)>,
}

impl Pulls {
    /// Whether `peer` may be asked now; then it counts as asked.
    pub(super) fn may_ask(&mut self, peer: PeerId, at: Duration) -> bool {
        while let Some((earliest, since)) = self.order.front().copied()
            && since + SAME_PEER_EVERY <= at
        {
            self.order.pop_front();
            self.asked.remove(&earliest);
        }
        let lately = self.order.iter().rev().take(PER_SECOND).filter(|(_, since)| *since + Duration::from_secs(1) > at);
        if lately.count() >= PER_SECOND || self.asked.contains_key(&peer) {
            return false;
        }
        self.asked.insert(peer, at);
        self.order.push_back((peer, at));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_false_claim_delays_nobody_else() {
        let mut pulls = Pulls::default();
        let (liar, honest) = (PeerId::random(), PeerId::random());
        let at = |millis| Duration::from_millis(millis);
        assert!(pulls.may_ask(liar, at(0)));
        let again = (1..5).filter(|second| pulls.may_ask(liar, at(second * 1_000)));
        assert_eq!(again.count(), 0, "the liar has had its turn");
        assert!(pulls.may_ask(honest, at(4_500)), "the honest one has its own");
        assert!(pulls.may_ask(liar, at(5_000)), "it may have changed meanwhile");
        let crowd = (0..100).filter(|_| pulls.may_ask(PeerId::random(), at(5_100))).count();
        assert_eq!(crowd, PER_SECOND - 2, "not all at once: two were asked within this second");
        assert!(pulls.may_ask(PeerId::random(), at(6_200)), "the next second");
        assert_eq!((pulls.asked.len(), pulls.order.len()), (PER_SECOND + 1, PER_SECOND + 1), "old ones are forgotten");
    }
}
