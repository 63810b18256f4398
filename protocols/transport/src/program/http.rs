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
    extract::{DefaultBodyLimit, Request},
    http::{HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use super::config::BadValue;

mod activity;
mod client;
mod connections;
mod exposition;
mod host;
mod monitoring;
mod slots;
mod tls;

pub use client::{Answer, AskError, Question, ask, check_ready};
pub use monitoring::{Monitoring, monitoring};
pub use tls::TlsError;

use connections::Shared;
use host::Names;
use tls::Certificate;

/// The longest body that a route without a limit of its own takes, in bytes.
const BODY_BYTES_MAX: usize = 512 << 10;
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
    /// Names with a dot under which clients reach this program; IP addresses, `localhost` and names without a dot are
    /// always accepted. Default: none.
    pub allowed_hosts: Vec<String>,
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
            allowed_hosts: Vec::new(),
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
        let listener = super::listener::bind(address).map_err(failed)?;
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
        // A browser shows an operator's certificate to no page of another name, so there is nothing to check then.
        let routes = match &certificate {
            Some(certificate) if !certificate.is_self_signed() => routes,
            _ => {
                let names = Names::new(&config.allowed_hosts);
                routes.layer(middleware::map_request(move |request| names.clone().check(request)))
            }
        };
        let is_encrypted = certificate.is_some();
        let mut connections = JoinSet::new();
        connections.spawn(connections::accept(listener, Shared { certificate, routes, stop: stop.clone() }));
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

#[cfg(test)]
mod tests;
