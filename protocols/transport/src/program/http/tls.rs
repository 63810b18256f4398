//! TLS of a program's HTTP server: the operator's certificate, or one of its own making.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::{AsyncRead, AsyncWrite};
use futures_rustls::{TlsAcceptor, server::TlsStream};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject as _},
    },
};
use tokio::time::timeout;

use super::HttpConfig;
use crate::program::durable;

/// The certificate and the key that the program has made, in its data directory.
const SELF_SIGNED: (&str, &str) = ("http_cert.pem", "http_key.pem");
/// A client that has not finished its handshake by then is dropped.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// So often at most it is looked whether the files have changed.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or made.
    #[error("cannot use {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file has no certificate or key in it.
    #[error("{} has no certificate or key in PEM: {source}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        source: pem::Error,
    },
    /// Certificate and key do not go together.
    #[error("the certificate and the key cannot be used together: {0}")]
    Refused(#[from] rustls::Error),
    /// No certificate could be made.
    #[error("no certificate could be made: {0}")]
    Make(#[from] rcgen::Error),
}

/// What a server shows to clients; it follows its files.
#[derive(Debug)]
pub(super) struct Certificate {
    files: (PathBuf, PathBuf),
    is_self_signed: bool,
    loaded: Mutex<Loaded>,
}

struct Loaded {
    acceptor: TlsAcceptor,
    changed: Changed,
    looked: Instant,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded").finish_non_exhaustive()
    }
}

/// What tells that one of the two files is another one.
type Changed = [Option<(u64, i64, i64, u64)>; 2];

impl Certificate {
    /// What `config` says, if it says anything of TLS. A certificate of the program's own is made at the first start.
    ///
    /// # Errors
    /// [`TlsError`].
    pub(super) fn open(config: &HttpConfig, data_dir: &Path) -> Result<Option<Self>, TlsError> {
        let (files, is_self_signed) = match (&config.tls_cert_file, &config.tls_key_file) {
            (Some(certificate), Some(key)) => ((certificate.clone(), key.clone()), false),
            _ if config.tls_self_signed => (self_signed(data_dir, config)?, true),
            _ => return Ok(None),
        };
        let changed = changed(&files);
        let acceptor = load(&files)?;
        let loaded = Mutex::new(Loaded { acceptor, changed, looked: Instant::now() });
        Ok(Some(Self { files, is_self_signed, loaded }))
    }

    pub(super) const fn is_self_signed(&self) -> bool {
        self.is_self_signed
    }

    /// Encrypts `stream`, within ten seconds.
    ///
    /// # Errors
    /// [`io::Error`]: the client does not speak TLS, or not in time.
    pub(super) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> io::Result<TlsStream<S>> {
        let acceptor = self.acceptor();
        timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await.map_err(|_| io::ErrorKind::TimedOut)?
    }

    /// As the files are now. Files that do not go together, as in the middle of a change, leave what there was.
    fn acceptor(&self) -> TlsAcceptor {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.looked.elapsed() >= LOOK_INTERVAL {
            loaded.looked = Instant::now();
            let changed = changed(&self.files);
            if changed != loaded.changed {
                match load(&self.files) {
                    Ok(acceptor) => {
                        tracing::info!(file = %self.files.0.display(), "the certificate for HTTP is read again");
                        (loaded.acceptor, loaded.changed) = (acceptor, changed);
                    }
                    Err(error) => tracing::warn!(%error, "the changed certificate for HTTP is not used"),
                }
            }
        }
        loaded.acceptor.clone()
    }
}

/// The file with the certificate that a program with this configuration shows, if it speaks TLS.
pub(super) fn certificate_file(config: &HttpConfig, data_dir: &Path) -> Option<PathBuf> {
    let own = config.tls_self_signed.then(|| data_dir.join(SELF_SIGNED.0));
    config.tls_cert_file.clone().or(own)
}

fn changed((certificate, key): &(PathBuf, PathBuf)) -> Changed {
    // The time is too coarse to tell apart two files that were made one after the other.
    [certificate, key].map(|path| fs::metadata(path).ok()).map(|metadata| {
        metadata.map(|metadata| (metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.len()))
    })
}

fn load((certificate, key): &(PathBuf, PathBuf)) -> Result<TlsAcceptor, TlsError> {
    let wrong = |path: &Path| {
        let path = path.to_owned();
        |source| TlsError::Pem { path, source }
    };
    let read = CertificateDer::pem_file_iter(certificate).map_err(wrong(certificate))?;
    let chain: Vec<_> = read.collect::<Result<_, _>>().map_err(wrong(certificate))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(wrong(key))?;
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth();
    let mut config = config.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// The program's own certificate, which is made once: who has pinned its fingerprint can go on.
fn self_signed(data_dir: &Path, config: &HttpConfig) -> Result<(PathBuf, PathBuf), TlsError> {
    let files = (data_dir.join(SELF_SIGNED.0), data_dir.join(SELF_SIGNED.1));
    if !files.0.exists() || !files.1.exists() {
        let ip = config.listen.ip();
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        let names: Vec<_> =
            names.into_iter().chain((!ip.is_unspecified() && !ip.is_loopback()).then(|| ip.to_string())).collect();
        let made = rcgen::generate_simple_self_signed(names)?;
        // The key first: a certificate is never there without it.
        for (path, pem) in [(&files.1, made.key_pair.serialize_pem()), (&files.0, made.cert.pem())] {
            durable::replace(path, pem.as_bytes(), 0o600)
                .map_err(|source| TlsError::File { path: path.clone(), source })?;
        }
    }
    let certificate =
        CertificateDer::from_pem_file(&files.0).map_err(|source| TlsError::Pem { path: files.0.clone(), source })?;
    let fingerprint = fingerprint(&certificate);
    tracing::info!(sha256 = %fingerprint, "HTTP has a certificate of its own; compare its fingerprint");
    Ok(files)
}

/// The SHA-256 of a certificate, as browsers show it.
fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    let suite = aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
    let digest = suite.tls13().map(|suite| suite.common.hash_provider.hash(certificate));
    let bytes = digest.iter().flat_map(|digest| digest.as_ref());
    bytes.map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(":")
}
