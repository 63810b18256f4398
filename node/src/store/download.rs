//! Downloads: contents that arrive piece by piece, in any order, and survive a restart.

use std::{
    cmp::Ordering::{Equal, Greater, Less},
    collections::HashMap,
    fmt, io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use damselfly_messages::{id::ContentId, manifest::Manifest, piece::PieceIndex};

use super::{
    ContentState, Inner, PieceMap, Store,
    disk::{At, DiskFile, Folder},
    error::{DownloadError, FinishError, ReadError, StoreError, out_of_space},
    io_error, lock, now,
    read::read_verified,
    record::{ContentRecord, Held, TaskRecord},
};

/// How often the free space is looked at where none was set aside.
const SPACE_CHECK_BYTES: u64 = 64 << 20;

/// A piece that has been verified. There is no other way to make one, so no other bytes reach the store.
#[derive(Debug, Clone, Copy)]
pub struct VerifiedPiece<'a> {
    content: ContentId,
    index: PieceIndex,
    offset: u64,
    bytes: &'a [u8],
}

impl<'a> VerifiedPiece<'a> {
    /// Checks `bytes` against the manifest; `None` when they are not piece `index`. Hashes them.
    pub fn verify(manifest: &Manifest, index: PieceIndex, bytes: &'a [u8]) -> Option<Self> {
        let offset = manifest.layout().offset(index);
        manifest.verifies(index, bytes).then_some(Self { content: manifest.content(), index, offset, bytes })
    }

    /// The piece this is.
    pub const fn index(&self) -> PieceIndex {
        self.index
    }

    /// Its bytes.
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

/// A content that is being downloaded. Any number of threads write and read at once; share it in an [`Arc`].
///
/// There is at most one per content. Dropping it leaves what the last checkpoint covers to be resumed.
pub struct Download {
    progress: Arc<Progress>,
    file: DiskFile,
    /// A sync of the file has failed: what it holds may be lost although it can be read.
    failed: AtomicBool,
    store: Arc<Inner>,
    data_bytes: u64,
    /// Bytes written to a file for which no space was set aside, since the free space was looked at.
    unchecked: Option<AtomicU64>,
}

/// What others may know of a download.
pub(super) struct Progress {
    pub manifest: Manifest,
    held: Mutex<PieceMap>,
}

impl Progress {
    pub fn state(&self) -> ContentState {
        let held = lock(&self.held);
        let bytes = self.manifest.layout().content_bytes();
        ContentState::Partial { bytes, held: held.held(), pieces: held.pieces(), under_way: true }
    }
}

impl Store {
    /// Begins to download a content, or resumes where the last checkpoint left off.
    ///
    /// A damaged content is repaired: what lies there is verified, and the good pieces are held from the start. This
    /// reads all of it, so it takes a while. Space for the whole is reserved where the file system can.
    ///
    /// # Errors
    /// [`DownloadError::AlreadyUnderWay`]: share the one there is. No space is told here, not half-way.
    pub fn begin_download(&self, manifest: &Manifest) -> Result<Download, DownloadError> {
        self.begin_download_with_holes(manifest, manifest.layout().content_bytes())
    }

    /// As [`Store::begin_download`], of a content with holes: only `data_bytes` of it are said to be data. Nothing is set
    /// aside for it then, and the free-space floor is kept while it is written.
    ///
    /// # Errors
    /// As [`Store::begin_download`].
    pub fn begin_download_with_holes(&self, manifest: &Manifest, data_bytes: u64) -> Result<Download, DownloadError> {
        let inner = &self.inner;
        let id = manifest.content();
        let held = PieceMap::empty(&manifest.layout());
        let progress = Arc::new(Progress { manifest: manifest.clone(), held: Mutex::new(held) });
        let known = inner.state().contents.contains_key(&id) || lock(&inner.under_way).contains_key(&id);
        let needed = if known { 0 } else { manifest.layout().content_bytes() };
        let begun = inner.with_room(needed, || {
            let mut under_way = lock(&inner.under_way);
            if under_way.contains_key(&id) {
                return Err(DownloadError::AlreadyUnderWay);
            }
            if inner.state().contents.get(&id).is_some_and(|content| content.record.state == Held::Complete) {
                return Err(DownloadError::AlreadyComplete);
            }
            under_way.insert(id, progress.clone());
            Ok(())
        });
        begun.map_err(DownloadError::Store)??;
        let data_bytes = data_bytes.min(manifest.layout().content_bytes());
        match inner.begin(&progress, data_bytes) {
            Ok(file) => {
                let unchecked = (data_bytes < manifest.layout().content_bytes()).then(AtomicU64::default);
                let failed = AtomicBool::new(false);
                Ok(Download { progress, file, failed, store: inner.clone(), data_bytes, unchecked })
            }
            Err(error) => {
                lock(&inner.under_way).remove(&id);
                Err(DownloadError::Store(error))
            }
        }
    }
}

impl Inner {
    /// Opens or makes the file of a download and finds out what it holds.
    fn begin(&self, progress: &Progress, data_bytes: u64) -> Result<DiskFile, StoreError> {
        let manifest = &progress.manifest;
        let (id, bytes) = (manifest.content(), manifest.layout().content_bytes());
        let record = self.state().contents.get(&id).map(|content| content.record.clone());
        let at = Folder::Partial.of(id);
        let damaged = matches!(&record, Some(record) if record.state == Held::Damaged);
        if damaged {
            self.fetch_damaged(&at)?;
        }
        let file = match self.disk.open(&at, true) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.check_space(data_bytes)?;
                self.forget_held(id)?;
                let file = self.disk.create(&at).map_err(io_error("create", &at))?;
                let sized = match data_bytes < bytes {
                    true => file.set_len(bytes).map_err(io_error("set the length of", &at)),
                    false => self.allocate(&file, bytes),
                };
                sized.inspect_err(|_| drop(self.disk.remove(&at)))?;
                return Ok(file);
            }
            Err(error) => return Err(io_error("open", &at)(error)),
        };
        let known = record.filter(|record| record.bytes == bytes).and_then(|record| match record.state {
            Held::Partial(held) => PieceMap::from_bytes(&manifest.layout(), &held),
            Held::Complete | Held::Damaged => None,
        });
        let found = file.len().map_err(io_error("look at", &at))?;
        let held = match known {
            Some(held) if found == bytes => held,
            _ => verify_all(&file, manifest).map_err(io_error("read", &at))?,
        };
        if !held.is_full() {
            self.check_space(bytes.saturating_sub(found))?;
        }
        match found.cmp(&bytes) {
            Less => self.allocate(&file, bytes)?,
            // It has what it was given before, and its holes.
            Equal => {}
            Greater => file.set_len(bytes).map_err(io_error("cut", &at))?,
        }
        *lock(&progress.held) = held;
        Ok(file)
    }

    /// The file that a checkpoint vouches for is gone: of the next one nothing is held.
    fn forget_held(&self, id: ContentId) -> Result<(), StoreError> {
        let is_partial = |record: &ContentRecord| matches!(record.state, Held::Partial(_));
        if !self.state().contents.get(&id).is_some_and(|content| is_partial(&content.record)) {
            return Ok(());
        }
        self.write(move |changes| {
            if let Some(record) = changes.content(id).map(|content| content.record.clone()).filter(is_partial) {
                changes.put_record(id, ContentRecord { state: Held::Partial(Vec::new()), ..record });
            }
            Ok(())
        })
    }

    /// Moves a damaged content to where downloads lie. A file that is there already came here before.
    fn fetch_damaged(&self, partial: &At) -> Result<(), StoreError> {
        for folder in [Folder::Damaged, Folder::Contents] {
            let from = folder.at(partial.name.clone());
            match self.disk.rename(&from, partial) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(io_error("rename", &from)(error)),
            }
        }
        Ok(())
    }

    fn allocate(&self, file: &DiskFile, bytes: u64) -> Result<(), StoreError> {
        file.allocate(bytes).map_err(|source| {
            if out_of_space(&source) {
                let (free, floor) = (self.disk.free_bytes().unwrap_or(0), self.options.free_space_floor);
                return StoreError::NoSpace { needed: bytes, free, floor };
            }
            StoreError::Io { action: "reserve space for", what: Folder::Partial.name().to_owned(), source }
        })
    }
}

/// Which pieces of the file are good.
fn verify_all(file: &DiskFile, manifest: &Manifest) -> io::Result<PieceMap> {
    let mut held = PieceMap::empty(&manifest.layout());
    let mut buffer = Vec::new();
    for index in manifest.layout().indices() {
        buffer.resize(manifest.layout().bytes(index), 0);
        match read_verified(file, manifest, index, &mut buffer) {
            Ok(()) => drop(held.insert(index)),
            Err(ReadError::Damaged { .. } | ReadError::NotHeld(_)) => {}
            Err(ReadError::Io(error)) => return Err(error),
        }
    }
    Ok(held)
}

impl Download {
    /// The manifest of the content.
    pub fn manifest(&self) -> &Manifest {
        &self.progress.manifest
    }

    /// How much of the content is said not to be in holes.
    pub const fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// Which pieces are held now, whether or not a checkpoint covers them.
    pub fn held(&self) -> PieceMap {
        lock(&self.progress.held).clone()
    }

    /// Whether one piece is held.
    pub fn holds(&self, index: PieceIndex) -> bool {
        lock(&self.progress.held).contains(index)
    }

    /// Writes a piece; whether it was missing. Not durable before [`Download::checkpoint`].
    ///
    /// # Errors
    /// [`StoreError`]; the piece then counts as missing. A piece of another content is [`StoreError::NotHeld`].
    pub fn write(&self, piece: VerifiedPiece<'_>) -> Result<bool, StoreError> {
        if piece.content != self.manifest().content() || piece.offset != self.manifest().layout().offset(piece.index) {
            return Err(StoreError::NotHeld(piece.content));
        }
        let at = Folder::Partial.of(piece.content);
        self.check(&at)?;
        if let Some(unchecked) = &self.unchecked {
            let written = unchecked.fetch_add(piece.bytes.len() as u64, Ordering::Relaxed);
            if written >= SPACE_CHECK_BYTES {
                unchecked.store(0, Ordering::Relaxed);
                self.store.check_space(0)?;
            }
        }
        self.file.write_at(piece.bytes, piece.offset).map_err(io_error("write", &at))?;
        // After the write: a piece that is held can be read.
        Ok(lock(&self.progress.held).insert(piece.index))
    }

    /// Reads a piece that is held into `buffer`, which gets exactly its length.
    ///
    /// # Errors
    /// [`ReadError::NotHeld`]; [`ReadError::Damaged`]: the piece counts as missing from now on, fetch it again.
    pub fn read(&self, index: PieceIndex, buffer: &mut Vec<u8>) -> Result<(), ReadError> {
        if !self.holds(index) {
            return Err(ReadError::NotHeld(index.get()));
        }
        buffer.resize(self.manifest().layout().bytes(index), 0);
        let result = read_verified(&self.file, self.manifest(), index, buffer);
        if let Err(ReadError::Damaged { .. }) = result {
            lock(&self.progress.held).remove(index);
        }
        result
    }

    /// Makes the file `target` share the blocks of this one, whatever they hold; false where the file systems cannot.
    pub fn clone_to(&self, target: &std::fs::File) -> bool {
        self.file.clone_to(target)
    }

    /// Syncs the file, once it fails never again: the kernel tells of lost bytes only once.
    fn sync(&self, at: &At) -> Result<(), StoreError> {
        self.check(at)?;
        self.file.sync().inspect_err(|_| self.failed.store(true, Ordering::Release)).map_err(io_error("sync", at))
    }

    fn check(&self, at: &At) -> Result<(), StoreError> {
        match self.failed.load(Ordering::Acquire) {
            false => Ok(()),
            true => Err(io_error("write", at)(io::Error::other("an earlier sync of this file failed"))),
        }
    }

    /// Makes the pieces that are held now survive a restart and a power loss: two syncs.
    ///
    /// # Errors
    /// [`StoreError`]; the last checkpoint stands. When the sync failed, this download takes nothing more, and the next
    /// one begins with nothing.
    pub fn checkpoint(&self) -> Result<(), StoreError> {
        // Taken first: what is written meanwhile may miss the sync.
        let held = self.held().to_bytes();
        let manifest = self.manifest().clone();
        self.sync(&Folder::Partial.of(manifest.content()))?;
        self.store.write(move |changes| {
            if !changes.is_complete(manifest.content()) {
                changes.put_content(&manifest, Held::Partial(held), now());
            }
            Ok(())
        })
    }

    /// Makes the content complete and binds names to it, all in one commit: three syncs. Afterwards it is durable and
    /// [`Store::open_content`] opens it; drop the download then, and this one no longer.
    ///
    /// # Errors
    /// [`FinishError::Incomplete`]; [`StoreError::Bound`] or [`StoreError::Buried`] as in [`Store::bind`], nothing
    /// changed. A second call is harmless.
    pub fn finish(&self, tasks: Vec<TaskRecord>) -> Result<(), FinishError> {
        let (held, pieces) = (self.held().held(), self.manifest().layout().pieces());
        if held < pieces {
            return Err(FinishError::Incomplete { missing: pieces - held });
        }
        let manifest = self.manifest().clone();
        let at = Folder::Partial.of(manifest.content());
        self.sync(&at)?;
        self.store.write(move |changes| changes.complete(&manifest, &at, tasks, now()))?;
        let mut under_way = lock(&self.store.under_way);
        if self.leave(&mut under_way) {
            // Still there only when the content came another way meanwhile.
            let _ = self.store.disk.remove(&Folder::Partial.of(self.manifest().content()));
        }
        Ok(())
    }

    /// Forgets what is held, because the manifest turned out to be wrong: the next download begins with another one.
    ///
    /// # Errors
    /// [`StoreError`] when it could not be made durable.
    pub fn forget(&self) -> Result<(), StoreError> {
        let id = self.manifest().content();
        self.store.write(move |changes| {
            let partial = |content: &super::state::Content| matches!(content.record.state, Held::Partial(_));
            if changes.content(id).is_some_and(partial) {
                changes.remove_content(id);
            }
            Ok(())
        })
    }

    /// Takes this download, and no later one of the same content, off the list.
    fn leave(&self, under_way: &mut HashMap<ContentId, Arc<Progress>>) -> bool {
        let id = self.manifest().content();
        let mine = under_way.get(&id).is_some_and(|progress| Arc::ptr_eq(progress, &self.progress));
        mine && under_way.remove(&id).is_some()
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        let mut under_way = lock(&self.store.under_way);
        if !self.leave(&mut under_way) {
            return;
        }
        // Nobody will look for the file when no checkpoint tells of it, or when the content came another way.
        let id = self.manifest().content();
        let resumable = self.store.state().contents.get(&id).is_some_and(|content| match content.record.state {
            Held::Partial(_) | Held::Damaged => true,
            Held::Complete => false,
        });
        if !resumable || self.failed.load(Ordering::Acquire) {
            let _ = self.store.disk.remove(&Folder::Partial.of(id));
        }
    }
}

impl fmt::Debug for Download {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Download").field(&self.manifest().content()).finish_non_exhaustive()
    }
}
