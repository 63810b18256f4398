//! Many streams over one connection: yamux with the frame size that its libp2p wrapper hides.

use std::{
    collections::{HashSet, VecDeque},
    io::{self, IoSliceMut},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use futures::{AsyncRead, AsyncWrite, ready};
use libp2p::{
    PeerId,
    core::muxing::{StreamMuxer, StreamMuxerEvent},
};
use yamux::{Connection, ConnectionError, Mode};

mod send_queue;
use send_queue::{Counted, SendQueue};

/// The longest yamux frame we send: the largest a receiver takes. 16 KiB, the default, costs more than half of the
/// throughput, because each frame is a buffer, a queue entry and a wake-up.
pub const SPLIT_SEND_BYTES: usize = 1024 * 1024;

/// How many streams this side keeps open on a connection; opening more waits for one to be dropped.
pub const OUTBOUND_STREAMS_MAX: usize = 40;

/// How many streams of the other side a connection keeps open; more are reset at once. Larger than
/// [`OUTBOUND_STREAMS_MAX`], because the opener may have dropped a stream before we did.
pub const INBOUND_STREAMS_MAX: usize = 48;

/// What yamux counts: both directions, and dropped streams that it has not collected yet. Reaching it ends the
/// connection, so it lies above what the two limits above allow.
pub const STREAMS_MAX: usize = OUTBOUND_STREAMS_MAX + INBOUND_STREAMS_MAX + 8;

/// What the other side may send before we read it, over all streams of a connection that do nothing special: yamux gives
/// every stream 256 KiB and takes less for none.
///
/// Of it a peer can fill what it opens itself, [`INBOUND_STREAMS_MAX`] streams or 12 MiB; on the others it answers us. So
/// the windows of a node are bounded by 12 MiB for each of its connections, and [`GROWTH_BYTES`] for all of them together.
/// With 512 connections these are 6 GiB, which takes 512 members that all fill what nobody reads; only a multiplexer
/// with smaller windows would change that. Streams that nobody reads do not stay: a protocol that is not negotiated, a
/// request that is not read and an answer that nobody waits for end with their deadline.
pub const BASE_WINDOW_BYTES: usize = STREAMS_MAX * yamux::DEFAULT_CREDIT as usize;

/// How much the windows of all connections of a node may grow beyond that, together: on connections that this host
/// dialled, and on those that others dialled, so that nobody takes the windows of our downloads by dialling.
pub const GROWTH_BYTES: [usize; 2] = [192 * 1024 * 1024, 64 * 1024 * 1024];

/// The most that the windows of one connection grow.
///
/// A receiver tells yamux of what it has read when that is half of the window or more, and what is less waits: in the long
/// run a sender has little more than half of the window under way. 64 MiB are 32 on the way, which at a round trip of 20 ms
/// are 1.6 GB/s.
const CONNECTION_GROWTH_BYTES: usize = 64 * 1024 * 1024;

/// A connection gets at most this part of what is left, so that later ones get something too.
const GROWTH_PART: usize = 3;

/// A yamux connection as libp2p wants it.
pub struct Muxer<C> {
    connection: Connection<Counted<C>>,
    queue: SendQueue,
    /// Streams that arrived while libp2p asked for something else; bounded by [`INBOUND_STREAMS_MAX`].
    arrived: VecDeque<Substream>,
    waiting_for_inbound: Option<Waker>,
    open: Arc<Open>,
    _growth: Growth,
}

impl<C: AsyncRead + AsyncWrite + Unpin> Muxer<C> {
    /// Starts the multiplexer on an admitted connection.
    pub fn new(socket: C, peer: PeerId, mode: Mode, budget: &GrowthBudget) -> Self {
        let growth = budget.take(peer, mode);
        let queue = SendQueue::default();
        Self {
            connection: Connection::new(Counted::new(socket, queue.clone()), config(growth.bytes), mode),
            queue,
            arrived: VecDeque::new(),
            waiting_for_inbound: None,
            open: Arc::default(),
            _growth: growth,
        }
    }

    /// The next stream of the other side; those above the limit are dropped, which resets them.
    fn poll_arrival(&mut self, cx: &mut Context<'_>) -> Poll<Result<Substream, ConnectionError>> {
        loop {
            let stream = ready!(self.connection.poll_next_inbound(cx)).ok_or(ConnectionError::Closed)??;
            match Slot::take(&self.open, Direction::Inbound) {
                Some(slot) => return Poll::Ready(Ok(Substream { stream, queue: self.queue.clone(), _slot: slot })),
                None => tracing::debug!(limit = INBOUND_STREAMS_MAX, "stream reset: too many on this connection"),
            }
        }
    }
}

impl<C> Drop for Muxer<C> {
    fn drop(&mut self) {
        self.queue.close();
    }
}

fn config(growth_bytes: usize) -> yamux::Config {
    let mut config = yamux::Config::default();
    // In this order: yamux asserts that the window has room for every stream.
    config.set_max_num_streams(STREAMS_MAX);
    config.set_max_connection_receive_window(Some(BASE_WINDOW_BYTES + growth_bytes));
    config.set_split_send_size(SPLIT_SEND_BYTES);
    config
}

impl<C: AsyncRead + AsyncWrite + Unpin> StreamMuxer for Muxer<C> {
    type Substream = Substream;
    type Error = ConnectionError;

    fn poll_inbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Substream, ConnectionError>> {
        if let Some(stream) = self.arrived.pop_front() {
            return Poll::Ready(Ok(stream));
        }
        self.waiting_for_inbound = Some(cx.waker().clone());
        self.poll_arrival(cx)
    }

    fn poll_outbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Substream, ConnectionError>> {
        let Some(slot) = Slot::take_or_wait(&self.open, cx) else { return Poll::Pending };
        let stream = ready!(self.connection.poll_new_outbound(cx))?;
        Poll::Ready(Ok(Substream { stream, queue: self.queue.clone(), _slot: slot }))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        self.connection.poll_close(cx)
    }

    /// yamux makes progress only while it is asked for inbound streams, so those are kept for `poll_inbound`.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<StreamMuxerEvent, ConnectionError>> {
        let stream = ready!(self.poll_arrival(cx))?;
        self.arrived.push_back(stream);
        if let Some(waker) = self.waiting_for_inbound.take() {
            waker.wake();
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// What is left of [`GROWTH_BYTES`]; cheap to clone, every clone counts for the same node.
#[derive(Debug, Clone)]
pub struct GrowthBudget {
    left: Arc<[AtomicUsize; 2]>,
    hubs: Arc<Mutex<HashSet<PeerId>>>,
}

impl Default for GrowthBudget {
    fn default() -> Self {
        Self { left: Arc::new(GROWTH_BYTES.map(AtomicUsize::new)), hubs: Arc::default() }
    }
}

impl GrowthBudget {
    /// Schedulers and managers, which send no contents: connections with them get nothing from now on.
    pub fn set_hubs(&self, hubs: impl IntoIterator<Item = PeerId>) {
        *lock(&self.hubs) = hubs.into_iter().collect();
    }

    fn take(&self, peer: PeerId, mode: Mode) -> Growth {
        let side = match mode {
            Mode::Client => 0,
            Mode::Server => 1,
        };
        let most = if lock(&self.hubs).contains(&peer) { 0 } else { CONNECTION_GROWTH_BYTES };
        let part = |left: usize| most.min(left / GROWTH_PART);
        let before = self.left[side].fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left - part(left)));
        // Both arms have the number from before; the update never declines.
        let (Ok(before) | Err(before)) = before;
        Growth { budget: self.clone(), side, bytes: part(before) }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How much the windows of one connection may grow; given back with the connection.
#[derive(Debug)]
struct Growth {
    budget: GrowthBudget,
    side: usize,
    bytes: usize,
}

impl Drop for Growth {
    fn drop(&mut self) {
        self.budget.left[self.side].fetch_add(self.bytes, Ordering::Relaxed);
    }
}

#[derive(Debug, Clone, Copy)]
enum Direction {
    Inbound,
    Outbound,
}

/// How many streams of a connection are open.
#[derive(Debug, Default)]
struct Open(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    inbound: usize,
    outbound: usize,
    waiting_for_outbound: Option<Waker>,
}

impl Open {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        lock(&self.0)
    }
}

/// One open stream's place in the count.
#[derive(Debug)]
struct Slot {
    open: Arc<Open>,
    direction: Direction,
}

impl Slot {
    fn take(open: &Arc<Open>, direction: Direction) -> Option<Self> {
        let mut counts = open.lock();
        let (count, max) = match direction {
            Direction::Inbound => (&mut counts.inbound, INBOUND_STREAMS_MAX),
            Direction::Outbound => (&mut counts.outbound, OUTBOUND_STREAMS_MAX),
        };
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(Self { open: open.clone(), direction })
    }

    fn take_or_wait(open: &Arc<Open>, cx: &Context<'_>) -> Option<Self> {
        let slot = Self::take(open, Direction::Outbound);
        if slot.is_none() {
            open.lock().waiting_for_outbound = Some(cx.waker().clone());
        }
        slot
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut counts = self.open.lock();
        match self.direction {
            Direction::Inbound => counts.inbound -= 1,
            Direction::Outbound => {
                counts.outbound -= 1;
                if let Some(waker) = counts.waiting_for_outbound.take() {
                    waker.wake();
                }
            }
        }
    }
}

/// One stream of a [`Muxer`]. Flushing it waits until what was written has been sent.
#[derive(Debug)]
pub struct Substream {
    stream: yamux::Stream,
    queue: SendQueue,
    _slot: Slot,
}

impl AsyncRead for Substream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_read_vectored(cx, into)
    }
}

impl AsyncWrite for Substream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        let id = self.stream.id().val();
        // Taken before: the connection may have sent the bytes when yamux returns.
        let room = ready!(self.queue.poll_room(cx, id, from.len()));
        let written = Pin::new(&mut self.stream).poll_write(cx, &from[..room]);
        let used = if let Poll::Ready(Ok(written)) = written { written } else { 0 };
        self.queue.give_back(id, room - used);
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.queue.poll_sent(cx, self.stream.id().val()).map(Ok)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt, future::poll_fn, stream::FuturesUnordered, task::noop_waker_ref};
    use tokio_util::compat::TokioAsyncReadCompatExt;

    use super::*;

    type Side = Muxer<tokio_util::compat::Compat<tokio::io::DuplexStream>>;

    fn pair() -> (Side, Side) {
        let (left, right) = tokio::io::duplex(1 << 20);
        pair_of(left.compat(), right.compat())
    }

    fn pair_of<C: AsyncRead + AsyncWrite + Unpin>(left: C, right: C) -> (Muxer<C>, Muxer<C>) {
        let budget = GrowthBudget::default();
        (
            Muxer::new(left, PeerId::random(), Mode::Client, &budget),
            Muxer::new(right, PeerId::random(), Mode::Server, &budget),
        )
    }

    #[test]
    fn windows_of_all_connections_grow_within_one_budget() {
        let budget = GrowthBudget::default();
        let take = |mode| budget.take(PeerId::random(), mode);
        let dialled = take(Mode::Client);
        assert_eq!(dialled.bytes, CONNECTION_GROWTH_BYTES);
        let many: Vec<_> = (0..10_000).map(|_| take(Mode::Server)).collect();
        let taken: usize = many.iter().map(|growth| growth.bytes).sum();
        assert!(taken <= GROWTH_BYTES[1], "{taken}");
        assert!(many[..5].iter().all(|growth| growth.bytes >= 4 << 20), "each of the first ones gets a useful part");
        drop(dialled);
        assert_eq!(take(Mode::Client).bytes, CONNECTION_GROWTH_BYTES, "who dials us takes nothing of that");
        drop(many);
        assert_eq!(take(Mode::Server).bytes, GROWTH_BYTES[1] / GROWTH_PART, "given back");
    }

    #[test]
    fn hubs_take_nothing_of_it() {
        let (budget, hub) = (GrowthBudget::default(), PeerId::random());
        budget.set_hubs([hub]);
        assert_eq!(budget.take(hub, Mode::Client).bytes, 0);
        budget.set_hubs([]);
        assert_eq!(budget.take(hub, Mode::Client).bytes, CONNECTION_GROWTH_BYTES, "no hub any more");
    }

    fn try_open(side: &mut Side) -> Option<Substream> {
        match Pin::new(side).poll_outbound(&mut Context::from_waker(noop_waker_ref())) {
            Poll::Ready(stream) => Some(stream.expect("connection lives")),
            Poll::Pending => None,
        }
    }

    #[tokio::test]
    async fn opening_waits_at_the_limit_and_goes_on_below_it() {
        let (mut left, _right) = pair();
        let mut streams = (0..OUTBOUND_STREAMS_MAX).map(|_| try_open(&mut left).expect("below")).collect::<Vec<_>>();
        assert!(try_open(&mut left).is_none(), "yamux would end the connection instead");
        streams.pop();
        assert!(try_open(&mut left).is_some());
    }

    #[tokio::test]
    async fn flushing_waits_until_the_bytes_are_sent() {
        let (mut left, _right) = pair();
        let mut stream = try_open(&mut left).expect("below");
        poll_fn(|cx| Pin::new(&mut stream).poll_write(cx, b"x")).await.expect("queued");
        let is_pending = poll_fn(|cx| Poll::Ready(Pin::new(&mut stream).poll_flush(cx).is_pending())).await;
        assert!(is_pending, "it is queued only");
        // The connection sends while it is polled.
        let sent = poll_fn(|cx| {
            assert!(Pin::new(&mut left).poll_inbound(cx).is_pending(), "nothing arrives");
            Pin::new(&mut stream).poll_flush(cx)
        });
        sent.await.expect("sent");
    }

    #[tokio::test]
    async fn streams_of_both_sides_at_once_stay_below_what_yamux_counts() {
        let (mut left, mut right) = pair();
        let mut kept = Vec::new();
        for side in [&mut left, &mut right] {
            for _ in 0..OUTBOUND_STREAMS_MAX {
                let mut stream = try_open(side).expect("below");
                poll_fn(|cx| Pin::new(&mut stream).poll_write(cx, b"x")).await.expect("queued");
                kept.push(stream);
            }
        }
        let arrivals = [left, right].into_iter().map(|mut side| async move {
            let mut arrived = Vec::new();
            while arrived.len() < OUTBOUND_STREAMS_MAX {
                arrived.push(poll_fn(|cx| Pin::new(&mut side).poll_inbound(cx)).await.expect("connection lives"));
            }
            (side, arrived)
        });
        let both = arrivals.collect::<FuturesUnordered<_>>().collect::<Vec<_>>().await;
        assert_eq!(both.len(), 2);
    }
}
