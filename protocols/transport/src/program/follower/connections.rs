//! Which peers the follower keeps connections to, and when it dials them. No I/O and no clock of its own.

use std::{collections::HashMap, time::Duration};

use damselfly_messages::config::Accepted;
use libp2p::{Multiaddr, PeerId};
use tokio::time::Instant;

use super::Role;
use crate::{network::Peers, program::cluster::PeerAddress};

/// The first pause after a failed dial; each further one is twice as long.
const BACKOFF_MIN: Duration = Duration::from_millis(200);
/// The longest pause.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// How many schedulers a node stays connected to.
const NODE_SCHEDULERS: usize = 2;

/// A peer to be connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) peer: PeerId,
    pub(super) addresses: Vec<Multiaddr>,
}

#[derive(Debug)]
struct Attempt {
    pause: Duration,
    next: Instant,
    dialling: bool,
}

/// Decides whom to dial, and when.
#[derive(Debug)]
pub(super) struct Connections {
    us: PeerId,
    role: Role,
    bootstrap: Vec<PeerAddress>,
    attempts: HashMap<PeerId, Attempt>,
}

impl Connections {
    pub(super) fn new(us: PeerId, role: Role, bootstrap: Vec<PeerAddress>) -> Self {
        Self { us, role, bootstrap, attempts: HashMap::new() }
    }

    /// Whether `peer` may be asked for the configuration: a member that has it, and not any node.
    pub(super) fn is_source(&self, peer: &PeerId, accepted: Option<&Accepted>) -> bool {
        let Some(accepted) = accepted else { return true };
        // A restored manager's configuration may be too old to list those that know better; few connect to it.
        if self.role == Role::Manager {
            return true;
        }
        accepted.configuration.settings.scheduler(peer).is_some()
            || self.bootstrap.iter().any(|known| known.peer() == *peer)
    }

    /// The peers to send gossip to directly.
    pub(super) fn gossip_peers(&self, connected: &Peers, accepted: Option<&Accepted>) -> Vec<PeerId> {
        let schedulers = accepted.into_iter().flat_map(|accepted| &accepted.configuration.settings.schedulers);
        let schedulers = schedulers.map(|entry| entry.peer_id);
        let mut peers: Vec<_> = schedulers.chain(self.bootstrap.iter().map(PeerAddress::peer)).collect();
        if self.role != Role::Node {
            peers.extend(connected.keys());
        }
        peers.retain(|peer| *peer != self.us);
        peers.sort_unstable();
        peers.dedup();
        peers
    }

    /// The peers to dial now.
    pub(super) fn due(&mut self, connected: &Peers, accepted: Option<&Accepted>, now: Instant) -> Vec<Target> {
        let mut wanted = self.wanted(connected, accepted);
        let is_wanted = |peer: &PeerId| wanted.iter().any(|target| target.peer == *peer);
        // The pause outlives a good dial, so that a peer that hangs up at once is not dialled in a loop.
        self.attempts.retain(|peer, attempt| attempt.dialling || attempt.next > now || is_wanted(peer));
        wanted.retain(|target| {
            let attempt =
                self.attempts.entry(target.peer).or_insert(Attempt { pause: BACKOFF_MIN, next: now, dialling: false });
            let due = !attempt.dialling && attempt.next <= now;
            attempt.dialling |= due;
            due
        });
        wanted
    }

    /// When [`Connections::due`] has something to do at the earliest, if nothing else happens.
    pub(super) fn next(&self) -> Option<Instant> {
        self.attempts.values().filter(|attempt| !attempt.dialling).map(|attempt| attempt.next).min()
    }

    /// A dial has ended, well or not.
    pub(super) fn on_dialled(&mut self, peer: PeerId, now: Instant) {
        if let Some(attempt) = self.attempts.get_mut(&peer) {
            attempt.dialling = false;
            attempt.next = now + attempt.pause;
            attempt.pause = (attempt.pause * 2).min(BACKOFF_MAX);
        }
    }

    /// Not connected now, but to be.
    fn wanted(&self, connected: &Peers, accepted: Option<&Accepted>) -> Vec<Target> {
        let mut schedulers = self.schedulers(accepted);
        let known = schedulers.len();
        schedulers.retain(|target| !connected.contains_key(&target.peer));
        let reached = known - schedulers.len();
        if self.role == Role::Node {
            schedulers.truncate((NODE_SCHEDULERS + self.failing()).saturating_sub(reached));
            if reached >= NODE_SCHEDULERS {
                schedulers.clear();
            }
        }
        let needs_bootstrap = match self.role {
            Role::Node => reached == 0,
            Role::Scheduler => true,
            Role::Manager => false,
        };
        let bootstrap = self.bootstrap.iter().filter(|known| needs_bootstrap && known.peer() != self.us);
        let bootstrap = bootstrap.filter(|known| !connected.contains_key(&known.peer()));
        let bootstrap = bootstrap.map(|known| Target { peer: known.peer(), addresses: vec![known.address().clone()] });
        merged(schedulers.into_iter().chain(bootstrap))
    }

    /// All schedulers but us; each node begins with another one, so that they share the load, and with those in the ring.
    fn schedulers(&self, accepted: Option<&Accepted>) -> Vec<Target> {
        let Some(accepted) = accepted else { return Vec::new() };
        let entries = accepted.configuration.settings.schedulers.iter().filter(|entry| entry.peer_id != self.us);
        let mut targets: Vec<_> =
            entries.map(|entry| Target { peer: entry.peer_id, addresses: entry.addresses.clone() }).collect();
        if self.role == Role::Node && !targets.is_empty() {
            let first = self.us.to_bytes().last().map_or(0, |byte| usize::from(*byte)) % targets.len();
            targets.rotate_left(first);
            targets.sort_by_key(|target| !accepted.ring.members().contains(&target.peer));
        }
        targets
    }

    /// How many peers have failed more than once: a node tries as many others beside them.
    fn failing(&self) -> usize {
        self.attempts.values().filter(|attempt| attempt.pause > BACKOFF_MIN * 2).count()
    }
}

/// One target per peer, with all addresses known of it.
fn merged(targets: impl Iterator<Item = Target>) -> Vec<Target> {
    let mut merged: Vec<Target> = Vec::new();
    for target in targets {
        match merged.iter_mut().find(|known| known.peer == target.peer) {
            Some(known) => {
                known.addresses.extend(target.addresses);
                known.addresses.dedup();
            }
            None => merged.push(target),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use damselfly_messages::{
        config::{Configuration, SchedulerEntry, Settings},
        id::ClusterId,
        membership::{Root, Roots},
        record::UnixMillis,
    };
    use libp2p::identity::Keypair;

    use super::*;

    fn key(seed: u8) -> Keypair {
        Keypair::ed25519_from_bytes([seed; 32]).expect("32 bytes")
    }

    fn peer(seed: u8) -> PeerId {
        key(seed).public().to_peer_id()
    }

    fn address(seed: u8) -> Multiaddr {
        format!("/ip4/127.0.0.1/tcp/{seed}").parse().expect("an address")
    }

    /// A configuration with the schedulers 1 to `count`.
    fn accepted(count: u8) -> Arc<Accepted> {
        let entry = |seed| SchedulerEntry::active(peer(seed), vec![address(seed)]);
        let settings = Settings { schedulers: (1..=count).map(entry).collect(), ..Settings::default() };
        let cluster = ClusterId::of_root(&key(9).public());
        let configuration = Configuration {
            cluster,
            epoch: 1,
            issued: UnixMillis(0),
            settings,
            revoked: Vec::new(),
            roots: Roots::of(cluster),
        };
        let issuer = Root::founding(key(9)).certify(key(9), UnixMillis(0), Duration::MAX).expect("certified");
        let signed = configuration.sign(&issuer).expect("signed");
        Arc::new(Accepted { ring: configuration.ring(), configuration, signed })
    }

    fn due(role: Role, schedulers: u8, connected: &[u8]) -> Vec<PeerId> {
        let bootstrap = vec![PeerAddress::new(peer(200), address(200)).expect("an address")];
        let mut connections = Connections::new(peer(1), role, bootstrap);
        let connected = connected.iter().map(|seed| (peer(*seed), address(*seed))).collect();
        let accepted = (schedulers > 0).then(|| accepted(schedulers));
        let mut due: Vec<_> = connections.due(&connected, accepted.as_deref(), Instant::now()).into_iter().collect();
        due.sort_unstable_by_key(|target| target.peer);
        due.into_iter().map(|target| target.peer).collect()
    }

    #[test]
    fn each_role_keeps_its_connections() {
        let cases: [(_, _, &[u8], &[u8], _); 8] = [
            (Role::Node, 0, &[], &[200], "only the bootstrap peer is known"),
            (Role::Node, 3, &[], &[2, 3, 200], "alone: whoever can be reached, but not itself"),
            (Role::Node, 3, &[2], &[3], "a second scheduler"),
            (Role::Node, 4, &[2, 3], &[], "two schedulers are enough"),
            (Role::Scheduler, 3, &[2], &[3, 200], "all the others and the manager"),
            (Role::Scheduler, 3, &[2, 3, 200], &[], "all are there"),
            (Role::Manager, 3, &[2], &[3], "all schedulers"),
            (Role::Manager, 0, &[], &[], "there is none"),
        ];
        for (role, schedulers, connected, expected, reason) in cases {
            let mut expected: Vec<_> = expected.iter().map(|seed| peer(*seed)).collect();
            expected.sort_unstable();
            assert_eq!(due(role, schedulers, connected), expected, "{role:?}: {reason}");
        }
    }

    #[test]
    fn failed_dials_are_repeated_with_growing_pauses() {
        let bootstrap = vec![PeerAddress::new(peer(200), address(200)).expect("an address")];
        let mut connections = Connections::new(peer(1), Role::Node, bootstrap);
        let (alone, mut now) = (Peers::default(), Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..7 {
            assert_eq!(connections.due(&alone, None, now).len(), 1);
            assert!(connections.due(&alone, None, now).is_empty(), "it is being dialled");
            assert_eq!(connections.next(), None);
            connections.on_dialled(peer(200), now);
            let next = connections.next().expect("a next try");
            pauses.push((next - now).as_millis());
            now = next;
        }
        assert_eq!(pauses, [200, 400, 800, 1600, 3200, 5000, 5000]);
    }
}
