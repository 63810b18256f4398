//! Export: a task's content into a file or a pipe of a user's, from the local copy or from peers.

use std::{
    fs::File,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use damselfly_messages::{
    id::ContentId,
    name::{Name, NameDigest},
    piece::PieceLayout,
    record::{Binding, UnixMillis},
    scheduler::Candidate,
};
use damselfly_transport::local::{Code, Failure, Kind};
use libp2p::PeerId;

use crate::{
    announcer::Announcer,
    blocking::blocking,
    download::{Downloads, FetchError, Sink, Wanted},
    failure::{IntoFailure as _, OrFailure as _, not_found},
    limiter::{Limiter, Rate},
    metrics::{LOCAL, Metrics, PEERS},
    permits::Permit,
    schedulers::{Answer, Schedulers},
    settings::HostSettings,
    store::{ContentState, ReadError, Reader, Store, TaskRecord, TaskState},
};

mod fill;
mod local;
mod pipe;
mod remote;
mod target;
#[cfg(test)]
mod tests;

use target::Target;

/// Exports tasks; cheap to clone.
#[derive(Clone)]
pub struct Exporter {
    /// Where from, first.
    pub store: Store,
    /// Who knows the holders.
    pub schedulers: Schedulers,
    /// Where from, else.
    pub downloads: Downloads,
    /// Who tells that this host is a holder now.
    pub announcer: Announcer,
    /// What is permitted.
    pub settings: HostSettings,
    /// Counts.
    pub metrics: Metrics,
}

/// What to export.
#[derive(Debug)]
pub struct ExportRequest {
    /// The task.
    pub name: Name,
    /// Only the local copy.
    pub local: bool,
    /// An empty file, filled from its beginning, or a pipe.
    pub target: File,
    /// Which of the two.
    pub kind: Kind,
    /// How fast.
    pub rate: Option<Rate>,
}

/// An export that is done.
#[derive(Debug, Clone)]
pub struct ExportOutcome {
    /// What the task is bound to.
    pub binding: Binding,
    /// Bytes that were here before.
    pub from_local_bytes: u64,
    /// Bytes that peers gave.
    pub from_peers_bytes: u64,
    /// Pieces that peers gave.
    pub from_peers_pieces: u32,
    /// Peers that gave at least one piece.
    pub peers: u32,
}

/// How far an export is; shared with who watches it.
#[derive(Debug, Default)]
pub struct ExportProgress {
    /// Bytes in the output.
    pub bytes: AtomicU64,
    /// All of them; 0: not known yet.
    pub total: AtomicU64,
    /// Peers that are being asked.
    pub sources: AtomicU32,
    /// Set by who no longer wants it.
    pub cancelled: AtomicBool,
}

impl Exporter {
    /// Exports; returns when every byte is in the target. Only verified bytes get there. `place` is kept as long as
    /// anything works for it.
    ///
    /// # Errors
    /// [`Failure`] for the user; the target may hold a part.
    pub async fn export(
        &self,
        request: ExportRequest,
        place: Permit,
        progress: Arc<ExportProgress>,
    ) -> Result<ExportOutcome, Failure> {
        let ExportRequest { name, local, target, kind, rate } = request;
        let target = Target::new(target, kind, Limiter::new(rate), progress, place);
        let began = Instant::now();
        let result = self.try_export(&name, local, &target).await;
        self.metrics.export_seconds.observe(began.elapsed().as_secs_f64());
        match &result {
            Ok(outcome) => {
                self.count(outcome);
                self.store.touch(&name.task_id(), self.announcer.clock().now());
            }
            Err(_) => drop(self.metrics.export_failures.inc()),
        }
        result
    }

    fn count(&self, outcome: &ExportOutcome) {
        let Metrics { exports, exported_bytes, exported_pieces, .. } = &self.metrics;
        exports.inc();
        let bytes = outcome.from_local_bytes + outcome.from_peers_bytes;
        // The length is that of a content, so it has a layout.
        let pieces = PieceLayout::new(bytes).map_or(0, |layout| layout.pieces());
        let from_peers = outcome.from_peers_pieces.min(pieces);
        exported_bytes.of(LOCAL).inc_by(outcome.from_local_bytes);
        exported_bytes.of(PEERS).inc_by(outcome.from_peers_bytes);
        exported_pieces.of(LOCAL).inc_by(u64::from(pieces - from_peers));
        exported_pieces.of(PEERS).inc_by(u64::from(from_peers));
    }

    async fn try_export(&self, name: &Name, local: bool, target: &Target) -> Result<ExportOutcome, Failure> {
        self.settings.permit_tag(name.tag())?;
        let record = self.store.task(&name.task_id()).filter(is_usable);
        let damaged = match &record {
            Some(record) => match self.export_copy(record.binding, target).await {
                Some(Ok(outcome)) => return Ok(outcome),
                Some(Err(ReadFailed::Damaged(failure))) => Some(failure),
                Some(Err(ReadFailed::Other(failure))) => return Err(failure),
                None => None,
            },
            None => None,
        };
        if local {
            return Err(damaged.unwrap_or_else(|| {
                not_found("there is no local copy").with_hint("export without --local to ask the other hosts")
            }));
        }
        let fetched = self.fetch(name, target).await;
        match (fetched, damaged) {
            // That the local copy is damaged is why anybody was asked.
            (Err(error), Some(damaged)) => Err(nor_elsewhere(damaged, error)),
            (fetched, _) => fetched,
        }
    }
}

/// The local copy is damaged, and what came of asking others.
fn nor_elsewhere(damaged: Failure, asked: Failure) -> Failure {
    let message = format!("{}; and {}", damaged.message, asked.message);
    match asked.code {
        // It is not unknown: it is here, and of no use.
        Code::NotFound => {
            Failure::new(damaged.code, message).with_hint("import the file again where it is, or delete the task")
        }
        _ => Failure { message, ..asked },
    }
}

/// Why the local copy was not exported.
enum ReadFailed {
    Damaged(Failure),
    Other(Failure),
}

/// Whether a record may be served under its name.
fn is_usable(record: &TaskRecord) -> bool {
    matches!(record.state, TaskState::Queued | TaskState::Acknowledged)
}
