//! A manager is lost and comes back.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use damselfly_manager::{
    backup::{self, BackupError, Restored},
    config::ManagerConfig,
    database::audit::Actor,
    server::Server,
    state::EmptyRing,
};
use damselfly_messages::config::Settings;
use damselfly_transport::program::http::HttpConfig;

fn config(data_dir: &Path) -> ManagerConfig {
    let listen = vec!["/ip4/127.0.0.1/tcp/0".parse().expect("an address")];
    ManagerConfig {
        data_dir: data_dir.into(),
        listen,
        join_listen: std::net::SocketAddr::from(([127, 0, 0, 1], 0)),
        http: HttpConfig::loopback(0),
        ..ManagerConfig::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_of_a_running_manager_brings_it_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let (data, copy) = (path("data"), path("copy"));
    let missing = backup::backup(&config(&data), &copy).await;
    assert!(matches!(missing, Err(BackupError::Io { .. })) && !data.exists(), "nothing is made: {missing:?}");

    let server = Server::start(config(&data)).await.expect("started");
    let cluster = server.state().cluster();
    server.state().change(Settings::default(), Actor::manager(), EmptyRing::Refused, |_| true).await.expect("changed");
    backup::backup(&config(&data), &copy).await.expect("copied");
    assert!(matches!(backup::backup(&config(&data), &copy).await, Err(BackupError::Exists(_))));
    for entry in fs::read_dir(&copy).expect("a folder") {
        let entry = entry.expect("an entry");
        let mode = entry.metadata().expect("there").permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", entry.file_name());
    }
    assert!(matches!(backup::restore(&config(&data), &copy).await, Err(BackupError::Server(_))), "it runs");
    server.state().change(Settings::default(), Actor::manager(), EmptyRing::Refused, |_| true).await.expect("changed");
    server.stop().await;
    assert!(matches!(backup::restore(&config(&data), &copy).await, Err(BackupError::Exists(_))), "nothing is lost");

    fs::remove_dir_all(&data).expect("lost");
    let restored = backup::restore(&config(&data), &copy).await.expect("restored");
    assert_eq!(restored, Restored { cluster, epoch: 2 });
    let server = Server::start(config(&data)).await.expect("started");
    assert_eq!(server.state().current().expect("in force").configuration.epoch, 2);
    server.stop().await;

    fs::remove_dir_all(&data).expect("lost");
    fs::remove_file(copy.join("root.key")).expect("lost");
    assert!(matches!(backup::restore(&config(&data), &copy).await, Err(BackupError::Io { .. })), "half a backup");
    assert!(!data.join("manager.db").exists(), "nothing of it is restored");
}
