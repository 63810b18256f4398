//! Many local connections at once.

use std::time::Duration;

use damselfly_transport::local::{
    Code, Failure, client,
    proto::{CheckHealthRequest, StatTaskRequest},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    task::JoinSet,
    time::timeout,
};

mod common;

use common::Served;

/// More than a user may have.
const CROWD: usize = 300;

async fn check(served: &Served) -> Result<(), Failure> {
    let mut daemon = client::connect(&served.socket).await?;
    daemon.check_health(CheckHealthRequest {}).await.map(drop).map_err(Failure::from)
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_say_little_keep_nobody_out() {
    let served = Served::start();
    for (said, what) in
        [(&b""[..], "silent"), (b"P", "one byte of a preface"), (b"PRI * HTTP/2.0\r\n\r\nSM", "most of it")]
    {
        let mut crowd = Vec::new();
        for _ in 0..CROWD {
            let mut stream = client_stream(&served).await;
            stream.write_all(said).await.expect("sent");
            crowd.push(stream);
        }
        let answer = timeout(Duration::from_secs(4), check(&served)).await.expect("at once");
        assert_eq!(answer, Ok(()), "beside connections that are {what}");
        for stream in &mut crowd {
            let ended = timeout(Duration::from_secs(20), stream.read(&mut [0])).await;
            assert!(!matches!(ended.expect("closed in time"), Ok(1..)), "without an answer: {what}");
        }
    }
}

async fn client_stream(served: &Served) -> UnixStream {
    UnixStream::connect(&served.socket).await.expect("connected")
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_give_way() {
    let served = Served::start();
    let mut idle = Vec::new();
    for _ in 0..CROWD {
        let mut daemon = client::connect(&served.socket).await.expect("connected");
        daemon.check_health(CheckHealthRequest {}).await.expect("answered, though it may have waited for a place");
        idle.push(daemon);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_at_once_wait_or_are_told_busy_and_never_that_there_is_no_daemon() {
    let served = Served::start();
    let mut at_once = JoinSet::new();
    for _ in 0..CROWD {
        let socket = served.socket.clone();
        at_once.spawn(async move {
            let mut daemon = client::connect(&socket).await?;
            // Keeps its place until the test ends.
            let slow = StatTaskRequest { cid: "slow".to_owned(), ..StatTaskRequest::default() };
            daemon.stat_task(slow).await.map(drop).map_err(Failure::from)
        });
    }
    let mut busy = 0;
    while busy < CROWD - 128 {
        let answer =
            timeout(Duration::from_secs(60), at_once.join_next()).await.expect("in time").expect("one of them");
        let failure = answer.expect("no panic").expect_err("the others never end");
        assert_eq!(failure.code, Code::NoSpace, "{failure:?}");
        assert!(failure.message.contains("busy") && failure.advice().contains("fewer"), "{failure:?}");
        busy += 1;
    }
    assert!(timeout(Duration::from_millis(100), at_once.join_next()).await.is_err(), "128 have their places");
    at_once.shutdown().await;
    assert_eq!(check(&served).await, Ok(()), "places are free again");
}
