//! Imports and exports as streams: progress while they run, then the result.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use damselfly_transport::{
    local::{Code, Failure, Target, proto},
    trace,
};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::Span;

use super::{STREAM_BACKLOG, late, task, within};
use crate::{
    blocking::blocking,
    export::{ExportOutcome, ExportProgress, ExportRequest, Exporter},
    import::{ImportOutcome, ImportProgress, ImportRequest, Importer},
    permits::Permits,
};

/// How long a call that is late may take to undo what it did.
const TAKE_BACK_WITHIN: Duration = Duration::from_secs(2);
/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

type Sender<T> = mpsc::Sender<Result<T, Status>>;

/// Runs an import; ends it when the client leaves.
pub(super) fn import(
    importer: Importer,
    request: ImportRequest,
    (places, uid): (Permits, u32),
    (limit, span): (Option<Duration>, Span),
) -> mpsc::Receiver<Result<proto::ImportTaskResponse, Status>> {
    let (responses, receiver) = mpsc::channel(STREAM_BACKLOG);
    let progress = Arc::new(ImportProgress::default());
    let total = request.source.metadata().ok().filter(std::fs::Metadata::is_file).map_or(0, |file| file.len());
    let started = Instant::now();
    let work = {
        let progress = Arc::clone(&progress);
        async move {
            let cancelled = progress.cancelled.clone();
            let import = async {
                let entered = cancelled.run_until_cancelled(places.enter(uid)).await;
                let place = entered.unwrap_or_else(|| Err(Failure::new(Code::Interrupted, "interrupted")))?;
                importer.import(request, place, progress).await
            };
            let done = until(limit, &cancelled, import).await?;
            import_result(&done, started)
        }
    };
    let watched = Arc::clone(&progress);
    let tell = move || {
        use proto::import_task_response::Update;
        let bytes_done = watched.bytes.load(Ordering::Relaxed);
        let progress = proto::Progress { bytes_done, bytes_total: total, sources: 0 };
        proto::ImportTaskResponse { update: Some(Update::Progress(progress)) }
    };
    tokio::spawn(async move {
        let ended = run(&responses, trace::traced(span, work), tell).await;
        // Also when it timed out or the client left: a thread may still be reading.
        progress.cancelled.cancel();
        send_end(responses, ended).await;
    });
    receiver
}

fn import_result(done: &ImportOutcome, started: Instant) -> Result<proto::ImportTaskResponse, Failure> {
    use proto::import_task_response::Update;
    let result = proto::ImportResult {
        task: Some(task(&done.record.name, &done.record.binding)?),
        announced: done.announced,
        seconds: started.elapsed().as_secs_f64(),
    };
    Ok(proto::ImportTaskResponse { update: Some(Update::Result(result)) })
}

/// Runs an export; ends it when the client leaves.
pub(super) fn export(
    exporter: Exporter,
    request: ExportRequest,
    output: Option<Target>,
    (places, uid): (Permits, u32),
    (limit, span): (Option<Duration>, Span),
) -> mpsc::Receiver<Result<proto::ExportTaskResponse, Status>> {
    let (responses, receiver) = mpsc::channel(STREAM_BACKLOG);
    let progress = Arc::new(ExportProgress::default());
    let started = Instant::now();
    let work = {
        let progress = Arc::clone(&progress);
        async move {
            let name = request.name.clone();
            let export = async {
                let place = places.enter(uid).await?;
                exporter.export(request, place, progress).await
            };
            let done = within(limit, export).await?;
            if let Some(output) = output {
                blocking(move || output.commit()).await?;
            }
            export_result(&name, &done, started)
        }
    };
    let watched = Arc::clone(&progress);
    let tell = move || {
        use proto::export_task_response::Update;
        let progress = proto::Progress {
            bytes_done: watched.bytes.load(Ordering::Relaxed),
            bytes_total: watched.total.load(Ordering::Relaxed),
            sources: watched.sources.load(Ordering::Relaxed),
        };
        proto::ExportTaskResponse { update: Some(Update::Progress(progress)) }
    };
    tokio::spawn(async move {
        let ended = run(&responses, trace::traced(span, work), tell).await;
        progress.cancelled.store(true, Ordering::Relaxed);
        send_end(responses, ended).await;
    });
    receiver
}

fn export_result(
    name: &damselfly_messages::name::Name,
    done: &ExportOutcome,
    started: Instant,
) -> Result<proto::ExportTaskResponse, Failure> {
    use proto::export_task_response::Update;
    let result = proto::ExportResult {
        task: Some(task(name, &done.binding)?),
        seconds: started.elapsed().as_secs_f64(),
        from_local_bytes: done.from_local_bytes,
        from_peers_bytes: done.from_peers_bytes,
        peers: done.peers,
    };
    Ok(proto::ExportTaskResponse { update: Some(Update::Result(result)) })
}

/// Ends `work` after `limit`, by cancelling it: it gets a moment to take back what it has done.
async fn until<T>(
    limit: Option<Duration>,
    cancelled: &CancellationToken,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let Some(limit) = limit else { return work.await };
    tokio::pin!(work);
    if let Ok(done) = timeout(limit, &mut work).await {
        return done;
    }
    cancelled.cancel();
    // What it did in spite of that counts.
    match timeout(TAKE_BACK_WITHIN, work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(_)) | Err(_) => Err(late(limit)),
    }
}

/// Runs `work` and tells its progress. `None`: the client left, and `work` was dropped.
async fn run<T>(
    responses: &Sender<T>,
    work: impl Future<Output = Result<T, Failure>>,
    tell: impl Fn() -> T,
) -> Option<Result<T, Failure>> {
    tokio::pin!(work);
    let mut tick = interval(PROGRESS_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first tick is at once, and there is no progress yet.
    tick.tick().await;
    loop {
        tokio::select! {
            done = &mut work => return Some(done),
            () = responses.closed() => return None,
            // A slow client misses some.
            _ = tick.tick() => drop(responses.try_send(Ok(tell()))),
        }
    }
}

async fn send_end<T>(responses: Sender<T>, ended: Option<Result<T, Failure>>) {
    if let Some(result) = ended {
        // The client may leave at any time.
        drop(responses.send(result.map_err(Status::from)).await);
    }
}
