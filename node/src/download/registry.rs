//! All downloads of the daemon: joined, begun, resumed, and let go.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicU64, AtomicUsize},
    },
    time::{Duration, Instant},
};

use damselfly_messages::{
    id::{ContentId, TaskId},
    manifest::Manifest,
    name::Name,
};
use damselfly_transport::{network::Network, span, trace};
use tokio::sync::{Notify, OnceCell, Semaphore, broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::{
    Download, Downloads, FetchError, Interest, Progress, Shared, State, Wanted, lock, manifest::First,
    piece_picker::PiecePicker, pool, supervisor,
};
use crate::{
    announcer::Announcer,
    blocking::blocking,
    buffers::Buffers,
    limiter::Limiter,
    metrics::Metrics,
    schedulers::Schedulers,
    settings::HostSettings,
    store::{self, ContentState, DownloadError, Store},
};

/// Memory for pieces that are arriving or being verified and written.
const BUFFER_BYTES: usize = 96 << 20;
/// How long all parents together may take to give a manifest; each is given up when it is silent. The longest one takes 40 s
/// at 200 KiB/s.
const MANIFEST_WITHIN: Duration = Duration::from_secs(600);
/// How long an export waits for a download of the same content that has ended.
const ABANDONED_WITHIN: Duration = Duration::from_secs(30);
/// How long a download that has ended may take to leave the store.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);
/// How often that is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// Parents that were learned and wait to be taken up.
const NEW_PARENTS_MAX: usize = 64;
/// Pieces gained that a slow listener may lag behind.
const GAINED_BACKLOG: usize = 4096;
/// Names that are remembered for partial copies; of those beyond, only the content ID is known.
const NAMES_MAX: usize = 4096;

impl Downloads {
    /// Downloads into `store`, over `network`.
    pub fn new(
        store: Store,
        network: Network,
        schedulers: Schedulers,
        announcer: Announcer,
        (limiter, settings): (Limiter, HostSettings),
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
                settings,
                metrics,
                buffers: Buffers::new(BUFFER_BYTES),
                pool: pool::Pool::default(),
                workers: Semaphore::new(cores.max(2)),
                active: Mutex::default(),
                names: Mutex::default(),
            }),
        }
    }

    /// Joins the download of a content, or begins or resumes it. `None` when the content is complete already.
    ///
    /// # Errors
    /// [`FetchError`]: no parent gave a manifest, or the store cannot take the content.
    pub async fn want(&self, wanted: Wanted) -> Result<Option<Interest>, FetchError> {
        let content = wanted.binding.content;
        let since = Instant::now();
        loop {
            if matches!(self.shared.store.content(content), Some(ContentState::Complete { .. })) {
                return Ok(None);
            }
            let slot = Arc::clone(lock(&self.shared.active).entry(content).or_default());
            let begun = slot.get_or_try_init(|| self.begin(&wanted, &slot)).await;
            let download = match begun {
                Ok(download) => Arc::clone(download),
                // It becomes complete in another way, or one that has ended has yet to leave the store.
                Err(FetchError::Abandoned) if since.elapsed() < ABANDONED_WITHIN => continue,
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

    /// The name for which a content was last downloaded since the daemon began.
    pub fn name_of(&self, content: ContentId) -> Option<Name> {
        lock(&self.shared.names).get(&content).cloned()
    }

    /// How many are under way.
    pub fn count(&self) -> usize {
        lock(&self.shared.active).len()
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
        let First { manifest, data_bytes, author: unproved, lost } =
            first.map_err(|_| FetchError::Stalled(MANIFEST_WITHIN.as_secs()))??;
        self.shared.note_name(manifest.content(), &wanted.name);
        let stored = self.shared.begin_stored(&manifest, data_bytes).await?;
        let held = stored.held();
        let layout = manifest.layout();
        let start = if wanted.sequential { 0 } else { rand::random() };
        let missing = layout.indices().filter(|index| !held.contains(*index));
        let mut picker = PiecePicker::new(layout, missing, start, Instant::now());
        if let Some(author) = unproved {
            picker.prove_first_by(author);
        }
        // Only parents can be lost.
        let lost = lost.into_iter().filter_map(|(peer, fault)| {
            picker.add_parent(peer, true, Instant::now());
            picker.remove_parent(&peer, fault, Instant::now())
        });
        let faults = lost.collect();
        let (new_parents, inbox) = mpsc::channel(NEW_PARENTS_MAX);
        let download = Arc::new(Download {
            shared: Arc::clone(&self.shared),
            name: wanted.name.clone(),
            progress: watch::Sender::new(Progress { held: picker.held(), ended: None }),
            state: Mutex::new(State {
                picker,
                held,
                sinks: Vec::new(),
                records: Vec::new(),
                addresses: HashMap::new(),
                faults,
                givers: HashMap::new(),
                last_fault: String::new(),
                unproved,
                limiter: wanted.limiter.clone(),
                is_concluded: false,
            }),
            manifest,
            data_bytes: stored.data_bytes(),
            stored: RwLock::new(Some(Arc::new(stored))),
            gained: broadcast::Sender::new(GAINED_BACKLOG),
            new_parents,
            work: Notify::new(),
            interest: AtomicUsize::new(0),
            abandoned: CancellationToken::new(),
            settled: CancellationToken::new(),
            from_peers_bytes: AtomicU64::new(0),
        });
        let content = download.manifest.content();
        // Others may join it: it is a part of what began it.
        let span = trace::when_traced(|| span!("internal", "download", %content, bytes = layout.content_bytes()));
        tokio::spawn(supervisor::run(Arc::clone(&download), Arc::clone(slot), inbox).instrument(span));
        Ok(download)
    }
}

impl Shared {
    fn note_name(&self, content: ContentId, name: &Name) {
        let mut names = lock(&self.names);
        if names.len() >= NAMES_MAX {
            let partial = |id: &ContentId| matches!(self.store.content(*id), Some(ContentState::Partial { .. }));
            names.retain(|id, _| partial(id));
        }
        if names.len() < NAMES_MAX {
            names.insert(content, name.clone());
        }
    }

    /// Begins the download in the store; one that has just ended may take a moment to leave it.
    async fn begin_stored(&self, manifest: &Manifest, data_bytes: u64) -> Result<store::Download, FetchError> {
        let deadline = Instant::now() + LEAVE_WITHIN;
        loop {
            let (store, manifest) = (self.store.clone(), manifest.clone());
            match blocking(move || store.begin_download_with_holes(&manifest, data_bytes)).await {
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
    pub(super) fn forget(&self, content: ContentId, slot: &Arc<OnceCell<Arc<Download>>>) {
        let mut active = lock(&self.active);
        if active.get(&content).is_some_and(|other| Arc::ptr_eq(other, slot)) {
            active.remove(&content);
        }
    }
}
