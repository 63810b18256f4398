//! redb on the store's own files, so that syncs are counted and tests can cut the power of the index too.

use std::io;

use redb::{Database, StorageBackend};

use super::disk::DiskFile;

/// Memory for pages of the index. Everything small is in memory anyway.
const CACHE_BYTES: usize = 16 << 20;

/// Opens a database, or makes one in an empty file; `check` reads all of it.
pub(super) fn open_database(file: DiskFile, check: bool) -> Result<Database, redb::Error> {
    let mut builder = Database::builder();
    // A page that rotted would make redb panic some day; now it is told as an error.
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(check);
    Ok(builder.create_with_backend(Backend(file))?)
}

/// Lets redb work on a file of the store. No locks: the store as a whole is locked.
pub(super) struct Backend(pub DiskFile);

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Backend")
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(data, offset)
    }
}
