//! What others know: managers of the same database, and members.

use std::time::Duration;

use damselfly_messages::{
    config::{Gossip, SignedConfiguration},
    wire::Wire as _,
};
use damselfly_transport::{
    error_chain::chain,
    network::{Network, PublishError},
    program::follower::Follower,
};
use tokio::time::sleep;

use super::{ChangeError, Inner, State};

/// How often a change is gossiped when no member listens at that moment.
const PUBLISH_TRIES: u32 = 5;

/// How often a database that other managers use is asked whether they have changed the configuration.
const DATABASE_INTERVAL: Duration = Duration::from_secs(1);

impl State {
    /// Takes over what another manager of the same database has signed above `epoch`.
    pub(super) async fn catch_up(&self, epoch: u64) -> Result<(), ChangeError> {
        if let Some(newer) = self.inner.store.newer_than(epoch).await? {
            self.inner.follower.offer(newer.as_bytes(), self.peer_id()).await?;
        }
        Ok(())
    }

    /// Takes over what other managers of the same database sign, and publishes it if that is this manager's part.
    ///
    /// Runs for ever with a shared database, and ends at once with one of this manager's own.
    pub async fn follow_database(self) {
        let Inner { store, network, follower, .. } = &*self.inner;
        while store.database().is_shared() {
            sleep(DATABASE_INTERVAL).await;
            match store.newer_than(follower.epoch()).await {
                Ok(None) => {}
                Ok(Some(signed)) => match follower.offer(signed.as_bytes(), self.peer_id()).await {
                    Ok(_) if *self.is_publisher().borrow() => {
                        tokio::spawn(publish(network.clone(), follower.clone(), signed));
                    }
                    Ok(_) => {}
                    Err(error) => tracing::warn!(epoch = signed.epoch(), %error, "another manager's change is refused"),
                },
                Err(error) => {
                    let error = chain(&error);
                    tracing::warn!(error, "changes of other managers cannot be read");
                }
            }
        }
    }

    /// Keeps configurations that members know and this store does not, because it was restored from a backup.
    ///
    /// Runs until the follower ends.
    pub async fn keep_what_members_know(self) {
        let mut watch = self.inner.follower.watch();
        let mut kept = self.inner.store.newest().epoch();
        while watch.changed().await.is_ok() {
            let Some(accepted) = watch.borrow_and_update().clone() else { continue };
            let epoch = accepted.configuration.epoch;
            if epoch <= kept {
                continue;
            }
            kept = epoch;
            match self.inner.store.keep(&accepted.signed, accepted.configuration.issued).await {
                Ok(true) => tracing::warn!(epoch, "members had a newer configuration than this store: taken over"),
                // Our own change is kept already.
                Ok(false) => {}
                Err(error) => {
                    let error = chain(&error);
                    tracing::error!(epoch, error, "a configuration of the members is not kept");
                }
            }
        }
    }
}

/// Gossips `signed`; who misses it learns by pulling.
pub(super) async fn publish(network: Network, follower: Follower, signed: SignedConfiguration) {
    let message = Gossip::of(&signed).to_bytes();
    for _ in 0..PUBLISH_TRIES {
        if follower.epoch() > signed.epoch() {
            return;
        }
        match network.publish(message.clone()).await {
            Ok(()) => return,
            Err(PublishError::NoPeers) => sleep(Duration::from_secs(1)).await,
            Err(error) => return tracing::warn!(epoch = signed.epoch(), %error, "the change is not gossiped"),
        }
    }
    tracing::info!(epoch = signed.epoch(), "no member listens; members will pull the change");
}
