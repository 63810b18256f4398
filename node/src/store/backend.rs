//! redb on the store's own files, so that syncs are counted and tests can cut the power of the index too.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use redb::{Database, StorageBackend};

use super::disk::DiskFile;

/// Memory for pages of the index. Everything small is in memory anyway.
const CACHE_BYTES: usize = 16 << 20;

/// Opens a database, or makes one in an empty file; `check` reads all of it. `failed` is set when a sync fails.
pub(super) fn open_database(file: DiskFile, check: bool, failed: &Arc<AtomicBool>) -> Result<Database, redb::Error> {
    let mut builder = Database::builder();
    // A page that rotted would make redb panic some day; now it is told as an error.
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(check);
    Ok(builder.create_with_backend(Backend::new(file, failed.clone()))?)
}

/// Lets redb work on a file of the store. No locks: the store as a whole is locked.
///
/// After a sync that failed the kernel may have forgotten what it did not write, and the next sync says nothing of it:
/// then nothing more is written to this file.
pub(super) struct Backend {
    file: DiskFile,
    failed: Arc<AtomicBool>,
}

impl Backend {
    pub const fn new(file: DiskFile, failed: Arc<AtomicBool>) -> Self {
        Self { file, failed }
    }

    fn check(&self) -> io::Result<()> {
        match self.failed.load(Ordering::Acquire) {
            false => Ok(()),
            true => Err(io::Error::other("an earlier sync of this file failed")),
        }
    }
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Backend")
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.check()?;
        self.file.sync().inspect_err(|_| self.failed.store(true, Ordering::Release))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check()?;
        self.file.write_at(data, offset)
    }
}
