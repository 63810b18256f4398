//! From a download into the target, while the pieces arrive.

use damselfly_messages::piece::PieceIndex;

use super::{
    local::{CopyError, count, verifies, write_failed},
    pipe::{left, write_to_pipe},
    remote::CandidateFailed,
    *,
};
use crate::{
    download::{Download, Filling, Interest},
    store::write_with_holes,
};

impl Exporter {
    /// Waits until every piece is in the store.
    async fn wait(&self, interest: &Interest, target: &Target) -> Result<(), CandidateFailed> {
        let mut progress = interest.progress();
        loop {
            if let Some(ended) = progress.borrow_and_update().ended.clone() {
                return Ok(ended?);
            }
            // Not borrowed while the download is locked: it locks itself to report progress.
            let held = progress.borrow().held;
            self.show(interest, target, held.into());
            changed(&mut progress).await;
        }
    }

    /// Waits until every piece is in the store and the content is complete there.
    pub(super) async fn complete(&self, interest: &Interest, target: &Target) -> Result<(), CandidateFailed> {
        let content = interest.manifest().content();
        self.wait(interest, target).await?;
        // The end is known before the commit, which takes a few syncs.
        while !matches!(self.store.content(content), Some(ContentState::Complete { .. })) {
            if self.downloads.get(content).is_none() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        Ok(())
    }

    pub(super) async fn fill_file(&self, interest: &Interest, target: &Target) -> Result<(), CandidateFailed> {
        let (store, output) = (self.store.clone(), Arc::clone(&target.output));
        if blocking(move || store.can_clone_to(&output)).await {
            return self.clone_when_complete(interest, target).await;
        }
        let (output, bytes) = (Arc::clone(&target.output), interest.manifest().layout().content_bytes());
        let data_bytes = interest.data_bytes();
        let file = blocking(move || {
            output.reserve(bytes, data_bytes)?;
            output.try_clone().map_err(|error| write_failed(&error))
        })
        .await?;
        let sink = Arc::new(Sink::new(file, interest.manifest().layout(), target.output.place()));
        let attached = Attached { interest, sink: Arc::clone(&sink) };
        let held = interest.attach(Arc::clone(&sink));
        // What was held before comes from the store; what arrives from now on goes both ways at once.
        let filled = async {
            let mut left = held;
            loop {
                copy_held(interest.shared(), Arc::clone(&sink), left, Arc::clone(&target.progress)).await?;
                left = match sink.filling().await.map_err(|error| write_failed(&error))? {
                    Filling::Done => return Ok::<_, CandidateFailed>(()),
                    Filling::Left(left) => left,
                };
            }
        };
        tokio::pin!(filled);
        let mut progress = interest.progress();
        loop {
            tokio::select! {
                biased;
                filled = &mut filled => { filled?; break; }
                _ = changed(&mut progress) => {
                    target.progress.bytes.store(sink.bytes(), Ordering::Relaxed);
                    target.progress.sources.store(interest.sources(), Ordering::Relaxed);
                    if let Some(Err(error)) = progress.borrow().ended.clone() {
                        return Err(error.into());
                    }
                }
            }
        }
        target.progress.bytes.store(sink.bytes(), Ordering::Relaxed);
        drop(attached);
        let output = Arc::clone(&target.output);
        Ok(blocking(move || output.extend_to(bytes)).await?)
    }

    /// On a file system that can share blocks, each piece is written once and the output gets the blocks at the end.
    async fn clone_when_complete(&self, interest: &Interest, target: &Target) -> Result<(), CandidateFailed> {
        // What arrives is verified on its way; what lay on the disk before may have rotted.
        let (before, _) = interest.listen();
        self.wait(interest, target).await?;
        let (download, file) = (interest.shared(), Arc::clone(&target.output));
        blocking(move || {
            let mut buffer = Vec::new();
            if !download.clone_to(&file) {
                // It has gone into the store's own hands already.
                for index in download.manifest().layout().indices() {
                    download.read(index, &mut buffer)?;
                    let offset = download.manifest().layout().offset(index);
                    write_with_holes(&file, &buffer, offset).map_err(|error| write_failed(&error))?;
                }
                return Ok(file.extend_to(download.manifest().layout().content_bytes())?);
            }
            let rotten = before.iter().find(|index| !verifies(download.manifest(), &file, **index, &mut buffer));
            match rotten {
                Some(index) => {
                    // Reading it makes the store fetch it again.
                    download.read(*index, &mut buffer)?;
                    Err(Failure::new(Code::Failed, "the output cannot be read back; try again").into())
                }
                None => Ok(()),
            }
        })
        .await
    }

    pub(super) async fn fill_pipe(&self, interest: &Interest, target: &Target) -> Result<(), CandidateFailed> {
        let layout = interest.manifest().layout();
        let mut progress = interest.progress();
        for index in left(&layout, &target.output) {
            loop {
                // Looked at before the piece is looked for: what comes meanwhile is news then.
                let ended = progress.borrow_and_update().ended.clone();
                if interest.holds(index) {
                    break;
                }
                if let Some(Err(error)) = ended {
                    return Err(error.into());
                }
                target.progress.sources.store(interest.sources(), Ordering::Relaxed);
                changed(&mut progress).await;
            }
            let (download, output, progress) = (interest.shared(), target.output.clone(), target.progress.clone());
            blocking(move || {
                let mut buffer = Vec::new();
                download.read(index, &mut buffer).map_err(CopyError::Read)?;
                write_to_pipe(&output, layout.offset(index), &buffer, &progress)
            })
            .await?;
        }
        Ok(())
    }

    fn show(&self, interest: &Interest, target: &Target, held: u64) {
        let layout = interest.manifest().layout();
        let bytes = (held * u64::from(layout.piece_bytes())).min(layout.content_bytes());
        target.progress.bytes.store(bytes, Ordering::Relaxed);
        target.progress.sources.store(interest.sources(), Ordering::Relaxed);
    }
}

/// Copies pieces that are held from the store into the sink, as long as somebody wants that.
async fn copy_held(
    download: Arc<Download>,
    sink: Arc<Sink>,
    held: Vec<PieceIndex>,
    progress: Arc<ExportProgress>,
) -> Result<(), CandidateFailed> {
    let copy = move || {
        let mut buffer = Vec::new();
        for index in held {
            count(&progress, 0)?;
            match download.read(index, &mut buffer) {
                Ok(()) => sink.write(index, &buffer),
                // It is fetched again, and then it is offered to the sink like every new piece.
                Err(ReadError::Damaged { .. }) if !download.is_concluded() => {}
                Err(error) => return Err(CopyError::Read(error)),
            }
        }
        Ok(())
    };
    blocking(copy).await.map_err(CandidateFailed::from)
}

/// A sink that is written to as long as this lives.
struct Attached<'a> {
    interest: &'a Interest,
    sink: Arc<Sink>,
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        self.interest.detach(&self.sink);
    }
}

/// Waits for progress; never returns when there will be none.
async fn changed(progress: &mut tokio::sync::watch::Receiver<crate::download::Progress>) {
    if progress.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
