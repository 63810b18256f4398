//! Files that get a content's pieces while they arrive.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use damselfly_messages::piece::{PieceIndex, PieceLayout};
use tokio::sync::Notify;

/// An output file that is being filled, by any number of threads.
///
/// Each piece is written once: by the download when it arrives after the sink was attached, else by the export.
pub struct Sink {
    file: File,
    layout: PieceLayout,
    pieces: AtomicU32,
    bytes: AtomicU64,
    failed: Mutex<Option<io::Error>>,
    changed: Notify,
}

impl Sink {
    /// A sink that fills `file` from its beginning.
    pub fn new(file: File, layout: PieceLayout) -> Self {
        Self {
            file,
            layout,
            pieces: AtomicU32::new(0),
            bytes: AtomicU64::new(0),
            failed: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// Writes one verified piece. An error is kept for [`Sink::filled`].
    pub fn write(&self, index: PieceIndex, bytes: &[u8]) {
        match self.file.write_all_at(bytes, self.layout.offset(index)) {
            Ok(()) => {
                self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                self.pieces.fetch_add(1, Ordering::Release);
            }
            Err(error) => {
                self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        }
        self.changed.notify_waiters();
    }

    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Waits until every piece is written.
    ///
    /// # Errors
    /// The first error of a write.
    pub async fn filled(&self) -> io::Result<()> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(error) = self.failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
                return Err(error);
            }
            if self.pieces.load(Ordering::Acquire) >= self.layout.pieces() {
                return Ok(());
            }
            changed.await;
        }
    }
}
