//! Removes from the database what need not be kept, every hour.

use std::time::Duration;

use damselfly_transport::error_chain::chain;
use tokio::time::{MissedTickBehavior, interval};

use crate::{database::prune::Pruned, state::State};

/// Deletes of hosts come fast, so an hour must not bring too many.
const EVERY: Duration = Duration::from_secs(3600);

/// Removes what the database need not hold any more, at the start and every hour, as the manager that publishes.
pub async fn keep_pruned(state: State) {
    let mut hours = interval(EVERY);
    hours.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_publisher = state.is_publisher();
    loop {
        hours.tick().await;
        if is_publisher.wait_for(|is| *is).await.is_err() {
            return;
        }
        let grace_ms = state.current().map_or(0, |current| current.configuration.settings.grace_ms);
        // By a wrong clock it could remove what is in use.
        let Some(now) = state.database().clock().expirable() else { continue };
        match state.database().prune(Duration::from_millis(grace_ms), now).await {
            Ok(Pruned { audit: 0, join_tokens: 0, members: 0 }) => {}
            Ok(pruned) => tracing::info!(?pruned, "what ended long ago was removed from the database"),
            Err(error) => tracing::warn!(error = chain(&error), "the database is not pruned; it is tried again"),
        }
    }
}
