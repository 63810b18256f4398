//! The schedulers of a configuration, in the ring or not.

use std::collections::HashSet;

use libp2p::{Multiaddr, PeerId};
use serde::{Deserialize, Serialize};

use super::Settings;
use crate::{pb, wire::Invalid};

/// Most schedulers of a cluster.
pub const SCHEDULERS_MAX: usize = 256;
/// The largest share of the ring relative to the others.
pub const WEIGHT_MAX: u32 = 100;
/// Most addresses of a scheduler.
pub const SCHEDULER_ADDRESSES_MAX: usize = pb::ADDRESSES_MAX;

/// A scheduler of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchedulerEntry {
    /// Its identity.
    pub peer_id: PeerId,
    /// Where it can be dialled, 1 to [`SCHEDULER_ADDRESSES_MAX`]; `/dns` addresses are resolved at each dial.
    pub addresses: Vec<Multiaddr>,
    /// Its share of the ring relative to the others: 1 to [`WEIGHT_MAX`].
    #[serde(default = "one")]
    pub weight: u32,
    /// Whether it is in the ring.
    #[serde(default)]
    pub state: SchedulerState,
}

/// Whether a scheduler is in the ring.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SchedulerState {
    /// It is in the ring.
    #[default]
    Active,
    /// An operator has taken it out, and only one puts it back.
    Draining,
    /// A manager has taken it out because it did not answer, and puts it back when it does.
    Dead,
}

impl SchedulerState {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Active, Self::Draining, Self::Dead];

    /// Its name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Dead => "dead",
        }
    }
}

const fn one() -> u32 {
    1
}

impl SchedulerEntry {
    /// Its fields in JSON.
    pub(super) const FIELDS: [&'static str; 4] = ["peer_id", "addresses", "weight", "state"];

    /// A scheduler in the ring, with the usual share of it.
    pub const fn active(peer_id: PeerId, addresses: Vec<Multiaddr>) -> Self {
        Self { peer_id, addresses, weight: 1, state: SchedulerState::Active }
    }
}

impl Settings {
    /// The schedulers in the ring.
    pub fn active_schedulers(&self) -> impl Iterator<Item = &SchedulerEntry> {
        self.schedulers.iter().filter(|entry| entry.state == SchedulerState::Active)
    }

    /// A scheduler, in the ring or not.
    pub fn scheduler(&self, peer: &PeerId) -> Option<&SchedulerEntry> {
        self.schedulers.iter().find(|entry| entry.peer_id == *peer)
    }

    pub(super) fn validate_schedulers(&self) -> Result<(), Invalid> {
        let mut seen = HashSet::new();
        for (number, scheduler) in self.schedulers.iter().enumerate() {
            let field = |name| format!("schedulers[{number}].{name}");
            if !(1..=WEIGHT_MAX).contains(&scheduler.weight) {
                let reason = format!("{} is not within 1–{WEIGHT_MAX}", scheduler.weight);
                return Err(Invalid::new(field("weight"), reason));
            }
            let addresses = scheduler.addresses.len();
            if !(1..=SCHEDULER_ADDRESSES_MAX).contains(&addresses) {
                let reason = format!("{addresses} are not within 1–{SCHEDULER_ADDRESSES_MAX}");
                return Err(Invalid::new(field("addresses"), reason));
            }
            if !seen.insert(scheduler.peer_id) {
                return Err(Invalid::new("schedulers", format!("{} is listed twice", scheduler.peer_id)));
            }
        }
        Ok(())
    }
}
