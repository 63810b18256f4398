use std::sync::atomic::{AtomicBool, Ordering};

use axum::extract::ConnectInfo;
use axum::routing::{get, post};
use prometheus_client::{metrics::counter::Counter, registry::Registry};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::sleep,
};

use super::{connections::HEAD_BYTES_MAX, *};

mod crowded;
mod encrypted;

async fn started(config: &HttpConfig, routes: Router) -> Result<HttpServer, HttpError> {
    HttpServer::start(config, Path::new("/nonexistent"), routes).await
}

async fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answered");
    answer
}

fn head(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
}

#[tokio::test]
async fn shows_metrics_and_readiness() {
    let counter: Counter = Counter::default();
    let mut registry = Registry::default();
    registry.register("things", "Things counted", counter.clone());
    counter.inc();
    let is_ready = Arc::new(AtomicBool::new(false));
    let ready = {
        let is_ready = Arc::clone(&is_ready);
        move || if is_ready.load(Ordering::Relaxed) { Ok(()) } else { Err(vec!["no configuration".into()]) }
    };
    let routes = monitoring(Monitoring::new(registry, ready));
    let server = started(&HttpConfig::default(), routes).await.expect("started");
    assert!(ask(server.address(), &head("/metrics")).await.contains("things_total 1"));
    assert!(ask(server.address(), &head("/healthz")).await.starts_with("HTTP/1.1 200"));
    let answer = ask(server.address(), &head("/readyz")).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("no configuration\n"), "{answer}");
    is_ready.store(true, Ordering::Relaxed);
    assert!(ask(server.address(), &head("/readyz")).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn stays_on_loopback_unless_told() {
    let listen = SocketAddr::from(([0, 0, 0, 0], 0));
    let exposed = HttpConfig { listen, ..HttpConfig::default() };
    assert!(matches!(started(&exposed, Router::new()).await, Err(HttpError::Exposed(_))));
    let insecure = HttpConfig { listen, insecure_http: true, ..HttpConfig::default() };
    started(&insecure, Router::new()).await.expect("allowed");
}

#[tokio::test]
async fn bounds_bodies_and_heads_and_answers_what_is_under_way() {
    let slow = get(async || {
        sleep(Duration::from_millis(200)).await;
        "slow"
    });
    let routes = Router::new().route("/", post(async |body: String| body.len().to_string())).route("/slow", slow);
    let server = started(&HttpConfig::default(), routes).await.expect("started");
    let address = server.address();
    let post =
        |bytes: usize| format!("POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {bytes}\r\n\r\n");
    assert!(ask(address, &(post(4) + "1234")).await.ends_with('4'));
    assert!(
        ask(address, &(post(BODY_BYTES_MAX + 1) + &"x".repeat(BODY_BYTES_MAX + 1))).await.starts_with("HTTP/1.1 413")
    );
    let long = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}", "y".repeat(HEAD_BYTES_MAX));
    assert!(ask(address, &long).await.starts_with("HTTP/1.1 431"));
    let slow = tokio::spawn(async move { ask(address, &head("/slow")).await });
    sleep(Duration::from_millis(50)).await;
    server.stop().await;
    assert!(slow.await.expect("no panic").ends_with("slow"));
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn routes_learn_who_asks() {
    let who = async |Extension(ConnectInfo(from)): Extension<ConnectInfo<SocketAddr>>| from.ip().to_string();
    let server = started(&HttpConfig::default(), Router::new().route("/who", get(who))).await;
    let answer = ask(server.expect("started").address(), &head("/who")).await;
    assert!(answer.ends_with("127.0.0.1"), "{answer}");
}

#[tokio::test]
async fn a_page_of_another_name_is_refused() {
    let config = HttpConfig { allowed_hosts: vec!["manager.example".to_owned()], ..HttpConfig::default() };
    let server = started(&config, Router::new().route("/", get(async || "secret"))).await.expect("started");
    let as_host = |host: &str| format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    for host in [server.address().to_string(), "localhost".to_owned(), "manager.example:4401".to_owned()] {
        let answer = ask(server.address(), &as_host(&host)).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{host}: {answer}");
    }
    let answer = ask(server.address(), &as_host("rebound.example")).await;
    assert!(answer.starts_with("HTTP/1.1 421") && answer.contains("http.allowed_hosts"), "{answer}");
    assert!(!answer.contains("secret"), "{answer}");
}
