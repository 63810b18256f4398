//! Serving: pieces and manifests of what this host holds, complete or not, and news of what it gets.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use damselfly_messages::{
    id::ContentId,
    manifest::Manifest,
    piece::PieceIndex,
    transfer::{FRAME_BYTES_MAX, GAINED_MAX, HaveRequest, HaveUpdate, PieceRequest, PieceResponse},
    wire::Wire as _,
};
use damselfly_transport::{
    frame::{self, FrameError},
    span,
    streams::Stream,
    trace,
};
use futures::AsyncWriteExt as _;
use libp2p::PeerId;
use tokio::{
    sync::{
        broadcast::error::{RecvError, TryRecvError},
        mpsc,
    },
    time::{sleep, timeout},
};
use tracing::Span;

use crate::{
    blocking::blocking,
    buffers::{Account, Buffer, Buffers},
    download::{Download, Downloads},
    gate::Gate,
    limiter::Limiter,
    metrics::{Metrics, UnderWay},
    store::{ContentState, ReadError, Reader, Store, StoreError},
};

/// Memory for pieces on their way out, held until they are sent. What the connections queue of them is a copy, of a few
/// megabytes for each connection.
const BUFFER_BYTES: usize = 48 << 20;
/// When there is no room for a piece within this time, the answer is busy.
const ROOM_WITHIN: Duration = Duration::from_secs(2);
/// When a peer that was told to be busy may ask again.
const RETRY_MILLIS: u32 = 200;
/// How long a peer may take to accept the next bytes of an answer.
const SEND_WITHIN: Duration = Duration::from_secs(30);
/// A peer that accepts less than this on average is slow for good, and its stream is closed. What this host waits for
/// itself, by its own limits, does not count.
const SENT_PER_SECOND_MIN: usize = 4 << 10;
/// A stream on which nothing is asked for so long is closed.
const IDLE_MAX: Duration = Duration::from_secs(120);
/// A rate-limited answer leaves in parts of this size, so that the rate is even.
const PART_BYTES: usize = 64 << 10;
/// News of pieces are gathered for this long.
const NEWS_EVERY: Duration = Duration::from_millis(20);

/// Serves peers from the store and from downloads under way; cheap to clone.
#[derive(Clone)]
pub struct Uploads {
    store: Store,
    downloads: Downloads,
    limiter: Limiter,
    /// So many pieces are served at a time.
    gate: Gate,
    buffers: Buffers,
    metrics: Metrics,
}

/// A peer that asks for pieces, and the stream on which it does.
struct Child {
    peer: PeerId,
    stream: Stream,
}

/// Where the bytes of a content are.
#[derive(Clone)]
enum Source {
    Complete(Arc<Reader>),
    Partial(Arc<Download>),
}

impl Source {
    fn manifest(&self) -> &Manifest {
        match self {
            Self::Complete(reader) => reader.manifest(),
            Self::Partial(download) => download.manifest(),
        }
    }

    /// How many bytes of the content are not in holes.
    async fn data_bytes(&self) -> u64 {
        match self {
            Self::Complete(reader) => {
                let reader = Arc::clone(reader);
                blocking(move || reader.data_bytes()).await
            }
            Self::Partial(download) => download.data_bytes(),
        }
    }

    fn read(&self, index: PieceIndex, buffer: &mut Vec<u8>) -> Result<(), ReadError> {
        match self {
            Self::Complete(reader) => reader.read(index, buffer),
            Self::Partial(download) => download.read(index, buffer),
        }
    }
}

/// Why a download is no longer followed.
enum Followed {
    /// It has every piece.
    Complete,
    /// It ended without.
    Failed,
    /// News were lost: the listener is told everything anew.
    Lagged,
}

/// Why a stream of a peer ended early.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("the peer broke the protocol: {0}")]
    Protocol(#[from] damselfly_messages::wire::Invalid),
    #[error("the peer did not take an answer in time")]
    Slow,
}

impl Uploads {
    /// Serves from `store` and `downloads`, no faster and no more pieces at a time than `limiter` and `gate` allow.
    pub fn new(store: Store, downloads: Downloads, (limiter, gate): (Limiter, Gate), metrics: Metrics) -> Self {
        Self { store, downloads, limiter, gate, buffers: Buffers::new(BUFFER_BYTES), metrics }
    }

    /// Serves every stream that arrives, until the daemon ends. The network bounds how many there are.
    pub async fn run(self, mut pieces: mpsc::Receiver<(PeerId, Stream)>, mut haves: mpsc::Receiver<(PeerId, Stream)>) {
        loop {
            tokio::select! {
                Some((peer, stream)) = pieces.recv() => {
                    let this = self.clone();
                    tokio::spawn(async move { log_end(peer, this.serve_pieces(Child { peer, stream }).await) });
                }
                Some((peer, stream)) = haves.recv() => {
                    let this = self.clone();
                    tokio::spawn(async move { log_end(peer, this.serve_haves(stream).await) });
                }
                else => return,
            }
        }
    }

    async fn serve_pieces(&self, mut child: Child) -> Result<(), ServeError> {
        // The last source is kept: a stream asks for one content again and again.
        let mut source: Option<(ContentId, Source)> = None;
        while let Ok(request) = timeout(IDLE_MAX, frame::read(&mut child.stream, FRAME_BYTES_MAX)).await {
            let Some(bytes) = request? else { break };
            let request = PieceRequest::from_bytes(&bytes)?;
            let span = span_of(child.peer, &request);
            if source.as_ref().is_none_or(|(content, _)| *content != request.content) {
                source = self.source(request.content).await.map(|source| (request.content, source));
            }
            let source_now = source.as_ref().map(|(_, source)| source);
            if !trace::traced(span, self.answer(&mut child, source_now, request.index)).await? {
                source = None;
            }
        }
        Ok(())
    }

    /// Answers one request. Returns whether `source` has what was asked for.
    async fn answer(&self, child: &mut Child, source: Option<&Source>, index: Option<u32>) -> Result<bool, ServeError> {
        let served = match (source, index) {
            (None, _) => None,
            (Some(source), None) => Some(self.send_manifest(child, source).await?),
            (Some(source), Some(index)) => self.send_piece(child, source, index).await?,
        };
        if served.is_none() {
            send(&mut child.stream, &PieceResponse::NotHeld).await?;
        }
        Ok(served.is_some())
    }

    async fn send_manifest(&self, child: &mut Child, source: &Source) -> Result<(), ServeError> {
        let manifest = source.manifest();
        let body = manifest.digests().as_flattened();
        let room = async {
            (self.gate.enter(child.peer).await, self.buffers.charge(Account::Upload(child.peer), body.len()).await)
        };
        let Ok((_inside, _charge)) = timeout(ROOM_WITHIN, room).await else { return self.send_busy(child).await };
        send_header(&mut child.stream, &PieceResponse::manifest(manifest, source.data_bytes().await)).await?;
        self.send_body(child, body).await
    }

    /// Sends a piece, or that there is no room now. `None`: it is not held.
    async fn send_piece(&self, child: &mut Child, source: &Source, index: u32) -> Result<Option<()>, ServeError> {
        let Ok(index) = source.manifest().layout().index(index) else { return Ok(None) };
        let bytes = source.manifest().layout().bytes(index);
        let room =
            async { (self.gate.enter(child.peer).await, self.buffers.take(Account::Upload(child.peer), bytes).await) };
        let Ok((_inside, buffer)) = timeout(ROOM_WITHIN, room).await else {
            return self.send_busy(child).await.map(Some);
        };
        let _under_way = UnderWay::begin(&self.metrics.uploads);
        let Some(buffer) = self.read(source.clone(), index, buffer).await else { return Ok(None) };
        send_header(&mut child.stream, &PieceResponse::Piece { bytes }).await?;
        self.send_body(child, &buffer).await?;
        self.metrics.sent_bytes.inc_by(bytes as u64);
        self.metrics.sent_pieces.inc();
        Ok(Some(()))
    }

    async fn send_busy(&self, child: &mut Child) -> Result<(), ServeError> {
        self.metrics.busy_answers.inc();
        send(&mut child.stream, &PieceResponse::Busy { retry_millis: RETRY_MILLIS }).await
    }

    /// Sends a body at the rate limit; returns when it has been sent.
    async fn send_body(&self, child: &mut Child, body: &[u8]) -> Result<(), ServeError> {
        let mut left = SEND_WITHIN + Duration::from_secs((body.len() / SENT_PER_SECOND_MIN) as u64);
        let mut rest = body;
        while !rest.is_empty() {
            let most = if self.limiter.is_limited() { PART_BYTES } else { rest.len() };
            let mut part = &rest[..most.min(rest.len())];
            rest = &rest[part.len()..];
            self.limiter.pass(part.len()).await;
            while !part.is_empty() {
                let waiting = Instant::now();
                let written = timeout(SEND_WITHIN.min(left), child.stream.write(part)).await;
                let written = written.map_err(|_| ServeError::Slow)??;
                if written == 0 {
                    return Err(ServeError::Io(std::io::ErrorKind::WriteZero.into()));
                }
                part = &part[written..];
                left = left.saturating_sub(waiting.elapsed());
            }
        }
        timeout(left, child.stream.flush()).await.map_err(|_| ServeError::Slow)??;
        Ok(())
    }

    /// Reads and verifies a piece; `None` when it is not held or turned out to be damaged.
    async fn read(&self, source: Source, index: PieceIndex, mut buffer: Buffer) -> Option<Buffer> {
        let damaged_reads = self.metrics.damaged_reads.clone();
        blocking(move || match source.read(index, buffer.as_vec()) {
            Ok(()) => Some(buffer),
            Err(ReadError::NotHeld(_)) => None,
            Err(error) => {
                tracing::error!(content = %source.manifest().content(), %error, "a piece is not served");
                if let ReadError::Damaged { .. } = error {
                    damaged_reads.inc();
                }
                None
            }
        })
        .await
    }

    async fn source(&self, content: ContentId) -> Option<Source> {
        if let Some(download) = self.downloads.get(content) {
            return Some(Source::Partial(download));
        }
        let store = self.store.clone();
        match blocking(move || store.open_content(content)).await {
            Ok(reader) => {
                self.store.touch_content(content);
                reader.map(Source::Complete)
            }
            Err(error @ StoreError::NotHeld(_)) => {
                tracing::debug!(%content, %error, "not served");
                None
            }
            Err(error) => {
                tracing::error!(%content, error = &error as &dyn std::error::Error, "cannot serve a content");
                None
            }
        }
    }

    async fn serve_haves(&self, mut stream: Stream) -> Result<(), ServeError> {
        let Ok(request) = timeout(IDLE_MAX, frame::read(&mut stream, FRAME_BYTES_MAX)).await else { return Ok(()) };
        let Some(bytes) = request? else { return Ok(()) };
        let content = HaveRequest::from_bytes(&bytes)?.content;
        let is_complete = || matches!(self.store.content(content), Some(ContentState::Complete { .. }));
        let mut complete = is_complete();
        while !complete && let Some(download) = self.downloads.get(content) {
            match self.follow(&mut stream, &download).await? {
                Followed::Complete => complete = true,
                Followed::Failed => break,
                Followed::Lagged => {}
            }
        }
        // It may have become complete, and have left the list, since it was looked for.
        let end = if complete || is_complete() { HaveUpdate::Complete } else { HaveUpdate::NotHeld };
        send(&mut stream, &end).await
    }

    /// Tells what a download has and gets, until it ends or the listener lags behind too far.
    async fn follow(&self, stream: &mut Stream, download: &Download) -> Result<Followed, ServeError> {
        let layout = download.manifest().layout();
        let (held, mut gained) = download.listen();
        send(stream, &HaveUpdate::bitmap(&layout, held)).await?;
        let mut progress = download.progress();
        loop {
            let mut news = Vec::new();
            tokio::select! {
                first = gained.recv() => match first {
                    Ok(index) => news.push(index.get()),
                    Err(RecvError::Lagged(_)) => return Ok(Followed::Lagged),
                    Err(RecvError::Closed) => return Ok(Followed::Failed),
                },
                ended = progress.wait_for(|progress| progress.ended.is_some()) => {
                    // Every piece can be had from here, though the store is not told yet.
                    let complete = ended.is_ok_and(|progress| matches!(progress.ended, Some(Ok(()))));
                    return Ok(if complete { Followed::Complete } else { Followed::Failed });
                }
            }
            sleep(NEWS_EVERY).await;
            while news.len() < GAINED_MAX {
                match gained.try_recv() {
                    Ok(index) => news.push(index.get()),
                    Err(TryRecvError::Lagged(_)) => return Ok(Followed::Lagged),
                    Err(TryRecvError::Empty | TryRecvError::Closed) => break,
                }
            }
            send(stream, &HaveUpdate::Gained(news)).await?;
        }
    }
}

/// The span of a request that is a part of a trace.
fn span_of(child: PeerId, request: &PieceRequest) -> Span {
    let Some(asker) = request.trace else { return Span::none() };
    trace::asked_by(span!("server", "serve", content = %request.content, piece = request.index, %child), Some(asker))
}

async fn send<M: damselfly_messages::wire::Wire>(stream: &mut Stream, message: &M) -> Result<(), ServeError> {
    send_header(stream, message).await?;
    in_time(stream.flush()).await
}

async fn send_header<M: damselfly_messages::wire::Wire>(stream: &mut Stream, message: &M) -> Result<(), ServeError> {
    in_time(frame::write(stream, &message.to_bytes(), FRAME_BYTES_MAX)).await
}

async fn in_time<E>(work: impl Future<Output = Result<(), E>>) -> Result<(), ServeError>
where
    ServeError: From<E>,
{
    Ok(timeout(SEND_WITHIN, work).await.map_err(|_| ServeError::Slow)??)
}

fn log_end(peer: PeerId, end: Result<(), ServeError>) {
    if let Err(error) = end {
        tracing::debug!(%peer, %error, "a stream of a peer ended");
    }
}
