//! A piece that has arrived: verified, written, counted, and who is to blame when it is not what it should be.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use damselfly_messages::{piece::PieceIndex, scheduler::ParentFault};
use libp2p::PeerId;

use super::{Download, FetchError, Sink};
use crate::{blocking::blocking, buffers::Buffer, store::VerifiedPiece};

impl Download {
    /// Verifies a piece from `giver`, writes it everywhere and counts it.
    ///
    /// # Errors
    /// [`FetchError`] when the store cannot take it. A piece that does not verify is the giver's fault and excludes it.
    pub(super) async fn take_piece(
        self: &Arc<Self>,
        giver: PeerId,
        index: PieceIndex,
        buffer: Buffer,
    ) -> Result<(), FetchError> {
        let _worker = self.shared.workers.acquire().await;
        let this = Arc::clone(self);
        blocking(move || {
            let Some(piece) = VerifiedPiece::verify(&this.manifest, index, &buffer) else {
                this.on_false_piece(giver, index);
                return Ok(());
            };
            let Some(stored) = this.stored() else { return Ok(()) };
            stored.write(piece)?;
            let sinks = this.on_true_piece(giver, index, buffer.len() as u64);
            sinks.iter().for_each(|sink| sink.write(index, &buffer));
            Ok(())
        })
        .await
    }

    /// Counts a piece that is in the store now. Returns the sinks that are to get it.
    pub(super) fn on_true_piece(&self, giver: PeerId, index: PieceIndex, bytes: u64) -> Vec<Arc<Sink>> {
        let mut state = self.lock();
        if !state.plan.on_piece(&giver, index, Instant::now()) {
            self.shared.metrics.duplicate_bytes.inc_by(bytes);
            return Vec::new();
        }
        state.held.insert(index);
        *state.givers.entry(giver).or_default() += 1;
        if index.get() + 1 == self.manifest.layout().pieces() {
            state.unproved = None;
        }
        self.shared.metrics.received_bytes.inc_by(bytes);
        self.shared.metrics.received_pieces.inc();
        self.from_peers_bytes.fetch_add(bytes, Ordering::Relaxed);
        // Nobody may listen.
        let _listeners = self.gained.send(index);
        let held = state.plan.held();
        let sinks = state.sinks.clone();
        drop(state);
        // The parent may be asked for more now.
        self.work.notify_waiters();
        // Pieces may come here in another order than they were counted.
        self.progress.send_modify(|progress| progress.held = progress.held.max(held));
        sinks
    }

    fn on_false_piece(&self, giver: PeerId, index: PieceIndex) {
        let content = self.manifest.content();
        tracing::warn!(%content, piece = index.get(), parent = %giver, "a parent sent a piece that does not verify; it is excluded");
        self.shared.metrics.verification_failures.of("piece").inc();
        if !self.is_about_length(index) {
            self.lose_parent(giver, ParentFault::Lied, "it sent bytes that do not verify");
        }
    }

    /// The parent sent a piece that is longer or shorter than the manifest says. Returns whether the manifest is at
    /// fault, and not the parent.
    pub(super) fn on_other_length(&self, parent: PeerId, index: PieceIndex) -> bool {
        let ours = self.is_about_length(index);
        if ours {
            tracing::warn!(content = %self.manifest.content(), %parent, "a parent knows the content with another length");
        }
        ours
    }

    /// When the last piece does not fit before one ever did, the length is false, and who gave the manifest lied: ends
    /// the download with that. Honest parents are not blamed.
    fn is_about_length(&self, index: PieceIndex) -> bool {
        let last = index.get() + 1 == self.manifest.layout().pieces();
        let author = self.lock().unproved.filter(|_| last);
        if let Some(author) = author {
            self.end(Err(FetchError::FalseManifest(author)));
        }
        author.is_some()
    }
}
