//! Running the store's blocking calls beside the asynchronous ones.

use std::{fs::File, future::Future, ops::Deref, panic};

use tokio::runtime::Handle;

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

/// A file of a user's. Closing it may take long, as on a network file system, so that is done on a thread that may block.
#[derive(Debug)]
pub struct ClosedAside(Option<File>);

impl ClosedAside {
    /// Takes the file over.
    pub const fn new(file: File) -> Self {
        Self(Some(file))
    }
}

impl Deref for ClosedAside {
    type Target = File;

    fn deref(&self) -> &File {
        self.0.as_ref().expect("taken out by drop only")
    }
}

impl Drop for ClosedAside {
    fn drop(&mut self) {
        if let (Some(file), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn_blocking(move || drop(file));
        }
    }
}
