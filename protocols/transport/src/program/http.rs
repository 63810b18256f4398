//! The HTTP server of a program: bounded in connections, headers, bodies and time.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    extract::{ConnectInfo, DefaultBodyLimit, Request},
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use serde::{Deserialize, Serialize};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

mod exposition;
mod monitoring;

pub use monitoring::{Monitoring, monitoring};

/// Connections at once; a further one waits in the system's queue.
const CONNECTIONS_MAX: usize = 256;
/// The longest head of a request, in bytes.
const HEAD_BYTES_MAX: usize = 32 << 10;
/// The longest body that a route without a limit of its own takes, in bytes.
const BODY_BYTES_MAX: usize = 512 << 10;
/// A connection that sends no complete request head within this time is closed.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// A request without an answer by then gets 408.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long answers under way may take after the server is told to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// The `[http]` part of a program's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpConfig {
    /// Where to listen, as `address:port`; port 0 is any free one.
    pub listen: SocketAddr,
    /// Allows an address that other hosts reach, without encryption. Default false.
    pub insecure_http: bool,
}

impl HttpConfig {
    /// On loopback, at `port`.
    pub fn loopback(port: u16) -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], port)), insecure_http: false }
    }
}

impl Default for HttpConfig {
    /// On loopback, at any free port.
    fn default() -> Self {
        Self::loopback(0)
    }
}

/// Why there is no HTTP server.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The address is not loopback.
    #[error("HTTP on {0} would be readable on the network: choose a loopback address or set --insecure-http")]
    Exposed(SocketAddr),
    /// The system refuses.
    #[error("cannot listen for HTTP on {address}: {source}")]
    Bind {
        /// As configured.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// A running HTTP server; dropping it ends it.
#[derive(Debug)]
pub struct HttpServer {
    address: SocketAddr,
    stop: CancellationToken,
    connections: JoinSet<()>,
}

impl HttpServer {
    /// Binds the configured address and serves `routes` there.
    ///
    /// # Errors
    /// [`HttpError`]: nothing listens.
    pub async fn start(config: &HttpConfig, routes: Router) -> Result<Self, HttpError> {
        let address = config.listen;
        if !address.ip().to_canonical().is_loopback() && !config.insecure_http {
            return Err(HttpError::Exposed(address));
        }
        let failed = |source| HttpError::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let stop = CancellationToken::new();
        let routes = routes.layer(DefaultBodyLimit::max(BODY_BYTES_MAX)).layer(middleware::from_fn(in_time));
        let mut connections = JoinSet::new();
        connections.spawn(accept(listener, routes, stop.clone()));
        Ok(Self { address, stop, connections })
    }

    /// Where it listens, with the port that was chosen.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no new request, and returns when those under way are answered, after two seconds at most.
    pub async fn stop(mut self) {
        self.stop.cancel();
        drop(timeout(DRAIN_TIMEOUT, self.connections.join_next()).await);
    }
}

async fn in_time(request: Request, next: Next) -> Response {
    match timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => StatusCode::REQUEST_TIMEOUT.into_response(),
    }
}

/// Accepts until `stop`, then waits for what is under way. Dropping the future ends all connections.
async fn accept(listener: TcpListener, routes: Router, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            (accepted, place) = next(&listener, &places) => match (accepted, place) {
                (Ok((stream, from)), Some(place)) => {
                    let routes = routes.clone().layer(Extension(ConnectInfo(from)));
                    connections.spawn(serve(stream, place, routes, stop.clone()));
                }
                (Err(error), _) => {
                    tracing::warn!(%error, "no HTTP connection accepted");
                    // Out of descriptors, most likely: trying at once would spin.
                    sleep(Duration::from_millis(100)).await;
                }
                (Ok(_), None) => break,
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn next(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> (io::Result<(TcpStream, SocketAddr)>, Option<OwnedSemaphorePermit>) {
    let place = Arc::clone(places).acquire_owned().await.ok();
    (listener.accept().await, place)
}

async fn serve(stream: TcpStream, _place: OwnedSemaphorePermit, routes: Router, stop: CancellationToken) {
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
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

#[cfg(test)]
mod tests;
