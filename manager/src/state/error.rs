//! Why the configuration was not changed.

use std::{io, time::Duration};

use damselfly_messages::{config::ConfigurationRefused, membership::ROOTS_MAX, wire::Invalid};
use libp2p::PeerId;
use tokio::task::JoinError;

use crate::{database::DatabaseError, history::StoreError};

/// Why the configuration was not changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// Somebody else has changed it meanwhile.
    #[error("epoch {current} is in force")]
    Stale {
        /// The epoch in force.
        current: u64,
    },
    /// Members may know a newer one; they are being asked.
    #[error("the manager has just started and asks the members whether they know a newer configuration")]
    Unsettled {
        /// It is known by then.
        retry_after: Duration,
    },
    /// This manager is revoked.
    #[error("this manager is revoked: use another one, and exchange the root key if it may have been stolen")]
    Revoked,
    /// A value is out of range.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// It could not be kept.
    #[error("the configuration could not be stored")]
    Store(#[source] DatabaseError),
    /// The change ended early; only a defect gets here.
    #[error("the change was interrupted")]
    Interrupted(#[source] io::Error),
    /// The root key cannot be used or exchanged.
    #[error("the root key cannot be used: {0}")]
    Root(String),
    /// The configuration has no room for one root more.
    #[error("the cluster has had {ROOTS_MAX} roots, and a configuration can tell of no more")]
    TooManyRoots,
    /// It is stored but not in force here; only a defect gets here.
    #[error("the new configuration is not accepted")]
    Refused(#[from] ConfigurationRefused),
    /// No configuration is in force; only a defect gets here.
    #[error("no configuration is in force")]
    Nothing,
    /// No scheduler would be left in the ring.
    #[error("no scheduler would be left in the ring: nothing could be announced or found")]
    LastScheduler,
    /// There is no such scheduler.
    #[error("the configuration lists no scheduler {peer}")]
    NoScheduler {
        /// Who was asked for.
        peer: PeerId,
    },
    /// There is nothing to roll back to.
    #[error("there is no epoch {epoch} in the history")]
    NoEpoch {
        /// What was asked for.
        epoch: u64,
    },
    /// The history cannot be read.
    #[error("the history cannot be read")]
    History(#[from] StoreError),
}

impl ChangeError {
    /// A task of the change ended by panicking or was cancelled.
    pub(super) fn panicked(error: JoinError) -> Self {
        Self::Interrupted(io::Error::other(error))
    }
}
