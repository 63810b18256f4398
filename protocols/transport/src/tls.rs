//! TLS 1.3 as libp2p does it, with AES-128-GCM first.
//!
//! `libp2p_tls::Config` fixes the order of suites with ChaCha20 first, which is six times slower where the processor
//! has AES instructions. On the wire this is the same upgrade: the same protocol name, ALPN and certificates.

use std::{io, iter, net::Ipv4Addr, sync::Arc, time::Duration};

use futures::{AsyncRead, AsyncWrite, FutureExt, future::BoxFuture};
use futures_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use libp2p::{
    PeerId,
    core::{
        UpgradeInfo,
        upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade},
    },
    identity::Keypair,
};
use libp2p_tls::certificate;
use rustls::{
    CipherSuite, ClientConfig, CommonState, NoKeyLog, ServerConfig, SignatureScheme, SupportedCipherSuite,
    client::{ResolvesClientCert, Resumption},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
};

use crate::verifier::Verifier;

/// A peer that has not proved its key by then is dropped.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The fastest first; both sides offer the same three.
pub const SUITES: [SupportedCipherSuite; 3] = [
    aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
    aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
    aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
];

/// How much rustls encrypts before it waits for the socket, so that one system call moves many records of 16 KiB.
const WRITE_BUFFER_BYTES: usize = 256 * 1024;

const ALPN: &[u8] = b"libp2p";
const NAME: &str = "/tls/1.0.0";

/// The upgrade from a socket to an encrypted stream with a proved [`PeerId`].
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    connector: TlsConnector,
}

/// Why this host cannot speak TLS with its key.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// No certificate could be made for the key.
    #[error("no certificate could be made for this host's key")]
    Generate(#[from] certificate::GenError),
    /// rustls does not take the certificate or the suites.
    #[error("TLS does not accept this host's certificate")]
    Configuration(#[from] rustls::Error),
}

/// Why a peer was not authenticated.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The handshake failed, or the certificate proves no PeerId.
    #[error("TLS handshake failed: {0}")]
    Failed(io::Error),
    /// The peer did not finish in time.
    #[error("TLS handshake took longer than {} s", HANDSHAKE_TIMEOUT.as_secs())]
    Timeout,
    /// The peer presented no certificate that proves a PeerId.
    #[error("the peer's certificate proves no PeerId")]
    Certificate,
}

impl Tls {
    /// Makes a fresh certificate that proves `keypair`; the TLS key lives as long as this value.
    ///
    /// # Errors
    /// [`CertificateError`]: the program cannot start with this key.
    pub fn new(keypair: &Keypair) -> Result<Self, CertificateError> {
        let (certificate, key) = certificate::generate(keypair)?;
        let resolver = Arc::new(Resolver::new(certificate, &key)?);
        let provider = Arc::new(CryptoProvider { cipher_suites: SUITES.to_vec(), ..aws_lc_rs::default_provider() });
        let verifier = Arc::new(Verifier::new(&provider));
        Ok(Self {
            acceptor: Arc::new(server(provider.clone(), verifier.clone(), resolver.clone())?).into(),
            connector: Arc::new(client(provider, verifier, resolver)?).into(),
        })
    }

    async fn accept<C: AsyncRead + AsyncWrite + Unpin>(self, socket: C) -> Upgraded<C> {
        let handshake = self.acceptor.accept_with(socket, |session| {
            session.set_buffer_limit(Some(WRITE_BUFFER_BYTES));
        });
        authenticated(handshake.map(|result| result.map(TlsStream::Server))).await
    }

    async fn connect<C: AsyncRead + AsyncWrite + Unpin>(self, socket: C) -> Upgraded<C> {
        // An address instead of a name keeps the server name extension out, as the libp2p specification demands.
        let name = ServerName::IpAddress(Ipv4Addr::UNSPECIFIED.into());
        let handshake = self.connector.connect_with(name, socket, |session| {
            session.set_buffer_limit(Some(WRITE_BUFFER_BYTES));
        });
        authenticated(handshake.map(|result| result.map(TlsStream::Client))).await
    }
}

type Upgraded<C> = Result<(PeerId, TlsStream<C>), HandshakeError>;

async fn authenticated<C>(handshake: impl Future<Output = io::Result<TlsStream<C>>>) -> Upgraded<C> {
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake)
        .await
        .map_err(|_| HandshakeError::Timeout)?
        .map_err(HandshakeError::Failed)?;
    let peer = proved_peer(stream.get_ref().1)?;
    Ok((peer, stream))
}

fn proved_peer(session: &CommonState) -> Result<PeerId, HandshakeError> {
    let Some([certificate]) = session.peer_certificates() else { return Err(HandshakeError::Certificate) };
    let certificate = certificate::parse(certificate).map_err(|_| HandshakeError::Certificate)?;
    Ok(certificate.peer_id())
}

/// The suite a finished handshake agreed on.
pub fn suite<C>(stream: &TlsStream<C>) -> Option<CipherSuite> {
    stream.get_ref().1.negotiated_cipher_suite().map(|suite| suite.suite())
}

fn server(
    provider: Arc<CryptoProvider>,
    verifier: Arc<Verifier>,
    resolver: Arc<Resolver>,
) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session would skip the certificate, so there are none.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.key_log = Arc::new(NoKeyLog {});
    Ok(config)
}

fn client(
    provider: Arc<CryptoProvider>,
    verifier: Arc<Verifier>,
    resolver: Arc<Resolver>,
) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(resolver);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config.key_log = Arc::new(NoKeyLog {});
    Ok(config)
}

/// Shows the one certificate we have, whoever asks.
#[derive(Debug)]
struct Resolver(Arc<CertifiedKey>);

impl Resolver {
    fn new(certificate: CertificateDer<'static>, key: &PrivateKeyDer<'_>) -> Result<Self, rustls::Error> {
        let key = aws_lc_rs::sign::any_ecdsa_type(key)?;
        Ok(Self(Arc::new(CertifiedKey::new(vec![certificate], key))))
    }
}

impl ResolvesClientCert for Resolver {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

impl UpgradeInfo for Tls {
    type Info = &'static str;
    type InfoIter = iter::Once<Self::Info>;

    fn protocol_info(&self) -> Self::InfoIter {
        iter::once(NAME)
    }
}

impl<C: AsyncRead + AsyncWrite + Send + Unpin + 'static> InboundConnectionUpgrade<C> for Tls {
    type Output = (PeerId, TlsStream<C>);
    type Error = HandshakeError;
    type Future = BoxFuture<'static, Result<Self::Output, Self::Error>>;

    fn upgrade_inbound(self, socket: C, _: Self::Info) -> Self::Future {
        self.accept(socket).boxed()
    }
}

impl<C: AsyncRead + AsyncWrite + Send + Unpin + 'static> OutboundConnectionUpgrade<C> for Tls {
    type Output = (PeerId, TlsStream<C>);
    type Error = HandshakeError;
    type Future = BoxFuture<'static, Result<Self::Output, Self::Error>>;

    fn upgrade_outbound(self, socket: C, _: Self::Info) -> Self::Future {
        self.connect(socket).boxed()
    }
}

#[cfg(test)]
mod tests {
    use futures::{AsyncReadExt, AsyncWriteExt};
    use tokio_util::compat::TokioAsyncReadCompatExt;

    use super::*;

    #[tokio::test]
    async fn both_sides_learn_the_peer_and_agree_on_aes_128() {
        let (ours, theirs) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
        let (left, right) = tokio::io::duplex(64 * 1024);
        let server = Tls::new(&ours).expect("certificate");
        let client = Tls::new(&theirs).expect("certificate");
        let (server, client) = tokio::join!(server.accept(left.compat()), client.connect(right.compat()));
        let (peer_of_server, mut server) = server.expect("accepted");
        let (peer_of_client, mut client) = client.expect("connected");

        assert_eq!(peer_of_server, theirs.public().to_peer_id());
        assert_eq!(peer_of_client, ours.public().to_peer_id());
        assert_eq!(suite(&server), Some(CipherSuite::TLS13_AES_128_GCM_SHA256));
        assert_eq!(suite(&client), Some(CipherSuite::TLS13_AES_128_GCM_SHA256));

        client.write_all(b"damselfly").await.expect("written");
        client.flush().await.expect("flushed");
        let mut got = [0; 9];
        server.read_exact(&mut got).await.expect("read");
        assert_eq!(&got, b"damselfly");
    }

    /// The stock upgrade is the reference for the wire: the same names, certificates and extensions.
    #[tokio::test]
    async fn speaks_with_the_stock_upgrade() {
        let (ours, theirs) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
        let (left, right) = tokio::io::duplex(64 * 1024);
        let server = Tls::new(&ours).expect("certificate");
        let client = libp2p_tls::Config::new(&theirs).expect("certificate");
        let (server, client) =
            tokio::join!(server.accept(left.compat()), client.upgrade_outbound(right.compat(), NAME));
        assert_eq!(server.expect("accepted").0, theirs.public().to_peer_id());
        assert_eq!(client.expect("connected").0, ours.public().to_peer_id());
    }

    #[tokio::test]
    async fn noise_is_refused_without_a_panic() {
        for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16, 3, 1, 0xff, 0xff, 1, 2, 3], &[0; 4096]] {
            let (left, right) = tokio::io::duplex(64 * 1024);
            let server = Tls::new(&Keypair::generate_ed25519()).expect("certificate");
            let mut stranger = right.compat();
            stranger.write_all(bytes).await.expect("written");
            stranger.close().await.expect("closed");
            let error = server.accept(left.compat()).await.err();
            assert!(matches!(error, Some(HandshakeError::Failed(_))), "{error:?}");
        }
    }

    #[tokio::test]
    async fn a_client_without_certificate_is_refused() {
        let (left, right) = tokio::io::duplex(64 * 1024);
        let server = Tls::new(&Keypair::generate_ed25519()).expect("certificate");
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier::new(&provider)))
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        let name = ServerName::IpAddress(Ipv4Addr::UNSPECIFIED.into());
        let connector = TlsConnector::from(Arc::new(config));
        let (server, _client) = tokio::join!(server.accept(left.compat()), connector.connect(name, right.compat()));
        assert!(server.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_at_the_deadline() {
        let (left, _right) = tokio::io::duplex(1024);
        let server = Tls::new(&Keypair::generate_ed25519()).expect("certificate");
        assert!(matches!(server.accept(left.compat()).await, Err(HandshakeError::Timeout)));
    }
}
