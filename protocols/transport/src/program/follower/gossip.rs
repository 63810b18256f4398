//! Judging the messages of the topic.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use damselfly_messages::{
    config::{ConfigurationRefused, Gossip as Message},
    wire::Wire as _,
};

use libp2p::PeerId;

use super::{Shared, pulls};
use crate::network::{Gossip, Network};

/// A peer is warned of this often at most.
const WARN_EVERY: Duration = Duration::from_secs(60);
/// Peers that are remembered; a further one is not warned of.
const WARNED_MAX: usize = 256;

/// Keeps peers from filling the log.
#[derive(Debug, Default)]
pub(super) struct Warnings(Mutex<HashMap<PeerId, Instant>>);

impl Warnings {
    /// Whether a warning about `peer` may be logged; if so, it counts.
    fn is_due(&self, peer: PeerId, now: Instant) -> bool {
        let mut warned = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        warned.retain(|_, last| now.saturating_duration_since(*last) < WARN_EVERY);
        if warned.contains_key(&peer) || warned.len() >= WARNED_MAX {
            return false;
        }
        warned.insert(peer, now);
        true
    }
}

/// Takes over what a message carries, or pulls what it speaks of; passes on only what has proved true.
pub(super) async fn judge(gossip: Gossip, network: Network, shared: Arc<Shared>) {
    let message = match Message::from_bytes(&gossip.bytes) {
        Ok(message) => message,
        Err(error) => {
            tracing::debug!(author = %gossip.author, %error, "gossip refused");
            return gossip.reject();
        }
    };
    let Some(full) = message.full else {
        if message.epoch > shared.epoch() {
            pulls::pull(gossip.from, &network, &shared).await;
        }
        // Without a proof it is dropped, but nobody is to blame: the sender may know no more than we do.
        return if message.epoch == shared.epoch() { gossip.accept() } else { drop(gossip) };
    };
    match shared.offer(full, gossip.from).await {
        Ok(()) => gossip.accept(),
        Err(ConfigurationRefused::Older { .. }) => drop(gossip),
        Err(error) => {
            let (author, from) = (gossip.author, gossip.from);
            if shared.warnings.is_due(from, Instant::now()) {
                tracing::warn!(%author, %from, %error, "gossiped configuration refused");
            } else {
                tracing::debug!(%author, %from, %error, "gossiped configuration refused");
            }
            // An honest member that knows less than we do passes on what we refuse, but never what is plainly false.
            if author == from || error.is_plain() { gossip.reject() } else { drop(gossip) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_warned_of_once_a_minute() {
        let warnings = Warnings::default();
        let start = Instant::now();
        let peer = PeerId::random();
        let due = (0..10_000).filter(|number| warnings.is_due(peer, start + Duration::from_millis(*number))).count();
        assert_eq!(due, 1, "10,000 messages in 10 s");
        assert!(warnings.is_due(PeerId::random(), start), "another peer");
        assert!(warnings.is_due(peer, start + WARN_EVERY));
        let many = (0..2 * WARNED_MAX).filter(|_| warnings.is_due(PeerId::random(), start + WARN_EVERY)).count();
        assert!(many < WARNED_MAX, "bounded");
    }
}
