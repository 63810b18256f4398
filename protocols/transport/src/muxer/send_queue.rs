//! Bounds what waits to be sent on a connection, and knows when a stream's bytes have left.
//!
//! yamux queues whatever the window of a stream allows, megabytes for each. On a slow line all of that is sent before
//! anything new, also what nobody wants any more, and a peer that reads nothing makes this host keep it. So a stream may
//! only queue what the connection sends within [`QUEUED_FOR`] at its measured rate. Short messages need not wait.
//!
//! [`Counted`] is the socket below yamux: it reads the headers of the frames that pass, because only they tell which
//! stream sent how much.

use std::{
    collections::HashMap,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

use futures::{AsyncRead, AsyncWrite};

/// What is queued is sent within this time at the measured rate.
const QUEUED_FOR: Duration = Duration::from_millis(250);
/// A rate is measured over this time, in which the queue was never empty.
const MEASURED_FOR: Duration = Duration::from_millis(100);
/// Bytes that may be queued before a rate was measured. A connection that sends them in less than [`MEASURED_FOR`] is fast.
const QUEUED_FIRST: usize = 4 << 20;
/// Bytes that may be queued on the slowest connection.
const QUEUED_MIN: usize = 128 << 10;
/// Bytes that may be queued on the fastest one.
const QUEUED_MAX: usize = 16 << 20;
/// A write of at most this length is queued at once if nothing else of its stream is: requests, answers, headers.
const SHORT: usize = 16 << 10;
/// Bytes of a yamux header.
const HEADER_BYTES: usize = 12;
/// The type of a yamux frame with data.
const DATA: u8 = 0;

/// The queue of one connection; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct SendQueue(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    queued: usize,
    by_stream: HashMap<u32, usize>,
    limit: usize,
    /// Streams that wait for room or for their bytes to be sent.
    waiting: HashMap<u32, Waker>,
    /// When the queue was empty last, or the rate was measured, and the bytes sent since then.
    measured: Instant,
    sent: usize,
    passing: Passing,
    is_closed: bool,
}

/// The frame that is being written to the socket.
#[derive(Debug, Default)]
struct Passing {
    header: [u8; HEADER_BYTES],
    header_bytes: usize,
    stream: u32,
    body_left: usize,
}

impl Default for SendQueue {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State {
            queued: 0,
            by_stream: HashMap::new(),
            limit: QUEUED_FIRST,
            waiting: HashMap::new(),
            measured: Instant::now(),
            sent: 0,
            passing: Passing::default(),
            is_closed: false,
        })))
    }
}

impl SendQueue {
    /// Waits until `stream` may queue some of `bytes`, and takes room for as many as it returns.
    pub(super) fn poll_room(&self, cx: &Context<'_>, stream: u32, bytes: usize) -> Poll<usize> {
        let mut state = self.lock();
        let own = state.by_stream.get(&stream).copied().unwrap_or(0);
        let room = state.limit.saturating_sub(state.queued);
        let is_short = bytes <= SHORT && own == 0;
        // Not in small parts, each of which would be a frame.
        let least = bytes.min((state.limit / 8).max(SHORT));
        if room < least && !is_short && !state.is_closed {
            state.waiting.insert(stream, cx.waker().clone());
            return Poll::Pending;
        }
        let taken = if is_short || state.is_closed { bytes } else { bytes.min(room) };
        state.add(stream, taken, Instant::now());
        Poll::Ready(taken)
    }

    /// Gives back room that was taken and not used.
    pub(super) fn give_back(&self, stream: u32, bytes: usize) {
        if bytes > 0 {
            let mut state = self.lock();
            state.remove(stream, bytes);
            let wakers = state.take_wakers();
            drop(state);
            wakers.into_iter().for_each(Waker::wake);
        }
    }

    /// Waits until everything that `stream` has queued has been written to the socket.
    pub(super) fn poll_sent(&self, cx: &Context<'_>, stream: u32) -> Poll<()> {
        let mut state = self.lock();
        if state.is_closed || !state.by_stream.contains_key(&stream) {
            return Poll::Ready(());
        }
        state.waiting.insert(stream, cx.waker().clone());
        Poll::Pending
    }

    /// Nothing is sent any more: nobody waits.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        let wakers = std::mem::take(&mut state.waiting);
        drop(state);
        wakers.into_values().for_each(Waker::wake);
    }

    fn on_written(&self, bytes: &[u8]) {
        let mut state = self.lock();
        state.pass(bytes, Instant::now());
        let wakers = state.take_wakers();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn add(&mut self, stream: u32, bytes: usize, now: Instant) {
        if self.queued == 0 {
            self.measured = now;
            self.sent = 0;
        }
        self.queued += bytes;
        *self.by_stream.entry(stream).or_default() += bytes;
    }

    fn remove(&mut self, stream: u32, bytes: usize) {
        let Some(of_stream) = self.by_stream.get_mut(&stream) else { return };
        let removed = bytes.min(*of_stream);
        *of_stream -= removed;
        self.queued -= removed;
        if *of_stream == 0 {
            self.by_stream.remove(&stream);
        }
    }

    /// Takes note of bytes that yamux has written.
    fn pass(&mut self, mut bytes: &[u8], now: Instant) {
        while !bytes.is_empty() {
            if self.passing.body_left == 0 {
                bytes = self.passing.read_header(bytes);
                continue;
            }
            let part = bytes.len().min(self.passing.body_left);
            self.passing.body_left -= part;
            self.remove(self.passing.stream, part);
            self.sent += part;
            bytes = &bytes[part..];
        }
        let elapsed = now.saturating_duration_since(self.measured);
        if elapsed >= MEASURED_FOR && self.queued > 0 {
            let rate = self.sent as f64 / elapsed.as_secs_f64();
            self.limit = ((rate * QUEUED_FOR.as_secs_f64()) as usize).clamp(QUEUED_MIN, QUEUED_MAX);
            self.measured = now;
            self.sent = 0;
        } else if self.queued == 0 && self.sent >= self.limit / 2 {
            // It was well filled, and empty before a rate could be measured: the connection is faster than the limit says.
            self.limit = (self.limit * 2).min(QUEUED_MAX);
        }
    }

    /// Those that have something to do: everything of theirs is sent, or half of the room is free.
    fn take_wakers(&mut self) -> Vec<Waker> {
        let has_room = self.queued <= self.limit / 2;
        let is_awaited = |stream: &u32, _: &mut Waker| has_room || !self.by_stream.contains_key(stream);
        self.waiting.extract_if(is_awaited).map(|(_, waker)| waker).collect()
    }
}

impl Passing {
    /// Reads bytes of a header. Returns the rest.
    fn read_header<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let part = bytes.len().min(HEADER_BYTES - self.header_bytes);
        self.header[self.header_bytes..][..part].copy_from_slice(&bytes[..part]);
        self.header_bytes += part;
        if self.header_bytes == HEADER_BYTES {
            let [_, kind, _, _, s1, s2, s3, s4, l1, l2, l3, l4] = self.header;
            self.header_bytes = 0;
            self.stream = u32::from_be_bytes([s1, s2, s3, s4]);
            // Only the length of a frame with data is that of a body.
            self.body_left = if kind == DATA { u32::from_be_bytes([l1, l2, l3, l4]) as usize } else { 0 };
        }
        &bytes[part..]
    }
}

/// The socket below yamux.
#[derive(Debug)]
pub(super) struct Counted<C> {
    socket: C,
    queue: SendQueue,
}

impl<C> Counted<C> {
    pub(super) const fn new(socket: C, queue: SendQueue) -> Self {
        Self { socket, queue }
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Counted<C> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_read(cx, into)
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Counted<C> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.socket).poll_write(cx, from))?;
        self.queue.on_written(&from[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures::task::noop_waker_ref;

    use super::*;

    fn room(queue: &SendQueue, stream: u32, bytes: usize) -> Option<usize> {
        match queue.poll_room(&Context::from_waker(noop_waker_ref()), stream, bytes) {
            Poll::Ready(taken) => Some(taken),
            Poll::Pending => None,
        }
    }

    fn is_sent(queue: &SendQueue, stream: u32) -> bool {
        queue.poll_sent(&Context::from_waker(noop_waker_ref()), stream).is_ready()
    }

    fn frame(kind: u8, stream: u32, length: u32) -> Vec<u8> {
        let mut bytes = vec![0, kind, 0, 0];
        bytes.extend(stream.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes.resize(if kind == DATA { HEADER_BYTES + length as usize } else { HEADER_BYTES }, 7);
        bytes
    }

    #[test]
    fn what_is_queued_is_bounded_and_short_messages_pass() {
        let queue = SendQueue::default();
        assert_eq!(room(&queue, 1, QUEUED_FIRST + 1), Some(QUEUED_FIRST));
        assert_eq!(room(&queue, 3, SHORT + 1), None, "it is full");
        assert_eq!(room(&queue, 5, SHORT), Some(SHORT), "a short message");
        assert_eq!(room(&queue, 5, SHORT), None, "one of a stream at a time");
        queue.give_back(1, SHORT * 3);
        assert_eq!(room(&queue, 3, SHORT + 1), Some(SHORT + 1), "room was given back");
    }

    #[test]
    fn frames_are_counted_for_their_streams_however_they_are_cut() {
        for cut in [1, 5, 12, 13, 1000] {
            let queue = SendQueue::default();
            assert_eq!((room(&queue, 1, 300), room(&queue, 3, 50)), (Some(300), Some(50)));
            // A window update and a ping have a length and no body.
            let frames = [frame(1, 3, 70_000), frame(0, 1, 100), frame(0, 3, 50), frame(2, 0, 9), frame(0, 1, 199)];
            frames.concat().chunks(cut).for_each(|part| queue.on_written(part));
            assert!(is_sent(&queue, 3) && !is_sent(&queue, 1), "a byte is left, in parts of {cut}");
            queue.on_written(&frame(0, 1, 1));
            assert!(is_sent(&queue, 1));
            assert_eq!(queue.lock().queued, 0);
        }
    }

    #[test]
    fn the_limit_follows_the_rate() {
        let table = [(20 << 10, QUEUED_MIN, "a slow line"), (8 << 20, 20 << 20, "a fast one")];
        for (sent, rate_limit, why) in table {
            let queue = SendQueue::default();
            let now = Instant::now();
            let mut state = queue.lock();
            state.add(1, 64 << 20, now);
            state.pass(&frame(0, 1, sent), now + MEASURED_FOR);
            let expected = ((f64::from(sent) * 2.5) as usize).clamp(QUEUED_MIN, QUEUED_MAX.min(rate_limit));
            assert_eq!(state.limit, expected, "{why}");
            state.remove(1, 64 << 20);
            state.add(1, 1, now + MEASURED_FOR * 20);
            state.pass(&frame(0, 1, 1), now + MEASURED_FOR * 40);
            assert_eq!(state.limit, expected, "a queue that was empty meanwhile says nothing: {why}");
        }
    }

    #[test]
    fn nobody_waits_on_a_closed_connection() {
        let queue = SendQueue::default();
        assert_eq!(room(&queue, 1, QUEUED_FIRST), Some(QUEUED_FIRST));
        queue.close();
        assert!(is_sent(&queue, 1) && room(&queue, 3, QUEUED_MAX).is_some());
    }
}
