//! Downloads: one per content, however many exports ask for it.
//!
//! The [`registry`] joins and begins, [`picker`] decides, the supervisor keeps parents at work, [`fetch`] moves pieces from
//! one parent, [`pieces`] verifies them and writes them to the store and to every [`sink`]. From then on they are served
//! to others.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use damselfly_messages::{
    id::{ContentId, TaskId},
    manifest::Manifest,
    name::Name,
    piece::PieceIndex,
    record::Binding,
    scheduler::{Parent, ParentFault, ParentResult},
};
use damselfly_transport::{
    local::{Failure, is_limit},
    network::Network,
};
use libp2p::PeerId;
use tokio::sync::{Notify, OnceCell, Semaphore, broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    announcer::Announcer,
    buffers::Buffers,
    failure::limit_failure,
    limiter::Limiter,
    metrics::Metrics,
    schedulers::Schedulers,
    settings::HostSettings,
    store::{self, PieceMap, ReadError, Store, StoreError, TaskRecord},
};

mod fetch;
mod have;
mod manifest;
mod piece_picker;
mod pieces;
mod pool;
mod registry;
mod sink;
mod supervisor;
#[cfg(test)]
mod tests;

use piece_picker::PiecePicker;
pub use sink::{Filling, Sink};

/// All downloads of the daemon; cheap to clone.
#[derive(Clone)]
pub struct Downloads {
    shared: Arc<Shared>,
}

struct Shared {
    store: Store,
    network: Network,
    schedulers: Schedulers,
    announcer: Announcer,
    limiter: Limiter,
    settings: HostSettings,
    metrics: Metrics,
    buffers: Buffers,
    pool: pool::Pool,
    /// How many pieces are verified and written at a time.
    workers: Semaphore,
    active: Mutex<HashMap<ContentId, Arc<OnceCell<Arc<Download>>>>>,
    /// For whom contents were downloaded.
    names: Mutex<HashMap<ContentId, Name>>,
}

/// What to download, and for whom.
#[derive(Clone)]
pub struct Wanted {
    /// The task it is for.
    pub name: Name,
    /// What the task is bound to.
    pub binding: Binding,
    /// Where to begin.
    pub parents: Vec<Parent>,
    /// Pieces in order, for a pipe.
    pub sequential: bool,
    /// How fast, at most.
    pub limiter: Limiter,
    /// Record to keep when it is complete; `None` when it must be checked first.
    pub record: Option<TaskRecord>,
}

/// Why there is no content.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchError {
    /// No parent is left that has what is missing.
    #[error("no holder is reachable{}", because(.0))]
    NoSource(String),
    /// Parents are left, but no byte has come for too long.
    #[error("no data for {0} s")]
    Stalled(u64),
    /// The manifest turned out to be wrong after it was accepted; it was set aside with who gave it.
    #[error("the manifest that {0} gave was wrong")]
    FalseManifest(PeerId),
    /// The disk is full, or fuller than allowed.
    #[error("no space left for the content")]
    NoSpace,
    /// The store's quota has no room for it.
    #[error("{0}")]
    OverQuota(String),
    /// A limit of the daemon's process does not let it be written.
    #[error("{0}")]
    Limit(Failure),
    /// The store failed.
    #[error("the store failed: {0}")]
    Store(String),
    /// Nobody waits for it any more.
    #[error("given up")]
    Abandoned,
}

fn because(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(" ({reason})") }
}

impl From<StoreError> for FetchError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::OverQuota { .. } => Self::OverQuota(error.to_string()),
            error if error.io_error().is_some_and(is_limit) => Self::Limit(limit_failure(&error)),
            error if error.is_no_space() => Self::NoSpace,
            error => Self::Store(error.to_string()),
        }
    }
}

/// How far a download is.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// Verified pieces.
    pub held: u32,
    /// Set once it has ended.
    pub ended: Option<Result<(), FetchError>>,
}

/// One content that is being downloaded.
pub struct Download {
    shared: Arc<Shared>,
    manifest: Manifest,
    /// How many bytes of the content are said not to be in holes.
    data_bytes: u64,
    name: Name,
    /// Where the pieces are kept; `None` once the download has settled.
    stored: RwLock<Option<Arc<store::Download>>>,
    state: Mutex<State>,
    progress: watch::Sender<Progress>,
    /// Pieces as they verify, for peers that listen.
    gained: broadcast::Sender<PieceIndex>,
    new_parents: mpsc::Sender<Vec<Parent>>,
    /// Streams that had nothing to do may have something now.
    work: Notify,
    interest: AtomicUsize,
    abandoned: CancellationToken,
    /// Everything about its end is done: it is off the list, and the store knows what became of it.
    settled: CancellationToken,
    from_peers_bytes: AtomicU64,
}

struct State {
    picker: PiecePicker,
    held: PieceMap,
    sinks: Vec<Arc<Sink>>,
    records: Vec<TaskRecord>,
    addresses: HashMap<PeerId, Vec<libp2p::Multiaddr>>,
    /// Reports of parents that are gone.
    faults: Vec<ParentResult>,
    /// Pieces by parent that gave any, over the whole download.
    givers: HashMap<PeerId, u32>,
    /// Why the last parent was lost.
    last_fault: String,
    /// Who gave the manifest, until the last piece has proved its length.
    unproved: Option<PeerId>,
    /// The slowest limit that suits everybody who waits.
    limiter: Limiter,
    /// Every piece was held, and nothing is fetched any more.
    is_concluded: bool,
}

/// Somebody waits for a download; when the last one is dropped, it ends and stays resumable.
pub struct Interest {
    download: Arc<Download>,
}

impl std::ops::Deref for Interest {
    type Target = Download;

    fn deref(&self) -> &Download {
        &self.download
    }
}

impl Interest {
    /// The download itself, for work that outlives this borrow but not the wish for it.
    pub fn shared(&self) -> Arc<Download> {
        Arc::clone(&self.download)
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        // Nobody joins in between: who does gets a download that goes on, or is told that it has ended.
        let _state = self.download.lock();
        if self.download.interest.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.download.abandoned.cancel();
        }
    }
}

impl Download {
    /// Another one waits for it; `None` when it has ended.
    fn join(self: &Arc<Self>, wanted: &Wanted) -> Option<Interest> {
        // Under the state's lock, in which the supervisor decides that it has ended.
        let mut state = self.lock();
        if self.abandoned.is_cancelled() || self.progress.borrow().ended.is_some() {
            return None;
        }
        self.interest.fetch_add(1, Ordering::AcqRel);
        state.records.extend(wanted.record.clone());
        if !wanted.limiter.is_limited() {
            state.limiter = Limiter::default();
        }
        drop(state);
        self.add_parents(wanted.parents.clone());
        Some(Interest { download: Arc::clone(self) })
    }

    /// How many bytes of the content are said not to be in holes.
    pub const fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// The manifest of the content.
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Learned of further parents.
    pub fn add_parents(&self, parents: Vec<Parent>) {
        if self.new_parents.try_send(parents).is_err() {
            tracing::debug!(content = %self.manifest.content(), "more new parents than can be taken up");
        }
    }

    /// How far it is, and whether it has ended. What it is now counts as news: it may have ended a moment ago.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        let mut progress = self.progress.subscribe();
        progress.mark_changed();
        progress
    }

    /// Which pieces are held, and those gained from now on.
    pub fn listen(&self) -> (Vec<PieceIndex>, broadcast::Receiver<PieceIndex>) {
        let state = self.lock();
        let held = self.manifest.layout().indices().filter(|index| state.held.contains(*index)).collect();
        (held, self.gained.subscribe())
    }

    /// From now on each new piece is written to `sink` too. Returns the pieces that were held before.
    pub fn attach(&self, sink: Arc<Sink>) -> Vec<PieceIndex> {
        let mut state = self.lock();
        state.sinks.push(sink);
        self.manifest.layout().indices().filter(|index| state.held.contains(*index)).collect()
    }

    /// Stops writing to `sink`.
    pub fn detach(&self, sink: &Arc<Sink>) {
        self.lock().sinks.retain(|other| !Arc::ptr_eq(other, sink));
    }

    /// Whether a piece is held.
    pub fn holds(&self, index: PieceIndex) -> bool {
        self.lock().held.contains(index)
    }

    /// Whether every piece was held at a time, so that nothing is fetched any more.
    pub fn is_concluded(&self) -> bool {
        self.lock().is_concluded
    }

    /// Concludes the download if nothing is missing.
    fn conclude(&self) -> bool {
        let mut state = self.lock();
        state.is_concluded |= state.picker.is_complete();
        state.is_concluded
    }

    /// Reads a held piece, verified. Blocks.
    ///
    /// # Errors
    /// [`ReadError`]; a damaged piece is fetched again, unless the download is concluded.
    pub fn read(&self, index: PieceIndex, buffer: &mut Vec<u8>) -> Result<(), ReadError> {
        let result = match self.stored() {
            Some(stored) => stored.read(index, buffer),
            None => self.read_settled(index, buffer),
        };
        if let Err(ReadError::Damaged { .. }) = result {
            let mut state = self.lock();
            if !state.is_concluded && state.held.remove(index) {
                tracing::warn!(content = %self.manifest.content(), piece = index.get(), "a piece is damaged and fetched again");
                state.picker.want_again(index);
            }
        }
        result
    }

    /// What was a download is a content of the store now, or nothing.
    fn read_settled(&self, index: PieceIndex, buffer: &mut Vec<u8>) -> Result<(), ReadError> {
        match self.shared.store.open_content(self.manifest.content()) {
            Ok(Some(reader)) => reader.read(index, buffer),
            Ok(None) => Err(ReadError::NotHeld(index.get())),
            Err(error) => Err(ReadError::Io(std::io::Error::other(error))),
        }
    }

    fn is_settling(&self, task: &TaskId) -> bool {
        let state = self.lock();
        let concerned = self.name.task_id() == *task || state.records.iter().any(|record| record.task_id() == *task);
        state.picker.is_complete() && concerned
    }

    fn stored(&self) -> Option<Arc<store::Download>> {
        self.stored.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets go of the store: nothing more is read or written here.
    fn settle(&self) {
        self.stored.write().unwrap_or_else(PoisonError::into_inner).take();
        self.settled.cancel();
    }

    /// Makes `target` share the blocks of what is held so far; false where the file systems cannot.
    pub fn clone_to(&self, target: &std::fs::File) -> bool {
        self.stored().is_some_and(|stored| stored.clone_to(target))
    }

    /// Bytes that came from peers since it began here.
    pub fn received_bytes(&self) -> u64 {
        self.from_peers_bytes.load(Ordering::Relaxed)
    }

    /// Pieces that came from peers since it began here.
    pub fn received_pieces(&self) -> u32 {
        self.lock().givers.values().sum()
    }

    /// Pieces that one peer gave.
    fn pieces_of(&self, peer: &PeerId) -> u32 {
        self.lock().givers.get(peer).copied().unwrap_or(0)
    }

    /// Peers that gave at least one piece.
    pub fn givers(&self) -> u32 {
        self.lock().givers.len() as u32
    }

    /// Parents that are being asked.
    pub fn sources(&self) -> u32 {
        self.lock().picker.parents().count() as u32
    }

    /// Ends the download: the first end counts.
    fn end(&self, result: Result<(), FetchError>) {
        self.progress.send_if_modified(|progress| {
            let first = progress.ended.is_none();
            if first {
                progress.ended = Some(result);
            }
            first
        });
        self.abandoned.cancel();
    }

    /// Takes a parent out of the picker, notes why, and tells people.
    fn lose_parent(&self, parent: PeerId, fault: ParentFault, reason: &str) {
        let mut state = self.lock();
        let result = state.picker.remove_parent(&parent, fault, Instant::now());
        let is_news = result.is_some();
        state.faults.extend(result);
        state.last_fault = format!("{parent}: {reason}");
        drop(state);
        if is_news {
            self.shared.on_lost_parent(self.manifest.content(), parent, fault, reason);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Shared {
    /// Tells people of a parent that a download asks no more.
    fn on_lost_parent(&self, content: ContentId, parent: PeerId, fault: ParentFault, reason: &str) {
        self.metrics.on_lost_parent(parent, fault);
        match fault {
            ParentFault::Lied => tracing::warn!(%content, %parent, reason, "a parent lied and is excluded"),
            ParentFault::NotHeld | ParentFault::Unreachable => {
                tracing::info!(%content, %parent, reason, "a parent is asked no more");
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
