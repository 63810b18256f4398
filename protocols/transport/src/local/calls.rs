//! Counts the calls of each local connection, and answers those for which there is no place.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use http::{Request, Response};
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use super::{
    credentials::PeerCredentials,
    error::{Code, Failure},
    permits::{Call, Calls},
};

/// What a [`super::LocalStream`] tells the server about itself; in the extensions of every request.
#[derive(Debug, Clone)]
pub struct LocalConnection {
    pub(super) peer: PeerCredentials,
    /// `None` when there is no place for the connection.
    pub(super) calls: Option<Arc<Calls>>,
}

/// The layer of a server for [`super::Incoming`]: a connection with a call keeps its place, and the calls of one without a
/// place are answered *busy*.
#[derive(Debug, Clone, Copy, Default)]
pub struct CallsLayer;

impl<S> Layer<S> for CallsLayer {
    type Service = CountCalls<S>;

    fn layer(&self, inner: S) -> CountCalls<S> {
        CountCalls { inner }
    }
}

/// The service of [`CallsLayer`].
#[derive(Debug, Clone)]
pub struct CountCalls<S> {
    inner: S,
}

impl<S> Service<Request<Body>> for CountCalls<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let connection = request.extensions().get::<LocalConnection>();
        let Some(connection) = connection else { return Box::pin(self.inner.call(request)) };
        let Some(calls) = &connection.calls else {
            return Box::pin(async { Ok(Status::from(busy()).into_http()) });
        };
        let call = calls.begin();
        let answer = self.inner.call(request);
        Box::pin(async move { Ok(answer.await?.map(|body| Body::new(Counted { body, _call: call }))) })
    }
}

/// What a client gets that found no place.
pub(super) fn busy() -> Failure {
    Failure::new(Code::NoSpace, "the daemon is busy: too many connections at once")
        .with_hint("try again in a moment, or run fewer commands at a time")
}

/// The body of an answer; its call is under way until it is dropped.
struct Counted {
    body: Body,
    _call: Call,
}

impl hyper::body::Body for Counted {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<bytes::Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}
