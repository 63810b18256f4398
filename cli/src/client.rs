//! What every command needs: the daemon, the time that is left, and how to write.

use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use damselfly_messages::trace::TraceContext;
use damselfly_transport::local::proto::daemon_client::DaemonClient;
use damselfly_transport::local::{Code, Failure, HandedOver, client, socket_path};
use damselfly_transport::trace::TRACEPARENT;
use tokio::time::Instant;
use tonic::{Request, transport::Channel};

use crate::args::Global;
use crate::output::Output;
use crate::units::{millis, seconds};

/// One run of a command.
#[derive(Debug)]
pub struct Context {
    /// How to write.
    pub output: Output,
    /// Bytes per second; 0 for no limit.
    pub rate_limit: u64,
    socket: PathBuf,
    trace: Option<TraceContext>,
    started: Instant,
    deadline: Option<Instant>,
}

impl Context {
    /// The clock of `--timeout` starts here.
    pub fn new(output: Output, global: &Global, trace: Option<TraceContext>) -> Self {
        let started = Instant::now();
        Self {
            output,
            rate_limit: global.rate_limit.unwrap_or(0),
            socket: socket_path(global.socket.as_deref()),
            trace,
            started,
            // A time beyond the clock's end is as good as none.
            deadline: global.timeout.and_then(|timeout| started.checked_add(timeout)),
        }
    }

    /// Connects to the daemon.
    ///
    /// # Errors
    /// Exit 4, with a hint how to start or find one; or 7.
    pub async fn connect(&self) -> Result<DaemonClient<Channel>, Failure> {
        client::connect(&self.socket).await
    }

    /// A request that says which span it is sent by, if somebody collects that.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(trace) = self.trace.and_then(|trace| trace.to_string().parse().ok()) {
            request.metadata_mut().insert(TRACEPARENT, trace);
        }
        request
    }

    /// Hands a descriptor to the daemon; what is returned is kept until the call has ended.
    ///
    /// # Errors
    /// As [`Context::connect`], or the daemon's reason to refuse it.
    pub async fn hand_over(&self, fd: BorrowedFd<'_>) -> Result<HandedOver, Failure> {
        client::send_descriptor(&self.socket, fd).await
    }

    /// What is left of `--timeout`, for a request; 0 for no limit.
    pub fn timeout_ms(&self) -> u64 {
        let left = |deadline: Instant| millis(deadline.saturating_duration_since(Instant::now()));
        self.deadline.map_or(0, |deadline| left(deadline).max(1))
    }

    /// Waits until `--timeout` is over; for ever without one.
    pub async fn out_of_time(&self) -> Failure {
        match self.deadline {
            Some(deadline) => tokio::time::sleep_until(deadline).await,
            None => std::future::pending().await,
        }
        let total = seconds(self.started.elapsed().as_secs_f64());
        Failure::new(Code::Timeout, format!("not done after {total}")).with_hint("give it more time with --timeout")
    }

    /// Time since the start, in seconds.
    pub fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }
}
