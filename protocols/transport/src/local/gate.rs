//! What happens to a connection before gRPC sees it: the first bytes, a place, a descriptor.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::debug;

use super::calls::busy;
use super::credentials::PeerCredentials;
use super::descriptors::{self, Descriptor, Descriptors, Gone, Token};
use super::error::{Code, Failure};
use super::handover;
use super::newcomers::{Newcomer, Newcomers};
use super::permits::{Permit, Permits};
use super::server::LocalStream;
use super::shares::{Part, Shares};

/// Until a connection has said what it is, and until a descriptor connection is done.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long a gRPC connection waits for a place; a client gives up after twice this.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a connection without a place is kept for its calls to be answered *busy*.
const TELL_BUSY: Duration = Duration::from_secs(3);
/// Such connections at once.
const TOLD_PER_UID: usize = 32;
const TOLD_IN_ALL: usize = 64;
/// Descriptors that are looked at, each by a thread that may block on a file system of the client's own.
const CHECKS_PER_UID: usize = 64;
const CHECKS_IN_ALL: usize = 128;
/// The HTTP/2 preface, with which every gRPC connection begins.
pub(super) const PREFACE: [u8; 24] = *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What admits connections. A handle: clones share all limits.
#[derive(Debug, Clone)]
pub(super) struct Gate {
    pub(super) descriptors: Descriptors,
    pub(super) permits: Permits,
    newcomers: Newcomers,
    told: Shares,
    checks: Shares,
    handed: Shares,
}

impl Gate {
    pub(super) fn new(descriptors: Descriptors) -> Self {
        Self {
            descriptors,
            permits: Permits::new(rustix::process::geteuid().as_raw()),
            newcomers: Newcomers::default(),
            told: Shares::new(TOLD_PER_UID, TOLD_IN_ALL),
            checks: Shares::new(CHECKS_PER_UID, CHECKS_IN_ALL),
            handed: Shares::new(descriptors::MAX_PER_UID, descriptors::MAX_IN_ALL),
        }
    }

    /// Serves one connection until it is a gRPC connection, which goes to `ready`, or has ended.
    pub(super) async fn admit(self, mut stream: UnixStream, ready: mpsc::Sender<LocalStream>) {
        let peer = match PeerCredentials::of_stream(&stream) {
            Ok(peer) => peer,
            Err(error) => return debug!(%error, "local connection without credentials"),
        };
        let newcomer = self.newcomers.enter(peer.uid);
        let opened = tokio::select! {
            opened = timeout(DEADLINE, opening(&mut stream)) => opened,
            () = newcomer.closing() => return debug!(peer.uid, "a silent local connection was closed for a newer one"),
        };
        match opened {
            Ok(Ok(Some(Opening::Grpc))) => {
                let admitted = self.place(peer, newcomer).await;
                let Some(admitted) = admitted else {
                    return debug!(peer.uid, "too many local connections, closed one");
                };
                // The receiver is gone only when the server is, and then so is the connection.
                let _ = ready.send(LocalStream::new(stream, peer, admitted)).await;
            }
            Ok(Ok(Some(Opening::Descriptor))) => self.take(stream, peer, newcomer).await,
            Ok(Ok(None)) => debug!(peer.uid, "local connection speaks neither protocol, or said nothing"),
            Ok(Err(error)) => debug!(%error, peer.uid, "local connection broke"),
            Err(_) => debug!(peer.uid, "local connection did not say in time what it is"),
        }
    }

    /// A place, or room to tell the client that there is none.
    async fn place(&self, peer: PeerCredentials, newcomer: Newcomer) -> Option<Admitted> {
        // Counted as one that waits from here on.
        drop(newcomer);
        if let Some(place) = self.permits.enter(peer.uid, PATIENCE).await {
            return Some(Admitted::Permit(place));
        }
        debug!(peer.uid, "no place for a local connection: its calls are answered busy");
        self.told.take(peer.uid, TELL_BUSY).await.map(|told| Admitted::Busy { _told: told })
    }

    /// Serves a descriptor connection.
    async fn take(&self, mut stream: UnixStream, peer: PeerCredentials, newcomer: Newcomer) {
        let parts =
            async { Some((self.handed.take(peer.uid, DEADLINE).await?, self.checks.take(peer.uid, DEADLINE).await?)) };
        let parts = tokio::select! {
            parts = parts => parts,
            () = newcomer.closing() => None,
        };
        drop(newcomer);
        // The first is held until a call has taken the descriptor: further ones wait for their turn.
        let Some((_handed, check)) = parts else {
            if let Err(error) = handover::refuse(&mut stream, &busy()).await {
                debug!(%error, peer.uid, "cannot answer a descriptor connection");
            }
            return;
        };
        let taken = take(&mut stream, peer, check, &self.descriptors);
        match timeout(DEADLINE, taken).await {
            Ok(Some((token, gone))) => {
                let descriptors = self.descriptors.clone();
                hold(stream, gone, move || descriptors.forget(peer.uid, token)).await;
            }
            Ok(None) => {}
            Err(_) => debug!(peer.uid, "descriptor connection took too long"),
        }
    }
}

/// What a connection is.
enum Opening {
    /// gRPC; its preface has been read.
    Grpc,
    /// It hands over a descriptor; nothing has been read.
    Descriptor,
}

/// How a gRPC connection goes on.
pub(super) enum Admitted {
    Permit(Permit),
    /// Its calls are answered *busy*; with its part of what its user may have of such.
    Busy {
        _told: Part,
    },
}

impl Admitted {
    /// Ends when the connection has to.
    pub(super) fn closing(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        match self {
            Self::Permit(place) => Box::pin(place.closing()),
            Self::Busy { .. } => Box::pin(tokio::time::sleep(TELL_BUSY)),
        }
    }
}

/// Reads the whole preface of a gRPC connection: one that says a part of it and stops takes no place.
async fn opening(stream: &mut UnixStream) -> std::io::Result<Option<Opening>> {
    match handover::peek(stream).await? {
        Some(handover::MAGIC) => Ok(Some(Opening::Descriptor)),
        Some(first) if first == PREFACE[0] => {
            let mut preface = [0; PREFACE.len()];
            stream.read_exact(&mut preface).await?;
            Ok((preface == PREFACE).then_some(Opening::Grpc))
        }
        _ => Ok(None),
    }
}

/// Waits until the descriptor is taken or expired; or until the client is gone, then forgets it.
async fn hold(mut stream: UnixStream, gone: Gone, forget: impl FnOnce() + Send + 'static) {
    tokio::select! {
        // First, because from then on the name may stand for another descriptor.
        biased;
        _ = gone => {}
        // Nothing is to come, so whatever comes ends it.
        _ = stream.read_u8() => {
            // Closing may block, as looking at it may.
            let _ = tokio::task::spawn_blocking(forget).await;
        }
    }
}

/// Takes one descriptor and says so.
async fn take(
    stream: &mut UnixStream,
    peer: PeerCredentials,
    check: Part,
    descriptors: &Descriptors,
) -> Option<(Token, Gone)> {
    let outcome = match handover::receive(stream).await {
        Ok((token, fd)) => {
            // Looking at a file may block when its file system is the client's own (FUSE). The part of
            // the user's share goes along, so that such threads are bounded too.
            let looked_at = move || {
                let checked = Descriptor::check(fd);
                drop(check);
                checked
            };
            let checked = tokio::task::spawn_blocking(looked_at).await;
            checked
                .unwrap_or_else(|e| Err(Failure::new(Code::Failed, e.to_string())))
                .and_then(|descriptor| descriptors.insert(peer.uid, token, descriptor))
                .map(|gone| (token, gone))
        }
        Err(failure) => Err(failure),
    };
    if let Err(reason) = &outcome {
        debug!(%reason, peer.uid, "refused a descriptor");
    }
    if let Err(error) = handover::answer(stream, outcome.as_ref().err()).await {
        debug!(%error, peer.uid, "cannot answer a descriptor connection");
    }
    outcome.ok()
}
