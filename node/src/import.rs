//! Import: bytes of a user's become a task of the cluster.
//!
//! Read and hashed in one pass, checked against a name that is a digest, made durable as *queued*, announced, and then
//! *acknowledged*: only then the user hears that it is done.

use std::{
    fs::File,
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use damselfly_messages::{
    manifest::Manifest,
    name::{Name, NameDigest},
    record::{Binding, UnixMillis},
};
use damselfly_transport::local::{Code, Failure};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::{
    announcer::Announcer,
    blocking::blocking,
    failure::{OrFailure as _, conflict},
    limiter::{Limiter, Rate},
    metrics::Metrics,
    permits::Permit,
    settings::HostSettings,
    store::{Imported, Store, TaskRecord, TaskState},
};

mod naming;
#[cfg(test)]
mod tests;
use naming::Naming;

/// A client that is interrupted may close its pipe just before it says so: its end counts only after this time.
const PIPE_GRACE: Duration = Duration::from_millis(100);
/// How often an import waits for another one of the same task that is being announced.
const TURN: Duration = Duration::from_millis(20);

/// Imports files; cheap to clone.
#[derive(Clone)]
pub struct Importer {
    /// Where to.
    pub store: Store,
    /// Who tells the owners.
    pub announcer: Announcer,
    /// What is permitted.
    pub settings: HostSettings,
    /// Counts.
    pub metrics: Metrics,
}

/// What to import.
#[derive(Debug)]
pub struct ImportRequest {
    /// The cid; `None`: the content ID.
    pub cid: Option<String>,
    /// The tag.
    pub tag: String,
    /// A regular file, read from its start, or a pipe.
    pub source: File,
    /// How long the entry stays; `None`: for ever.
    pub ttl: Option<Duration>,
    /// Whether it is never evicted.
    pub pin: bool,
    /// How fast to read.
    pub rate: Option<Rate>,
}

/// An import that is done.
#[derive(Debug, Clone)]
pub struct ImportOutcome {
    /// The record as it is kept.
    pub record: TaskRecord,
    /// The owners have acknowledged it; not so on a host that belongs to no cluster.
    pub announced: bool,
}

/// How far an import is; shared with who watches it.
#[derive(Debug, Default)]
pub struct ImportProgress {
    /// Bytes read.
    pub bytes: AtomicU64,
    /// Set by who no longer wants it.
    pub cancelled: CancellationToken,
}

impl Importer {
    /// Imports, and returns when the content is durable here and acknowledged by every reachable owner.
    ///
    /// # Errors
    /// [`Failure`] for the user. [`Code::NoSource`]: the content is kept and its announcement queued. All others:
    /// nothing has changed.
    ///
    /// One that is cancelled or dropped before it is acknowledged leaves nothing behind. `place` is kept as long as
    /// anything works for it.
    pub async fn import(
        &self,
        request: ImportRequest,
        place: Permit,
        progress: Arc<ImportProgress>,
    ) -> Result<ImportOutcome, Failure> {
        // Also when the caller drops this.
        let _gone = progress.cancelled.clone().drop_guard();
        let began = Instant::now();
        let result = self.try_import(request, place, progress).await;
        self.metrics.import_seconds.observe(began.elapsed().as_secs_f64());
        match &result {
            Ok(outcome) => {
                self.metrics.imports.inc();
                self.metrics.imported_bytes.inc_by(outcome.record.binding.content_bytes);
            }
            Err(_) => drop(self.metrics.import_failures.inc()),
        }
        result
    }

    async fn try_import(
        &self,
        request: ImportRequest,
        place: Permit,
        progress: Arc<ImportProgress>,
    ) -> Result<ImportOutcome, Failure> {
        let ImportRequest { cid, tag, source, ttl, pin, rate } = request;
        let named = cid.as_deref().map(|cid| Name::parse(cid, &tag)).transpose().or_failure()?;
        // A tag that is too long is refused before anything is read.
        Name::parse("x", &tag).or_failure()?;
        self.settings.permit_tag(&tag)?;
        let digest = named.as_ref().and_then(Name::digest);
        let is_pipe = source.metadata().is_ok_and(|metadata| !metadata.is_file());
        let imported = self.read(source, digest, rate, place.clone(), Arc::clone(&progress)).await?;
        let name = match named {
            Some(name) => name,
            None => Name::of_content(imported.manifest().content(), &tag).or_failure()?,
        };
        check_digest(&imported, digest)?;
        if is_pipe {
            // Ends early when the client leaves.
            drop(tokio::time::timeout(PIPE_GRACE, progress.cancelled.cancelled()).await);
        }
        let claim = loop {
            if progress.cancelled.is_cancelled() {
                return Err(interrupted());
            }
            match self.announcer.claim(name.task_id()) {
                Some(claim) => break claim,
                None => tokio::time::sleep(TURN).await,
            }
        };
        let before = self.store.task(&name.task_id());
        let record = self.record(name, imported.manifest(), before.as_ref(), ttl, pin)?;
        let naming = Naming { importer: self.clone(), claim, record, before, cancelled: progress.cancelled.clone() };
        let (result, told) = oneshot::channel();
        // From here on it must come to one end or the other, whether or not anybody waits for it.
        tokio::spawn(async move {
            naming.run(imported, result).await;
            drop(place);
        });
        told.await.unwrap_or_else(|_| Err(Failure::new(Code::Failed, "the daemon ends")))
    }

    async fn read(
        &self,
        source: File,
        digest: Option<NameDigest>,
        rate: Option<Rate>,
        place: Permit,
        progress: Arc<ImportProgress>,
    ) -> Result<Imported, Failure> {
        let (store, limiter) = (self.store.clone(), Limiter::new(rate));
        let runtime = tokio::runtime::Handle::current();
        blocking(move || {
            let _place = place;
            let import = store.begin_import(None)?;
            let import = if matches!(digest, Some(NameDigest::Sha256(_))) { import.with_sha256() } else { import };
            import.copy_from(source, &mut |bytes| {
                let before = progress.bytes.swap(bytes, Ordering::Relaxed);
                if limiter.is_limited() {
                    let pass = limiter.pass(bytes.saturating_sub(before) as usize);
                    let _cancelled = runtime.block_on(progress.cancelled.run_until_cancelled(pass));
                }
                if progress.cancelled.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
        })
        .await
        .or_failure()
    }

    /// The record to keep: what stood before goes on when it was the same content.
    fn record(
        &self,
        name: Name,
        manifest: &Manifest,
        before: Option<&TaskRecord>,
        ttl: Option<Duration>,
        pin: bool,
    ) -> Result<TaskRecord, Failure> {
        let now = self.announcer.clock().now();
        let content = manifest.content();
        if let Some(before) = before
            && matches!(before.state, TaskState::Queued | TaskState::Acknowledged)
            && before.binding.content != content
        {
            return Err(conflict(&before.binding));
        }
        let buried = self.store.tombstone(&name.task_id()).map_or(0, |tombstone| tombstone.generation);
        let same = before
            .filter(|before| before.binding.content == content && !matches!(before.state, TaskState::Conflict { .. }));
        let mut binding = Binding {
            content,
            content_bytes: manifest.layout().content_bytes(),
            generation: same.map_or(buried + 1, |before| before.binding.generation),
            accepted: None,
            expires: ttl.map(|ttl| UnixMillis(now.0.saturating_add(ttl.as_millis() as u64))),
        };
        if let Some(before) = same {
            binding.merge(&before.binding);
        }
        let pinned = pin || same.is_some_and(|before| before.pinned);
        Ok(TaskRecord {
            name,
            binding,
            state: TaskState::Queued,
            imported: now,
            last_used: now,
            pinned,
            fetched: false,
        })
    }
}

fn interrupted() -> Failure {
    Failure::new(Code::Interrupted, "the import was interrupted; nothing is kept")
}

fn check_digest(imported: &Imported, digest: Option<NameDigest>) -> Result<(), Failure> {
    let content = imported.manifest().content();
    let (matches, actual) = match digest {
        None => return Ok(()),
        Some(NameDigest::Blake3(named)) => (named == content, content.to_string()),
        Some(NameDigest::Sha256(named)) => {
            let actual = imported.sha256().copied().unwrap_or_default();
            (actual == named, format!("sha256:{}", hex::encode(actual)))
        }
    };
    if matches {
        return Ok(());
    }
    Err(Failure::new(Code::Digest, format!("the bytes do not match the digest in the cid: they are {actual}"))
        .with_hint("nothing is kept; check the file or the cid"))
}
