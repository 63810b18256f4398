//! The root key is exchanged, and those before it are retired.

use std::time::Duration;

use damselfly_messages::{membership::Roots, record::UnixMillis};
use damselfly_transport::error_chain::chain;
use tokio::{task::spawn_blocking, time::sleep};

use super::{ChangeError, Purpose, State, edit::as_it_is};
use crate::{
    database::{DatabaseError, audit::Actor, configurations},
    keys::{KeyError, Next},
};

/// How often it is looked whether roots are to be retired.
const RETIREMENT_INTERVAL: Duration = Duration::from_secs(1);

/// What becomes of the cluster's roots.
#[derive(Debug, Clone, Copy)]
pub(super) enum RootChange {
    None,
    /// A new one, and when those before it are retired.
    Next(UnixMillis),
    /// Only the newest one counts.
    Retire,
}

impl RootChange {
    /// The roots after the change; `next` is the one that it brings.
    pub(super) fn after(self, roots: &Roots, next: Option<&(Next, UnixMillis)>) -> Roots {
        match (next, self) {
            (Some((next, _)), _) => next.issuer().roots().after(roots),
            (None, Self::Retire) => roots.newest_only(),
            (None, Self::None | Self::Next(_)) => roots.clone(),
        }
    }
}

impl State {
    /// Exchanges the root key. Until `overlap` has passed, what the roots before it have certified counts too; `None`: until
    /// no credential of theirs can hold any more.
    ///
    /// # Errors
    /// [`ChangeError`]: the root is as before.
    pub async fn rotate_root(&self, overlap: Option<Duration>, actor: Actor) -> Result<u64, ChangeError> {
        let settings = &self.current().ok_or(ChangeError::Nothing)?.configuration.settings;
        let overlap = overlap.unwrap_or(Duration::from_millis(settings.credential_ms + settings.grace_ms));
        let retired =
            UnixMillis(self.database().now().0.saturating_add(u64::try_from(overlap.as_millis()).unwrap_or(u64::MAX)));
        let purpose = Purpose {
            roots: RootChange::Next(retired),
            ..Purpose::new("root.rotate", Some("root key exchanged".to_owned()))
        };
        self.order(as_it_is, (actor, purpose), |_| true).await
    }

    /// When older roots are to be retired; `None` when there is none that still counts.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn retirement(&self) -> Result<Option<UnixMillis>, DatabaseError> {
        let overlap = self.current().is_some_and(|current| current.configuration.roots.in_use() > 1);
        if !overlap {
            return Ok(None);
        }
        let due = self.database().meta(configurations::RETIREMENT).await?;
        let damaged = || DatabaseError::Damaged { what: "retirement" };
        due.map(|due| due.parse().map(UnixMillis).map_err(|_| damaged())).transpose()
    }

    /// Retires roots when their time has come, until the program ends.
    pub async fn retire_roots(self) {
        loop {
            sleep(RETIREMENT_INTERVAL).await;
            if !*self.is_publisher().borrow() {
                continue;
            }
            let retired = match self.retirement().await {
                Ok(Some(due)) if due <= self.database().now() => {
                    let reason = Some("earlier root keys retired".to_owned());
                    let purpose = Purpose { roots: RootChange::Retire, ..Purpose::new("root.retire", reason) };
                    self.order(as_it_is, (Actor::manager(), purpose), |_| true).await
                }
                Ok(_) => continue,
                Err(error) => Err(ChangeError::Store(error)),
            };
            match retired {
                Ok(epoch) => tracing::info!(epoch, "only the newest root counts from now on"),
                Err(error) => {
                    tracing::warn!(
                        error = chain(&error),
                        "the roots before the newest are not retired; it is tried again"
                    );
                }
            }
        }
    }

    /// Makes the key of the next root, if there is to be one.
    pub(super) async fn next_root(&self, change: RootChange) -> Result<Option<(Next, UnixMillis)>, ChangeError> {
        let RootChange::Next(retired) = change else { return Ok(None) };
        let state = self.clone();
        let made = spawn_blocking(move || state.keys().prepare(state.database().now())).await;
        match made.map_err(ChangeError::panicked)? {
            Ok(next) => Ok(Some((next, retired))),
            Err(KeyError::Invalid(_)) => Err(ChangeError::TooManyRoots),
            Err(error) => Err(ChangeError::Root(chain(&error))),
        }
    }

    /// Goes on with the next root, which is stored.
    pub(super) async fn follow_root(&self, next: Next) -> Result<(), ChangeError> {
        let state = self.clone();
        let followed = spawn_blocking(move || state.keys().follow(next)).await;
        if let Err(error) = followed.map_err(ChangeError::panicked)? {
            tracing::error!(error = chain(&error), "the new root key is in use, but its file is not in its place yet");
        }
        Ok(())
    }
}
