//! From peers: locate, download, and write what arrives.

use sha2::{Digest as _, Sha256};

use super::{local::{CopyError, verifies, write_failed}, pipe::write_to_pipe, *};
use crate::download::Interest;

/// How often a content is begun anew because its manifest was wrong, each time from another parent.
const MANIFESTS_MAX: usize = 4;

impl Exporter {
    /// Exports from peers.
    pub(super) async fn fetch(&self, name: &Name, target: &Target) -> Result<ExportOutcome, Failure> {
        let mut excluded: Vec<PeerId> = Vec::new();
        let candidates = self.locate(name, &excluded).await?;
        let mut last = None;
        for candidate in candidates {
            match self.fetch_candidate(name, candidate, target, &mut excluded).await {
                Ok(outcome) => return Ok(outcome),
                Err(CandidateFailed::False(failure)) => last = Some(failure),
                Err(CandidateFailed::Manifest(liar)) => return Err(FetchError::FalseManifest(liar).into_failure()),
                Err(CandidateFailed::Other(failure)) => return Err(failure),
            }
        }
        Err(last.unwrap_or_else(|| not_found("no host holds this task")))
    }

    async fn locate(&self, name: &Name, excluded: &[PeerId]) -> Result<Vec<Candidate>, Failure> {
        match self.schedulers.register(name, excluded.to_vec()).await.or_failure()? {
            Answer::Found(candidates) => {
                Ok(candidates.into_iter().filter(|candidate| name.allows(candidate.binding.content)).collect())
            }
            Answer::Missing(Some(_)) => Err(not_found("the task was deleted").with_hint("import it again")),
            Answer::Missing(None) => Err(not_found("no host holds such a task")
                .with_hint("check cid and tag; dfcache ls on the importing host shows them")),
        }
    }

    async fn fetch_candidate(
        &self,
        name: &Name,
        candidate: Candidate,
        target: &Target,
        excluded: &mut Vec<PeerId>,
    ) -> Result<ExportOutcome, CandidateFailed> {
        let binding = candidate.binding;
        // A sha256 name is proved by the whole content only, so nothing is bound or shown before that.
        let unproved = match name.digest() {
            Some(NameDigest::Sha256(digest)) => Some(digest),
            Some(NameDigest::Blake3(_)) | None => None,
        };
        let mut wanted = Wanted {
            name: name.clone(),
            binding,
            parents: candidate.parents,
            sequential: target.kind == Kind::Pipe,
            limiter: target.limiter.clone(),
            record: unproved.is_none().then(|| record(name, binding)),
        };
        for _ in 0..MANIFESTS_MAX {
            let liar = match self.download(&wanted, target, unproved).await {
                Err(CandidateFailed::Manifest(liar)) => liar,
                other => return other,
            };
            excluded.push(liar);
            wanted.parents.retain(|parent| parent.peer != liar);
            if wanted.parents.is_empty() {
                break;
            }
        }
        Err(FetchError::NoSource("every manifest was wrong".into()).into())
    }

    async fn download(
        &self,
        wanted: &Wanted,
        target: &Target,
        unproved: Option<[u8; 32]>,
    ) -> Result<ExportOutcome, CandidateFailed> {
        let Some(interest) = self.downloads.want(wanted.clone()).await? else {
            // The bytes are here already, under another name or since a moment.
            return self.from_held(wanted, target, unproved).await;
        };
        let manifest = interest.manifest().clone();
        target.progress.total.store(manifest.layout().content_bytes(), Ordering::Relaxed);
        let before = interest.from_peers_bytes();
        if let Some(digest) = unproved {
            self.complete(&interest, target).await?;
            let peers = (interest.from_peers_bytes() - before, interest.givers());
            drop(interest);
            let outcome = self.from_held(wanted, target, Some(digest)).await?;
            return Ok(ExportOutcome {
                from_local_bytes: outcome.from_local_bytes.saturating_sub(peers.0),
                from_peers_bytes: peers.0,
                peers: peers.1,
                ..outcome
            });
        }
        match target.kind {
            Kind::File => self.fill_file(&interest, target).await?,
            Kind::Pipe => self.fill_pipe(&interest, target).await?,
        }
        let from_peers_bytes = interest.from_peers_bytes().min(manifest.layout().content_bytes());
        Ok(ExportOutcome {
            binding: wanted.binding,
            from_local_bytes: manifest.layout().content_bytes() - from_peers_bytes,
            from_peers_bytes,
            peers: interest.givers(),
        })
    }

    /// Exports a content that is complete in the store, and binds the name to it.
    async fn from_held(
        &self,
        wanted: &Wanted,
        target: &Target,
        unproved: Option<[u8; 32]>,
    ) -> Result<ExportOutcome, CandidateFailed> {
        if let Some(digest) = unproved {
            self.prove(wanted, digest).await?;
        }
        let outcome = match self.export_copy(wanted.binding, target).await {
            Some(Ok(outcome)) => outcome,
            Some(Err(ReadFailed::Damaged(failure) | ReadFailed::Other(failure))) => return Err(failure.into()),
            None => return Err(not_found("the content was dropped meanwhile").with_hint("try again").into()),
        };
        let (store, record) = (self.store.clone(), record(&wanted.name, wanted.binding));
        let task = record.task_id();
        blocking(move || store.bind(record)).await.or_failure()?;
        let announcer = self.announcer.clone();
        tokio::spawn(async move { announcer.announce_known(task).await });
        Ok(outcome)
    }

    /// Checks the whole content against a sha256 name; a false candidate is reported.
    async fn prove(&self, wanted: &Wanted, digest: [u8; 32]) -> Result<(), CandidateFailed> {
        let (store, content) = (self.store.clone(), wanted.binding.content);
        let actual = blocking(move || {
            let Some(reader) = store.open_content(content).or_failure()? else {
                return Err(not_found("the content was dropped meanwhile").with_hint("try again"));
            };
            let (mut hasher, mut buffer) = (Sha256::new(), Vec::new());
            for index in reader.manifest().layout().indices() {
                reader.read(index, &mut buffer).or_failure()?;
                hasher.update(&buffer);
            }
            Ok(<[u8; 32]>::from(hasher.finalize()))
        });
        if actual.await? == digest {
            return Ok(());
        }
        tracing::warn!(cid = wanted.name.cid(), %content, "a candidate does not match its sha256 name");
        self.metrics.verification_failures.inc();
        self.schedulers.report_false(&wanted.name, content).await;
        let message = format!("{content} does not match {}", wanted.name.cid());
        Err(CandidateFailed::False(Failure::new(Code::Digest, message)))
    }

    /// Waits until every piece is in the store.
    async fn wait(&self, interest: &Interest, target: &Target) -> Result<(), CandidateFailed> {
        let mut progress = interest.progress();
        loop {
            if let Some(ended) = progress.borrow_and_update().ended.clone() {
                return Ok(ended?);
            }
            self.show(interest, target, u64::from(progress.borrow().held));
            changed(&mut progress).await;
        }
    }

    /// Waits until every piece is in the store and the content is complete there.
    async fn complete(&self, interest: &Interest, target: &Target) -> Result<(), CandidateFailed> {
        let content = interest.manifest().content();
        self.wait(interest, target).await?;
        // The end is known before the commit, which takes a few syncs.
        while !matches!(self.store.content(content), Some(ContentState::Complete { .. })) {
            if self.downloads.get(content).is_none() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        Ok(())
    }

    async fn fill_file(&self, interest: &Interest, target: &Target) -> Result<(), CandidateFailed> {
        if interest.clone_to(&target.file) {
            return self.clone_when_complete(interest, target).await;
        }
        let file = target.file.try_clone().map_err(|error| write_failed(&error))?;
        let sink = Arc::new(Sink::new(file, interest.manifest().layout()));
        let attached = Attached { interest, sink: Arc::clone(&sink) };
        let held = interest.attach(Arc::clone(&sink));
        let download = interest.shared();
        let filler = Arc::clone(&sink);
        // What was held before comes from the store; what arrives from now on goes both ways at once.
        let fill = blocking(move || {
            let mut buffer = Vec::new();
            for index in held {
                match download.read(index, &mut buffer) {
                    Ok(()) => filler.write(index, &buffer),
                    // It is fetched again, and then it goes into the sink like every new piece.
                    Err(ReadError::Damaged { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok::<_, ReadError>(())
        });
        let filled = async {
            fill.await.or_failure()?;
            sink.filled().await.map_err(|error| write_failed(&error))?;
            Ok::<_, CandidateFailed>(())
        };
        tokio::pin!(filled);
        let mut progress = interest.progress();
        loop {
            tokio::select! {
                biased;
                filled = &mut filled => { filled?; break; }
                _ = changed(&mut progress) => {
                    target.progress.bytes.store(sink.bytes(), Ordering::Relaxed);
                    target.progress.sources.store(interest.sources(), Ordering::Relaxed);
                    if let Some(Err(error)) = progress.borrow().ended.clone() {
                        return Err(error.into());
                    }
                }
            }
        }
        target.progress.bytes.store(sink.bytes(), Ordering::Relaxed);
        drop(attached);
        Ok(())
    }

    /// On a file system that can share blocks, each piece is written once and the output gets the blocks at the end.
    async fn clone_when_complete(&self, interest: &Interest, target: &Target) -> Result<(), CandidateFailed> {
        // What arrives is verified on its way; what lay on the disk before may have rotted.
        let (before, _) = interest.listen();
        self.wait(interest, target).await?;
        let (download, file) = (interest.shared(), Arc::clone(&target.file));
        blocking(move || {
            let failed = |what: &str| Failure::new(Code::Failed, format!("{what}; try again"));
            if !download.clone_to(&file) {
                return Err(failed("the output cannot share the blocks of the store"));
            }
            let mut buffer = Vec::new();
            let rotten = before.iter().find(|index| !verifies(download.manifest(), &file, **index, &mut buffer));
            match rotten {
                Some(index) => {
                    // Reading it makes the store fetch it again.
                    download.read(*index, &mut buffer).or_failure()?;
                    Err(failed("the output cannot be read back"))
                }
                None => Ok(()),
            }
        })
        .await?;
        Ok(())
    }

    async fn fill_pipe(&self, interest: &Interest, target: &Target) -> Result<(), CandidateFailed> {
        let layout = interest.manifest().layout();
        let mut progress = interest.progress();
        for index in layout.indices() {
            while !interest.holds(index) {
                if let Some(Err(error)) = progress.borrow_and_update().ended.clone() {
                    return Err(error.into());
                }
                target.progress.sources.store(interest.sources(), Ordering::Relaxed);
                changed(&mut progress).await;
            }
            let (download, file, progress) = (interest.shared(), target.file.clone(), target.progress.clone());
            blocking(move || {
                let mut buffer = Vec::new();
                download.read(index, &mut buffer).map_err(CopyError::Read)?;
                write_to_pipe(&file, &buffer, &progress)
            })
            .await
            .map_err(|error| match error {
                CopyError::Read(error) => error.into_failure(),
                CopyError::Write(failure) => failure,
            })?;
        }
        Ok(())
    }

    fn show(&self, interest: &Interest, target: &Target, held: u64) {
        let layout = interest.manifest().layout();
        let bytes = (held * u64::from(layout.piece_bytes())).min(layout.content_bytes());
        target.progress.bytes.store(bytes, Ordering::Relaxed);
        target.progress.sources.store(interest.sources(), Ordering::Relaxed);
    }
}

/// A sink that is written to as long as this lives.
struct Attached<'a> {
    interest: &'a Interest,
    sink: Arc<Sink>,
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        self.interest.detach(&self.sink);
    }
}

/// Waits for progress; never returns when there will be none.
async fn changed(progress: &mut tokio::sync::watch::Receiver<crate::download::Progress>) {
    if progress.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The record of a host that has fetched a task.
fn record(name: &Name, binding: Binding) -> TaskRecord {
    let now: UnixMillis = SystemTime::now().into();
    TaskRecord {
        name: name.clone(),
        binding,
        state: TaskState::Acknowledged,
        imported: now,
        last_used: now,
        pinned: false,
        expires: None,
    }
}

/// Why one candidate did not do.
enum CandidateFailed {
    /// It is not what the name says; another one may be.
    False(Failure),
    /// This host gave a false manifest; without it the content may be had.
    Manifest(PeerId),
    Other(Failure),
}

impl From<FetchError> for CandidateFailed {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::FalseManifest(liar) => Self::Manifest(liar),
            error => Self::Other(error.into_failure()),
        }
    }
}

impl From<Failure> for CandidateFailed {
    fn from(failure: Failure) -> Self {
        Self::Other(failure)
    }
}
