//! The manager over HTTP, as `curl` sees it.

use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt as _, path::Path};

use damselfly_manager::{config::ManagerConfig, server::Server};
use damselfly_messages::config::Settings;
use damselfly_transport::program::http::HttpConfig;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

async fn start(data_dir: &Path) -> Server {
    let config = ManagerConfig {
        data_dir: data_dir.into(),
        listen: vec!["/ip4/127.0.0.1/tcp/0".parse().expect("an address")],
        allow_loopback: true,
        http: HttpConfig::loopback(0),
        settings: Some(Settings { replicas: 3, ..Settings::default() }),
    };
    Server::start(config).await.expect("started")
}

/// The whole answer to a request with these further headers.
async fn ask(address: SocketAddr, request: &str, headers: &[&str], body: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let length = body.len();
    let text = format!(
        "{request} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
    );
    stream.write_all(text.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answered");
    answer
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").expect("a body").1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_configuration_is_read_and_changed() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let server = start(&data).await;
    let address = server.http_address();
    let token_file = data.join("admin_token");
    assert_eq!(fs::metadata(&token_file).expect("there").permissions().mode() & 0o777, 0o600);
    let token = format!("authorization: Bearer {}", fs::read_to_string(&token_file).expect("read"));
    let token = token.as_str();

    let read = ask(address, "GET /api/v1/config", &[token], "").await;
    assert!(read.contains("etag: \"1\""), "{read}");
    let settings: Settings = serde_json::from_str(body(&read)).expect("settings and nothing else");
    assert_eq!(settings.replicas, 3, "the first settings are the configured ones");

    let changed = serde_json::to_string(&Settings { replicas: 1, ..settings }).expect("JSON");
    let invalid = changed.replace("\"replicas\":1", "\"replicas\":9");
    let unknown = changed.replace("replicas", "replicsa");
    let long = format!("{changed}{}", " ".repeat(512 << 10));
    let put = "PUT /api/v1/config";
    let cases: [(&str, &[&str], &str, &[&str]); 9] = [
        ("GET /api/v1/config", &[], "", &["401", "unauthorized", "www-authenticate: Bearer"]),
        ("GET /api/v1/config", &["authorization: Bearer wrong"], "", &["401", "application/problem+json"]),
        (put, &[token], &changed, &["428", "if_match_required"]),
        (put, &[token, "if-match: \"7\""], &changed, &["412", "stale", "epoch 1"]),
        (put, &[token, "if-match: \"1\""], &invalid, &["400", "invalid_setting", "\"field\":\"replicas\"", "1–8"]),
        (put, &[token, "if-match: \"1\""], &unknown, &["400", "invalid_body", "replicsa", "expected one of"]),
        (put, &[token, "if-match: \"1\""], &long, &["413", "invalid_body"]),
        ("GET /api/v1/nothing", &[token], "", &["404", "not_found"]),
        ("POST /api/v1/config", &[token], "", &["405", "method_not_allowed"]),
    ];
    for (request, headers, sent, expected) in cases {
        let answer = ask(address, request, headers, sent).await;
        for part in expected {
            assert!(answer.contains(part), "{request}: {part:?} is not in {answer}");
        }
    }

    let answer = ask(address, put, &[token, "if-match: \"1\""], &changed).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("etag: \"2\""), "{answer}");
    let overview = ask(address, "GET /api/v1/overview", &[token], "").await;
    let cluster = server.state().cluster().to_string();
    assert!(overview.contains("\"epoch\":2") && overview.contains(&cluster), "{overview}");
    assert!(ask(address, "GET /metrics", &[], "").await.contains("damselfly_configuration_epoch 2"));
    assert!(ask(address, "GET /readyz", &[], "").await.starts_with("HTTP/1.1 200"));
    server.stop().await;

    let server = start(&data).await;
    let read = ask(server.http_address(), "GET /api/v1/config", &[token], "").await;
    assert!(read.contains("etag: \"2\"") && read.contains("\"replicas\":1"), "a restart keeps it: {read}");
    assert_eq!(server.state().cluster().to_string(), cluster);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_changes_at_the_same_time_one_wins() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = start(&folder.path().join("data")).await;
    let state = server.state();
    let change = || state.change(Settings::default(), |epoch| epoch == 1);
    let results = tokio::join!(change(), change(), change());
    let won = [results.0.is_ok(), results.1.is_ok(), results.2.is_ok()];
    assert_eq!(won.iter().filter(|won| **won).count(), 1, "{won:?}");
}
