//! Gets what alerts follow from.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use damselfly_messages::record::UnixMillis;
use damselfly_transport::error_chain;
use libp2p::PeerId;

use super::{Alert, Facts, Memory, credentials_until};
use crate::{cluster_view::ClusterView, state::State};

/// How often the database is asked for credentials that end.
const CREDENTIALS_EVERY: Duration = Duration::from_secs(10);
/// So many of them are looked at.
const CREDENTIALS_MAX: u32 = 1_000;

/// How often the database is asked which hosts there should be.
const MEMBERS_EVERY: Duration = Duration::from_secs(10);
/// So many of them are looked at.
const MEMBERS_MAX: u32 = 20_000;
/// A host that was up within this time is missed when a manager starts; as long as one that it has heard of is shown.
const UP_WITHIN_MS: u64 = 24 * 3_600_000;
/// A credential is renewed after this part of its life, so a host that was up has renewed it within that time.
const RENEWED_AFTER_PART: u64 = 14;

/// Watches the cluster.
#[derive(Debug, Default)]
pub struct Watch {
    memory: Memory,
    credentials: Vec<(PeerId, UnixMillis)>,
    asked: Option<Instant>,
    /// Hosts that were members lately.
    expected: BTreeSet<PeerId>,
    expected_asked: Option<Instant>,
}

impl Watch {
    /// Hosts that should be there, because they renewed their credential lately, and that no scheduler has told of.
    pub async fn absent(&mut self, state: &State, cluster_view: &ClusterView) -> BTreeSet<PeerId> {
        let Some(accepted) = state.current() else { return BTreeSet::new() };
        if self.expected_asked.is_none_or(|asked| asked.elapsed() >= MEMBERS_EVERY) {
            self.expected_asked = Some(Instant::now());
            let life = accepted.configuration.settings.credential_ms;
            let since = UnixMillis(state.database().now().0.saturating_sub(UP_WITHIN_MS + life / RENEWED_AFTER_PART));
            match state.database().members_renewed(since, MEMBERS_MAX).await {
                Ok(members) => {
                    let is_host = |roles: &[String]| roles.iter().any(|role| role == "node" || role == "seed");
                    let hosts = members.into_iter().filter(|(_, roles)| is_host(roles));
                    self.expected = hosts.filter_map(|(peer, _)| peer.parse().ok()).collect();
                }
                Err(error) => {
                    tracing::warn!(error = %error_chain::chain(&error), "it is not known which hosts are members")
                }
            }
        }
        let revoked = |peer: &PeerId| accepted.configuration.revoked.iter().any(|revoked| revoked.peer == *peer);
        let is_absent = |peer: &&PeerId| !cluster_view.hosts.contains_key(*peer) && !revoked(peer);
        self.expected.iter().filter(is_absent).copied().collect()
    }

    /// The alerts of what was just seen; none before a configuration is in force.
    pub async fn alerts(&mut self, state: &State, cluster_view: &ClusterView) -> Vec<Alert> {
        let Some(accepted) = state.current() else { return Vec::new() };
        if self.asked.is_none_or(|asked| asked.elapsed() >= CREDENTIALS_EVERY) {
            self.asked = Some(Instant::now());
            match state
                .database()
                .credentials_ending(credentials_until(&accepted, state.database().now()), CREDENTIALS_MAX)
                .await
            {
                Ok(ending) => {
                    let known = |(peer, until): (String, _)| Some((peer.parse().ok()?, until));
                    self.credentials = ending.into_iter().filter_map(known).collect();
                }
                Err(error) => {
                    tracing::warn!(error = %error_chain::chain(&error), "it is not known which credentials end")
                }
            }
        }
        let facts = Facts {
            cluster_view,
            accepted: &accepted,
            is_publisher: *state.is_publisher().borrow(),
            credentials: &self.credentials,
            time: state.database().now(),
        };
        self.memory.look(&facts, Instant::now())
    }
}
