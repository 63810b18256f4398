//! More connections than there are places, of clients that have no credential.

use futures::future::join_all;

use super::{
    super::slots::{CONNECTIONS_MAX, MONITORING_PLACES, PER_SOURCE_MAX},
    *,
};

/// One for all answers: there are as many at a time as there is room for.
static LONG: &[u8] = &[b'x'; 8 << 20];

/// A server with monitoring, `/change` that works at once, and `/slow` that answers when `finish` is cancelled.
async fn server(finish: &CancellationToken) -> HttpServer {
    let finish = finish.clone();
    let slow = get(move || async move {
        finish.cancelled().await;
        "slow"
    });
    let long = get(async || LONG);
    let echo = post(async |body: String| body);
    let ready = Monitoring::new(Registry::default(), || Ok(()));
    let routes = monitoring(ready)
        .route("/slow", slow)
        .route("/long", long)
        .route("/echo", echo)
        .route("/change", post(async || "changed"));
    started(&HttpConfig::default(), routes).await.expect("started")
}

async fn opened(address: SocketAddr, sent: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    stream.write_all(sent.as_bytes()).await.expect("sent");
    stream
}

async fn all(count: usize, address: SocketAddr, sent: &str) -> Vec<TcpStream> {
    join_all((0..count).map(|_| opened(address, sent))).await
}

const CHANGE: &str = "POST /change HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// Asks for monitoring and for a change; both must be answered while the crowd is there.
async fn assert_answers(address: SocketAddr, crowd: &str) {
    for request in [head("/healthz"), head("/metrics"), CHANGE.to_owned()] {
        let answer = timeout(Duration::from_secs(8), ask(address, &request)).await;
        let answer = answer.unwrap_or_else(|_| panic!("no answer beside {crowd}"));
        assert!(answer.starts_with("HTTP/1.1 200"), "beside {crowd}: {answer}");
    }
}

#[tokio::test]
async fn clients_that_wait_or_do_not_read_keep_nobody_out() {
    let never_read = "GET /long HTTP/1.1\r\nhost: a\r\n\r\n".repeat(8);
    let pipelined = "GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n".repeat(2_000);
    let crowds = [
        ("", "clients that say nothing"),
        ("GET /healthz HT", "clients that stop within a head"),
        ("GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n", "clients that keep their connection"),
        ("POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n", "clients that stop within a body"),
        (never_read.as_str(), "clients that never read"),
    ];
    for (sent, crowd) in crowds {
        let server = server(&CancellationToken::new()).await;
        let _crowd = all(CONNECTIONS_MAX + MONITORING_PLACES, server.address(), sent).await;
        assert_answers(server.address(), crowd).await;
    }
    let server = server(&CancellationToken::new()).await;
    let address = server.address();
    // These block in their writes when the server stops reading.
    let mut pipelining = JoinSet::new();
    for _ in 0..CONNECTIONS_MAX {
        let pipelined = pipelined.clone();
        pipelining.spawn(async move {
            let mut stream = TcpStream::connect(address).await.expect("connected");
            drop(stream.write_all(pipelined.as_bytes()).await);
            stream
        });
    }
    assert_answers(address, "clients that pipeline and never read").await;
}

#[tokio::test]
async fn monitoring_is_answered_when_every_place_is_busy_and_the_rest_is_told_so() {
    let finish = CancellationToken::new();
    let server = server(&finish).await;
    let mut busy = all(PER_SOURCE_MAX, server.address(), &head("/slow")).await;
    let told_busy = async {
        // Until the last of the crowd is being answered, its place is still given away.
        loop {
            let answer = ask(server.address(), CHANGE).await;
            if answer.starts_with("HTTP/1.1 503") {
                return answer;
            }
        }
    };
    let answer = timeout(Duration::from_secs(8), told_busy).await.expect("told to come again");
    assert!(answer.contains("retry-after: 1") && answer.contains("connection: close"), "{answer}");
    let _silent = all(2 * MONITORING_PLACES, server.address(), "").await;
    assert!(ask(server.address(), &head("/healthz")).await.ends_with("ok\n"));
    finish.cancel();
    for stream in &mut busy {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        assert!(answer.is_empty() || answer.ends_with("slow"), "{answer}");
    }
    assert!(ask(server.address(), CHANGE).await.ends_with("changed"), "places are free again");
}
