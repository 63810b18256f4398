//! The index on disk: a redb database behind the store's own files, so that tests can cut its power too.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use damselfly_messages::{
    id::{ContentId, TaskId},
    manifest::{Manifest, PieceDigest, digests_of},
    piece::PieceLayout,
    record::Tombstone,
    wire::Invalid,
};
use redb::{Database, ReadableDatabase, ReadableTable as _, TableDefinition, WriteTransaction};

use super::{
    backend::{Backend, open_database},
    disk::{At, Disk, DiskFile, Folder},
    error::StoreError,
    io_error,
    record::{ContentRecord, QueuedDelete, Row, TaskRecord},
    state::{Content, Overlay, State},
};

/// The newest format this program knows, and the one it writes.
pub(super) const FORMAT: u64 = 1;

/// A shorter file is not compacted.
const COMPACT_FROM_BYTES: u64 = 4 << 20;

pub(super) type Table = TableDefinition<'static, &'static [u8], &'static [u8]>;
pub(super) const CONTENTS: Table = TableDefinition::new("contents");
pub(super) const MANIFESTS: Table = TableDefinition::new("manifests");
pub(super) const TASKS: Table = TableDefinition::new("tasks");
pub(super) const TOMBSTONES: Table = TableDefinition::new("tombstones");
pub(super) const QUEUED_DELETES: Table = TableDefinition::new("queued_deletes");
/// What the daemon keeps.
pub(super) const META: Table = TableDefinition::new("meta");
/// What the store keeps about itself.
const STORE: Table = TableDefinition::new("store");
const FORMAT_KEY: &[u8] = b"format";
const ADOPTING_KEY: &[u8] = b"adopting";

/// How an index was found.
pub(super) enum Found {
    Index(Index),
    /// Written by a newer program, in this format.
    Newer(u64),
    /// Nothing that can be read; why.
    Damaged(String),
}

pub(super) struct Index {
    /// Locked for writing only while it is opened again after a failure.
    file: RwLock<IndexFile>,
    /// Contents without a record are from a lost index.
    adopting: AtomicBool,
    disk: Disk,
}

struct IndexFile {
    /// `None` when it could not be opened again.
    database: Option<Database>,
    /// A sync of the file has failed: nothing of it is trusted any more.
    failed: Arc<AtomicBool>,
}

/// The name of the index in the store.
pub(super) fn index_file() -> At {
    Folder::Root.at("index.redb")
}

impl Index {
    /// Makes a new index, which replaces the one that is there when all of it is on the disk.
    ///
    /// `adopting`: contents without a record are from a lost index, not from an interrupted import. `rows`: what it
    /// starts with.
    pub fn create(disk: &Disk, adopting: bool, rows: &Overlay) -> Result<Self, StoreError> {
        let failed = Arc::default();
        let database = create_database(disk, adopting, rows, &failed)?;
        Ok(Self::with_database(disk, database, failed, adopting))
    }

    fn with_database(disk: &Disk, database: Database, failed: Arc<AtomicBool>, adopting: bool) -> Self {
        let file = RwLock::new(IndexFile { database: Some(database), failed });
        Self { file, adopting: AtomicBool::new(adopting), disk: disk.clone() }
    }

    /// Opens the index that is there, and checks every page of it. A newer one is not changed.
    ///
    /// # Errors
    /// [`StoreError`] only when the file system refuses, for a reason that a person can lift.
    pub fn open(disk: &Disk) -> Result<Found, StoreError> {
        let file = || disk.open(&index_file(), true).map_err(io_error("open", &index_file()));
        // Whatever a damaged file makes redb do, it is no reason not to start.
        let looked = file()?;
        let opened = file()?;
        let failed = Arc::default();
        if let Ok(Some(newer)) = catch_unwind(AssertUnwindSafe(|| newer_format(looked))) {
            return Ok(Found::Newer(newer));
        }
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let database = open_database(opened, true, &failed)?;
            let format = read_number(&database, FORMAT_KEY)?;
            let adopting = read_number(&database, ADOPTING_KEY)?.is_some();
            Ok::<_, redb::Error>((database, format, adopting))
        }));
        match opened {
            Err(_) => Ok(Found::Damaged("reading it panicked".to_owned())),
            Ok(Err(error)) if is_refusal(&error) => Err(StoreError::index(error)),
            Ok(Err(error)) => Ok(Found::Damaged(error.to_string())),
            Ok(Ok((_, None, _))) => Ok(Found::Damaged("it has no format".to_owned())),
            Ok(Ok((_, Some(format), _))) if format > FORMAT => Ok(Found::Newer(format)),
            Ok(Ok((database, Some(_), adopting))) => {
                Ok(Found::Index(Self::with_database(disk, database, failed, adopting)))
            }
        }
    }

    /// Everything small, and what could not be read of it.
    pub fn load(&self) -> Result<(State, Vec<Invalid>), StoreError> {
        self.with(|database| {
            let mut loaded = (State::default(), Vec::new());
            catch_unwind(AssertUnwindSafe(|| load(database, &mut loaded)))
                .unwrap_or_else(|_| Err(redb::Error::Corrupted("reading it panicked".to_owned())))?;
            Ok(loaded)
        })
    }

    /// The manifest of a content of `bytes`, read and checked anew.
    pub fn manifest(&self, content: ContentId, bytes: u64) -> Result<Option<Manifest>, StoreError> {
        self.with(|database| Ok(read_manifest(database, content, bytes)))?
    }

    pub fn meta(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.with(|database| read_row(database, META, key.as_bytes()))
    }

    pub fn is_adopting(&self) -> bool {
        self.adopting.load(Ordering::Relaxed)
    }

    pub fn begin_adopting(&self) -> Result<(), StoreError> {
        self.adopting.store(true, Ordering::Relaxed);
        self.with(|database| {
            let transaction = database.begin_write()?;
            transaction.open_table(STORE)?.insert(ADOPTING_KEY, 1u64.to_be_bytes().as_slice())?;
            Ok(transaction.commit()?)
        })
    }

    pub fn end_adopting(&self) -> Result<(), StoreError> {
        self.with(|database| {
            let transaction = database.begin_write()?;
            transaction.open_table(STORE)?.remove(ADOPTING_KEY)?;
            Ok(transaction.commit()?)
        })?;
        self.adopting.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Makes changes durable, with one sync.
    pub fn commit(&self, overlay: &Overlay) -> Result<(), StoreError> {
        self.with(|database| {
            let transaction = database.begin_write()?;
            write(&transaction, overlay)?;
            // Durable at once and in one phase, which are redb's defaults: a commit torn by a power loss is recognized
            // by its checksum and the one before it is used.
            Ok(transaction.commit()?)
        })
    }

    /// Opens the database again after a failed commit, which redb does not survive otherwise.
    pub fn reopen(&self) -> Result<(), StoreError> {
        let mut opened = self.file.write().unwrap_or_else(PoisonError::into_inner);
        // The old one first: it still writes when it is closed.
        drop(opened.database.take());
        let file = self.disk.open(&index_file(), true).map_err(io_error("open", &index_file()))?;
        opened.database = Some(open_database(file, true, &opened.failed).map_err(StoreError::index)?);
        Ok(())
    }

    /// Whether a sync of the file has failed. The kernel may have lost what was to be written, and reads may still give
    /// it: the file is only good for being replaced.
    pub fn has_failed(&self) -> bool {
        self.file.read().unwrap_or_else(PoisonError::into_inner).failed.load(Ordering::Acquire)
    }

    /// Replaces the file by a new one with `rows`.
    pub fn replace(&self, rows: &Overlay) -> Result<(), StoreError> {
        let mut opened = self.file.write().unwrap_or_else(PoisonError::into_inner);
        // Nothing that it writes when it is closed reaches the file.
        drop(opened.database.take());
        let failed = Arc::default();
        let database = create_database(&self.disk, self.is_adopting(), rows, &failed)?;
        *opened = IndexFile { database: Some(database), failed };
        Ok(())
    }

    /// Gives back the file's free space when that is most of it: redb keeps what deletes have left.
    pub fn compact(&self) -> Result<bool, StoreError> {
        let length = self.disk.open(&index_file(), false).and_then(|file| file.len());
        let length = length.map_err(io_error("look at", &index_file()))?;
        if length < COMPACT_FROM_BYTES {
            return Ok(false);
        }
        let mut opened = self.file.write().unwrap_or_else(PoisonError::into_inner);
        let Some(database) = &mut opened.database else { return Ok(false) };
        let used = used_bytes(database).map_err(StoreError::index)?;
        if used > length / 2 {
            return Ok(false);
        }
        database.compact().map_err(StoreError::index)
    }

    /// Whether [`Index::reopen`] or [`Index::replace`] failed, or was not tried yet.
    pub fn is_closed(&self) -> bool {
        self.file.read().unwrap_or_else(PoisonError::into_inner).database.is_none()
    }

    fn with<R>(&self, act: impl FnOnce(&Database) -> Result<R, redb::Error>) -> Result<R, StoreError> {
        let opened = self.file.read().unwrap_or_else(PoisonError::into_inner);
        let database = opened.database.as_ref().ok_or_else(|| StoreError::index(redb::Error::DatabaseClosed))?;
        act(database).map_err(StoreError::index)
    }
}

/// Where a new index is written before it gets its name.
fn new_index_file() -> At {
    Folder::Root.at("index.redb.new")
}

fn create_database(
    disk: &Disk,
    adopting: bool,
    rows: &Overlay,
    failed: &Arc<AtomicBool>,
) -> Result<Database, StoreError> {
    let at = new_index_file();
    match disk.remove(&at) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io_error("remove", &at)(error)),
    }
    let file = disk.create(&at).map_err(io_error("create", &at))?;
    let database = open_database(file, false, failed).map_err(StoreError::index)?;
    let transaction = database.begin_write().map_err(StoreError::index)?;
    initialize(&transaction, adopting).map_err(StoreError::index)?;
    write(&transaction, rows).map_err(StoreError::index)?;
    transaction.commit().map_err(StoreError::index)?;
    disk.rename(&at, &index_file()).map_err(io_error("rename", &at))?;
    disk.sync_folder(Folder::Root).map_err(io_error("sync", &Folder::Root.at("")))?;
    Ok(database)
}

fn used_bytes(database: &Database) -> Result<u64, redb::Error> {
    let transaction = database.begin_write()?;
    let stats = transaction.stats()?;
    transaction.abort()?;
    Ok(stats.allocated_pages().saturating_mul(stats.page_size() as u64))
}

/// Reads and checks a manifest.
fn read_manifest(database: &Database, id: ContentId, bytes: u64) -> Result<Option<Manifest>, StoreError> {
    if digests_of(&PieceLayout::new(bytes)?) == 0 {
        return Ok(Some(Manifest::new(id, bytes, Vec::new())?));
    }
    let row = read_row(database, MANIFESTS, id.digest()).map_err(StoreError::index)?;
    let Some(row) = row else { return Ok(None) };
    let (digests, rest) = row.as_chunks::<{ size_of::<PieceDigest>() }>();
    if !rest.is_empty() {
        return Err(Invalid::new("manifest", "a digest is cut off").into());
    }
    Ok(Some(Manifest::new(id, bytes, digests.to_vec())?))
}

fn read_row(database: &Database, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, redb::Error> {
    let table = database.begin_read()?.open_table(table)?;
    Ok(table.get(key)?.map(|row| row.value().to_vec()))
}

/// The format of an index that a newer program wrote, found without writing. Says nothing of one that was not closed.
fn newer_format(file: DiskFile) -> Option<u64> {
    match Database::builder().open_read_only_with_backend(Backend::new(file, Arc::default())) {
        Ok(database) => read_number(&database, FORMAT_KEY).ok().flatten().filter(|format| *format > FORMAT),
        // A newer redb; there is no other way to tell.
        Err(redb::DatabaseError::Storage(redb::StorageError::Corrupted(reason)))
            if reason.contains("file format version <=") =>
        {
            Some(FORMAT + 1)
        }
        Err(_) => None,
    }
}

/// Whether the file system said no, for a reason that has nothing to do with what is in the file.
fn is_refusal(error: &redb::Error) -> bool {
    use io::ErrorKind;
    match error {
        redb::Error::Io(error) => {
            // An unreadable sector is damage, like any other.
            let damage = matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof);
            !damage && error.raw_os_error() != Some(rustix::io::Errno::IO.raw_os_error())
        }
        _ => false,
    }
}

fn initialize(transaction: &WriteTransaction, adopting: bool) -> Result<(), redb::Error> {
    for table in [CONTENTS, MANIFESTS, TASKS, TOMBSTONES, QUEUED_DELETES, META] {
        transaction.open_table(table)?;
    }
    let mut store = transaction.open_table(STORE)?;
    store.insert(FORMAT_KEY, FORMAT.to_be_bytes().as_slice())?;
    if adopting {
        store.insert(ADOPTING_KEY, 1u64.to_be_bytes().as_slice())?;
    }
    Ok(())
}

fn read_number(database: &impl ReadableDatabase, key: &[u8]) -> Result<Option<u64>, redb::Error> {
    let table = match database.begin_read()?.open_table(STORE) {
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
        table => table?,
    };
    let row = table.get(key)?;
    Ok(row.and_then(|row| row.value().try_into().ok()).map(u64::from_be_bytes))
}

fn load(database: &Database, loaded: &mut (State, Vec<Invalid>)) -> Result<(), redb::Error> {
    let transaction = database.begin_read()?;
    let (state, invalid) = loaded;
    let mut serial = 0;
    each_row(&transaction, CONTENTS, invalid, |key, record: ContentRecord| {
        serial += 1;
        state.put_content(ContentId::from_digest(key), Some(Content { record, serial }));
    })?;
    each_row(&transaction, TASKS, invalid, |_, record: TaskRecord| {
        state.insert_task(record.task_id(), Arc::new(record));
    })?;
    each_row(&transaction, TOMBSTONES, invalid, |_, tombstone: Tombstone| {
        state.tombstones.insert(tombstone.task, tombstone);
    })?;
    each_row(&transaction, QUEUED_DELETES, invalid, |_, delete: QueuedDelete| {
        state.queued_deletes.insert(delete.name.task_id(), delete);
    })
}

/// Hands over every row that can be read; the others stay where they are, a newer program may know them.
fn each_row<R: Row>(
    transaction: &redb::ReadTransaction,
    table: Table,
    invalid: &mut Vec<Invalid>,
    mut take: impl FnMut([u8; 32], R),
) -> Result<(), redb::Error> {
    for row in transaction.open_table(table)?.iter()? {
        let (key, row) = row?;
        let key = key.value().try_into().map_err(|_| Invalid::new("row", "its key is not 32 bytes long"));
        match key.and_then(|key| R::from_row(key, row.value()).map(|row| (key, row))) {
            Ok((key, row)) => take(key, row),
            Err(error) => invalid.push(error),
        }
    }
    Ok(())
}

fn write(transaction: &WriteTransaction, overlay: &Overlay) -> Result<(), redb::Error> {
    let contents = overlay.contents.iter().map(|(id, content)| (id.digest(), content.as_ref().map(|c| &c.record)));
    write_rows(transaction, CONTENTS, contents)?;
    write_rows(transaction, TASKS, overlay.tasks.iter().map(|(id, task)| (id.digest(), task.as_deref())))?;
    let tombstones = overlay.tombstones.iter().map(|(id, tombstone)| (TaskId::digest(id), tombstone.as_ref()));
    write_rows(transaction, TOMBSTONES, tombstones)?;
    let deletes = overlay.queued_deletes.iter().map(|(id, delete)| (id.digest(), delete.as_ref()));
    write_rows(transaction, QUEUED_DELETES, deletes)?;
    write_manifests(transaction, overlay)?;
    if !overlay.meta.is_empty() {
        let mut table = transaction.open_table(META)?;
        for (key, value) in &overlay.meta {
            match value {
                Some(value) => table.insert(key.as_bytes(), value.as_slice())?,
                None => table.remove(key.as_bytes())?,
            };
        }
    }
    Ok(())
}

fn write_rows<'a, R: Row + 'a>(
    transaction: &WriteTransaction,
    table: Table,
    rows: impl ExactSizeIterator<Item = (&'a [u8; 32], Option<&'a R>)>,
) -> Result<(), redb::Error> {
    if rows.len() == 0 {
        return Ok(());
    }
    let mut table = transaction.open_table(table)?;
    for (key, row) in rows {
        match row {
            Some(row) => table.insert(key.as_slice(), row.to_row(key).as_slice())?,
            None => table.remove(key.as_slice())?,
        };
    }
    Ok(())
}

fn write_manifests(transaction: &WriteTransaction, overlay: &Overlay) -> Result<(), redb::Error> {
    let mut table = transaction.open_table(MANIFESTS)?;
    for (id, content) in &overlay.contents {
        if content.is_none() {
            table.remove(id.digest().as_slice())?;
        }
    }
    for (id, manifest) in &overlay.manifests {
        if !manifest.digests().is_empty() {
            table.insert(id.digest().as_slice(), manifest.digests().as_flattened())?;
        }
    }
    Ok(())
}
