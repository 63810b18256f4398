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

use super::credentials::PeerCredentials;
use super::descriptors::Descriptors;
use super::error::Failure;
use super::gate::{self, Connections, Place};
use super::socket::{self, SocketFile};

/// gRPC connections that wait for tonic to take them.
const READY: usize = 16;
const SWEEP: Duration = Duration::from_secs(5);
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
    /// `tonic::transport::Server::serve_with_incoming_shutdown`.
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
    let connections = Connections::default();
    // Bounded by the places there are, but for those that are about to be turned away.
    let mut tasks = JoinSet::new();
    let mut sweep = tokio::time::interval(SWEEP);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let admitted = gate::admit(
                        stream, descriptors.clone(), connections.clone(), ready.clone(),
                    );
                    tasks.spawn(admitted);
                }
                Err(error) => {
                    warn!(%error, "cannot accept a local connection");
                    tokio::time::sleep(PAUSE).await;
                }
            },
            Some(_) = tasks.join_next() => {}
            _ = sweep.tick() => {
                let descriptors = descriptors.clone();
                tasks.spawn_blocking(move || descriptors.expire(Instant::now()));
            }
        }
    }
}

/// A gRPC connection. Requests over it carry [`PeerCredentials`] in their extensions.
#[derive(Debug)]
pub struct LocalStream {
    pub(super) stream: UnixStream,
    pub(super) peer: PeerCredentials,
    pub(super) _place: Place,
}

impl Connected for LocalStream {
    type ConnectInfo = PeerCredentials;

    fn connect_info(&self) -> PeerCredentials {
        self.peer
    }
}

impl AsyncRead for LocalStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
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
