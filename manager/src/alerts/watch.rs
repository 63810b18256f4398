//! Gets what alerts follow from.

use std::time::{Duration, Instant};

use damselfly_messages::record::UnixMillis;
use damselfly_transport::reason;
use libp2p::PeerId;

use super::{Alert, Facts, Memory, credentials_until};
use crate::{picture::Picture, state::State};

/// How often the database is asked for credentials that end.
const CREDENTIALS_EVERY: Duration = Duration::from_secs(10);
/// So many of them are looked at.
const CREDENTIALS_MAX: u32 = 1_000;

/// Watches the cluster.
#[derive(Debug, Default)]
pub struct Watch {
    memory: Memory,
    credentials: Vec<(PeerId, UnixMillis)>,
    asked: Option<Instant>,
}

impl Watch {
    /// The alerts of what was just seen; none before a configuration is in force.
    pub async fn alerts(&mut self, state: &State, picture: &Picture) -> Vec<Alert> {
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
                Err(error) => tracing::warn!(error = %reason::chain(&error), "it is not known which credentials end"),
            }
        }
        let facts = Facts {
            picture,
            accepted: &accepted,
            is_publisher: *state.is_publisher().borrow(),
            credentials: &self.credentials,
            time: state.database().now(),
        };
        self.memory.look(&facts, Instant::now())
    }
}
