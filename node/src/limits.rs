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
    own: watch::Receiver<OwnLimits>,
}

/// The limits in a host's own configuration, which SIGHUP may change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OwnLimits {
    /// On what is sent.
    pub upload: Option<Rate>,
    /// On what is received.
    pub download: Option<Rate>,
    /// On what the store holds; 0 for none.
    pub quota_bytes: u64,
}

impl Limits {
    /// The limits that follow from a host's own ones and the settings of now.
    pub fn new(own: watch::Receiver<OwnLimits>, settings: &HostSettings) -> Self {
        let limits = Self { upload: Limiter::default(), download: Limiter::default(), uploads: Gate::new(0), own };
        limits.set(&settings.get());
        limits
    }

    /// Follows the settings and the host's own limits, until nobody can change them any more.
    pub async fn follow(self, mut settings: watch::Receiver<Arc<Settings>>) {
        let mut own = self.own.clone();
        loop {
            let current = settings.borrow_and_update().clone();
            own.mark_unchanged();
            self.set(&current);
            if !changed(&mut settings, &mut own).await {
                return;
            }
        }
    }

    /// Of a host's own rates and those of the cluster the lower ones count.
    fn set(&self, settings: &Settings) {
        let own = *self.own.borrow();
        let lower = |own: Option<Rate>, of_cluster: u64| {
            own.into_iter().chain(Rate::from_bytes(of_cluster)).min_by_key(|rate| rate.bytes_per_second())
        };
        self.upload.set(lower(own.upload, settings.upload_bytes_per_second));
        self.download.set(lower(own.download, settings.download_bytes_per_second));
        self.uploads.set(settings.concurrent_uploads as usize);
    }
}

/// Keeps a store to a host's own quota or the cluster's, whichever is lower, until nobody can change them any more.
pub async fn follow_quota(
    mut settings: watch::Receiver<Arc<Settings>>,
    mut own: watch::Receiver<OwnLimits>,
    store: Store,
) {
    loop {
        let quota = quota(own.borrow_and_update().quota_bytes, &settings.borrow_and_update());
        store.set_quota(quota);
        if !changed(&mut settings, &mut own).await {
            return;
        }
    }
}

/// Waits until one of the two is another; false when nobody can change one of them any more.
async fn changed(settings: &mut watch::Receiver<Arc<Settings>>, own: &mut watch::Receiver<OwnLimits>) -> bool {
    tokio::select! {
        changed = settings.changed() => changed.is_ok(),
        changed = own.changed() => changed.is_ok(),
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
