//! TLS 1.3 with AES-128-GCM only, and buffers as large as helps.

use std::sync::Arc;

use anyhow::Context as _;
use futures_rustls::{TlsAcceptor, TlsConnector, client, server};
use libp2p::identity::Keypair;
use rustls::{
    ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, ServerName, UnixTime},
    sign::{CertifiedKey, SingleCertAndKey},
    version::TLS13,
};
use tokio::{io::BufReader, net::TcpStream};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt as _, TokioAsyncReadCompatExt as _};

use super::Provider;

/// rustls reads a record at a time; this makes of sixteen system calls one.
const READ_BYTES: usize = 256 << 10;
/// How much plaintext is encrypted before it is sent.
const WRITE_BYTES: usize = 1 << 20;

type Socket = Compat<BufReader<TcpStream>>;

fn provider() -> Provider {
    let cipher_suites = vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256];
    Arc::new(CryptoProvider { cipher_suites, ..aws_lc_rs::default_provider() })
}

fn socket(stream: TcpStream) -> Socket {
    BufReader::with_capacity(READ_BYTES, stream).compat()
}

pub(super) struct Acceptor(TlsAcceptor);

pub(super) fn acceptor() -> anyhow::Result<Acceptor> {
    let (certificate, key) = libp2p_tls::certificate::generate(&Keypair::generate_ed25519())?;
    // Its extension is critical, which rustls does not know; so it is not asked to check the certificate.
    let certified = CertifiedKey::new(vec![certificate], aws_lc_rs::sign::any_supported_type(&key)?);
    let resolver = Arc::new(SingleCertAndKey::from(certified));
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    Ok(Acceptor(Arc::new(config).into()))
}

impl Acceptor {
    pub(super) async fn accept(&self, stream: TcpStream) -> anyhow::Result<Compat<server::TlsStream<Socket>>> {
        let large = |connection: &mut rustls::ServerConnection| connection.set_buffer_limit(Some(WRITE_BYTES));
        Ok(self.0.accept_with(socket(stream), large).await?.compat())
    }
}

pub(super) async fn connect(stream: TcpStream) -> anyhow::Result<Compat<client::TlsStream<Socket>>> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from("localhost").context("no name")?;
    Ok(connector.connect(name, socket(stream)).await?.compat())
}

/// Who the other side is does not matter here: it was started by the same program, and the handshake is not measured.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
