//! Running the store's blocking calls beside the asynchronous ones.

use std::{future::Future, panic};

/// Runs `work` on a thread where it may block.
///
/// Dropping the future does not stop it.
pub fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> impl Future<Output = T> {
    let running = tokio::task::spawn_blocking(work);
    async move {
        match running.await {
            Ok(value) => value,
            // The only other reason is a runtime that shuts down, and then nobody polls this.
            Err(error) => match error.try_into_panic() {
                Ok(panic) => panic::resume_unwind(panic),
                Err(_) => std::future::pending().await,
            },
        }
    }
}
