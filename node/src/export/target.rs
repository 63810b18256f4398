//! Where an export goes, and what is there already when it has to begin anew.

use std::ops::Deref;

use super::{local::write_failed, *};
use crate::{blocking::ClosedAside, permits::Permit};

/// Where the bytes go, and how fast.
pub(super) struct Target {
    pub output: Arc<Output>,
    pub kind: Kind,
    pub limiter: Limiter,
    pub progress: Arc<ExportProgress>,
    /// The content whose bytes may be there.
    begun: Mutex<Option<ContentId>>,
}

/// The file or pipe itself; threads that write to it keep the export's place.
pub(super) struct Output {
    file: ClosedAside,
    /// Bytes that went into a pipe, where nothing can be taken back.
    piped: AtomicU64,
    place: Permit,
}

impl Deref for Output {
    type Target = File;

    fn deref(&self) -> &File {
        &self.file
    }
}

impl Output {
    /// Sets space aside in a file for all that is to be written, where the file system can. Of a content with holes, of
    /// which only `data_bytes` are data, the file gets the length, and the free space is looked at. Blocks.
    pub fn reserve(&self, bytes: u64, data_bytes: u64) -> Result<(), Failure> {
        if data_bytes < bytes {
            self.check_space(data_bytes)?;
            return self.file.set_len(bytes).map_err(|error| write_failed(&error));
        }
        if bytes > 0 {
            crate::store::reserve(&self.file, bytes).map_err(|error| write_failed(&error))?;
        }
        Ok(())
    }

    fn check_space(&self, needed: u64) -> Result<(), Failure> {
        let space = rustix::fs::fstatvfs(&*self.file).map_err(|error| write_failed(&error.into()))?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        // Where a file system does not tell, the writes will.
        if space.f_blocks > 0 && free < needed {
            return Err(write_failed(&rustix::io::Errno::NOSPC.into()));
        }
        Ok(())
    }

    /// Gives a file that is filled its length, where zeros at its end were left out. Blocks.
    pub fn extend_to(&self, bytes: u64) -> Result<(), Failure> {
        let extended = self.file.metadata().and_then(|metadata| match metadata.len() < bytes {
            true => self.file.set_len(bytes),
            false => Ok(()),
        });
        extended.map_err(|error| write_failed(&error))
    }

    /// The export's place, for threads that write beside it.
    pub fn place(&self) -> Permit {
        self.place.clone()
    }

    /// How much has gone into the pipe.
    pub fn piped(&self) -> u64 {
        self.piped.load(Ordering::Relaxed)
    }

    /// More has gone into the pipe.
    pub fn add_piped(&self, bytes: usize) {
        self.piped.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl Target {
    pub fn new(file: File, kind: Kind, limiter: Limiter, progress: Arc<ExportProgress>, place: Permit) -> Self {
        let output = Arc::new(Output { file: ClosedAside::new(file), piped: AtomicU64::new(0), place });
        Self { output, kind, limiter, progress, begun: Mutex::default() }
    }

    /// Before each attempt to write this content: a file is emptied of what an earlier attempt left there. A pipe goes
    /// on where it is, so it must be the same content.
    pub async fn begin(&self, content: ContentId, bytes: u64) -> Result<(), Failure> {
        let before = {
            let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
            let before = *begun;
            if self.output.piped() > 0 && before != Some(content) {
                let message = "the pipe has got bytes that the name no longer stands for";
                return Err(Failure::new(Code::Failed, message).with_hint("export it again"));
            }
            *begun = Some(content);
            before
        };
        match (self.kind, before) {
            (Kind::File, Some(_)) => {
                let output = Arc::clone(&self.output);
                let emptied = blocking(move || output.set_len(0)).await;
                emptied.map_err(|error| Failure::io("cannot empty the output", &error))?;
            }
            (Kind::Pipe | Kind::File, _) => {}
        }
        self.progress.total.store(bytes, Ordering::Relaxed);
        self.progress.bytes.store(self.output.piped(), Ordering::Relaxed);
        Ok(())
    }
}
