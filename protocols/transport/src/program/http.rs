//! The HTTP server of a program: bounded in connections, headers, bodies and time.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{
    Extension, Router,
    extract::{ConnectInfo, DefaultBodyLimit, Request},
    http::{HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::{compat::FuturesAsyncReadCompatExt as _, sync::CancellationToken};

use super::config::BadValue;

mod client;
mod exposition;
mod monitoring;
mod tls;

pub use client::{Answer, AskError, Question, ask, check_ready};
pub use monitoring::{Monitoring, monitoring};
pub use tls::TlsError;

use tls::Certificate;

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
    /// The certificate for HTTPS with those that vouch for it, in PEM; read again when it changes. Default: none.
    pub tls_cert_file: Option<PathBuf>,
    /// Its private key, in PEM. Default: none.
    pub tls_key_file: Option<PathBuf>,
    /// HTTPS with a certificate that is made once, and kept in the data directory. Default false.
    pub tls_self_signed: bool,
}

impl HttpConfig {
    /// On loopback, at `port`.
    pub fn loopback(port: u16) -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], port)),
            insecure_http: false,
            tls_cert_file: None,
            tls_key_file: None,
            tls_self_signed: false,
        }
    }

    /// Whether it is encrypted.
    pub const fn is_encrypted(&self) -> bool {
        self.tls_self_signed || self.tls_cert_file.is_some()
    }

    /// What a program checks before it opens anything.
    ///
    /// # Errors
    /// [`BadValue`]: other hosts could read along, or it is not clear which certificate is meant.
    pub fn check(&self) -> Result<(), BadValue> {
        if self.tls_cert_file.is_some() != self.tls_key_file.is_some() {
            return Err(BadValue::new("http.tls_cert_file", "and `http.tls_key_file` go together: give both or none"));
        }
        if self.tls_self_signed && self.tls_cert_file.is_some() {
            return Err(BadValue::new("http.tls_self_signed", "cannot be set beside `http.tls_cert_file`"));
        }
        if self.is_exposed() {
            let hint = "would be readable on the network: choose a loopback address, or give --http-tls-cert-file and \
                        --http-tls-key-file, or --http-tls-self-signed, or --insecure-http";
            return Err(BadValue::new("http.listen", hint));
        }
        Ok(())
    }

    fn is_exposed(&self) -> bool {
        !self.listen.ip().to_canonical().is_loopback() && !self.insecure_http && !self.is_encrypted()
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
    #[error("HTTP on {0} would be readable on the network: choose a loopback address, TLS, or --insecure-http")]
    Exposed(SocketAddr),
    /// There is no certificate to show.
    #[error("no TLS for HTTP")]
    Tls(#[from] TlsError),
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
    is_encrypted: bool,
    stop: CancellationToken,
    connections: JoinSet<()>,
}

impl HttpServer {
    /// Binds the configured address and serves `routes` there; a certificate of its own lies in `data_dir`.
    ///
    /// # Errors
    /// [`HttpError`]: nothing listens.
    pub async fn start(config: &HttpConfig, data_dir: &Path, routes: Router) -> Result<Self, HttpError> {
        let address = config.listen;
        if config.is_exposed() {
            return Err(HttpError::Exposed(address));
        }
        let certificate = Certificate::open(config, data_dir)?.map(Arc::new);
        let failed = |source| HttpError::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let stop = CancellationToken::new();
        let routes = routes.layer(DefaultBodyLimit::max(BODY_BYTES_MAX)).layer(middleware::from_fn(in_time));
        let routes = routes.layer(Extension(Encrypted(certificate.is_some())));
        // A browser that has seen the header goes on to no page whose certificate it cannot check.
        let routes = match &certificate {
            Some(certificate) if !certificate.is_self_signed() => {
                routes.layer(middleware::map_response(only_encrypted))
            }
            _ => routes,
        };
        let (mut connections, is_encrypted) = (JoinSet::new(), certificate.is_some());
        connections.spawn(accept(listener, certificate, routes, stop.clone()));
        Ok(Self { address, is_encrypted, stop, connections })
    }

    /// Where it listens, with the port that was chosen.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it listens, as a URL without a path.
    pub fn url(&self) -> String {
        format!("{}://{}", if self.is_encrypted { "https" } else { "http" }, self.address)
    }

    /// Takes no new request, and returns when those under way are answered, after two seconds at most.
    pub async fn stop(mut self) {
        self.stop.cancel();
        drop(timeout(DRAIN_TIMEOUT, self.connections.join_next()).await);
    }
}

/// Whether the client and this program speak TLS, for routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encrypted(pub bool);

async fn only_encrypted(mut response: Response) -> Response {
    response.headers_mut().insert(header::STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=31536000"));
    response
}

async fn in_time(request: Request, next: Next) -> Response {
    match timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => StatusCode::REQUEST_TIMEOUT.into_response(),
    }
}

/// Accepts until `stop`, then waits for what is under way. Dropping the future ends all connections.
async fn accept(listener: TcpListener, certificate: Option<Arc<Certificate>>, routes: Router, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            (accepted, place) = next(&listener, &places) => match (accepted, place) {
                (Ok((stream, from)), Some(place)) => {
                    let routes = routes.clone().layer(Extension(ConnectInfo(from)));
                    connections.spawn(serve(stream, place, certificate.clone(), (routes, stop.clone())));
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

/// In a task of its own, so that a client slow to shake hands keeps nobody waiting.
async fn serve(
    stream: TcpStream,
    _place: OwnedSemaphorePermit,
    certificate: Option<Arc<Certificate>>,
    (routes, stop): (Router, CancellationToken),
) {
    let Some(certificate) = certificate else { return answer(stream, routes, stop).await };
    let encrypted = tokio::select! {
        encrypted = certificate.accept(stream) => encrypted,
        () = stop.cancelled() => return,
    };
    match encrypted {
        Ok(stream) => answer(stream.compat(), routes, stop).await,
        Err(error) => tracing::debug!(%error, "no TLS with an HTTP client"),
    }
}

async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin, routes: Router, stop: CancellationToken) {
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
