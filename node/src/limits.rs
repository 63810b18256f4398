//! How much this host moves: its own limits, and those of the cluster for it.

use std::sync::Arc;

use damselfly_messages::config::Settings;
use tokio::sync::watch;

use crate::{
    gate::Gate,
    limiter::{Limiter, Rate},
    settings::HostSettings,
    store::{Quota, Store},
};

/// The limits in force.
#[derive(Debug)]
pub struct Limits {
    /// On what is sent.
    pub upload: Limiter,
    /// On what is received.
    pub download: Limiter,
    /// On how many pieces are served at a time.
    pub uploads: Gate,
    /// The host's own rates, upload first.
    own: [Option<Rate>; 2],
}

impl Limits {
    /// The limits that follow from a host's own rates, upload first, and the settings of now.
    pub fn new(own: [Option<Rate>; 2], settings: &HostSettings) -> Self {
        let limits = Self { upload: Limiter::default(), download: Limiter::default(), uploads: Gate::new(0), own };
        limits.set(&settings.get());
        limits
    }

    /// Follows the settings, until nobody can change them any more.
    pub async fn follow(self, mut settings: watch::Receiver<Arc<Settings>>) {
        loop {
            let current = settings.borrow_and_update().clone();
            self.set(&current);
            if settings.changed().await.is_err() {
                return;
            }
        }
    }

    /// Of a host's own rates and those of the cluster the lower ones count.
    fn set(&self, settings: &Settings) {
        let of_cluster = [settings.upload_bytes_per_second, settings.download_bytes_per_second].map(Rate::from_bytes);
        for ((limiter, own), of_cluster) in [&self.upload, &self.download].into_iter().zip(self.own).zip(of_cluster) {
            limiter.set(own.into_iter().chain(of_cluster).min_by_key(|rate| rate.bytes_per_second()));
        }
        self.uploads.set(settings.concurrent_uploads as usize);
    }
}

/// Keeps a store to a host's own quota or the cluster's, whichever is lower, until nobody can change them any more.
pub async fn follow_quota(mut settings: watch::Receiver<Arc<Settings>>, own: u64, store: Store) {
    loop {
        let quota = quota(own, &settings.borrow_and_update());
        store.set_quota(quota);
        if settings.changed().await.is_err() {
            return;
        }
    }
}

/// The quota by a host's own setting, 0 for none, and the cluster's.
pub fn quota(own: u64, settings: &Settings) -> Option<Quota> {
    let bytes = [own, settings.store_quota_bytes].into_iter().filter(|bytes| *bytes > 0).min()?;
    let high_percent = settings.store_high_percent;
    // Of two overrides each may have set one of them.
    let low_percent = settings.store_low_percent.min(high_percent - 1);
    Some(Quota { bytes, high_percent, low_percent })
}
