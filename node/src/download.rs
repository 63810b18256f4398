//! Downloads: one per content, however many exports ask for it.
//!
//! [`plan`] decides, the supervisor keeps parents at work, [`fetch`] moves pieces from one parent. A piece is verified,
//! written to the store and to every [`sink`], and from then on served to others.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use damselfly_messages::{
    id::{ContentId, TaskId},
    manifest::Manifest,
    name::Name,
    piece::PieceIndex,
    record::Binding,
    scheduler::{Parent, ParentFault, ParentResult},
};
use damselfly_transport::network::Network;
use libp2p::PeerId;
use tokio::sync::{Notify, OnceCell, Semaphore, broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    announcer::Announcer,
    blocking::blocking,
    buffers::{Buffer, Buffers},
    limiter::Limiter,
    metrics::Metrics,
    schedulers::Schedulers,
    store::{self, ContentState, DownloadError, PieceMap, ReadError, Store, StoreError, TaskRecord, VerifiedPiece},
};

mod fetch;
mod have;
mod manifest;
mod plan;
mod pool;
mod sink;
mod supervisor;

use plan::Plan;
pub use sink::Sink;

/// Memory for pieces that are arriving or being verified and written.
const BUFFER_BYTES: usize = 96 << 20;
/// Parents that were learned and wait to be taken up.
const NEW_PARENTS_MAX: usize = 64;
/// How long all parents together may take to give a manifest.
const MANIFEST_WITHIN: Duration = Duration::from_secs(30);
/// How long a download that has ended may take to leave the store.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);
/// How often that is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// Pieces gained that a slow listener may lag behind.
const GAINED_BACKLOG: usize = 4096;

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
    metrics: Metrics,
    buffers: Buffers,
    pool: pool::Pool,
    /// How many pieces are verified and written at a time.
    workers: Semaphore,
    active: Mutex<HashMap<ContentId, Arc<OnceCell<Arc<Download>>>>>,
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
    /// Parents are left, but no verified byte has come for too long.
    #[error("no data for {0} s")]
    Stalled(u64),
    /// The manifest turned out to be wrong after it was accepted; it was set aside with who gave it.
    #[error("the manifest that {0} gave was wrong")]
    FalseManifest(PeerId),
    /// The disk is full, or fuller than allowed.
    #[error("no space left for the content")]
    NoSpace,
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
        if error.is_no_space() { Self::NoSpace } else { Self::Store(error.to_string()) }
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
    plan: Plan,
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
        if self.download.interest.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.download.abandoned.cancel();
        }
    }
}

impl Downloads {
    /// Downloads into `store`, over `network`.
    pub fn new(
        store: Store,
        network: Network,
        schedulers: Schedulers,
        announcer: Announcer,
        limiter: Limiter,
        metrics: Metrics,
    ) -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            shared: Arc::new(Shared {
                store,
                network,
                schedulers,
                announcer,
                limiter,
                metrics,
                buffers: Buffers::new(BUFFER_BYTES),
                pool: pool::Pool::default(),
                workers: Semaphore::new(cores.max(2)),
                active: Mutex::default(),
            }),
        }
    }

    /// Joins the download of a content, or begins or resumes it. `None` when the content is complete already.
    ///
    /// # Errors
    /// [`FetchError`]: no parent gave a manifest, or the store cannot take the content.
    pub async fn want(&self, wanted: Wanted) -> Result<Option<Interest>, FetchError> {
        let content = wanted.binding.content;
        loop {
            if matches!(self.shared.store.content(content), Some(ContentState::Complete { .. })) {
                return Ok(None);
            }
            let slot = Arc::clone(lock(&self.shared.active).entry(content).or_default());
            let begun = slot.get_or_try_init(|| self.begin(&wanted, &slot)).await;
            let download = match begun {
                Ok(download) => Arc::clone(download),
                Err(FetchError::Abandoned) => continue,
                Err(error) => {
                    self.shared.forget(content, &slot);
                    return Err(error);
                }
            };
            if let Some(interest) = download.join(&wanted) {
                return Ok(Some(interest));
            }
            // It has ended. What became of it is known when it has settled; then the content is complete, or it begins anew.
            download.settled.cancelled().await;
        }
    }

    /// A download under way.
    pub fn get(&self, content: ContentId) -> Option<Arc<Download>> {
        lock(&self.shared.active).get(&content).and_then(|slot| slot.get().cloned())
    }

    /// Waits until downloads for the task that have every byte are durable and known: exports do not wait for that.
    pub async fn settled(&self, task: &TaskId) {
        let downloads: Vec<_> = lock(&self.shared.active).values().filter_map(|slot| slot.get().cloned()).collect();
        for download in downloads {
            if download.is_settling(task) {
                download.settled.cancelled().await;
            }
        }
    }

    async fn begin(&self, wanted: &Wanted, slot: &Arc<OnceCell<Arc<Download>>>) -> Result<Arc<Download>, FetchError> {
        let first = tokio::time::timeout(MANIFEST_WITHIN, self.shared.manifest_for(wanted)).await;
        let (manifest, unproved) = first.map_err(|_| FetchError::Stalled(MANIFEST_WITHIN.as_secs()))??;
        let stored = self.shared.begin_stored(&manifest).await?;
        let held = stored.held();
        let layout = manifest.layout();
        let start = if wanted.sequential { 0 } else { rand::random() };
        let missing = layout.indices().filter(|index| !held.contains(*index));
        let mut plan = Plan::new(layout, missing, start, Instant::now());
        if let Some(author) = unproved {
            plan.prove_first_by(author);
        }
        let (new_parents, inbox) = mpsc::channel(NEW_PARENTS_MAX);
        let download = Arc::new(Download {
            shared: Arc::clone(&self.shared),
            name: wanted.name.clone(),
            progress: watch::Sender::new(Progress { held: plan.held(), ended: None }),
            state: Mutex::new(State {
                plan,
                held,
                sinks: Vec::new(),
                records: Vec::new(),
                addresses: HashMap::new(),
                faults: Vec::new(),
                givers: HashMap::new(),
                last_fault: String::new(),
                unproved,
                limiter: wanted.limiter.clone(),
            }),
            manifest,
            stored: RwLock::new(Some(Arc::new(stored))),
            gained: broadcast::Sender::new(GAINED_BACKLOG),
            new_parents,
            work: Notify::new(),
            interest: AtomicUsize::new(0),
            abandoned: CancellationToken::new(),
            settled: CancellationToken::new(),
            from_peers_bytes: AtomicU64::new(0),
        });
        tokio::spawn(supervisor::run(Arc::clone(&download), Arc::clone(slot), inbox));
        Ok(download)
    }
}

impl Shared {
    /// Begins the download in the store; one that has just ended may take a moment to leave it.
    async fn begin_stored(&self, manifest: &Manifest) -> Result<store::Download, FetchError> {
        let deadline = Instant::now() + LEAVE_WITHIN;
        loop {
            let (store, manifest) = (self.store.clone(), manifest.clone());
            match blocking(move || store.begin_download(&manifest)).await {
                Ok(stored) => return Ok(stored),
                Err(DownloadError::Store(error)) => return Err(error.into()),
                Err(DownloadError::AlreadyUnderWay) if Instant::now() < deadline => {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                Err(DownloadError::AlreadyUnderWay | DownloadError::AlreadyComplete) => {
                    return Err(FetchError::Abandoned);
                }
            }
        }
    }

    /// Takes a download off the list, unless another one of the content has taken its place.
    fn forget(&self, content: ContentId, slot: &Arc<OnceCell<Arc<Download>>>) {
        let mut active = lock(&self.active);
        if active.get(&content).is_some_and(|other| Arc::ptr_eq(other, slot)) {
            active.remove(&content);
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

    /// How far it is, and whether it has ended.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
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

    /// Reads a held piece, verified. Blocks.
    ///
    /// # Errors
    /// [`ReadError`]; a damaged piece is fetched again.
    pub fn read(&self, index: PieceIndex, buffer: &mut Vec<u8>) -> Result<(), ReadError> {
        let result = match self.stored() {
            Some(stored) => stored.read(index, buffer),
            None => self.read_settled(index, buffer),
        };
        if let Err(ReadError::Damaged { .. }) = result {
            let mut state = self.lock();
            if state.held.remove(index) {
                tracing::warn!(content = %self.manifest.content(), piece = index.get(), "a piece is damaged and fetched again");
                state.plan.want_again(index);
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
        state.plan.is_complete() && concerned
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

    /// Peers that gave at least one piece.
    pub fn givers(&self) -> u32 {
        self.lock().givers.len() as u32
    }

    /// Parents that are being asked.
    pub fn sources(&self) -> u32 {
        self.lock().plan.parents().count() as u32
    }

    /// Verifies a piece from `giver`, writes it everywhere and counts it.
    ///
    /// # Errors
    /// [`FetchError`] when the store cannot take it. A piece that does not verify is the giver's fault and excludes it.
    async fn take_piece(self: &Arc<Self>, giver: PeerId, index: PieceIndex, buffer: Buffer) -> Result<(), FetchError> {
        let _worker = self.shared.workers.acquire().await;
        let this = Arc::clone(self);
        blocking(move || {
            let Some(piece) = VerifiedPiece::verify(&this.manifest, index, &buffer) else {
                this.on_false_piece(giver, index);
                return Ok(());
            };
            let Some(stored) = this.stored() else { return Ok(()) };
            stored.write(piece)?;
            let sinks = this.on_true_piece(giver, index, buffer.len() as u64);
            sinks.iter().for_each(|sink| sink.write(index, &buffer));
            Ok(())
        })
        .await
    }

    /// Counts a piece that is in the store now. Returns the sinks that are to get it.
    fn on_true_piece(&self, giver: PeerId, index: PieceIndex, bytes: u64) -> Vec<Arc<Sink>> {
        let mut state = self.lock();
        if !state.plan.on_piece(&giver, index, Instant::now()) {
            self.shared.metrics.duplicate_bytes.inc_by(bytes);
            return Vec::new();
        }
        state.held.insert(index);
        *state.givers.entry(giver).or_default() += 1;
        if index.get() + 1 == self.manifest.layout().pieces() {
            state.unproved = None;
        }
        self.shared.metrics.received_bytes.inc_by(bytes);
        self.from_peers_bytes.fetch_add(bytes, Ordering::Relaxed);
        // Nobody may listen.
        let _listeners = self.gained.send(index);
        let held = state.plan.held();
        let sinks = state.sinks.clone();
        drop(state);
        // The parent may be asked for more now.
        self.work.notify_waiters();
        // Pieces may come here in another order than they were counted.
        self.progress.send_modify(|progress| progress.held = progress.held.max(held));
        sinks
    }

    fn on_false_piece(&self, giver: PeerId, index: PieceIndex) {
        let content = self.manifest.content();
        tracing::warn!(%content, piece = index.get(), parent = %giver, "a parent sent a piece that does not verify; it is excluded");
        self.shared.metrics.verification_failures.inc();
        if !self.is_about_length(index) {
            lose_parent(&mut self.lock(), giver, ParentFault::Lied, "it sent bytes that do not verify");
        }
    }

    /// The parent sent a piece that is longer or shorter than the manifest says. Returns whether the manifest is at
    /// fault, and not the parent.
    fn on_other_length(&self, parent: PeerId, index: PieceIndex) -> bool {
        let ours = self.is_about_length(index);
        if ours {
            tracing::warn!(content = %self.manifest.content(), %parent, "a parent knows the content with another length");
        }
        ours
    }

    /// When the last piece does not fit before one ever did, the length is false, and who gave the manifest lied: ends
    /// the download with that. Honest parents are not blamed.
    fn is_about_length(&self, index: PieceIndex) -> bool {
        let last = index.get() + 1 == self.manifest.layout().pieces();
        let author = self.lock().unproved.filter(|_| last);
        if let Some(author) = author {
            self.end(Err(FetchError::FalseManifest(author)));
        }
        author.is_some()
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

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// Takes a parent out of the plan and notes why.
fn lose_parent(state: &mut State, parent: PeerId, fault: ParentFault, reason: &str) {
    if let Some(result) = state.plan.remove_parent(&parent, fault, Instant::now()) {
        state.faults.push(result);
    }
    state.last_fault = format!("{parent}: {reason}");
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
