//! The connections of an HTTP server: accepted at once, each in a task of its own, ended when others need their places.

use std::{collections::HashMap, convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    body::Body,
    extract::{ConnectInfo, Request},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::{AbortHandle, Id, JoinSet},
    time::sleep,
};
use tokio_util::{
    compat::{FuturesAsyncReadCompatExt as _, TokioAsyncReadCompatExt as _},
    sync::CancellationToken,
};
use tower::ServiceExt as _;

use super::{
    activity::{Activity, RequestBody, ResponseBody, Watched},
    monitoring,
    slots::{Kind, Slots},
    tls::Certificate,
};
use crate::source::source_of;

/// The longest head of a request, in bytes.
pub(super) const HEAD_BYTES_MAX: usize = 32 << 10;
/// A connection that sends no complete request head within this time is closed.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// The same for a connection in a place that is kept for monitoring.
const MONITORING_HEAD_TIMEOUT: Duration = Duration::from_secs(2);
/// What a client is told to wait that finds everything busy, in seconds.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// What every connection of a server is served with.
#[derive(Debug, Clone)]
pub(super) struct Shared {
    pub(super) certificate: Option<Arc<Certificate>>,
    pub(super) routes: Router,
    pub(super) stop: CancellationToken,
}

/// Accepts until the server is stopped, then waits for what is under way. Dropping the future ends all connections.
pub(super) async fn accept(listener: TcpListener, shared: Shared) {
    let mut connections = Connections { tasks: JoinSet::new(), handles: HashMap::new(), places: Slots::new() };
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => break,
            Some(ended) = connections.tasks.join_next_with_id() => {
                connections.ended(ended.map_or_else(|error| error.id(), |(id, ())| id));
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, from)) => connections.serve(stream, from, &shared),
                Err(error) => {
                    tracing::warn!(%error, "no HTTP connection accepted");
                    // Out of descriptors, most likely: trying at once would spin.
                    sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    drop(listener);
    while connections.tasks.join_next().await.is_some() {}
}

/// The connections there are. Bounded by the places: an evicted one is aborted before its successor is served.
struct Connections {
    tasks: JoinSet<()>,
    handles: HashMap<Id, AbortHandle>,
    places: Slots<Id>,
}

impl Connections {
    fn serve(&mut self, stream: TcpStream, from: SocketAddr, shared: &Shared) {
        let source = source_of(from.ip());
        let room = self.places.make_room(source);
        if let Some(handle) = room.evicted.and_then(|id| self.handles.remove(&id)) {
            tracing::debug!(%from, "an HTTP connection that waits for its client is closed for a newer one");
            handle.abort();
        }
        let activity = Arc::new(Activity::new());
        let connection = Connection { kind: room.kind, from, activity: Arc::clone(&activity), shared: shared.clone() };
        let handle = self.tasks.spawn(connection.serve(stream));
        self.places.enter(handle.id(), source, room.kind, activity);
        self.handles.insert(handle.id(), handle);
    }

    fn ended(&mut self, id: Id) {
        self.handles.remove(&id);
        self.places.leave(&id);
    }
}

/// One connection; in a task of its own, so that a client slow to shake hands keeps nobody waiting.
struct Connection {
    kind: Kind,
    from: SocketAddr,
    activity: Arc<Activity>,
    shared: Shared,
}

impl Connection {
    async fn serve(self, stream: TcpStream) {
        let stream = Watched::new(stream, Arc::clone(&self.activity));
        let Some(certificate) = self.shared.certificate.clone() else { return self.answer(stream).await };
        let encrypted = tokio::select! {
            encrypted = certificate.accept(stream.compat()) => encrypted,
            () = self.shared.stop.cancelled() => return,
        };
        match encrypted {
            Ok(stream) => self.answer(stream.compat()).await,
            Err(error) => tracing::debug!(%error, "no TLS with an HTTP client"),
        }
    }

    async fn answer(self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let is_ordinary = self.kind == Kind::Ordinary;
        let stop = self.shared.stop.clone();
        let service = service_fn(|request| self.respond(request));
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(if is_ordinary { HEAD_TIMEOUT } else { MONITORING_HEAD_TIMEOUT })
            .max_buf_size(HEAD_BYTES_MAX)
            .keep_alive(is_ordinary)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "HTTP connection ended");
        }
    }

    fn respond(&self, request: Request<Incoming>) -> impl Future<Output = Result<Response, Infallible>> + use<> {
        let answering = self.activity.answering();
        let request = request.map(|body| Body::new(RequestBody::new(body, Arc::clone(&self.activity))));
        let is_answered = self.kind == Kind::Ordinary || monitoring::PATHS.contains(&request.uri().path());
        let routes = self.shared.routes.clone().layer(Extension(ConnectInfo(self.from)));
        async move {
            let response = if is_answered { routes.oneshot(request).await? } else { busy() };
            Ok(response.map(|body| Body::new(ResponseBody::new(body, answering))))
        }
    }
}

fn busy() -> Response {
    let reason = "all connections of this server are busy: try again in a moment\n";
    (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, RETRY_AFTER)], reason).into_response()
}
