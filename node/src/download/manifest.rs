//! The first thing to fetch: a manifest.
//!
//! Its length is a claim until the last piece has verified, which the plan asks for first: of who gave the manifest, so
//! that it is clear who lied.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use damselfly_messages::{
    id::ContentId,
    manifest::Manifest,
    scheduler::Parent,
    transfer::{PieceRequest, PieceResponse, manifest_from_body},
};
use libp2p::PeerId;
use tokio::time::timeout;

use super::{
    FetchError, Shared, Wanted,
    fetch::{ParentError, PieceStream},
};
use crate::blocking::blocking;

/// How long a parent may take to be connected to.
pub(super) const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// How long one parent may take to give the manifest before the next one is asked.
const PARENT_WITHIN: Duration = Duration::from_secs(10);
/// How long other downloads may keep all streams to a parent.
const PLACE_WITHIN: Duration = Duration::from_secs(600);

/// A manifest, and who gave it if its length is not proved.
type First = (Manifest, Option<PeerId>);

impl Shared {
    /// The manifest of what is wanted: from the store when a download was interrupted, else from a parent.
    pub(super) async fn manifest_for(self: &Arc<Self>, wanted: &Wanted) -> Result<First, FetchError> {
        let (store, content) = (self.store.clone(), wanted.binding.content);
        if let Some(manifest) = blocking(move || store.manifest(content)).await? {
            return Ok((manifest, None));
        }
        let mut reasons = Vec::new();
        // Complete parents first: they have the last piece too, which proves the length.
        let mut parents: Vec<_> = wanted.parents.iter().collect();
        parents.sort_by_key(|parent| !parent.complete);
        for parent in parents {
            match self.manifest_of(wanted, parent).await {
                Ok(first) => return Ok(first),
                Err(error) => {
                    if matches!(error, ParentError::Lied(_)) {
                        tracing::warn!(%content, parent = %parent.peer, %error, "a parent gave a false manifest");
                        self.metrics.verification_failures.of("manifest").inc();
                    }
                    reasons.push(format!("{}: {error}", parent.peer));
                }
            }
        }
        Err(FetchError::NoSource(reasons.join("; ")))
    }

    /// Asks a parent, and once more when its connection breaks at once: that says nothing of the parent.
    async fn manifest_of(&self, wanted: &Wanted, parent: &Parent) -> Result<First, ParentError> {
        let begun = Instant::now();
        match self.try_manifest_of(wanted, parent).await {
            Err(ParentError::Unreachable(reason)) if begun.elapsed() < CONNECT_WITHIN => {
                tracing::debug!(parent = %parent.peer, reason, "the manifest is asked for once more");
                self.try_manifest_of(wanted, parent).await
            }
            result => result,
        }
    }

    async fn try_manifest_of(&self, wanted: &Wanted, parent: &Parent) -> Result<First, ParentError> {
        let content = wanted.binding.content;
        let connected = self.network.connect(parent.peer, parent.addresses.clone(), CONNECT_WITHIN).await;
        connected.map_err(|error| ParentError::Unreachable(error.to_string()))?;
        if let Some(stream) = self.pool.take(&parent.peer) {
            match self.manifest_on(stream, content, parent.peer).await {
                // It was closed while it waited.
                Err(ParentError::Unreachable(_) | ParentError::Busy) => {}
                other => return other,
            }
        }
        let Ok(place) = timeout(PLACE_WITHIN, self.pool.place(&parent.peer)).await else {
            return Err(ParentError::Busy);
        };
        let stream = PieceStream::open(self, parent.peer, place).await?;
        self.manifest_on(stream, content, parent.peer).await
    }

    async fn manifest_on(&self, stream: PieceStream, content: ContentId, parent: PeerId) -> Result<First, ParentError> {
        let exchange = timeout(PARENT_WITHIN, self.exchange(stream, content, parent)).await;
        exchange.unwrap_or_else(|_| Err(ParentError::Unreachable("it took too long".into())))
    }

    async fn exchange(
        &self,
        mut stream: PieceStream,
        content: ContentId,
        parent: PeerId,
    ) -> Result<First, ParentError> {
        stream.ask(&PieceRequest { content, index: None }).await?;
        let (content_bytes, digests) = match stream.answer().await? {
            PieceResponse::Manifest { content_bytes, digests } => (content_bytes, digests),
            PieceResponse::NotHeld => return Err(ParentError::NotHeld),
            PieceResponse::Busy { .. } => return Err(ParentError::Busy),
            PieceResponse::Piece { .. } => return Err(ParentError::Lied("it answered something else".into())),
        };
        let mut body = vec![0; digests * 32];
        stream.fill(&mut body).await?;
        let read = move || manifest_from_body(content, content_bytes, &body);
        let manifest = blocking(read).await.map_err(|error| ParentError::Lied(error.to_string()))?;
        self.pool.put(parent, stream);
        let unproved = (manifest.layout().pieces() > 0).then_some(parent);
        Ok((manifest, unproved))
    }
}
