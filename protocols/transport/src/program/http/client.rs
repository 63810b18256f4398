//! Asks a program of this host over HTTP, by the configuration that the program itself runs with.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use axum::http::{Method, Request, header};
use bytes::Bytes;
use futures_rustls::TlsConnector;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{self, WebPkiSupportedAlgorithms, aws_lc_rs},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_util::compat::{FuturesAsyncReadCompatExt as _, TokioAsyncReadCompatExt as _};

use super::{HttpConfig, monitoring::READY, tls};

/// A program that answers, answers sooner.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// A request to a program of this host.
#[derive(Debug)]
pub struct Question<'a> {
    /// The method.
    pub method: Method,
    /// The path, with its query.
    pub path: &'a str,
    /// A bearer token.
    pub token: Option<&'a str>,
    /// JSON; empty: no body.
    pub body: String,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: String,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody can know where it listens.
    #[error("`http.listen` has port 0, so nobody knows which port it is: give it one")]
    AnyPort,
    /// It does not run, or on another address.
    #[error("nothing answers on {address}: does it run with this configuration? {source}")]
    Connect {
        /// Where it should.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The certificate that it must show cannot be read.
    #[error("cannot read the certificate {}: {reason}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// What answers does not speak TLS, or has another certificate.
    #[error("no TLS with {address}: {reason}")]
    Tls {
        /// Where.
        address: SocketAddr,
        /// Why.
        reason: String,
    },
    /// What answers does not speak HTTP.
    #[error("no answer that is HTTP: {0}")]
    Http(String),
    /// It takes too long.
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    Timeout,
}

/// Asks the program that runs on this host with this configuration.
///
/// An address that stands for all is asked on loopback. With TLS, it must show the very certificate that is configured,
/// whatever names that has.
///
/// # Errors
/// [`AskError`]; a status is none.
pub async fn ask(config: &HttpConfig, data_dir: &Path, question: Question<'_>) -> Result<Answer, AskError> {
    timeout(TIMEOUT, exchange(config, data_dir, question)).await.map_err(|_| AskError::Timeout)?
}

/// What `--check-ready` does: success when `/readyz` says so, else the reasons on standard error.
pub async fn check_ready(program: &str, config: &HttpConfig, data_dir: &Path) -> ExitCode {
    let question = Question { method: Method::GET, path: "/readyz", token: None, body: String::new() };
    match ask(config, data_dir, question).await {
        Ok(answer) if answer.status == 200 && answer.body.trim() == READY => return ExitCode::SUCCESS,
        Ok(answer) if answer.status == 200 => {
            let obstacles = answer.body.trim().trim_start_matches(READY).trim().replace('\n', "; ");
            eprintln!("{program}: ready, but it cannot do its work: {obstacles}");
        }
        Ok(answer) => eprintln!("{program}: not ready: {}", answer.body.trim_end().replace('\n', "; ")),
        Err(error) => eprintln!("{program}: not ready: {error}"),
    }
    ExitCode::FAILURE
}

async fn exchange(config: &HttpConfig, data_dir: &Path, question: Question<'_>) -> Result<Answer, AskError> {
    let address = reachable(config.listen).ok_or(AskError::AnyPort)?;
    let stream = TcpStream::connect(address).await.map_err(|source| AskError::Connect { address, source })?;
    let Some(path) = tls::certificate_file(config, data_dir) else { return send(stream, address, question).await };
    let connector = connector(&path)?;
    let failed = |reason: io::Error| AskError::Tls { address, reason: reason.to_string() };
    let stream = connector.connect(ServerName::from(address.ip()), stream.compat()).await.map_err(failed)?;
    send(stream.compat(), address, question).await
}

/// Where a program of this host that listens there is reached.
fn reachable(listen: SocketAddr) -> Option<SocketAddr> {
    // `[::]` is bound for IPv4 too, also on a system without IPv6.
    let ip = if listen.ip().is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { listen.ip() };
    (listen.port() != 0).then(|| SocketAddr::new(ip, listen.port()))
}

async fn send(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    address: SocketAddr,
    question: Question<'_>,
) -> Result<Answer, AskError> {
    let failed = |error: hyper::Error| AskError::Http(error.to_string());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let mut request = Request::builder().method(question.method).uri(question.path);
    request = request.header(header::HOST, address.to_string()).header(header::CONNECTION, "close");
    if !question.body.is_empty() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    if let Some(token) = question.token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request.body(Full::new(Bytes::from(question.body))).map_err(|e| AskError::Http(e.to_string()))?;
    let answered = async {
        let response = sender.send_request(request).await.map_err(failed)?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| AskError::Http(error.to_string()))?.to_bytes();
        Ok(Answer { status, body: String::from_utf8_lossy(&body).into_owned() })
    };
    let mut answered = std::pin::pin!(answered);
    tokio::select! {
        answer = &mut answered => answer,
        ended = connection => match ended {
            Ok(()) => answered.await,
            Err(error) => Err(failed(error)),
        },
    }
}

fn connector(path: &Path) -> Result<TlsConnector, AskError> {
    let wrong = |reason: String| AskError::Certificate { path: path.to_owned(), reason };
    let expected = CertificateDer::from_pem_file(path).map_err(|error| wrong(error.to_string()))?;
    let provider = aws_lc_rs::default_provider();
    let algorithms = provider.signature_verification_algorithms;
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned { expected, algorithms }))
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Takes one certificate and no other. Who vouches for it does not matter: it lies in the program's own configuration.
#[derive(Debug)]
struct Pinned {
    expected: CertificateDer<'static>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match *shown == self.expected {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(rustls::Error::General("it shows another certificate than the configured one".to_owned())),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        crypto::verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
