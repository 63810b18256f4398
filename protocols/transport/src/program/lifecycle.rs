//! Signals and the service manager.

use std::{io, time::Duration};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::timeout,
};

/// After a signal the program has ended by then, clean or not.
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// SIGTERM and SIGINT, caught from the moment this is made.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// Caught and never looked at: a write beyond the limit of file sizes is an error then, instead of the end.
    _file_size: Signal,
}

impl Signals {
    /// Starts catching.
    ///
    /// # Errors
    /// [`io::Error`]: the system refuses; the signals end the program as ever.
    pub fn catch() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            _file_size: signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?,
        })
    }

    /// Waits for one of them; gives its name.
    pub async fn recv(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Runs the program's clean end, for at most [`SHUTDOWN_TIMEOUT`]; says whether it came to its end.
pub async fn shut_down(clean_end: impl Future<Output = ()>) -> bool {
    stopping();
    let ended = timeout(SHUTDOWN_TIMEOUT, clean_end).await.is_ok();
    if !ended {
        tracing::warn!(seconds = SHUTDOWN_TIMEOUT.as_secs(), "the shutdown took too long and is cut short");
    }
    ended
}

/// Raises the limit of open files as far as the system allows; returns how many that are.
pub fn raise_file_limit() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok();
    let files = if raised { maximum } else { current };
    files.unwrap_or(u64::MAX)
}

/// Tells the service manager, if there is one, that the program is ready.
pub fn ready() {
    notify(NotifyState::Ready);
}

/// Tells the service manager, if there is one, that the program is about to end.
pub fn stopping() {
    notify(NotifyState::Stopping);
}

fn notify(state: NotifyState<'_>) {
    // Set to nothing, it names no service manager.
    if std::env::var_os("NOTIFY_SOCKET").is_none_or(|socket| socket.is_empty()) {
        return;
    }
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}
