//! From peers: locate, download, and write what arrives.

use damselfly_messages::scheduler::{EXCLUDED_MAX, ParentFault};
use sha2::{Digest as _, Sha256};
use tokio::time::sleep;

use super::{local::CopyError, *};

/// How often a content is begun anew because what of it was here turned out to be damaged.
const LOST_MAX: usize = 3;
/// How often a content is begun anew because its manifest was wrong, each time without who gave it.
const LIARS_MAX: usize = 16;
/// When no holder is reached, because every one has just lost its connection or the scheduler has just come back and knows
/// few of them, they are looked for so long, ...
const HOLDER_BACK_WITHIN: Duration = Duration::from_secs(5);
/// ... this often.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(250);

impl Exporter {
    /// Exports from peers.
    pub(super) async fn fetch(&self, name: &Name, target: &Target) -> Result<ExportOutcome, Failure> {
        let begun = Instant::now();
        let mut excluded: Vec<PeerId> = Vec::new();
        loop {
            let candidates = self.locate(name, &excluded).await?;
            match self.fetch_any(name, candidates, target, &mut excluded).await {
                Err(failure) if failure.code == Code::NoSource && begun.elapsed() < HOLDER_BACK_WITHIN => {
                    tracing::debug!(%failure, "holders are looked for once more");
                    sleep(LOOK_AGAIN_AFTER).await;
                }
                result => return result,
            }
        }
    }

    async fn fetch_any(
        &self,
        name: &Name,
        candidates: Vec<Candidate>,
        target: &Target,
        excluded: &mut Vec<PeerId>,
    ) -> Result<ExportOutcome, Failure> {
        let mut last = None;
        for candidate in candidates {
            match self.fetch_candidate(name, candidate, target, excluded).await {
                Ok(outcome) => return Ok(outcome),
                Err(CandidateFailed::False(failure)) => last = Some(failure),
                Err(CandidateFailed::Manifest(liar)) => return Err(FetchError::FalseManifest(liar).into_failure()),
                Err(CandidateFailed::Lost(failure) | CandidateFailed::Other(failure)) => return Err(failure),
            }
        }
        Err(last.unwrap_or_else(|| not_found("no host holds this task")))
    }

    async fn locate(&self, name: &Name, excluded: &[PeerId]) -> Result<Vec<Candidate>, Failure> {
        let began = Instant::now();
        let excluded = excluded.iter().copied().take(EXCLUDED_MAX).collect();
        let answer = self.schedulers.register(name, excluded).await;
        self.metrics.locate_seconds.observe(began.elapsed().as_secs_f64());
        match answer.or_failure()? {
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
            record: unproved.is_none().then(|| record(name, binding, self.announcer.clock().now())),
        };
        let (mut lost, mut liars) = (0, 0);
        loop {
            match self.download(&wanted, target, unproved).await {
                Err(CandidateFailed::Manifest(liar)) if liars < LIARS_MAX => {
                    liars += 1;
                    excluded.push(liar);
                    wanted.parents.retain(|parent| parent.peer != liar);
                    if wanted.parents.is_empty() {
                        return Err(FetchError::NoSource("every manifest was wrong".into()).into());
                    }
                }
                // The store knows now what is missing, and the next download fetches it.
                Err(CandidateFailed::Lost(failure)) if lost < LOST_MAX => {
                    lost += 1;
                    tracing::warn!(content = %binding.content, %failure, "fetched again")
                }
                other => return other,
            }
        }
    }

    async fn download(
        &self,
        wanted: &Wanted,
        target: &Target,
        unproved: Option<[u8; 32]>,
    ) -> Result<ExportOutcome, CandidateFailed> {
        let Some(interest) = self.downloads.want(wanted.clone()).await? else {
            // The bytes are here already, under another name or since a moment.
            return self.export_held(wanted, target, unproved).await;
        };
        let manifest = interest.manifest().clone();
        target.begin(wanted.binding.content, manifest.layout().content_bytes()).await?;
        let before = (interest.received_bytes(), interest.received_pieces());
        if let Some(digest) = unproved {
            self.complete(&interest, target).await?;
            let (bytes, pieces) = (interest.received_bytes() - before.0, interest.received_pieces() - before.1);
            let peers = interest.givers();
            drop(interest);
            let outcome = self.export_held(wanted, target, Some(digest)).await?;
            return Ok(ExportOutcome {
                from_local_bytes: outcome.from_local_bytes.saturating_sub(bytes),
                from_peers_bytes: bytes,
                from_peers_pieces: pieces,
                peers,
                ..outcome
            });
        }
        match target.kind {
            Kind::File => self.fill_file(&interest, target).await?,
            Kind::Pipe => self.fill_pipe(&interest, target).await?,
        }
        let from_peers_bytes = interest.received_bytes().min(manifest.layout().content_bytes());
        Ok(ExportOutcome {
            binding: wanted.binding,
            from_local_bytes: manifest.layout().content_bytes() - from_peers_bytes,
            from_peers_bytes,
            from_peers_pieces: interest.received_pieces(),
            peers: interest.givers(),
        })
    }

    /// Exports a content that is complete in the store, and binds the name to it.
    async fn export_held(
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
            Some(Err(ReadFailed::Damaged(failure))) => return Err(CandidateFailed::Lost(failure)),
            Some(Err(ReadFailed::Other(failure))) => return Err(failure.into()),
            None => return Err(dropped()),
        };
        let (store, record) = (self.store.clone(), record(&wanted.name, wanted.binding, self.announcer.clock().now()));
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
            let Some(reader) = store.open_content(content).or_failure()? else { return Err(dropped()) };
            let (mut hasher, mut buffer) = (Sha256::new(), Vec::new());
            for index in reader.manifest().layout().indices() {
                reader.read(index, &mut buffer)?;
                hasher.update(&buffer);
            }
            Ok::<_, CandidateFailed>(<[u8; 32]>::from(hasher.finalize()))
        });
        if actual.await? == digest {
            return Ok(());
        }
        // Who has a part only was deceived itself.
        let complete = wanted.parents.iter().filter(|parent| parent.complete);
        let holders: Vec<_> = complete.map(|parent| parent.peer.to_string()).collect();
        tracing::warn!(cid = wanted.name.cid(), %content, ?holders, "a candidate does not match its sha256 name");
        self.metrics.verification_failures.of("content").inc();
        for parent in wanted.parents.iter().filter(|parent| parent.complete) {
            self.metrics.on_lost_parent(parent.peer, ParentFault::Lied);
        }
        self.schedulers.report_false(&wanted.name, content).await;
        let message = format!("{content} does not match {}", wanted.name.cid());
        Err(CandidateFailed::False(Failure::new(Code::Digest, message)))
    }
}

/// The record of a host that has fetched a task.
fn record(name: &Name, binding: Binding, now: UnixMillis) -> TaskRecord {
    TaskRecord {
        name: name.clone(),
        binding,
        state: TaskState::Acknowledged,
        imported: now,
        last_used: now,
        pinned: false,
        fetched: true,
    }
}

/// Why one candidate did not do.
pub(super) enum CandidateFailed {
    /// It is not what the name says; another one may be.
    False(Failure),
    /// This host gave a false manifest; without it the content may be had.
    Manifest(PeerId),
    /// Bytes that were here are damaged or gone; peers may have them.
    Lost(Failure),
    Other(Failure),
}

fn dropped() -> CandidateFailed {
    CandidateFailed::Lost(not_found("the content was dropped meanwhile").with_hint("try again"))
}

impl From<ReadError> for CandidateFailed {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Damaged { .. } | ReadError::NotHeld(_) => Self::Lost(error.into_failure()),
            ReadError::Io(_) => Self::Other(error.into_failure()),
        }
    }
}

impl From<CopyError> for CandidateFailed {
    fn from(error: CopyError) -> Self {
        match error {
            CopyError::Read(error) => error.into(),
            CopyError::Write(failure) => Self::Other(failure),
        }
    }
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
