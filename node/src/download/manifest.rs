//! The first thing to fetch: a manifest.
//!
//! Its length is a claim until the last piece has verified, which the picker asks for first: of who gave the manifest, so
//! that it is clear who lied.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use damselfly_messages::{
    id::ContentId,
    manifest::Manifest,
    scheduler::{Parent, ParentFault},
    transfer::{PieceRequest, PieceResponse, manifest_from_body},
};
use damselfly_transport::{span, trace};
use futures::{StreamExt as _, stream::FuturesUnordered};
use libp2p::PeerId;
use tokio::time::{sleep, timeout};

use super::{
    FetchError, Shared, Wanted,
    fetch::{ParentError, PieceStream, SILENCE_MAX, rest_of},
};
use crate::blocking::blocking;

/// How long a parent of pieces may take to be connected to. One that was asked for a manifest and fails sooner is not silent.
pub(super) const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// When it has taken so long, the next one is asked too.
const NEXT_AFTER: Duration = Duration::from_secs(2);
/// How long other downloads may keep all streams to a parent.
const PLACE_WITHIN: Duration = Duration::from_secs(600);

/// A manifest as a parent gives it.
struct Given {
    manifest: Manifest,
    /// How many bytes of the content are said not to be in holes.
    data_bytes: u64,
    /// Who gave it if its length is not proved.
    author: Option<PeerId>,
}

/// What asking for a manifest has brought.
pub(super) struct First {
    pub(super) manifest: Manifest,
    /// How many bytes of the content are said not to be in holes.
    pub(super) data_bytes: u64,
    /// Who gave it if its length is not proved.
    pub(super) author: Option<PeerId>,
    /// Parents that turned out to be none.
    pub(super) lost: Vec<(PeerId, ParentFault)>,
}

impl Shared {
    /// The manifest of what is wanted: from the store when a download was interrupted, else from a parent.
    pub(super) async fn manifest_for(self: &Arc<Self>, wanted: &Wanted) -> Result<First, FetchError> {
        let (store, content) = (self.store.clone(), wanted.binding.content);
        if let Some(manifest) = blocking(move || store.manifest(content)).await? {
            let data_bytes = manifest.layout().content_bytes();
            return Ok(First { manifest, data_bytes, author: None, lost: Vec::new() });
        }
        let (mut reasons, mut lost, mut silent) = (Vec::new(), Vec::new(), Vec::new());
        // Complete parents first: they have the last piece too, which proves the length.
        let mut parents: Vec<_> = wanted.parents.iter().collect();
        parents.sort_by_key(|parent| !parent.complete);
        let mut parents = parents.into_iter();
        let mut asked = FuturesUnordered::new();
        loop {
            let next = parents.next();
            let within = if next.is_some() { NEXT_AFTER } else { Duration::MAX };
            asked.extend(next.map(|parent| async move { (parent, self.manifest_of(wanted, parent).await) }));
            // One after the other, so that nobody is asked in vain; but a silent one does not hold up the others.
            match timeout(within, asked.next()).await {
                // What waits for a place among our own streams has asked nothing yet.
                Err(_) => silent.extend(next.filter(|parent| !self.pool.is_full(&parent.peer))),
                Ok(None) => return Err(FetchError::NoSource(reasons.join("; "))),
                Ok(Some((giver, Ok(Given { manifest, data_bytes, author })))) => {
                    for parent in silent.into_iter().filter(|parent| parent.peer != giver.peer) {
                        let fault = ParentFault::Unreachable;
                        self.on_lost_parent(content, parent.peer, fault, "it does not give the manifest");
                        lost.push((parent.peer, fault));
                    }
                    return Ok(First { manifest, data_bytes, author, lost });
                }
                Ok(Some((parent, Err(error)))) => {
                    silent.retain(|silent| silent.peer != parent.peer);
                    lost.extend(self.on_no_manifest(content, parent, &error).map(|fault| (parent.peer, fault)));
                    reasons.push(format!("{}: {error}", parent.peer));
                }
            }
        }
    }

    /// What is to be thought of a parent that gave no manifest; `None` when it may be of use yet.
    fn on_no_manifest(&self, content: ContentId, parent: &Parent, error: &ParentError) -> Option<ParentFault> {
        let fault = match error {
            ParentError::Lied(_) => {
                self.metrics.verification_failures.of("manifest").inc();
                ParentFault::Lied
            }
            ParentError::NotHeld if parent.complete => ParentFault::NotHeld,
            ParentError::NotHeld
            | ParentError::Busy
            | ParentError::Unreachable(_)
            | ParentError::Withdrawn
            | ParentError::Ours(_) => {
                return None;
            }
        };
        self.on_lost_parent(content, parent.peer, fault, &format!("no manifest: {error}"));
        Some(fault)
    }

    /// Asks a parent: once more when its connection breaks at once, which says nothing of the parent, and until
    /// [`SILENCE_MAX`] when it is silent, as a paused one is. Others are asked meanwhile.
    async fn manifest_of(&self, wanted: &Wanted, parent: &Parent) -> Result<Given, ParentError> {
        let begun = Instant::now();
        let mut broke = false;
        loop {
            let asked = Instant::now();
            let reason = match self.try_manifest_of(wanted, parent).await {
                Err(ParentError::Unreachable(reason)) => reason,
                result => return result,
            };
            let is_silent = asked.elapsed() >= CONNECT_WITHIN;
            let again = if is_silent { begun.elapsed() < SILENCE_MAX } else { !broke };
            if !again {
                return Err(ParentError::Unreachable(reason));
            }
            broke |= !is_silent;
            tracing::debug!(parent = %parent.peer, reason, "the manifest is asked for once more");
        }
    }

    async fn try_manifest_of(&self, wanted: &Wanted, parent: &Parent) -> Result<Given, ParentError> {
        let span = trace::when_traced(|| span!("client", "fetch the manifest", parent = %parent.peer));
        trace::traced(span, self.manifest_from(wanted, parent)).await
    }

    async fn manifest_from(&self, wanted: &Wanted, parent: &Parent) -> Result<Given, ParentError> {
        let content = wanted.binding.content;
        let connected = self.network.connect_host(parent.peer, parent.addresses.clone(), SILENCE_MAX).await;
        connected.map_err(|error| ParentError::Unreachable(error.to_string()))?;
        if let Some(stream) = self.pool.take(&parent.peer) {
            match self.exchange(stream, content, parent.peer).await {
                // It was closed while it waited.
                Err(ParentError::Unreachable(_) | ParentError::Busy) => {}
                other => return other,
            }
        }
        let Ok(place) = timeout(PLACE_WITHIN, self.pool.place(&parent.peer)).await else {
            return Err(ParentError::Busy);
        };
        let stream = PieceStream::open(self, parent.peer, place).await?;
        self.exchange(stream, content, parent.peer).await
    }

    async fn exchange(
        &self,
        mut stream: PieceStream,
        content: ContentId,
        parent: PeerId,
    ) -> Result<Given, ParentError> {
        let (content_bytes, digests, data_bytes) = loop {
            stream.ask(&PieceRequest { content, index: None, trace: trace::current() }).await?;
            match stream.manifest_answer().await? {
                PieceResponse::Manifest { content_bytes, digests, data_bytes } => {
                    break (content_bytes, digests, data_bytes);
                }
                PieceResponse::NotHeld => return Err(ParentError::NotHeld),
                PieceResponse::Busy { retry_millis } => sleep(rest_of(retry_millis)).await,
                PieceResponse::Piece { .. } => return Err(ParentError::Lied("it answered something else".into())),
            }
        };
        let body = stream.manifest_body(digests * 32).await?;
        let read = move || manifest_from_body(content, content_bytes, &body);
        let manifest = blocking(read).await.map_err(|error| ParentError::Lied(error.to_string()))?;
        self.pool.put(parent, stream);
        let author = (manifest.layout().pieces() > 0).then_some(parent);
        Ok(Given { manifest, data_bytes, author })
    }
}
