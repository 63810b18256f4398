//! The daemon's end of the socket.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::MissedTickBehavior;
use tonic::transport::server::Connected;
use tracing::warn;

use super::calls::LocalConnection;
use super::credentials::PeerCredentials;
use super::descriptors::Descriptors;
use super::error::Failure;
use super::gate::{Admitted, Gate, PREFACE};
use super::socket::{self, SocketFile};

/// gRPC connections that wait for tonic to take them.
const READY: usize = 16;
const SWEEP: Duration = Duration::from_secs(5);
/// A connection without a call is closed after this.
const IDLE_MAX: Duration = Duration::from_secs(300);
/// After an accept failed, most likely because the process is out of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// A bound socket.
#[derive(Debug)]
pub struct LocalServer {
    listener: UnixListener,
    file: SocketFile,
    descriptors: Descriptors,
}

impl LocalServer {
    /// Listens at `path`, mode 0660. Makes its directory (0755 as root, else 0700), and replaces the
    /// socket of a daemon that is gone. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`super::Code::Conflict`]: another daemon listens there. Else the reason, for the log.
    pub fn bind(path: &Path) -> Result<Self, Failure> {
        let (listener, file) = socket::bind(path)?;
        let listener = UnixListener::from_std(listener)
            .map_err(|e| Failure::io(format!("cannot listen at {}", path.display()), &e))?;
        Ok(Self { listener, file, descriptors: Descriptors::default() })
    }

    /// Where the descriptors wait that clients hand over.
    pub fn descriptors(&self) -> Descriptors {
        self.descriptors.clone()
    }

    /// Accepts connections, and yields those that speak gRPC, for
    /// `tonic::transport::Server::serve_with_incoming_shutdown` of a server with [`super::CallsLayer`].
    pub fn incoming(self) -> Incoming {
        let (sender, ready) = mpsc::channel(READY);
        let accepting = tokio::spawn(accept(self.listener, self.descriptors, sender));
        Incoming { ready, accepting: accepting.abort_handle(), _file: self.file }
    }
}

/// The gRPC connections of a [`LocalServer`]. Never ends; when it is dropped, the socket is removed.
#[derive(Debug)]
pub struct Incoming {
    ready: mpsc::Receiver<LocalStream>,
    accepting: AbortHandle,
    _file: SocketFile,
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Stream for Incoming {
    type Item = io::Result<LocalStream>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.ready.poll_recv(cx).map(|stream| stream.map(Ok))
    }
}

async fn accept(listener: UnixListener, descriptors: Descriptors, ready: mpsc::Sender<LocalStream>) {
    let gate = Gate::new(descriptors);
    // Bounded by what the gate lets wait.
    let mut tasks = JoinSet::new();
    let mut sweep = tokio::time::interval(SWEEP);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(tasks.spawn(gate.clone().admit(stream, ready.clone()))),
                Err(error) => {
                    warn!(%error, "cannot accept a local connection");
                    tokio::time::sleep(PAUSE).await;
                }
            },
            Some(_) = tasks.join_next() => {}
            _ = sweep.tick() => {
                gate.permits.close_idle(Instant::now(), IDLE_MAX);
                let descriptors = gate.descriptors.clone();
                tasks.spawn_blocking(move || descriptors.expire(Instant::now()));
            }
        }
    }
}

/// A gRPC connection. Requests over it carry [`PeerCredentials`] in their extensions.
pub struct LocalStream {
    stream: UnixStream,
    /// What has been read of the preface already, and is to be read once more by gRPC.
    preface: &'static [u8],
    connection: LocalConnection,
    /// The connection fails when this ends.
    closing: Pin<Box<dyn Future<Output = ()> + Send>>,
    _admitted: Admitted,
}

impl LocalStream {
    /// Of a stream whose preface has been read.
    pub(super) fn new(stream: UnixStream, peer: PeerCredentials, admitted: Admitted) -> Self {
        let calls = match &admitted {
            Admitted::Permit(place) => Some(place.calls.clone()),
            Admitted::Busy { .. } => None,
        };
        let connection = LocalConnection { peer, calls };
        Self { stream, preface: &PREFACE, connection, closing: admitted.closing(), _admitted: admitted }
    }
}

impl std::fmt::Debug for LocalStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalStream").field("connection", &self.connection).finish_non_exhaustive()
    }
}

impl Connected for LocalStream {
    type ConnectInfo = LocalConnection;

    fn connect_info(&self) -> LocalConnection {
        self.connection.clone()
    }
}

impl AsyncRead for LocalStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.closing.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        if !this.preface.is_empty() {
            let (now, later) = this.preface.split_at(this.preface.len().min(buf.remaining()));
            buf.put_slice(now);
            this.preface = later;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for LocalStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
