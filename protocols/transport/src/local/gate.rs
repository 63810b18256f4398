//! What happens to a connection before gRPC sees it: admission, the first byte, a descriptor.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::debug;

use super::credentials::PeerCredentials;
use super::descriptors::{Descriptor, Descriptors, Gone, Token};
use super::error::{Code, Failure};
use super::handover;
use super::server::LocalStream;

/// Until a connection has said what it is, and until a descriptor connection is done.
const DEADLINE: Duration = Duration::from_secs(5);
const MAX_PER_UID: usize = 128;
const MAX_IN_ALL: usize = 256;
/// First byte of the HTTP/2 preface, `PRI * HTTP/2.0`.
const HTTP2: u8 = b'P';

/// Serves one connection until it is a gRPC connection, which goes to `ready`, or has ended.
pub(super) async fn admit(
    mut stream: UnixStream,
    descriptors: Descriptors,
    connections: Connections,
    ready: mpsc::Sender<LocalStream>,
) {
    let peer = match PeerCredentials::of_stream(&stream) {
        Ok(peer) => peer,
        Err(error) => return debug!(%error, "local connection without credentials"),
    };
    let Some(place) = connections.enter(peer.uid) else {
        return debug!(peer.uid, "too many local connections, closed one");
    };
    let first = match timeout(DEADLINE, handover::peek(&stream)).await {
        Ok(Ok(first)) => first,
        Ok(Err(error)) => return debug!(%error, peer.uid, "local connection broke"),
        Err(_) => return debug!(peer.uid, "local connection said nothing"),
    };
    match first {
        Some(HTTP2) => {
            // The receiver is gone only when the server is, and then so is the connection.
            let _ = ready.send(LocalStream { stream, peer, _place: place }).await;
        }
        Some(handover::MAGIC) => {
            let taken = take(&mut stream, peer, place, &descriptors);
            match timeout(DEADLINE, taken).await {
                Ok(Some((token, gone))) => hold(stream, gone, move || descriptors.forget(peer.uid, token)).await,
                Ok(None) => {}
                Err(_) => debug!(peer.uid, "descriptor connection took too long"),
            }
        }
        Some(byte) => debug!(byte, peer.uid, "local connection speaks neither protocol"),
        None => debug!(peer.uid, "local connection closed before its first byte"),
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
    place: Place,
    descriptors: &Descriptors,
) -> Option<(Token, Gone)> {
    let outcome = match handover::receive(stream).await {
        Ok((token, fd)) => {
            // Looking at a file may block when its file system is the client's own (FUSE). The place
            // goes along, so that such threads are bounded too.
            let check = move || {
                let checked = Descriptor::check(fd);
                drop(place);
                checked
            };
            let checked = tokio::task::spawn_blocking(check).await;
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

/// How many connections each user has.
#[derive(Debug, Clone, Default)]
pub(super) struct Connections {
    by_uid: Arc<Mutex<HashMap<u32, usize>>>,
}

impl Connections {
    /// A place for a connection of this user, while there is one.
    fn enter(&self, uid: u32) -> Option<Place> {
        let mut by_uid = self.lock();
        let all: usize = by_uid.values().sum();
        let of_user = by_uid.get(&uid).copied().unwrap_or(0);
        if all >= MAX_IN_ALL || of_user >= MAX_PER_UID {
            return None;
        }
        by_uid.insert(uid, of_user + 1);
        Some(Place { connections: self.clone(), uid })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, usize>> {
        // Nothing that holds the lock can leave the map half changed.
        self.by_uid.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place; free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    connections: Connections,
    uid: u32,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut by_uid = self.connections.lock();
        if let Some(count) = by_uid.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                by_uid.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_cannot_take_every_place() {
        let connections = Connections::default();
        let mut places: Vec<_> = (0..MAX_PER_UID).map(|_| connections.enter(1)).collect();
        assert!(places.iter().all(Option::is_some));
        assert!(connections.enter(1).is_none(), "the user's share is used up");
        assert!(connections.enter(2).is_some(), "another user has one of their own");
        places.pop();
        assert!(connections.enter(1).is_some(), "a closed connection frees its place");
        drop(places);
        assert!(connections.lock().is_empty(), "users without connections are forgotten");
    }
}
