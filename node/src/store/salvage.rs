//! What can still be read of a damaged index.
//!
//! The names of contents stand nowhere else on this host, so an index with one bad page must not lose all of them.
//! Everything taken from it is checked: a task by its name's hash, a manifest by the content ID it must merge to.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use damselfly_messages::{id::ContentId, record::Tombstone};
use redb::{Database, ReadableDatabase as _, ReadableTable as _, StorageBackend as _, backends::InMemoryBackend};

use super::{
    disk::{At, Disk},
    index::{CONTENTS, META, QUEUED_DELETES, TASKS, TOMBSTONES, Table, read_manifest},
    record::{ContentRecord, Held, QueuedDelete, Row, TaskRecord},
    state::{Content, Overlay},
};

/// A damaged index that is longer is not looked into: it has to fit into memory.
const INDEX_BYTES_MAX: u64 = 1 << 30;

/// Every row of the damaged index `at` that is sound. The file is not changed.
pub(super) fn salvage(disk: &Disk, at: &At) -> Overlay {
    let mut found = Overlay::default();
    let Ok(copy) = copy_of(disk, at) else { return found };
    let attempt = catch_unwind(AssertUnwindSafe(|| {
        let database = Database::builder().create_with_backend(copy).ok()?;
        for_rows(&database, CONTENTS, |id, row| content(&database, id, row, &mut found));
        for_rows(&database, TASKS, |key, row| {
            if let Ok(record) = TaskRecord::from_row(key, row) {
                found.tasks.insert(record.task_id(), Some(Arc::new(record)));
            }
        });
        for_rows(&database, TOMBSTONES, |key, row| {
            if let Ok(tombstone) = Tombstone::from_row(key, row) {
                found.tombstones.insert(tombstone.task, Some(tombstone));
            }
        });
        for_rows(&database, QUEUED_DELETES, |key, row| {
            if let Ok(delete) = QueuedDelete::from_row(key, row) {
                found.queued_deletes.insert(delete.name.task_id(), Some(delete));
            }
        });
        for_each(&database, META, |key, row| {
            if let Ok(key) = str::from_utf8(key) {
                found.meta.insert(key.to_owned(), Some(row.to_vec()));
            }
        });
        Some(())
    }));
    // Whether it got to the end or not: each row stands for itself.
    drop(attempt);
    found
}

/// A complete content with a sound manifest, or a damaged one; the others are hashed again or fetched again.
fn content(database: &Database, key: [u8; 32], row: &[u8], found: &mut Overlay) {
    let id = ContentId::from_digest(key);
    let Ok(record) = ContentRecord::from_row(key, row) else { return };
    let manifest = || catch_unwind(AssertUnwindSafe(|| read_manifest(database, id, record.bytes))).ok()?.ok()?;
    match (&record.state, manifest()) {
        (Held::Partial(_), _) | (Held::Complete, None) => return,
        (Held::Damaged, None) => {}
        (Held::Complete | Held::Damaged, Some(manifest)) => drop(found.manifests.insert(id, manifest)),
    }
    found.contents.insert(id, Some(Content { record, serial: 0 }));
}

fn for_rows(database: &Database, table: Table, mut take: impl FnMut([u8; 32], &[u8])) {
    for_each(database, table, |key, row| {
        if let Ok(key) = key.try_into() {
            take(key, row);
        }
    });
}

/// Hands over rows from both ends of the table, up to where it cannot be read.
fn for_each(database: &Database, table: Table, mut take: impl FnMut(&[u8], &[u8])) {
    for backwards in [false, true] {
        let walked = catch_unwind(AssertUnwindSafe(|| {
            let table = database.begin_read()?.open_table(table)?;
            let mut rows = table.iter()?;
            while let Some(row) = if backwards { rows.next_back() } else { rows.next() } {
                let (key, row) = row?;
                take(key.value(), row.value());
            }
            Ok::<_, redb::Error>(())
        }));
        if let Ok(Ok(())) = walked {
            return;
        }
    }
}

fn copy_of(disk: &Disk, at: &At) -> io::Result<InMemoryBackend> {
    let file = disk.open(at, false)?;
    let bytes = file.len()?;
    if bytes > INDEX_BYTES_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let copy = InMemoryBackend::new();
    copy.set_len(bytes)?;
    let mut page = vec![0; 1 << 16];
    for offset in (0..bytes).step_by(page.len()) {
        let length = page.len().min((bytes - offset) as usize);
        // A sector that cannot be read is left empty.
        if file.read_at(&mut page[..length], offset).is_ok() {
            copy.write(offset, &page[..length])?;
        }
    }
    Ok(copy)
}
