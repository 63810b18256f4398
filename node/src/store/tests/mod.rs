//! The store, on a real file system and on one that loses power.

pub(super) mod disk;
mod names;
mod power;
mod quota;
mod recovery;
mod repair;
mod transfers;

use std::{
    fs::File,
    io::{Seek as _, Write as _},
    ops::ControlFlow,
    path::Path,
};

use damselfly_messages::{
    hasher::hash_bytes,
    id::ContentId,
    manifest::Manifest,
    name::Name,
    record::{Binding, UnixMillis},
};
use tempfile::TempDir;

use super::{
    Disk, Download, Options, ReadError, Store, StoreError, TaskRecord, TaskState, VerifiedPiece,
    tests::disk::SimulatedDisk,
};

/// Bytes that differ from place to place and from `seed` to `seed`.
fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = vec![0; length];
    for chunk in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
    bytes
}

fn name(cid: &str) -> Name {
    Name::parse(cid, "").expect("a name")
}

fn record(cid: &str, content: &Manifest, generation: u64) -> TaskRecord {
    TaskRecord {
        name: name(cid),
        binding: Binding {
            content: content.content(),
            content_bytes: content.layout().content_bytes(),
            generation,
            accepted: None,
            expires: None,
        },
        state: TaskState::Queued,
        imported: UnixMillis(1),
        last_used: UnixMillis(1),
        pinned: false,
        fetched: false,
    }
}

/// The record with an end.
fn expiring(mut record: TaskRecord, at: u64) -> TaskRecord {
    record.binding.expires = Some(UnixMillis(at));
    record
}

fn options() -> Options {
    Options { free_space_floor: 0, ..Options::default() }
}

fn open(directory: &Path) -> Store {
    Store::open(directory, options()).expect("opens").0
}

fn simulated(disk: &SimulatedDisk) -> Store {
    Store::open_on(Disk::simulated(disk.clone()), None, options()).expect("opens").0
}

/// A store of its own.
fn fresh() -> (TempDir, Store) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = open(&directory.path().join("store"));
    (directory, store)
}

fn source(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(bytes).expect("written");
    file.rewind().expect("rewound");
    file
}

/// Imports `bytes` as `cid` in a generation.
fn import_as(store: &Store, cid: &str, bytes: &[u8], generation: u64) -> Result<Manifest, StoreError> {
    let imported = match store
        .begin_import(Some(bytes.len() as u64))?
        .copy_from(source(bytes), &mut |_| ControlFlow::Continue(()))
    {
        Ok(imported) => imported,
        Err(super::ImportError::Store(error)) => return Err(error),
        Err(error) => panic!("{error}"),
    };
    let record = record(cid, imported.manifest(), generation);
    imported.commit(vec![record])
}

fn import(store: &Store, cid: &str, bytes: &[u8]) -> Manifest {
    import_as(store, cid, bytes, 1).expect("imports")
}

/// All bytes of a complete content.
fn read_all(store: &Store, id: ContentId) -> Result<Option<Vec<u8>>, ReadError> {
    let Some(reader) = store.open_content(id).expect("the index is sound") else { return Ok(None) };
    let (mut all, mut piece) = (Vec::new(), Vec::new());
    for index in reader.manifest().layout().indices() {
        reader.read(index, &mut piece)?;
        all.extend_from_slice(&piece);
    }
    Ok(Some(all))
}

/// Writes those pieces that `wanted` names.
fn fetch(download: &Download, bytes: &[u8], wanted: impl Fn(u32) -> bool) -> Result<u32, StoreError> {
    let layout = download.manifest().layout();
    let mut written = 0;
    for index in layout.indices().filter(|index| wanted(index.get()) && !download.holds(*index)) {
        let range = layout.range(index);
        let piece = &bytes[range.start as usize..range.end as usize];
        let piece = VerifiedPiece::verify(download.manifest(), index, piece).expect("the right bytes");
        written += u32::from(download.write(piece)?);
    }
    Ok(written)
}

fn manifest_of(bytes: &[u8]) -> Manifest {
    hash_bytes(bytes)
}
