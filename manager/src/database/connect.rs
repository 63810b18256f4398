//! A server that starts at the same time as the manager, or is restarted, is waited for.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Database, Location, OpenError};

/// Between two tries.
const TRY_EVERY: Duration = Duration::from_secs(1);
/// PostgreSQL's codes for: it starts, it stops, it has too many connections.
const BUSY_CODES: [&str; 3] = ["57P03", "57P01", "53300"];

impl Database {
    /// Opens the database as [`Database::open`] does, and tries again for `patience` when it is a server that does not
    /// answer yet.
    ///
    /// # Errors
    /// [`OpenError`] of the last try.
    pub async fn open_when_ready(place: Location, patience: Duration) -> Result<Self, OpenError> {
        let until = Instant::now() + patience;
        let mut is_told = false;
        loop {
            match Self::open(place.clone()).await {
                Err(error) if Instant::now() < until && may_pass(&place, &error) => {
                    if !std::mem::replace(&mut is_told, true) {
                        let error = damselfly_transport::error_chain::chain(&error);
                        tracing::warn!(error, seconds = patience.as_secs(), "waiting for the database");
                    }
                    sleep(TRY_EVERY).await;
                }
                opened => return opened,
            }
        }
    }
}

/// Whether it may go well a little later. What a server refuses it will refuse again.
fn may_pass(place: &Location, error: &OpenError) -> bool {
    if matches!(place, Location::Sqlite(_)) {
        return false;
    }
    match error {
        OpenError::Silent | OpenError::Connect(sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut) => true,
        OpenError::Connect(sqlx::Error::Database(refused)) => {
            refused.code().is_some_and(|code| BUSY_CODES.contains(&&*code))
        }
        _ => false,
    }
}
