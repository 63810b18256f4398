//! Reading contents: never a byte that does not verify.

use std::{
    fmt,
    fs::File,
    io,
    sync::{Arc, OnceLock, Weak},
};

use damselfly_messages::{id::ContentId, manifest::Manifest, piece::PieceIndex};

use super::{
    Inner, Store,
    disk::{DiskFile, Folder},
    error::{ReadError, StoreError},
    io_error, lock,
    record::Held,
};

/// A complete content that is open. Any number of threads read from it at once.
///
/// Goes on to read when the content is dropped meanwhile.
pub struct Reader {
    manifest: Manifest,
    file: DiskFile,
    serial: u64,
    store: Weak<Inner>,
    data_bytes: OnceLock<u64>,
}

impl Store {
    /// Opens a complete content; `None` when it is not held complete. Readers of one content share one open file.
    ///
    /// # Errors
    /// [`StoreError`] when its file or the index cannot be read. A file that is gone marks the content as damaged and
    /// gives `None`.
    pub fn open_content(&self, id: ContentId) -> Result<Option<Arc<Reader>>, StoreError> {
        if let Some(reader) = lock(&self.inner.readers).get(&id).and_then(Weak::upgrade) {
            return Ok(Some(reader));
        }
        let Some(serial) = self.inner.complete_serial(id) else { return Ok(None) };
        let Some(manifest) = self.manifest(id)? else {
            self.inner.mark_damaged(id, serial)?;
            return Ok(None);
        };
        let at = Folder::Contents.of(id);
        let file = match self.inner.disk.open(&at, false) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Either it was dropped just now, or somebody else removed it.
                self.inner.mark_damaged(id, serial)?;
                return Ok(None);
            }
            Err(error) => return Err(io_error("open", &at)(error)),
        };
        let reader = Arc::new(Reader {
            manifest,
            file,
            serial,
            store: Arc::downgrade(&self.inner),
            data_bytes: OnceLock::new(),
        });
        let mut readers = lock(&self.inner.readers);
        // Checked with the lock held: what is dropped from now on also forgets this reader.
        if self.inner.complete_serial(id) == Some(serial) {
            readers.retain(|_, reader| reader.strong_count() > 0);
            readers.insert(id, Arc::downgrade(&reader));
        }
        Ok(Some(reader))
    }
}

impl Reader {
    /// The manifest of the content.
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// How many bytes of the content are not in holes of its file. Looks for them once, and blocks.
    pub fn data_bytes(&self) -> u64 {
        *self.data_bytes.get_or_init(|| self.file.data_bytes(self.manifest.layout().content_bytes()))
    }

    /// Makes the empty file `target` share the content's blocks; false where the file systems cannot.
    ///
    /// Nothing is verified: who hands the clone on reads and checks it first.
    pub fn clone_to(&self, target: &File) -> bool {
        self.file.clone_to(target)
    }

    /// Reads a piece into `buffer`, which gets exactly its length. A buffer that is used again is not allocated again.
    ///
    /// # Errors
    /// [`ReadError::Damaged`]: the content has been set aside durably; announce that, and fetch it again.
    pub fn read(&self, index: PieceIndex, buffer: &mut Vec<u8>) -> Result<(), ReadError> {
        buffer.resize(self.manifest.layout().bytes(index), 0);
        self.read_into(index, buffer)
    }

    /// Reads a piece into `buffer`, which has exactly its length.
    ///
    /// # Errors
    /// As [`Reader::read`]; a buffer of another length is [`ReadError::Io`].
    pub fn read_into(&self, index: PieceIndex, buffer: &mut [u8]) -> Result<(), ReadError> {
        match read_verified(&self.file, &self.manifest, index, buffer) {
            Err(ReadError::Damaged { content, piece }) => {
                if let Some(store) = self.store.upgrade() {
                    // The bytes are refused in any case; the mark is found again by the next reader.
                    if let Err(error) = store.mark_damaged(content, self.serial) {
                        tracing::error!(%content, error = &error as &dyn std::error::Error, "cannot mark as damaged");
                    }
                }
                Err(ReadError::Damaged { content, piece })
            }
            done => done,
        }
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reader").field(&self.manifest.content()).finish()
    }
}

impl Inner {
    /// Which life of a complete content this is.
    fn complete_serial(&self, id: ContentId) -> Option<u64> {
        self.state()
            .contents
            .get(&id)
            .filter(|content| content.record.state == Held::Complete)
            .map(|found| found.serial)
    }

    pub fn is_complete(&self, id: ContentId) -> bool {
        self.complete_serial(id).is_some()
    }

    /// Sets a complete content aside, unless it was dropped or replaced since `serial`.
    pub fn mark_damaged(&self, id: ContentId, serial: u64) -> Result<(), StoreError> {
        self.write(move |changes| {
            let same = |content: &&super::state::Content| content.serial == serial;
            if let (true, Some(content)) = (changes.is_complete(id), changes.content(id).filter(same)) {
                let record = super::record::ContentRecord { state: Held::Damaged, ..content.record.clone() };
                changes.put_record(id, record);
            }
            Ok(())
        })
    }
}

/// Reads a piece and checks it.
pub(super) fn read_verified(
    file: &DiskFile,
    manifest: &Manifest,
    index: PieceIndex,
    buffer: &mut [u8],
) -> Result<(), ReadError> {
    let damaged = || ReadError::Damaged { content: manifest.content(), piece: index.get() };
    if buffer.len() != manifest.layout().bytes(index) {
        return Err(ReadError::Io(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the buffer is not as long as the piece",
        )));
    }
    match file.read_at(buffer, manifest.layout().offset(index)) {
        Ok(()) if manifest.verifies(index, buffer) => Ok(()),
        Ok(()) => Err(damaged()),
        Err(error) if is_damage(&error) => Err(damaged()),
        Err(error) => Err(ReadError::Io(error)),
    }
}

/// Too short, or a sector that the disk cannot read.
fn is_damage(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}
