//! From the store into the target.

use std::os::unix::fs::FileExt as _;

use damselfly_messages::{manifest::Manifest, piece::PieceIndex};

use super::*;
use crate::store::{ReadError as Read, write_with_holes};

/// How many pieces are read, verified and written at a time.
const AT_A_TIME: usize = 4;

impl Exporter {
    /// Exports the complete local copy of a content; `None` when there is none.
    pub(super) async fn export_copy(
        &self,
        binding: Binding,
        target: &Target,
    ) -> Option<Result<ExportOutcome, ReadFailed>> {
        let store = self.store.clone();
        let reader = match blocking(move || store.open_content(binding.content)).await {
            Ok(Some(reader)) => reader,
            Ok(None) => return self.damaged_copy(binding.content).map(Err),
            Err(error) => return Some(Err(ReadFailed::Other(error.into_failure()))),
        };
        let manifest = reader.manifest().clone();
        if let Err(failure) = target.begin(binding.content, manifest.layout().content_bytes()).await {
            return Some(Err(ReadFailed::Other(failure)));
        }
        Some(match self.copy(reader, target).await {
            Ok(()) => Ok(ExportOutcome {
                binding,
                from_local_bytes: manifest.layout().content_bytes(),
                from_peers_bytes: 0,
                from_peers_pieces: 0,
                peers: 0,
            }),
            Err(CopyError::Read(error)) => Err(self.on_read_error(binding.content, error)),
            Err(CopyError::Write(failure)) => Err(ReadFailed::Other(failure)),
        })
    }

    fn damaged_copy(&self, content: ContentId) -> Option<ReadFailed> {
        let damaged = matches!(self.store.content(content), Some(ContentState::Damaged { .. }));
        damaged.then(|| ReadFailed::Damaged(Read::Damaged { content, piece: 0 }.into_failure()).named(content))
    }

    fn on_read_error(&self, content: ContentId, error: ReadError) -> ReadFailed {
        match error {
            error @ ReadError::Damaged { .. } => {
                tracing::error!(%content, %error, "the local copy is damaged");
                self.metrics.damaged_reads.inc();
                ReadFailed::Damaged(error.into_failure())
            }
            error => ReadFailed::Other(error.into_failure()),
        }
    }

    async fn copy(&self, reader: Arc<Reader>, target: &Target) -> Result<(), CopyError> {
        match target.kind {
            Kind::Pipe => self.copy_to_pipe(reader, target).await,
            Kind::File => self.copy_to_file(reader, target).await,
        }
    }

    async fn copy_to_file(&self, reader: Arc<Reader>, target: &Target) -> Result<(), CopyError> {
        if target.limiter.is_limited() {
            return self.copy_in_order(reader, target).await;
        }
        let (file, progress) = (Arc::clone(&target.output), Arc::clone(&target.progress));
        blocking(move || {
            if reader.clone_to(&file) {
                return verify_clone(&reader, &file, &progress);
            }
            let bytes = reader.manifest().layout().content_bytes();
            file.reserve(bytes, reader.data_bytes()).map_err(CopyError::Write)?;
            copy_on_threads(&reader, &file, &progress)?;
            file.extend_to(bytes).map_err(CopyError::Write)
        })
        .await
    }

    async fn copy_in_order(&self, reader: Arc<Reader>, target: &Target) -> Result<(), CopyError> {
        let (reserving, file, bytes) =
            (reader.clone(), target.output.clone(), reader.manifest().layout().content_bytes());
        blocking(move || file.reserve(bytes, reserving.data_bytes())).await.map_err(CopyError::Write)?;
        for index in reader.manifest().layout().indices() {
            target.limiter.pass(reader.manifest().layout().bytes(index)).await;
            let (reader, file, progress) = (reader.clone(), target.output.clone(), target.progress.clone());
            blocking(move || copy_piece(&reader, &file, index, &mut Vec::new(), &progress)).await?;
        }
        let file = target.output.clone();
        blocking(move || file.extend_to(bytes)).await.map_err(CopyError::Write)
    }
}

impl ReadFailed {
    fn named(self, content: ContentId) -> Self {
        match self {
            Self::Damaged(failure) => {
                Self::Damaged(Failure { message: format!("the local copy of {content} is damaged"), ..failure })
            }
            other @ Self::Other(_) => other,
        }
    }
}

/// Why a copy ended.
pub(super) enum CopyError {
    Read(ReadError),
    Write(Failure),
}

/// Shared blocks may have rotted too: the clone is read and checked, and it is what the user gets.
fn verify_clone(reader: &Reader, file: &File, progress: &ExportProgress) -> Result<(), CopyError> {
    let mut buffer = Vec::new();
    let manifest = reader.manifest();
    for index in manifest.layout().indices() {
        if !verifies(manifest, file, index, &mut buffer) {
            // Told by the reader, which marks the content when it is the store's fault.
            reader.read(index, &mut buffer).map_err(CopyError::Read)?;
            return Err(CopyError::Write(Failure::new(Code::Failed, "the output cannot be read back")));
        }
        count(progress, buffer.len())?;
    }
    Ok(())
}

/// Whether a piece of the output is what it should be.
pub(super) fn verifies(manifest: &Manifest, file: &File, index: PieceIndex, buffer: &mut Vec<u8>) -> bool {
    buffer.resize(manifest.layout().bytes(index), 0);
    file.read_exact_at(buffer, manifest.layout().offset(index)).is_ok() && manifest.verifies(index, buffer)
}

fn copy_on_threads(reader: &Arc<Reader>, file: &File, progress: &ExportProgress) -> Result<(), CopyError> {
    let next = AtomicU32::new(0);
    let layout = reader.manifest().layout();
    let threads = AT_A_TIME.min(std::thread::available_parallelism().map_or(2, usize::from)).max(1);
    let work = || {
        let mut buffer = Vec::new();
        while let Ok(index) = layout.index(next.fetch_add(1, Ordering::Relaxed)) {
            copy_piece(reader, file, index, &mut buffer, progress).inspect_err(|_| {
                // The others stop too.
                next.store(layout.pieces(), Ordering::Relaxed);
            })?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads.min(layout.pieces() as usize)).map(|_| scope.spawn(work)).collect();
        let mine = work();
        others.into_iter().map(|thread| thread.join().unwrap_or(Ok(()))).fold(mine, Result::and)
    })
}

fn copy_piece(
    reader: &Reader,
    file: &File,
    index: PieceIndex,
    buffer: &mut Vec<u8>,
    progress: &ExportProgress,
) -> Result<(), CopyError> {
    reader.read(index, buffer).map_err(CopyError::Read)?;
    let offset = reader.manifest().layout().offset(index);
    write_with_holes(file, buffer, offset).map_err(|error| CopyError::Write(write_failed(&error)))?;
    count(progress, buffer.len())
}

/// Counts bytes in the output, and stops when nobody wants it any more.
pub(super) fn count(progress: &ExportProgress, bytes: usize) -> Result<(), CopyError> {
    progress.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    if progress.cancelled.load(Ordering::Relaxed) {
        return Err(CopyError::Write(Failure::new(Code::Interrupted, "the export was interrupted")));
    }
    Ok(())
}

pub(super) fn write_failed(error: &std::io::Error) -> Failure {
    let failure = Failure::io("cannot write the output", error);
    match failure.code {
        Code::NoSpace if failure.hint.is_none() => failure.with_hint("free some space where the output goes"),
        _ => failure,
    }
}
