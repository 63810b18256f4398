//! Pieces from one parent: a few long-lived streams, several requests under way on each.

use std::{
    collections::VecDeque,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use damselfly_messages::{
    piece::PieceIndex,
    scheduler::ParentFault,
    transfer::{FRAME_BYTES_MAX, PieceRequest, PieceResponse},
    wire::Wire as _,
};
use damselfly_transport::{
    frame::{self, FrameError},
    protocol::PIECE,
    streams::{OpenError, Stream},
    trace,
};
use futures::AsyncReadExt as _;
use libp2p::PeerId;
use tokio::{sync::Semaphore, task::JoinSet, time::timeout};
use tracing::Instrument as _;

use super::{Download, FetchError, Shared, State, piece_picker::Receiving, pool::Permit};
use crate::buffers::{Account, Buffer};

/// Streams per parent: windows refill by halves, and many small bursts keep the pipeline fuller than few large ones.
const STREAMS: usize = 8;
/// Requests under way on one stream, at most. The settings allow a parent as many as its streams have together.
const REQUESTS_PER_STREAM: usize = 8;
/// How long a parent may take to accept a stream.
const OPEN_WITHIN: Duration = Duration::from_secs(5);
/// How long a parent may be silent while it is asked for a manifest, or take to accept a request.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(30);
/// How often it is decided whether a piece of which nothing arrives is still waited for.
const JUDGED_EVERY: Duration = Duration::from_secs(1);
/// Arrived bytes are told to the picker in steps of at least this many, ...
const TOLD_BYTES: usize = 256 << 10;
/// ... or after this time.
const TOLD_AFTER: Duration = Duration::from_millis(100);
/// When a piece that has begun gets no more memory within this time, it gives back what it has: others may be complete
/// with that.
const ROOM_WITHIN: Duration = Duration::from_secs(5);
/// A parent is asked for less, and not before this time, when there is no memory.
const REST_WITHOUT_ROOM: Duration = Duration::from_millis(500);
/// How often a stream without work looks whether a piece is late elsewhere.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Memory for a manifest of which nothing has arrived.
const MANIFEST_FIRST_BYTES: usize = 64 << 10;
/// Limited bytes pass in parts of this size.
const LIMITED_BYTES: usize = 32 << 10;
/// Pieces of one stream that are being verified and written while the next ones arrive.
const PIECES_BEHIND: usize = 2;

/// Why fetching from a parent ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum ParentError {
    /// It broke the protocol or lied.
    #[error("it broke the protocol: {0}")]
    Lied(String),
    /// It went away or is silent.
    #[error("{0}")]
    Unreachable(String),
    /// It has too much to do, or ended.
    #[error("it is busy or has gone away")]
    Busy,
    /// It has nothing of the content.
    #[error("it does not hold the content")]
    NotHeld,
    /// What was asked on this stream is not wanted any more: it is reset, and the download goes on with another one.
    #[error("a piece is not wanted any more")]
    Withdrawn,
    /// It is not the parent: this host failed.
    #[error(transparent)]
    Ours(#[from] FetchError),
}

impl ParentError {
    /// What is reported of the parent; `None` when it is not to blame.
    pub(super) const fn fault(&self) -> Option<ParentFault> {
        match self {
            Self::Lied(_) => Some(ParentFault::Lied),
            Self::Unreachable(_) => Some(ParentFault::Unreachable),
            Self::Busy | Self::NotHeld => Some(ParentFault::NotHeld),
            Self::Ours(_) | Self::Withdrawn => None,
        }
    }
}

impl From<FrameError> for ParentError {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Io(error) => Self::from(error),
            other => Self::Lied(other.to_string()),
        }
    }
}

impl From<io::Error> for ParentError {
    fn from(error: io::Error) -> Self {
        Self::Unreachable(error.to_string())
    }
}

impl From<OpenError> for ParentError {
    fn from(error: OpenError) -> Self {
        Self::Unreachable(error.to_string())
    }
}

/// Fetches from `parent` what the picker says, until the download or the parent ends.
pub(super) async fn run(download: Arc<Download>, parent: PeerId) -> Result<(), ParentError> {
    let pieces = download.manifest().layout().pieces() as usize;
    let mut streams = JoinSet::new();
    let most = download.shared.settings.get().concurrent_pieces as usize;
    for number in 0..STREAMS.min(pieces.div_ceil(2)).min(most).max(1) {
        streams.spawn(run_stream(Arc::clone(&download), parent, number).in_current_span());
    }
    // The first stream that fails takes the others with it: they share the connection.
    while let Some(ended) = streams.join_next().await {
        match ended {
            Ok(result) => result?,
            Err(error) => return Err(ParentError::Unreachable(error.to_string())),
        }
    }
    Ok(())
}

/// Works on one stream, and on another one when that was reset because of what was not wanted any more.
async fn run_stream(download: Arc<Download>, parent: PeerId, number: usize) -> Result<(), ParentError> {
    loop {
        let worker =
            StreamWorker { download: Arc::clone(&download), parent, number, under_way: VecDeque::new(), answers: 0 };
        match worker.run().await {
            Err(ParentError::Withdrawn) => {}
            ended => return ended,
        }
    }
}

/// What one stream has to do for a download.
struct StreamWorker {
    download: Arc<Download>,
    parent: PeerId,
    /// Which of the parent's streams it is.
    number: usize,
    /// Asked on this stream and not answered, in order.
    under_way: VecDeque<PieceIndex>,
    answers: u64,
}

impl StreamWorker {
    /// Works on an idle stream or a new one. The first one of a download waits for its place, the others do without.
    async fn run(mut self) -> Result<(), ParentError> {
        let download = Arc::clone(&self.download);
        if let Some(mut stream) = download.shared.pool.take(&self.parent) {
            match self.work(&mut stream).await {
                Ok(()) => return self.keep(stream),
                // It was closed while it waited: what was asked on it is asked again on a new one.
                Err(ParentError::Unreachable(_) | ParentError::Busy) if self.answers == 0 => self.give_back(),
                Err(error) => return self.fail(error),
            }
        }
        let place = match self.number == 0 {
            true => download.place(&self.parent).await,
            false => download.shared.pool.spare_place(&self.parent),
        };
        let Some(place) = place else { return Ok(()) };
        let mut stream = download.open(self.parent, place).await?;
        match self.work(&mut stream).await {
            Ok(()) => self.keep(stream),
            Err(error) => self.fail(error),
        }
    }

    fn fail(mut self, error: ParentError) -> Result<(), ParentError> {
        if matches!(error, ParentError::Withdrawn) {
            self.give_back();
            self.download.work.notify_waiters();
        }
        Err(error)
    }

    async fn work(&mut self, stream: &mut PieceStream) -> Result<(), ParentError> {
        let download = Arc::clone(&self.download);
        let behind = Arc::new(Semaphore::new(PIECES_BEHIND));
        loop {
            let work = download.work.notified();
            self.ask(stream).await?;
            let Some(index) = self.under_way.front().copied() else {
                if download.is_over(&self.parent) {
                    return Ok(());
                }
                // Whether a piece is late elsewhere shows only with time.
                drop(timeout(LOOK_AGAIN, work).await);
                continue;
            };
            let answer = self.patiently(index, stream.answer()).await?;
            self.answers += 1;
            self.on_answer(stream, index, answer, &behind).await?;
            self.under_way.pop_front();
        }
    }

    /// Asks for as much as the picker gives.
    async fn ask(&mut self, stream: &mut PieceStream) -> Result<(), ParentError> {
        let most = self.download.shared.settings.get().concurrent_pieces as usize;
        while self.under_way.len() < part_of(most, self.number).min(REQUESTS_PER_STREAM) {
            let Some(index) = self.download.lock().next_on_stream(&self.parent, self.under_way.len()) else { break };
            self.under_way.push_back(index);
            let content = self.download.manifest().content();
            stream.ask(&PieceRequest { content, index: Some(index.get()), trace: trace::current() }).await?;
        }
        Ok(())
    }

    async fn on_answer(
        &self,
        stream: &mut PieceStream,
        index: PieceIndex,
        answer: PieceResponse,
        behind: &Arc<Semaphore>,
    ) -> Result<(), ParentError> {
        let (download, parent) = (&self.download, self.parent);
        match answer {
            PieceResponse::Piece { bytes } if bytes == download.manifest().layout().bytes(index) => {
                let buffer = self.receive(stream, index, bytes).await?;
                hand_over(download, parent, index, buffer, behind).await;
            }
            // Not this parent's fault; its stream ends here, because the body is not read.
            PieceResponse::Piece { .. } if download.on_other_length(parent, index) => {
                return Err(FetchError::Abandoned.into());
            }
            PieceResponse::Piece { .. } | PieceResponse::Manifest { .. } => {
                return Err(ParentError::Lied("it answered something else".into()));
            }
            PieceResponse::Busy { retry_millis } => {
                let now = Instant::now();
                download.lock().picker.on_busy(&parent, index, now + rest_of(retry_millis), now);
            }
            // It was asked for what it says it has.
            PieceResponse::NotHeld => return Err(ParentError::NotHeld),
        }
        Ok(())
    }

    /// Receives the body of a piece, into memory that is charged as bytes arrive.
    async fn receive(&self, stream: &mut PieceStream, index: PieceIndex, bytes: usize) -> Result<Buffer, ParentError> {
        let Self { download, parent, .. } = self;
        let buffers = &download.shared.buffers;
        let account = Account::Download(download.manifest().content(), *parent);
        let mut buffer = download.without_blame(buffers.begin(account, bytes)).await;
        let mut arrived = Arrived { bytes: 0, told: 0, told_at: Instant::now() };
        while arrived.bytes < bytes {
            if arrived.bytes == buffer.len() {
                let room = download.without_blame(buffers.grow(&mut buffer, bytes));
                if timeout(ROOM_WITHIN, room).await.is_err() {
                    let now = Instant::now();
                    download.lock().picker.on_no_room(parent, index, now + REST_WITHOUT_ROOM);
                    return Err(ParentError::Withdrawn);
                }
            }
            let part = download.pass_limits(buffer.len() - arrived.bytes).await;
            let rest = &mut buffer[arrived.bytes..][..part];
            let read = self.patiently(index, async { Ok(stream.stream.read(rest).await?) }).await?;
            if read == 0 {
                return Err(ParentError::Unreachable("it closed the stream".into()));
            }
            arrived.bytes += read;
            self.tell(index, &mut arrived, bytes)?;
        }
        Ok(buffer)
    }

    /// Tells the picker what has arrived of a piece, not for each small part.
    fn tell(&self, index: PieceIndex, arrived: &mut Arrived, all: usize) -> Result<(), ParentError> {
        let now = Instant::now();
        let untold = arrived.bytes - arrived.told;
        if untold < TOLD_BYTES && arrived.bytes < all && now - arrived.told_at < TOLD_AFTER {
            return Ok(());
        }
        arrived.told = arrived.bytes;
        arrived.told_at = now;
        match self.download.lock().picker.on_bytes(&self.parent, index, untold as u64, now) {
            Receiving::Withdrawn if arrived.bytes < all => Err(ParentError::Withdrawn),
            Receiving::Wanted | Receiving::Withdrawn | Receiving::Silent => Ok(()),
        }
    }

    /// Waits for a part of an answer, as long as the picker does.
    async fn patiently<T>(
        &self,
        index: PieceIndex,
        work: impl Future<Output = Result<T, ParentError>>,
    ) -> Result<T, ParentError> {
        let waiting = Instant::now();
        tokio::pin!(work);
        loop {
            if let Ok(done) = timeout(JUDGED_EVERY, work.as_mut()).await {
                return done;
            }
            let now = Instant::now();
            match self.download.lock().picker.while_silent(&self.parent, index, waiting, now) {
                Receiving::Wanted => {}
                Receiving::Withdrawn => return Err(ParentError::Withdrawn),
                Receiving::Silent => {
                    let silent = now.saturating_duration_since(waiting).as_secs();
                    return Err(ParentError::Unreachable(format!("it was silent for {silent} s")));
                }
            }
        }
    }

    fn give_back(&mut self) {
        let mut state = self.download.lock();
        self.under_way.drain(..).for_each(|index| state.picker.give_back(&self.parent, index));
    }

    fn keep(self, stream: PieceStream) -> Result<(), ParentError> {
        if self.under_way.is_empty() {
            self.download.shared.pool.put(self.parent, stream);
        }
        Ok(())
    }
}

/// How much of a piece has arrived, and how much of that the picker was told.
struct Arrived {
    bytes: usize,
    told: usize,
    told_at: Instant,
}

/// How long a busy parent is left alone.
pub(super) fn rest_of(retry_millis: u32) -> Duration {
    Duration::from_millis(u64::from(retry_millis).clamp(10, 5_000))
}

/// How many of `most` requests are those of a parent's stream of this number.
const fn part_of(most: usize, number: usize) -> usize {
    (most + STREAMS - 1 - number) / STREAMS
}

/// Verifies and writes a piece beside the stream, which goes on unless too many are behind.
async fn hand_over(
    download: &Arc<Download>,
    parent: PeerId,
    index: PieceIndex,
    buffer: Buffer,
    behind: &Arc<Semaphore>,
) {
    let Ok(permit) = Arc::clone(behind).acquire_owned().await else { return };
    let download = Arc::clone(download);
    tokio::spawn(async move {
        let _permit = permit;
        if let Err(error) = download.take_piece(parent, index, buffer).await {
            download.end(Err(error));
        }
    });
}

impl State {
    /// The next piece for a stream with so many under way.
    ///
    /// Streams share what a parent is asked at a time evenly: it serves them alike, so on one with more pieces than the
    /// others each would take longer.
    fn next_on_stream(&mut self, parent: &PeerId, under_way: usize) -> Option<PieceIndex> {
        let share = self.picker.allowed(parent).div_ceil(STREAMS);
        if under_way < share { self.picker.next(parent, Instant::now()) } else { None }
    }
}

impl Download {
    /// Waits until some of `bytes` may be read, by the host's limit and by those of the exports. Returns how many.
    async fn pass_limits(&self, bytes: usize) -> usize {
        if !self.shared.limiter.is_limited() && !self.lock().limiter.is_limited() {
            return bytes;
        }
        let own = self.lock().limiter.clone();
        let part = bytes.min(LIMITED_BYTES);
        for limit in [&self.shared.limiter, &own] {
            limit.pass(part).await;
        }
        self.lock().picker.on_own_delay(Instant::now());
        part
    }

    /// Waits until there is room for a stream to `parent`; `None` when nothing is wanted of it any more. That is no
    /// stall: other downloads of this host have the streams.
    async fn place(&self, parent: &PeerId) -> Option<Permit> {
        let place = self.shared.pool.place(parent);
        tokio::pin!(place);
        while !self.is_over(parent) {
            if let Ok(place) = timeout(LOOK_AGAIN, &mut place).await {
                return Some(place);
            }
            self.lock().picker.on_own_delay(Instant::now());
        }
        None
    }

    /// Waits for something of this host's: that is no stall, and no fault of a parent.
    async fn without_blame<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        loop {
            if let Ok(done) = timeout(LOOK_AGAIN, work.as_mut()).await {
                return done;
            }
            self.lock().picker.on_own_delay(Instant::now());
        }
    }

    /// Opens a stream. A parent that nobody can stand in for may take as long as the download waits for it.
    async fn open(&self, parent: PeerId, place: Permit) -> Result<PieceStream, ParentError> {
        loop {
            match self.shared.network.open_stream(parent, PIECE, OPEN_WITHIN).await {
                Ok(stream) => return Ok(PieceStream { stream, _place: place }),
                Err(OpenError::Timeout) if self.lock().picker.is_only_source(&parent) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether nothing more is wanted of this parent.
    fn is_over(&self, parent: &PeerId) -> bool {
        let state = self.lock();
        state.picker.is_complete() || !state.picker.parents().any(|other| other == parent)
    }
}

/// A stream on which pieces are asked for and answered, in order.
pub(super) struct PieceStream {
    stream: Stream,
    _place: Permit,
}

impl PieceStream {
    pub(super) async fn open(shared: &Shared, parent: PeerId, place: Permit) -> Result<Self, ParentError> {
        Ok(Self { stream: shared.network.open_stream(parent, PIECE, SILENCE_MAX).await?, _place: place })
    }

    pub(super) async fn ask(&mut self, request: &PieceRequest) -> Result<(), ParentError> {
        let bytes = request.to_bytes();
        in_time(frame::write(&mut self.stream, &bytes, FRAME_BYTES_MAX)).await
    }

    /// The next answer; how long it may take is the caller's matter.
    pub(super) async fn answer(&mut self) -> Result<PieceResponse, ParentError> {
        match frame::read(&mut self.stream, FRAME_BYTES_MAX).await? {
            Some(header) => PieceResponse::from_bytes(&header).map_err(|error| ParentError::Lied(error.to_string())),
            // It closes streams that are too many for it.
            None => Err(ParentError::Busy),
        }
    }

    /// The header of a manifest, or why there is none.
    pub(super) async fn manifest_answer(&mut self) -> Result<PieceResponse, ParentError> {
        in_time(self.answer()).await
    }

    /// The body of a manifest of this many bytes, into memory that grows as they arrive, in steps with a deadline each: a
    /// slow parent is no silent one.
    pub(super) async fn manifest_body(&mut self, bytes: usize) -> Result<Vec<u8>, ParentError> {
        let mut body = Vec::new();
        while body.len() < bytes {
            let filled = body.len();
            body.resize(bytes.min((2 * filled).max(MANIFEST_FIRST_BYTES)), 0);
            let mut rest = &mut body[filled..];
            while !rest.is_empty() {
                let read = in_time(self.stream.read(rest)).await?;
                if read == 0 {
                    return Err(ParentError::Unreachable("it closed the stream".into()));
                }
                rest = &mut rest[read..];
            }
        }
        Ok(body)
    }
}

async fn in_time<T, E>(work: impl Future<Output = Result<T, E>>) -> Result<T, ParentError>
where
    ParentError: From<E>,
{
    match timeout(SILENCE_MAX, work).await {
        Ok(done) => Ok(done?),
        Err(_) => Err(ParentError::Unreachable(format!("it was silent for {} s", SILENCE_MAX.as_secs()))),
    }
}

#[cfg(test)]
mod tests {
    use damselfly_messages::config::Settings;

    use super::*;

    #[test]
    fn streams_share_what_the_settings_allow() {
        for most in 1..=STREAMS * REQUESTS_PER_STREAM {
            let parts: Vec<_> = (0..STREAMS).map(|number| part_of(most, number)).collect();
            assert_eq!(parts.iter().sum::<usize>(), most);
            assert!(parts[0] - parts[STREAMS - 1] <= 1 && parts[0] > 0, "{parts:?}");
        }
        let default = Settings::default().concurrent_pieces as usize;
        assert_eq!(part_of(default, STREAMS - 1), REQUESTS_PER_STREAM, "no stream has less than it can take");
    }
}
