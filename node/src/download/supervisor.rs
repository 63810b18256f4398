//! Keeps one download going: parents at work, the scheduler informed, checkpoints written, an end found.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use damselfly_messages::{
    id::TaskId,
    scheduler::{Parent, ParentFault, PeerResult, ReportPeerResult, ReportPieceResult, RequestBody},
};
use damselfly_transport::{span, trace};
use libp2p::PeerId;
use tokio::{
    sync::{OnceCell, mpsc},
    task::{JoinError, JoinSet},
    time::{MissedTickBehavior, interval},
};
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, field::Empty};

use super::{Download, FetchError, State, fetch, fetch::ParentError, have, manifest::CONNECT_WITHIN};
use crate::{blocking::blocking, schedulers::Answer, store::TaskRecord};

/// Without a byte for this long a download ends, whether parents are left or not.
const STALL_MAX: Duration = Duration::from_secs(30);
/// When parents answer that they are busy, it waits this long.
const BUSY_MAX: Duration = Duration::from_secs(600);
/// How often the state is looked at.
const TICK: Duration = Duration::from_millis(100);
/// How often the scheduler hears how it goes.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// How often it hears of a download in which nothing is new: it forgets those of which it hears nothing for a minute.
const REPORT_AT_LEAST_EVERY: Duration = Duration::from_secs(20);
/// How often the scheduler is asked for parents when there are none.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How often what is held is made durable; what came since is fetched again after a crash.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(5);

/// Runs a download to its end and takes it off the list.
pub(super) async fn run(
    download: Arc<Download>,
    slot: Arc<OnceCell<Arc<Download>>>,
    inbox: mpsc::Receiver<Vec<Parent>>,
) {
    let leaving = Leaving { download: Arc::clone(&download), slot };
    let reports = TaskTracker::new();
    let result = Supervisor::new(Arc::clone(&download), reports.clone()).supervise(inbox).await;
    let end = match &result {
        Ok(()) => End::Complete,
        // A length that nobody has proved must not be trusted after a restart.
        Err(FetchError::FalseManifest(_)) => End::Nothing,
        Err(_) if download.lock().unproved.is_some() => End::Nothing,
        Err(_) => End::Partial,
    };
    download.end(result);
    blame_silent(&download);
    let tasks = keep(&download, end).await;
    drop(leaving);
    for task in tasks {
        download.shared.announcer.announce_known(task).await;
    }
    report_faults(&download).await;
    // A scheduler that hears of progress after the end takes it for another download.
    reports.close();
    reports.wait().await;
    report_end(&download, if end == End::Complete { PeerResult::Done } else { PeerResult::Failed }).await;
}

/// Takes a download off the list when dropped: whatever becomes of its supervisor, nobody waits for ever.
struct Leaving {
    download: Arc<Download>,
    slot: Arc<OnceCell<Arc<Download>>>,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        // That is no news, unless the supervisor has failed.
        self.download.end(Err(FetchError::Abandoned));
        self.download.shared.forget(self.download.manifest().content(), &self.slot);
        self.download.settle();
    }
}

/// What is kept of a download that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Complete,
    Partial,
    Nothing,
}

/// Makes the end durable. Returns the tasks that the content is held for now.
async fn keep(download: &Arc<Download>, end: End) -> Vec<TaskId> {
    let Some(stored) = download.stored() else { return Vec::new() };
    let records = std::mem::take(&mut download.lock().records);
    let tasks: Vec<_> = records.iter().map(TaskRecord::task_id).collect();
    let kept = blocking(move || match end {
        End::Complete => stored.finish(records),
        End::Partial => Ok(stored.checkpoint()?),
        End::Nothing => Ok(stored.forget()?),
    });
    match (kept.await, end) {
        (Ok(()), End::Complete) => {
            download.shared.metrics.downloads_completed.inc();
            tasks
        }
        (Ok(()), End::Partial | End::Nothing) => Vec::new(),
        (Err(error), _) => {
            tracing::error!(error = &error as &dyn std::error::Error, "cannot keep what was downloaded");
            Vec::new()
        }
    }
}

/// Names the parents that owe something, when others had to give it. It is no fault that is reported: others may be luckier.
fn blame_silent(download: &Download) {
    let silent = download.lock().picker.silent(Instant::now());
    for parent in silent {
        let (content, fault) = (download.manifest().content(), ParentFault::Unreachable);
        download.shared.on_lost_parent(content, parent, fault, "it did not give what it was asked for");
    }
}

/// Tells of faults that were found in the last moment.
async fn report_faults(download: &Download) {
    let (results, pieces_held) = {
        let mut state = download.lock();
        (std::mem::take(&mut state.faults), state.picker.held())
    };
    if !results.is_empty() {
        let (task, content) = (download.name.task_id(), download.manifest().content());
        let body = RequestBody::ReportPieceResult(ReportPieceResult { task, content, pieces_held, results });
        download.shared.schedulers.report_all(task, body).await;
    }
}

async fn report_end(download: &Download, result: PeerResult) {
    let task = download.name.task_id();
    let body = ReportPeerResult { task, content: download.manifest().content(), result };
    // All that heard of its progress: one that did not hear of the end would count it as under way.
    download.shared.schedulers.report_all(task, RequestBody::ReportPeerResult(body)).await;
}

struct Supervisor {
    download: Arc<Download>,
    fetching: JoinSet<(PeerId, Result<(), ParentError>)>,
    following: JoinSet<()>,
    /// Parents known but not asked: there are enough.
    spare: HashMap<PeerId, Parent>,
    /// Reports under way.
    reports: TaskTracker,
    /// When it was looked last whether there is something to report.
    last_report: Instant,
    last_sent: Instant,
    last_ask: Instant,
    last_checkpoint: Instant,
    held_at_checkpoint: u32,
    reported_held: u32,
}

impl Supervisor {
    fn new(download: Arc<Download>, reports: TaskTracker) -> Self {
        let now = Instant::now();
        let held = download.lock().picker.held();
        Self {
            download,
            fetching: JoinSet::new(),
            following: JoinSet::new(),
            spare: HashMap::new(),
            reports,
            last_report: now,
            last_sent: now,
            last_ask: now,
            last_checkpoint: now,
            held_at_checkpoint: held,
            reported_held: held,
        }
    }

    async fn supervise(mut self, mut inbox: mpsc::Receiver<Vec<Parent>>) -> Result<(), FetchError> {
        let mut progress = self.download.progress();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if let Some(ended) = progress.borrow_and_update().ended.clone() {
                return ended;
            }
            if self.download.conclude() {
                return Ok(());
            }
            tokio::select! {
                Some(parents) = inbox.recv() => self.on_parents(parents),
                Some(ended) = self.fetching.join_next(), if !self.fetching.is_empty() => self.on_parent_ended(ended),
                Some(_) = self.following.join_next(), if !self.following.is_empty() => {}
                _ = progress.changed() => {}
                _ = self.download.abandoned.cancelled() => return self.outcome(),
                _ = tick.tick() => self.on_tick(Instant::now())?,
            }
        }
    }

    /// What an abandoned download came to: it may have been abandoned because it is complete.
    fn outcome(&self) -> Result<(), FetchError> {
        if let Some(ended) = self.download.progress.borrow().ended.clone() {
            return ended;
        }
        if self.download.conclude() { Ok(()) } else { Err(FetchError::Abandoned) }
    }

    fn on_parents(&mut self, parents: Vec<Parent>) {
        for parent in parents {
            if parent.peer != self.download.shared.network.peer_id() {
                self.download.lock().addresses.insert(parent.peer, parent.addresses.clone());
                self.spare.insert(parent.peer, parent);
            }
        }
        self.take_up_parents();
    }

    /// Puts spare parents to work, complete ones first, as long as there are too few.
    fn take_up_parents(&mut self) {
        let most = self.download.shared.settings.get().concurrent_parents as usize;
        let mut spare: Vec<_> = self.spare.values().cloned().collect();
        spare.sort_by_key(|parent| (!parent.seed, !parent.complete));
        for parent in spare {
            // Those that are asked may have nothing: one that has everything is never too many then.
            let is_needed = parent.complete && !self.download.lock().picker.has_sources();
            if self.fetching.len() >= most && !is_needed {
                continue;
            }
            self.spare.remove(&parent.peer);
            if self.download.lock().picker.add_parent(parent.peer, parent.complete, Instant::now()) {
                self.start(parent);
            }
        }
    }

    fn start(&mut self, parent: Parent) {
        let download = Arc::clone(&self.download);
        if !parent.complete {
            let (download, parent) = (Arc::clone(&download), parent.clone());
            self.following.spawn(async move {
                let connected = connect(&download, &parent).await;
                let followed = match connected {
                    Ok(()) => have::follow(Arc::clone(&download), parent.peer).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = followed {
                    let fault = error.fault().unwrap_or(ParentFault::NotHeld);
                    download.lose_parent(parent.peer, fault, &format!("no news of what it has: {error}"));
                }
            });
        }
        let peer = parent.peer;
        let span = trace::when_traced(
            || span!("client", "fetch from a parent", parent = %peer, complete = parent.complete, pieces = Empty),
        );
        let (outer, fetched) = (span.clone(), Arc::clone(&download));
        let work = trace::traced(span, async move {
            connect(&download, &parent).await?;
            fetch::run(download, peer).await
        });
        self.fetching.spawn(async move {
            let result = work.await;
            outer.record("pieces", fetched.pieces_of(&peer));
            (peer, result)
        });
    }

    fn on_parent_ended(&mut self, ended: Result<(PeerId, Result<(), ParentError>), JoinError>) {
        // A task that panicked has left its parent in the picker; the pieces it owes become late.
        let Ok((peer, result)) = ended else { return };
        if let Err(error) = result {
            match error.fault() {
                Some(fault) => self.download.lose_parent(peer, fault, &error.to_string()),
                None => {
                    // Nobody is to blame, so nothing is reported.
                    let _ = self.download.lock().picker.remove_parent(&peer, ParentFault::NotHeld, Instant::now());
                }
            }
        }
        self.take_up_parents();
    }

    fn on_tick(&mut self, now: Instant) -> Result<(), FetchError> {
        let (has_sources, ended) = {
            let state = self.download.lock();
            (state.picker.has_sources(), stalled(&state, now))
        };
        if let Some(error) = ended {
            return Err(error);
        }
        if !has_sources && now - self.last_ask >= ASK_EVERY {
            self.last_ask = now;
            self.ask_for_parents();
        }
        self.report(now);
        self.checkpoint(now);
        Ok(())
    }

    fn ask_for_parents(&self) {
        let download = Arc::clone(&self.download);
        let ask = async move {
            let exclude = download.lock().picker.excluded().iter().copied().take(64).collect();
            let Ok(Answer::Found(candidates)) = download.shared.schedulers.register(&download.name, exclude).await
            else {
                return;
            };
            let content = download.manifest().content();
            let ours = candidates.into_iter().filter(|candidate| candidate.binding.content == content);
            ours.for_each(|candidate| download.add_parents(candidate.parents));
        };
        tokio::spawn(ask.in_current_span());
    }

    /// Tells the scheduler about parents, and early about the first pieces: others may fetch them here.
    fn report(&mut self, now: Instant) {
        let body = {
            let mut state = self.download.lock();
            let held = state.picker.held();
            let first = self.reported_held == 0 && held > 0;
            if state.faults.is_empty() && !first && now - self.last_report < REPORT_EVERY {
                return;
            }
            self.last_report = now;
            let mut results = std::mem::take(&mut state.faults);
            results.extend(state.picker.take_results());
            results.truncate(damselfly_messages::scheduler::PARENTS_MAX);
            if results.is_empty() && held == self.reported_held && now - self.last_sent < REPORT_AT_LEAST_EVERY {
                return;
            }
            self.last_sent = now;
            self.reported_held = held;
            ReportPieceResult {
                task: self.download.name.task_id(),
                content: self.download.manifest().content(),
                pieces_held: held,
                results,
            }
        };
        let schedulers = self.download.shared.schedulers.clone();
        let report = async move { schedulers.report_all(body.task, RequestBody::ReportPieceResult(body)).await };
        self.reports.spawn(report);
    }

    fn checkpoint(&mut self, now: Instant) {
        let (held, unproved) = {
            let state = self.download.lock();
            (state.picker.held(), state.unproved.is_some())
        };
        if unproved || now - self.last_checkpoint < CHECKPOINT_EVERY || held == self.held_at_checkpoint {
            return;
        }
        self.last_checkpoint = now;
        self.held_at_checkpoint = held;
        let download = Arc::clone(&self.download);
        tokio::task::spawn_blocking(move || {
            if let Some(Err(error)) = download.stored().map(|stored| stored.checkpoint()) {
                download.end(Err(error.into()));
            }
        });
    }
}

/// Why a download ends that has got nothing for too long.
fn stalled(state: &State, now: Instant) -> Option<FetchError> {
    let since_progress = now.saturating_duration_since(state.picker.last_progress());
    let has_sources = state.picker.has_sources();
    let is_busy = state.picker.last_busy().is_some_and(|busy| now.saturating_duration_since(busy) < STALL_MAX);
    let most = if has_sources && is_busy { BUSY_MAX } else { STALL_MAX };
    if since_progress < most {
        return None;
    }
    Some(match (has_sources, is_busy) {
        (true, true) => FetchError::Stalled(most.as_secs()),
        // They are connected, and as good as gone.
        (true, false) => {
            FetchError::NoSource(format!("none of its holders has sent anything for {} s", most.as_secs()))
        }
        (false, _) => FetchError::NoSource(state.last_fault.clone()),
    })
}

async fn connect(download: &Download, parent: &Parent) -> Result<(), ParentError> {
    let connected = download.shared.network.connect_host(parent.peer, parent.addresses.clone(), CONNECT_WITHIN).await;
    connected.map_err(|error| ParentError::Unreachable(error.to_string()))
}
