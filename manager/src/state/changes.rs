//! The changes that can be made to the configuration.

use damselfly_messages::config::{SchedulerEntry, SchedulerState, Settings};
use libp2p::PeerId;
use tokio::time::sleep;

use super::{
    ChangeError, EmptyRing, Purpose, SettingsPatch, State,
    edit::{back_to, keep_out, patched, with_scheduler, with_state, without},
};
use crate::{
    database::audit::Actor,
    history::{Past, StoreError},
};

impl State {
    /// Signs `settings` as the next epoch, keeps them, and tells everyone.
    ///
    /// `is_expected` is asked about the epoch in force. Returns the new epoch when it is durable and in force here;
    /// members follow. Finishes even when the caller leaves.
    ///
    /// # Errors
    /// [`ChangeError`]: nothing has changed.
    pub async fn change(
        &self,
        settings: Settings,
        actor: Actor,
        empty: EmptyRing,
        is_expected: impl Fn(u64) -> bool + Send + Sync + 'static,
    ) -> Result<u64, ChangeError> {
        let purpose = Purpose { empty, ..Purpose::new("config.change", None) };
        self.order(keep_out(settings), (actor, purpose), is_expected).await
    }

    /// Signs the settings in force with some of them changed, as [`State::change`] does. Nothing changes when they have
    /// these values. Returns the epoch in force then, and its settings.
    ///
    /// # Errors
    /// [`ChangeError`]: nothing has changed.
    pub async fn patch(
        &self,
        patch: SettingsPatch,
        actor: Actor,
        empty: EmptyRing,
        is_expected: impl Fn(u64) -> bool + Send + Sync + 'static,
    ) -> Result<(u64, Settings), ChangeError> {
        let purpose = Purpose { empty, ..Purpose::new("config.change", None) };
        let epoch = self.order(patched(patch), (actor, purpose), is_expected).await?;
        Ok((epoch, self.settings_of(epoch).await?))
    }

    /// Takes a scheduler out of the ring or puts it back, as [`State::change`] does. Nothing changes when it is so.
    ///
    /// # Errors
    /// [`ChangeError::NoScheduler`], and those of [`State::change`].
    pub async fn set_scheduler(
        &self,
        peer: PeerId,
        to: SchedulerState,
        actor: Actor,
        empty: EmptyRing,
        is_expected: impl Fn(u64) -> bool + Send + Sync + 'static,
    ) -> Result<u64, ChangeError> {
        let current = self.current().ok_or(ChangeError::Nothing)?;
        current.configuration.settings.scheduler(&peer).ok_or(ChangeError::NoScheduler { peer })?;
        let reason = Some(format!("scheduler {peer}: {}", to.name()));
        let purpose = Purpose { empty, ..Purpose::new("scheduler.state", reason) };
        self.order(with_state(peer, to, move |state| state != to), (actor, purpose), is_expected).await
    }

    /// Changes a scheduler's state from one to another because of what was seen of it. Nothing changes when it has
    /// another one meanwhile.
    ///
    /// # Errors
    /// [`ChangeError`]: it is as before.
    pub async fn observe_scheduler(
        &self,
        peer: PeerId,
        (from, to): (SchedulerState, SchedulerState),
        because: &str,
    ) -> Result<u64, ChangeError> {
        let reason = Some(format!("scheduler {peer}: {}, {because}", to.name()));
        let purpose = Purpose::new("scheduler.state", reason);
        self.order(with_state(peer, to, move |state| state == from), (Actor::manager(), purpose), |_| true).await
    }

    /// Puts a host out with the next epoch. Returns the epoch that says so.
    ///
    /// # Errors
    /// [`ChangeError`]: it is still in.
    pub async fn revoke(&self, peer: PeerId, actor: Actor, reason: String) -> Result<u64, ChangeError> {
        let purpose = Purpose {
            empty: EmptyRing::Allowed,
            ..Purpose::new("config.revoke", Some(format!("revoked {peer}: {reason}")))
        };
        self.order(without(peer, self.database().now()), (actor, purpose), |_| true).await
    }

    /// Adds a scheduler to the ring unless it is there. Returns the epoch in force then.
    ///
    /// # Errors
    /// [`ChangeError`]: it is not in the ring.
    pub async fn add_scheduler(&self, entry: SchedulerEntry) -> Result<u64, ChangeError> {
        loop {
            let purpose = Purpose::new("ring.add", Some(format!("added scheduler {}", entry.peer_id)));
            match self.order(with_scheduler(entry.clone()), (Actor::manager(), purpose), |_| true).await {
                Err(ChangeError::Unsettled { retry_after }) => sleep(retry_after).await,
                done => return done,
            }
        }
    }

    /// Signs the settings of an earlier epoch as the next one, as [`State::change`] does. The list of schedulers stays
    /// the present one.
    ///
    /// # Errors
    /// [`ChangeError::NoEpoch`], and those of [`State::change`].
    pub async fn roll_back(
        &self,
        epoch: u64,
        actor: Actor,
        empty: EmptyRing,
        is_expected: impl Fn(u64) -> bool + Send + Sync + 'static,
    ) -> Result<(u64, Settings), ChangeError> {
        let settings = self.settings_of(epoch).await?;
        let purpose = Purpose { empty, ..Purpose::new("config.rollback", Some(format!("back to epoch {epoch}"))) };
        let signed = self.order(back_to(settings), (actor, purpose), is_expected).await?;
        Ok((signed, self.settings_of(signed).await?))
    }

    /// The settings of an epoch in the history.
    ///
    /// # Errors
    /// [`ChangeError::NoEpoch`] and [`ChangeError::History`].
    pub async fn settings_of(&self, epoch: u64) -> Result<Settings, ChangeError> {
        let past = self.inner.store.past(epoch).await?;
        Ok(past.ok_or(ChangeError::NoEpoch { epoch })?.settings)
    }

    /// At most `limit` epochs below `before`, newest first.
    ///
    /// # Errors
    /// [`ChangeError::History`] when the database does not answer; a damaged epoch is told in its place.
    pub async fn history(&self, before: u64, limit: usize) -> Result<Vec<Past>, ChangeError> {
        Ok(self.inner.store.history(before, limit).await.map_err(StoreError::from)?)
    }
}
