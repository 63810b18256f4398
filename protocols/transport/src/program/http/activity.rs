//! What an HTTP connection waits for, and a deadline for clients that do not read.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, Incoming, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// A client that takes no byte of an answer for this long is disconnected.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// What one connection waits for, shared between its task and the table of places.
#[derive(Debug)]
pub(super) struct Activity {
    waits: Mutex<Waits>,
}

/// Since when it waits for what; a connection may wait for several things at once.
#[derive(Debug, Clone, Copy)]
struct Waits {
    request: Option<Instant>,
    body: Option<Instant>,
    write: Option<Instant>,
}

impl Activity {
    /// Of a connection that has not sent a request yet.
    pub(super) fn new() -> Self {
        Self { waits: Mutex::new(Waits { request: Some(Instant::now()), body: None, write: None }) }
    }

    /// Since when it waits for its client; `None` while this program has something to do for it.
    pub(super) fn waits_since(&self) -> Option<Instant> {
        let waits = *self.waits();
        [waits.request, waits.body, waits.write].into_iter().flatten().min()
    }

    /// A request is being answered until what is returned is dropped.
    pub(super) fn answering(self: &Arc<Self>) -> Answering {
        self.waits().request = None;
        Answering(Arc::clone(self))
    }

    fn waits(&self) -> MutexGuard<'_, Waits> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request under way.
#[derive(Debug)]
pub(super) struct Answering(Arc<Activity>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.waits().request = Some(Instant::now());
    }
}

/// The body of a request; notes when the client is slow to send it.
#[derive(Debug)]
pub(super) struct RequestBody {
    body: Incoming,
    activity: Arc<Activity>,
}

impl RequestBody {
    pub(super) fn new(body: Incoming, activity: Arc<Activity>) -> Self {
        Self { body, activity }
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        let since = polled.is_pending().then(Instant::now);
        let mut waits = self.activity.waits();
        waits.body = since.map(|now| waits.body.unwrap_or(now));
        drop(waits);
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        self.activity.waits().body = None;
    }
}

/// The body of an answer; its request is under way until it is dropped.
#[derive(Debug)]
pub(super) struct ResponseBody {
    body: Body,
    _answering: Answering,
}

impl ResponseBody {
    pub(super) fn new(body: Body, answering: Answering) -> Self {
        Self { body, _answering: answering }
    }
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A stream whose writes fail when the other side takes no byte for [`WRITE_TIMEOUT`].
#[derive(Debug)]
pub(super) struct Watched<S> {
    stream: S,
    activity: Arc<Activity>,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<S> Watched<S> {
    pub(super) fn new(stream: S, activity: Arc<Activity>) -> Self {
        Self { stream, activity, deadline: None }
    }

    /// Passes on what a write came to, or an error when it has waited too long.
    fn judge<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            if self.deadline.take().is_some() {
                self.activity.waits().write = None;
            }
            return polled;
        }
        let activity = &self.activity;
        let deadline = self.deadline.get_or_insert_with(|| {
            activity.waits().write = Some(Instant::now());
            Box::pin(sleep(WRITE_TIMEOUT))
        });
        ready!(deadline.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read its answer")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.judge(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.judge(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_is_disconnected_and_one_that_reads_slowly_is_not() {
        let activity = Arc::new(Activity::new());
        let answering = activity.answering();
        let (near, mut far) = duplex(16);
        let mut stream = Watched::new(near, Arc::clone(&activity));
        let slow = tokio::spawn(async move {
            for _ in 0..4 {
                sleep(WRITE_TIMEOUT * 3 / 4).await;
                far.read_exact(&mut [0; 16]).await.expect("read");
            }
            far
        });
        stream.write_all(&[0; 5 * 16]).await.expect("each byte in time, 30 s in all");
        assert_eq!(activity.waits_since(), None, "nothing is left to write");
        let _far = slow.await.expect("no panic");
        let begun = tokio::time::Instant::now();
        let error = stream.write_all(&[0; 17]).await.expect_err("nobody reads");
        assert_eq!((error.kind(), begun.elapsed().as_secs()), (io::ErrorKind::TimedOut, WRITE_TIMEOUT.as_secs()));
        assert!(activity.waits_since().is_some(), "it waits for its client");
        drop(answering);
    }
}
