//! HTTPS, with a client that checks the certificate.

use std::{fs, os::unix::fs::PermissionsExt as _};

use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use futures_rustls::TlsConnector;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio_util::compat::TokioAsyncReadCompatExt as _;

use super::*;

fn encrypted(change: impl FnOnce(&mut HttpConfig)) -> HttpConfig {
    let mut config = HttpConfig::default();
    change(&mut config);
    config
}

/// The answer for who trusts the certificate in `trusted` alone.
async fn ask_encrypted(address: SocketAddr, trusted: &Path) -> io::Result<String> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(trusted).expect("PEM")).expect("a certificate");
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await?.compat();
    let name = ServerName::try_from("localhost").expect("a name");
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    stream.write_all(head("/").as_bytes()).await?;
    let mut answer = Vec::new();
    // Some servers close without saying so; what was read counts.
    drop(stream.read_to_end(&mut answer).await);
    Ok(String::from_utf8(answer).expect("text"))
}

fn routes() -> Router {
    Router::new().route("/", get(async |Extension(Encrypted(is)): Extension<Encrypted>| format!("encrypted: {is}")))
}

#[tokio::test]
async fn a_certificate_of_its_own_is_made_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = encrypted(|config| config.tls_self_signed = true);
    let (certificate, key) = (folder.path().join("http_cert.pem"), folder.path().join("http_key.pem"));
    let mut made = Vec::new();
    for _ in 0..2 {
        let server = HttpServer::start(&config, folder.path(), routes()).await.expect("started");
        assert!(server.url().starts_with("https://127.0.0.1:"));
        let answer = ask_encrypted(server.address(), &certificate).await.expect("answered");
        assert!(answer.ends_with("encrypted: true"), "{answer}");
        assert!(!answer.contains("strict-transport-security"), "nobody could look past it any more: {answer}");
        made.push(fs::read(&certificate).expect("read"));
        server.stop().await;
    }
    assert_eq!(made[0], made[1], "who has compared its fingerprint need not again");
    assert_eq!(fs::metadata(&key).expect("there").permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn an_operators_certificate_is_shown_and_checked_and_read_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let make = |certificate: &str, key: &str| {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("made");
        fs::write(path(certificate), made.cert.pem()).expect("written");
        fs::write(path(key), made.key_pair.serialize_pem()).expect("written");
    };
    make("cert", "key");
    make("other", "other.key");
    let config = encrypted(|config| {
        (config.tls_cert_file, config.tls_key_file) = (Some(path("cert")), Some(path("key")));
    });
    let server = HttpServer::start(&config, folder.path(), routes()).await.expect("started");
    let answer = ask_encrypted(server.address(), &path("cert")).await.expect("answered");
    assert!(answer.contains("strict-transport-security: max-age=31536000"), "{answer}");
    assert!(ask_encrypted(server.address(), &path("other")).await.is_err(), "this client trusts another one");
    let plain = ask(server.address(), &head("/")).await;
    assert!(!plain.contains("encrypted"), "without TLS there is no answer: {plain}");

    // Whoever says nothing keeps nobody waiting.
    let _silent: Vec<_> = futures::future::join_all((0..16).map(|_| TcpStream::connect(server.address()))).await;
    fs::rename(path("other"), path("cert")).expect("renamed");
    fs::rename(path("other.key"), path("key")).expect("renamed");
    let renewed = timeout(Duration::from_secs(20), async {
        while ask_encrypted(server.address(), &path("cert")).await.is_err() {
            sleep(Duration::from_millis(100)).await;
        }
    });
    renewed.await.expect("the new certificate is shown");
}

#[test]
fn what_would_be_readable_is_refused_before_anything_is_opened() {
    let everywhere = SocketAddr::from(([0, 0, 0, 0], 0));
    let file = || Some(PathBuf::from("x.pem"));
    let cases: [(HttpConfig, Option<&str>, &str); 7] = [
        (HttpConfig::default(), None, "loopback"),
        (encrypted(|config| config.listen = everywhere), Some("--insecure-http"), "the hint"),
        (encrypted(|config| (config.listen, config.insecure_http) = (everywhere, true)), None, "on request"),
        (encrypted(|config| (config.listen, config.tls_self_signed) = (everywhere, true)), None, "encrypted"),
        (encrypted(|config| config.tls_cert_file = file()), Some("go together"), "no key"),
        (encrypted(|config| config.tls_key_file = file()), Some("go together"), "no certificate"),
        (
            encrypted(|config| {
                (config.tls_cert_file, config.tls_key_file, config.tls_self_signed) = (file(), file(), true);
            }),
            Some("beside"),
            "which one?",
        ),
    ];
    for (config, expected, reason) in cases {
        let text = config.check().err().map(|error| format!("{error:?}"));
        match expected {
            None => assert_eq!(text, None, "{reason}"),
            Some(part) => assert!(text.as_ref().is_some_and(|text| text.contains(part)), "{reason}: {text:?}"),
        }
    }
}

#[tokio::test]
async fn a_program_is_asked_by_its_own_configuration_and_only_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = encrypted(|config| config.tls_self_signed = true);
    let server = HttpServer::start(&config, folder.path(), routes()).await.expect("started");
    let question = || Question { method: http::Method::GET, path: "/", token: None, body: String::new() };
    let error = super::super::ask(&config, folder.path(), question()).await.expect_err("port 0 is nowhere");
    assert!(matches!(error, AskError::AnyPort), "{error}");
    config.listen = SocketAddr::from(([0, 0, 0, 0], server.address().port()));
    let answer = super::super::ask(&config, folder.path(), question()).await.expect("answered");
    assert_eq!((answer.status, answer.body.as_str()), (200, "encrypted: true"));

    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("made");
    fs::write(folder.path().join("http_cert.pem"), made.cert.pem()).expect("written");
    let error = super::super::ask(&config, folder.path(), question()).await.expect_err("it is not the one");
    assert!(error.to_string().contains("another certificate"), "{error}");
}
