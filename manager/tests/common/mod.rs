//! A manager, and requests to it.

use std::{net::SocketAddr, path::Path};

use damselfly_manager::{config::ManagerConfig, server::Server};
use damselfly_messages::config::Settings;
use damselfly_transport::program::http::HttpConfig;
use sqlx::{Connection as _, Executor as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// A manager in `data_dir`.
pub async fn start(data_dir: &Path) -> Server {
    let config = ManagerConfig {
        data_dir: data_dir.into(),
        database_url: None,
        listen: vec!["/ip4/127.0.0.1/tcp/0".parse().expect("an address")],
        join_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        join_advertise: Vec::new(),
        allow_loopback: true,
        dial: damselfly_transport::dialing::DialConfig::default(),
        log_filter: None,
        http: HttpConfig::loopback(0),
        settings: Some(Settings { replicas: 3, ..Settings::default() }),
    };
    Server::start(config).await.expect("started")
}

/// The header of who may do everything.
#[allow(dead_code, reason = "not every test is one")]
pub fn admin(data_dir: &Path) -> String {
    let token = std::fs::read_to_string(data_dir.join("admin_token")).expect("read");
    format!("authorization: Bearer {}", token.trim())
}

/// Does to the database in `data_dir` what no manager does.
pub async fn sql(data_dir: &Path, statement: &'static str) {
    let url = format!("sqlite://{}", data_dir.join("manager.db").display());
    let mut connection = sqlx::SqliteConnection::connect(&url).await.expect("opened");
    connection.execute(statement).await.expect("done");
    connection.close().await.expect("closed");
}

/// Sends a request whose answer has no end, and gives the first part of it.
#[allow(dead_code, reason = "not every test has such requests")]
pub async fn begin(address: SocketAddr, request: &str, headers: &[&str]) -> (String, TcpStream) {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    stream.write_all(format!("{request} HTTP/1.1\r\nhost: a\r\n{headers}\r\n").as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    stream.read_buf(&mut answer).await.expect("answered");
    (String::from_utf8(answer).expect("text"), stream)
}

/// The whole answer to a request with these further headers.
pub async fn ask(address: SocketAddr, request: &str, headers: &[&str], body: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let length = body.len();
    let text = format!(
        "{request} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
    );
    stream.write_all(text.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    // A stream of events has no end: its first event is the answer.
    while stream.read_buf(&mut answer).await.expect("answered") > 0 {
        let text = String::from_utf8_lossy(&answer);
        if text.contains("content-type: text/event-stream") && text.matches("\n\n").count() > 0 {
            break;
        }
    }
    String::from_utf8(answer).expect("text")
}

/// What follows the headers.
pub fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").expect("a body").1
}
