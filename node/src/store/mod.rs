//! The store: contents, the tasks that name them, and what else a daemon must not forget.
//!
//! One file per content and a redb index. Everything here blocks; nothing here knows of tokio. Two rules hold
//! throughout: no byte enters or leaves unverified, and an index entry is committed only after what it promises is on
//! the disk.
//!
//! ```text
//! index.redb              what is held and under which names
//! index.redb.damaged-*    an index that was replaced because it could not be read
//! contents/<content id>   complete contents, one file each, and nothing else
//! partial/<content id>    downloads under way
//! incoming/               imports under way, and files about to be unlinked; emptied at every start
//! damaged/                set aside: damaged contents until they are fetched again, and what nobody can explain
//! index.redb.reserve      room for deletes on a full disk
//! LOCK                    locked by the daemon that works here
//! ```
//!
//! Nothing outside this module may assume a path: an index entry says where the bytes lie.

mod backend;
mod cache;
mod changes;
mod commit;
mod copy;
mod disk;
mod download;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod import;
mod index;
mod pages;
mod pieces;
mod quota;
mod read;
mod record;
mod recover;
mod reindex;
mod repair;
mod retain;
mod sparse;
mod state;
mod subscribe;
mod tasks;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    fmt, io,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use damselfly_messages::{
    id::{ContentId, TaskId},
    manifest::Manifest,
    piece::PieceLayout,
    record::UnixMillis,
};

use self::{
    cache::ManifestCache,
    commit::Committer,
    copy::Buffers,
    disk::{At, Disk, Folder},
    download::Progress,
    index::Index,
    quota::Room,
    record::Held,
    retain::KeptContents,
    state::State,
    subscribe::Watcher,
};
pub use self::{
    copy::{OnProgress, hash_source},
    disk::reserve,
    download::{Download, VerifiedPiece},
    error::{DownloadError, FinishError, ImportError, OpenError, ReadError, StoreError},
    import::{Import, Imported},
    pieces::PieceMap,
    quota::{Quota, Stuck},
    read::Reader,
    record::{QueuedDelete, TaskRecord, TaskState},
    recover::Opened,
    retain::Kept,
    sparse::write_at as write_with_holes,
};

/// How a store behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Bytes of the file system that imports and downloads leave free. Default 512 MiB.
    pub free_space_floor: u64,
    /// After how long [`Store::expire`] removes what nobody asked for: interrupted downloads that nobody resumed, and
    /// rests of names that were given up. Default one day.
    pub abandoned_after: Duration,
    /// How many bytes of contents an opening hashes at most after an index was lost; [`Store::adopt`] does the rest.
    /// Default 1 GiB.
    pub adopt_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { free_space_floor: 512 << 20, abandoned_after: Duration::from_secs(24 * 3600), adopt_bytes: 1 << 30 }
    }
}

/// A store that is open. Cheap to clone; usable from any number of threads. All calls block.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

/// How much of a content is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentState {
    /// All of it, durable.
    Complete {
        /// Its length in bytes.
        bytes: u64,
    },
    /// Some of it.
    Partial {
        /// Its length in bytes, as its manifest claims.
        bytes: u64,
        /// How many pieces are held.
        held: u32,
        /// Of how many.
        pieces: u32,
        /// Whether a [`Download`] of it exists now.
        under_way: bool,
    },
    /// It did not verify and waits for [`Store::begin_download`]. Not served, not announced.
    Damaged {
        /// Its length in bytes.
        bytes: u64,
    },
}

/// How full the store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Number of complete contents.
    pub contents: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Number of partial and damaged contents.
    pub unfinished: u64,
    /// Number of complete contents whose names were lost; see [`Store::is_unnamed`].
    pub unnamed: u64,
    /// Number of tasks that no owner has acknowledged.
    pub queued_tasks: u64,
    /// Number of deletes that no owner has been told of.
    pub queued_deletes: u64,
    /// Bytes free on the file system, for this daemon.
    pub free_bytes: u64,
    /// The floor below which nothing is written.
    pub free_space_floor: u64,
}

/// Contents whose names were lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Unnamed {
    /// How many.
    pub contents: u64,
    /// Their bytes.
    pub bytes: u64,
}

struct Inner {
    disk: Disk,
    /// Held as long as the store is open; `None` on a simulated disk.
    _lock: Option<std::fs::File>,
    options: Options,
    index: Index,
    state: RwLock<State>,
    committer: Committer,
    buffers: Buffers,
    /// Numbers the lives of contents; see [`state::Content`].
    serials: AtomicU64,
    /// Numbers files in `incoming/`.
    temporaries: AtomicU64,
    /// Downloads that exist, by content.
    under_way: Mutex<HashMap<ContentId, Arc<Progress>>>,
    readers: Mutex<HashMap<ContentId, Weak<Reader>>>,
    /// Files of complete contents that a lost index left without a record.
    adoptable: Mutex<HashSet<ContentId>>,
    manifests: Mutex<ManifestCache>,
    /// Contents that stay although no name is left.
    kept: KeptContents,
    watcher: OnceLock<Watcher>,
    removals: Removals,
    room: Room,
}

/// What was removed although nobody asked for it, since the store was opened.
#[derive(Default)]
struct Removals {
    expired: AtomicU64,
    abandoned: AtomicU64,
    tombstones: AtomicU64,
    evicted: AtomicU64,
    evicted_bytes: AtomicU64,
}

/// The same, at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removed {
    /// Tasks whose time was over.
    pub expired: u64,
    /// Interrupted downloads, and contents without a name.
    pub abandoned: u64,
    /// Tombstones of old deletes.
    pub tombstones: u64,
    /// Copies for which there was no room.
    pub evicted: u64,
    /// Their bytes.
    pub evicted_bytes: u64,
}

impl Store {
    /// Opens the store in `directory`, making it if there is none.
    ///
    /// Tolerates whatever it finds inside: what is damaged or half-written is set aside or cleaned up, and told in
    /// [`Opened`]. Contents are not hashed here, except after the index was lost. One commit at most.
    ///
    /// # Errors
    /// [`OpenError`], each with what a person can do about it; nothing was changed then.
    pub fn open(directory: &Path, options: Options) -> Result<(Self, Opened), OpenError> {
        let (root, lock) = recover::claim(directory)?;
        Self::open_on(Disk::real(root), Some(lock), options)
    }

    fn open_on(disk: Disk, lock: Option<std::fs::File>, options: Options) -> Result<(Self, Opened), OpenError> {
        let found = recover::recover(&disk)?;
        let serials = AtomicU64::new(found.state.contents.len() as u64 + 1);
        let store = Self {
            inner: Arc::new(Inner {
                disk,
                _lock: lock,
                options,
                index: found.index,
                state: RwLock::new(found.state),
                committer: Committer::default(),
                buffers: Buffers::default(),
                adoptable: Mutex::default(),
                serials,
                temporaries: AtomicU64::new(0),
                under_way: Mutex::default(),
                readers: Mutex::default(),
                manifests: Mutex::default(),
                kept: KeptContents::default(),
                watcher: OnceLock::new(),
                removals: Removals::default(),
                room: Room::default(),
            }),
        };
        if let Some(mending) = found.mending {
            store.mend(mending, &found.opened.adoptable)?;
        }
        let opened = store.put_right(found.opened, found.repairs)?;
        store.inner.keep_reserve();
        if let Err(error) = store.compact() {
            tracing::warn!(error = &error as &dyn std::error::Error, "the index was not compacted");
        }
        Ok((store, opened))
    }

    /// How much of a content is held; `None` when nothing is known of it.
    pub fn content(&self, id: ContentId) -> Option<ContentState> {
        if let Some(progress) = self.inner.progress_of(id) {
            return Some(progress.state());
        }
        let state = self.inner.state();
        let record = &state.contents.get(&id)?.record;
        let bytes = record.bytes;
        Some(match &record.state {
            Held::Complete => ContentState::Complete { bytes },
            Held::Damaged => ContentState::Damaged { bytes },
            Held::Partial(held) => {
                let held = held.iter().map(|byte| byte.count_ones()).sum();
                let pieces = PieceLayout::new(bytes).map_or(0, |layout| layout.pieces());
                ContentState::Partial { bytes, held, pieces, under_way: false }
            }
        })
    }

    /// Every content that is known, in no order.
    pub fn contents(&self) -> Vec<ContentId> {
        self.inner.state().contents.keys().copied().collect()
    }

    /// The tasks bound to a content here.
    pub fn tasks_of(&self, id: ContentId) -> Vec<TaskId> {
        self.inner.state().tasks_of(id).copied().collect()
    }

    /// The manifest of a content that is complete, partial or damaged here; `None` when it is not known.
    ///
    /// That of a download counts from its first checkpoint: before, its length may be false. Comes from memory when it
    /// was asked for lately.
    ///
    /// # Errors
    /// [`StoreError`] when the index cannot be read.
    pub fn manifest(&self, id: ContentId) -> Result<Option<Manifest>, StoreError> {
        let bytes = match self.inner.state().contents.get(&id) {
            Some(content) => content.record.bytes,
            None => return Ok(None),
        };
        if let Some(manifest) = lock(&self.inner.manifests).get(id) {
            return Ok(Some(manifest));
        }
        let manifest = self.inner.index.manifest(id, bytes)?;
        if let Some(manifest) = &manifest {
            lock(&self.inner.manifests).put(manifest.clone());
        }
        Ok(manifest)
    }

    /// Whether `target` lies where it can share blocks with the store. Tried with a file without any.
    pub fn can_clone_to(&self, target: &std::fs::File) -> bool {
        let at = self.inner.temporary(Temporary::Probe);
        let Ok(probe) = self.inner.disk.create(&at) else { return false };
        let can = probe.clone_to(target);
        // What is left in `incoming/` goes with the next start.
        let _ = self.inner.disk.remove(&at);
        can
    }

    /// How full the store is. Looks at every entry: for metrics, not for every request.
    ///
    /// # Errors
    /// [`StoreError`] when the file system does not tell its free space.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let free_bytes = self.inner.free_bytes()?;
        let mut usage = Usage { free_bytes, free_space_floor: self.inner.options.free_space_floor, ..Usage::default() };
        let state = self.inner.state();
        let queued = state.tasks.values().filter(|record| record.state == TaskState::Queued);
        usage.queued_tasks = queued.count() as u64;
        usage.queued_deletes = state.queued_deletes.len() as u64;
        for (id, content) in &state.contents {
            usage.unnamed += u64::from(state.is_unnamed(*id));
            match content.record.state {
                Held::Complete => {
                    usage.contents += 1;
                    usage.bytes += content.record.bytes;
                }
                Held::Partial(_) | Held::Damaged => usage.unfinished += 1,
            }
        }
        Ok(usage)
    }

    /// Gives back what the index does not need any more, when that is most of it. Blocks changes meanwhile; also done when
    /// a store is opened.
    ///
    /// # Errors
    /// [`StoreError`]; nothing is lost.
    pub fn compact(&self) -> Result<bool, StoreError> {
        self.inner.index.compact()
    }

    /// Whether a content was taken in after the index was lost, and nobody has named it since: its content ID is the only
    /// name it has. It stays until somebody deletes that name.
    pub fn is_unnamed(&self, id: ContentId) -> bool {
        self.inner.state().is_unnamed(id)
    }

    /// Contents whose names were lost, and their bytes; see [`Store::is_unnamed`].
    pub fn unnamed(&self) -> Unnamed {
        let state = self.inner.state();
        let contents = state.contents.iter().filter(|(id, _)| state.is_unnamed(**id));
        contents.fold(Unnamed::default(), |sum, (_, content)| Unnamed {
            contents: sum.contents + 1,
            bytes: sum.bytes + content.record.bytes,
        })
    }

    /// What was removed although nobody asked for it, since the store was opened.
    pub fn removed(&self) -> Removed {
        let removals = &self.inner.removals;
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Removed {
            expired: read(&removals.expired),
            abandoned: read(&removals.abandoned),
            tombstones: read(&removals.tombstones),
            evicted: read(&removals.evicted),
            evicted_bytes: read(&removals.evicted_bytes),
        }
    }

    /// How often this store has asked the disk to sync, since it was opened.
    pub fn syncs(&self) -> u64 {
        self.inner.disk.syncs()
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

impl Inner {
    fn state(&self) -> RwLockReadGuard<'_, State> {
        // Nothing here panics half-way through a change of memory, so a poisoned lock guards sound values.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The download under way of a content, unless the content has become complete another way.
    fn progress_of(&self, id: ContentId) -> Option<Arc<Progress>> {
        if self.is_complete(id) { None } else { lock(&self.under_way).get(&id).cloned() }
    }

    fn free_bytes(&self) -> Result<u64, StoreError> {
        self.disk.free_bytes().map_err(io_error("ask for the free space of", &Folder::Root.at("")))
    }

    /// Refuses to write `needed` more bytes when the floor would be broken.
    fn check_space(&self, needed: u64) -> Result<(), StoreError> {
        let (free, floor) = (self.free_bytes()?, self.options.free_space_floor);
        if free < floor.saturating_add(needed) {
            return Err(StoreError::NoSpace { needed, free, floor });
        }
        Ok(())
    }

    /// A name in `incoming/` that was not used since the store was opened.
    fn temporary(&self, kind: Temporary) -> At {
        let number = self.temporaries.fetch_add(1, Ordering::Relaxed);
        Folder::Incoming.at(format!("{}{number}", kind.prefix()))
    }
}

/// A file in `incoming/`: the rest of one is cleaned up at the next start.
#[derive(Debug, Clone, Copy)]
enum Temporary {
    /// An import under way.
    Import,
    /// To be unlinked in a moment.
    Gone,
    /// Made to see whether blocks can be shared.
    Probe,
}

impl Temporary {
    const ALL: [Self; 3] = [Self::Import, Self::Gone, Self::Probe];

    const fn prefix(self) -> &'static str {
        match self {
            Self::Import => "import-",
            Self::Gone => "gone-",
            Self::Probe => "probe-",
        }
    }

    /// Whether a file of this name is one.
    fn is_one(name: &str) -> bool {
        Self::ALL.into_iter().any(|kind| name.starts_with(kind.prefix()))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now() -> UnixMillis {
    SystemTime::now().into()
}

/// Names what was done to which file when it failed.
fn io_error<'a>(action: &'static str, at: &'a At) -> impl FnOnce(io::Error) -> StoreError + 'a {
    move |source| StoreError::Io { action, what: at.to_string(), source }
}
