//! Waiting for something to be seen.

use std::time::{Duration, Instant};

use anyhow::bail;
use tokio::time::sleep;

const INTERVAL: Duration = Duration::from_millis(20);

/// Looks again and again until `look` sees what is wanted, and returns that.
///
/// # Errors
/// What it saw last, when the time is over.
pub async fn until<T>(
    what: &str,
    within: Duration,
    mut look: impl AsyncFnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let begun = Instant::now();
    loop {
        match look().await {
            Ok(seen) => return Ok(seen),
            Err(error) if begun.elapsed() >= within => bail!("not within {within:?}: {what}: {error:#}"),
            Err(_) => sleep(INTERVAL).await,
        }
    }
}

/// Looks again and again until `look` is true.
///
/// # Errors
/// When the time is over.
pub async fn until_true(what: &str, within: Duration, mut look: impl AsyncFnMut() -> bool) -> anyhow::Result<()> {
    until(what, within, async || if look().await { Ok(()) } else { bail!("it is not so") }).await
}
