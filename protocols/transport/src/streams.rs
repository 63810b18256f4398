//! Long-lived substreams: opened on request over an existing connection, and accepted into bounded channels.

use std::{
    collections::HashMap,
    io::{self, IoSlice, IoSliceMut},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use futures::{AsyncRead, AsyncWrite};
use libp2p::{PeerId, StreamProtocol};
use tokio::sync::mpsc;

use crate::{admission::Admission, protocol::STREAMS_OPENED_BY};

mod behaviour;
mod handler;

pub use behaviour::Behaviour;

/// How many accepted streams wait for the program, per protocol.
pub const ACCEPT_BACKLOG: usize = 256;

/// Why a stream was not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// There is no connection to the peer; the caller connects first.
    #[error("not connected to the peer")]
    NotConnected,
    /// Too many streams to this peer are open already; the caller drops one or uses one it has.
    #[error("too many open streams to the peer")]
    Busy,
    /// The peer does not answer this protocol; asking again is of no use.
    #[error("the peer does not serve {protocol}")]
    Unsupported {
        /// What was asked for.
        protocol: StreamProtocol,
    },
    /// The peer or the network did not answer in time.
    #[error("no answer in time")]
    Timeout,
    /// The stream or the connection failed meanwhile.
    #[error("stream failed: {reason}")]
    Failed {
        /// What happened.
        reason: String,
    },
}

/// Who opened a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opener {
    Us,
    Peer,
}

/// Open streams per peer, in both directions, with the same limit for each.
#[derive(Debug)]
struct Open {
    per_peer_max: usize,
    counts: Mutex<HashMap<PeerId, [usize; 2]>>,
}

impl Open {
    fn new(per_peer_max: usize) -> Arc<Self> {
        Arc::new(Self { per_peer_max, counts: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PeerId, [usize; 2]>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_take(self: &Arc<Self>, peer: PeerId, opener: Opener) -> Option<Slot> {
        let mut counts = self.lock();
        let count = &mut counts.entry(peer).or_default()[opener as usize];
        if *count >= self.per_peer_max {
            return None;
        }
        *count += 1;
        Some(Slot { open: self.clone(), peer, opener })
    }
}

/// One open stream's place in the count; given back when dropped.
#[derive(Debug)]
struct Slot {
    open: Arc<Open>,
    peer: PeerId,
    opener: Opener,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut counts = self.open.lock();
        if let Some(of_peer) = counts.get_mut(&self.peer) {
            of_peer[self.opener as usize] -= 1;
            if *of_peer == [0, 0] {
                counts.remove(&self.peer);
            }
        }
    }
}

/// A stream to or from a peer, counted until it is dropped.
///
/// Dropping it without closing resets it: the other side reads an end and cannot write any more.
#[derive(Debug)]
pub struct Stream {
    inner: libp2p::Stream,
    _slot: Slot,
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_read(cx, into)
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_read_vectored(cx, into)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, from)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}

/// A protocol that is served, and where its streams go.
pub type Acceptor = (StreamProtocol, mpsc::Sender<(PeerId, Stream)>);

/// Where accepted streams go: one bounded channel per protocol that is served.
#[derive(Debug, Clone)]
struct Acceptors {
    served: Arc<[Acceptor]>,
    admission: Admission,
}

impl Acceptors {
    fn protocols(&self) -> Vec<StreamProtocol> {
        self.served.iter().map(|(protocol, _)| protocol.clone()).collect()
    }

    /// Hands `stream` to the program, or drops it, which the opener reads as an end at once.
    fn accept(&self, protocol: &StreamProtocol, peer: PeerId, stream: libp2p::Stream, open: &Arc<Open>) {
        let Some((_, acceptor)) = self.served.iter().find(|(served, _)| served == protocol) else { return };
        let roles = self.admission.roles(&peer);
        if !STREAMS_OPENED_BY.meets(roles) {
            tracing::debug!(%peer, %protocol, %roles, "stream closed: not for this role");
            return;
        }
        let Some(slot) = open.try_take(peer, Opener::Peer) else {
            tracing::debug!(%peer, %protocol, "stream closed: the peer has too many open");
            return;
        };
        if let Err(error) = acceptor.try_send((peer, Stream { inner: stream, _slot: slot })) {
            tracing::debug!(%peer, %protocol, %error, "stream closed: nobody takes it");
        }
    }
}
