//! A piece that has arrived: verified, written, counted, and who is to blame when it is not what it should be.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use damselfly_messages::{piece::PieceIndex, scheduler::ParentFault};
use libp2p::PeerId;
use tokio::time::timeout;

use super::{Download, FetchError, Sink};
use crate::{blocking::blocking, buffers::Buffer, store::VerifiedPiece};

/// A stream brings no more while its pieces are being written to outputs, but no longer than this.
const PASS_ON_WITHIN: Duration = Duration::from_secs(1);

impl Download {
    /// Verifies a piece from `giver`, keeps it, counts it, and gives it to the exports that wait for it.
    ///
    /// # Errors
    /// [`FetchError`] when the store cannot take it. A piece that does not verify is the giver's fault and excludes it.
    pub(super) async fn take_piece(
        self: &Arc<Self>,
        giver: PeerId,
        index: PieceIndex,
        buffer: Buffer,
    ) -> Result<(), FetchError> {
        let worker = self.shared.workers.acquire().await;
        let this = Arc::clone(self);
        let kept = blocking(move || {
            let Some(piece) = VerifiedPiece::verify(&this.manifest, index, &buffer) else {
                this.on_false_piece(giver, index);
                return Ok(None);
            };
            let Some(stored) = this.stored() else { return Ok(None) };
            stored.write(piece)?;
            let sinks = this.on_true_piece(giver, index, buffer.len() as u64);
            Ok::<_, FetchError>(Some((buffer, sinks)))
        });
        let kept = kept.await?;
        drop(worker);
        if let Some((buffer, sinks)) = kept {
            self.pass_on(index, buffer, sinks).await;
        }
        Ok(())
    }

    /// Has the outputs of exports written, and does not wait long: a file system of a user's may take any time.
    async fn pass_on(&self, index: PieceIndex, buffer: Buffer, sinks: Vec<Arc<Sink>>) {
        let room = self.shared.buffers.share(buffer.len());
        let mut sinks = sinks;
        sinks.retain(|sink| sink.offer(index, room.is_some()));
        if sinks.is_empty() {
            return;
        }
        let writing = tokio::task::spawn_blocking(move || {
            let _room = room;
            sinks.iter().for_each(|sink| sink.write_offered(index, &buffer));
        });
        drop(timeout(PASS_ON_WITHIN, writing).await);
    }

    /// Counts a piece that is in the store now. Returns the sinks that are to get it.
    pub(super) fn on_true_piece(&self, giver: PeerId, index: PieceIndex, bytes: u64) -> Vec<Arc<Sink>> {
        let mut state = self.lock();
        if !state.picker.on_piece(&giver, index, Instant::now()) {
            self.shared.metrics.duplicate_bytes.inc_by(bytes);
            return Vec::new();
        }
        state.held.insert(index);
        *state.givers.entry(giver).or_default() += 1;
        let is_last = index.get() + 1 == self.manifest.layout().pieces();
        let author = if is_last { state.unproved.take() } else { None };
        self.shared.metrics.received_bytes.inc_by(bytes);
        self.shared.metrics.received_pieces.inc();
        self.from_peers_bytes.fetch_add(bytes, Ordering::Relaxed);
        // Nobody may listen.
        let _listeners = self.gained.send(index);
        let held = state.picker.held();
        let sinks = state.sinks.clone();
        let puts_off = author.filter(|author| *author != giver && state.picker.is_idle(author));
        drop(state);
        if let Some(author) = puts_off {
            self.lose_parent(author, ParentFault::Unreachable, "it gave the manifest and no piece");
        }
        // The parent may be asked for more now.
        self.work.notify_waiters();
        // Pieces may come here in another order than they were counted.
        self.progress.send_modify(|progress| progress.held = progress.held.max(held));
        sinks
    }

    fn on_false_piece(&self, giver: PeerId, index: PieceIndex) {
        self.shared.metrics.verification_failures.of("piece").inc();
        // Who knows the content with another length gives a piece of another length: one that has this one and is false is
        // a lie of its giver, unless that is who said the length.
        let is_author = self.lock().unproved == Some(giver);
        if !is_author || !self.is_about_length(giver, index) {
            self.lose_parent(giver, ParentFault::Lied, &format!("its piece {} does not verify", index.get()));
        }
    }

    /// The parent sent a piece that is longer or shorter than the manifest says. Returns whether the manifest is at
    /// fault, and not the parent.
    pub(super) fn on_other_length(&self, parent: PeerId, index: PieceIndex) -> bool {
        self.is_about_length(parent, index)
    }

    /// When the last piece of `giver` does not fit before one ever did, the length is false, and who gave the manifest
    /// lied: ends the download with that. Honest parents are not blamed.
    fn is_about_length(&self, giver: PeerId, index: PieceIndex) -> bool {
        let last = index.get() + 1 == self.manifest.layout().pieces();
        let author = self.lock().unproved.filter(|_| last);
        if let Some(author) = author {
            self.shared.metrics.verification_failures.of("manifest").inc();
            let reason = format!("the last piece of {giver} does not have the length that its manifest says");
            self.lose_parent(author, ParentFault::Lied, &reason);
            self.end(Err(FetchError::FalseManifest(author)));
        }
        author.is_some()
    }
}
