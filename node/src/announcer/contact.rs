//! When this host was last in touch with a scheduler. After a long absence nothing here is announced before an owner
//! confirms it: it may have been deleted, and the delete forgotten.

use std::sync::atomic::{AtomicU64, Ordering};

use damselfly_messages::record::UnixMillis;

use super::REMEMBERED;
use crate::store::{Store, StoreError};

/// Key in the store under which the time of the last contact is kept.
const LAST_CONTACT: &str = "last contact";

/// The time of the last contact by the wall clock, 0 when there was none or its consequences are drawn.
pub(super) struct Contact(AtomicU64);

impl Contact {
    pub fn load(store: &Store) -> Result<Self, StoreError> {
        let kept = store.meta_get(LAST_CONTACT)?.and_then(|bytes| bytes.try_into().ok());
        Ok(Self(AtomicU64::new(kept.map_or(0, u64::from_be_bytes))))
    }

    /// A scheduler has answered.
    pub fn made(&self, now: UnixMillis) {
        self.0.store(now.0, Ordering::Relaxed);
    }

    /// Whether the host was out of touch for longer than deletes are remembered.
    pub fn is_away(&self, now: UnixMillis) -> bool {
        let last = self.0.load(Ordering::Relaxed);
        last > 0 && now.0.saturating_sub(last) > REMEMBERED.as_millis() as u64
    }

    /// After a long absence, makes everything stale, once. To be called before anything is told. Blocks.
    pub fn mark_stale_if_away(&self, store: &Store, now: UnixMillis) -> Result<(), StoreError> {
        if self.is_away(now) {
            let marked = store.mark_stale()?;
            tracing::warn!(entries = marked, "out of touch for long: entries wait until an owner confirms them");
            self.0.store(0, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Keeps the time of a contact. Blocks.
    pub fn keep(store: &Store, now: UnixMillis) -> Result<(), StoreError> {
        store.meta_put(LAST_CONTACT, Some(&now.0.to_be_bytes()))
    }
}
