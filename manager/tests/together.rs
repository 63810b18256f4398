//! Two managers that share a PostgreSQL, where it is installed.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use damselfly_manager::{
    config::ManagerConfig,
    database::audit::Actor,
    history::StoreError,
    server::{Server, ServerError},
    state::{ChangeError, EmptyRing},
};
use damselfly_messages::config::Settings;
use damselfly_transport::program::http::HttpConfig;
use tokio::time::{sleep, timeout};

#[path = "../src/database/tests/postgres.rs"]
mod postgres;

async fn start(data_dir: &Path, url: &str) -> Result<Server, ServerError> {
    let config = ManagerConfig {
        data_dir: data_dir.into(),
        database_url: Some(url.to_owned().into()),
        listen: vec!["/ip4/127.0.0.1/tcp/0".parse().expect("an address")],
        join_listen: std::net::SocketAddr::from(([127, 0, 0, 1], 0)),
        join_advertise: Vec::new(),
        allow_loopback: true,
        dial: damselfly_transport::dialing::DialConfig::default(),
        log_filter: None,
        http: HttpConfig::loopback(0),
        settings: None,
    };
    Server::start(config).await
}

fn epoch(server: &Server) -> u64 {
    server.state().current().expect("in force").configuration.epoch
}

async fn change(server: &Server, parents: u32, expected: u64) -> Result<u64, ChangeError> {
    let settings = Settings { candidate_parents: parents, ..Settings::default() };
    server.state().change(settings, Actor::manager(), EmptyRing::Refused, move |epoch| epoch == expected).await
}

async fn publishes(server: &Server) {
    let mut is_publisher = server.state().is_publisher();
    timeout(Duration::from_secs(10), is_publisher.wait_for(|is| *is)).await.expect("in time").expect("it runs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_managers_never_sign_one_epoch_and_take_over() {
    let Some(postgres) = postgres::Server::start() else {
        return eprintln!("PostgreSQL is not installed: nothing tested");
    };
    let folder = tempfile::tempdir().expect("a folder");
    let (one, two, three) = (folder.path().join("1"), folder.path().join("2"), folder.path().join("3"));
    let first = start(&one, &postgres.url()).await.expect("founded");
    publishes(&first).await;
    let error = start(&three, &postgres.url()).await.expect_err("no key");
    assert!(matches!(error, ServerError::Store(StoreError::DatabaseAlone { .. })), "{error:?}");
    let error = start(&one, &postgres.url()).await.expect_err("twice");
    assert!(matches!(error, ServerError::Locked(_)), "{error:?}");

    fs::create_dir(&two).expect("made");
    fs::set_permissions(&two, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("set");
    fs::copy(one.join("root.key"), two.join("root.key")).expect("copied");
    let second = start(&two, &postgres.url()).await.expect("started");
    assert_eq!(second.state().cluster(), first.state().cluster());
    assert_ne!(second.network().peer_id(), first.network().peer_id());
    assert_eq!(change(&first, 3, 1).await.expect("changed"), 2);
    let begun = Instant::now();
    while epoch(&second) != 2 || second.state().unsettled().is_some() {
        assert!(begun.elapsed() < Duration::from_secs(10), "the second one does not follow");
        sleep(Duration::from_millis(50)).await;
    }
    assert!(!*second.state().is_publisher().borrow());

    for round in 2..6 {
        let (here, there) = tokio::join!(change(&first, 4, round), change(&second, 5, round));
        let (won, lost) = if here.is_ok() { (here, there) } else { (there, here) };
        assert_eq!(won.expect("one of them"), round + 1);
        assert!(matches!(lost, Err(ChangeError::Stale { current }) if current == round + 1), "{lost:?}");
        while epoch(&first).min(epoch(&second)) <= round {
            sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(first.state().current().expect("one").signed, second.state().current().expect("two").signed);
    }

    first.stop().await;
    publishes(&second).await;
    assert_eq!(change(&second, 6, 6).await.expect("changed"), 7);
    second.stop().await;
}
