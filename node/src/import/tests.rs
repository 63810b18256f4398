//! Imports that do not come to their end.

use std::{io::Write as _, os::fd::OwnedFd, time::Instant};

use tempfile::TempDir;

use super::*;
use crate::{
    permits::Permits,
    testing::{self, name, record},
};

fn importer() -> (TempDir, Importer) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = testing::store(&directory.path().join("store"));
    let announcer = testing::announcer(&store);
    (directory, Importer { store, announcer, settings: HostSettings::default(), metrics: Metrics::default() })
}

fn request(source: File) -> ImportRequest {
    ImportRequest { cid: Some("a".into()), tag: String::new(), source, ttl: None, pin: false, rate: None }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_nobody_waits_for_lets_go_of_its_pipe() {
    let (directory, importer) = importer();
    let places = Permits::new("imports");
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    writer.write_all(b"x").expect("written");
    let place = places.enter(1).await.expect("a place");
    let import = importer.import(request(File::from(OwnedFd::from(reader))), place, Arc::default());
    tokio::time::timeout(Duration::from_millis(300), import).await.map(drop).expect_err("the pipe is open");
    let begun = Instant::now();
    while writer.write_all(b"x").is_ok() {
        assert!(begun.elapsed().as_secs() < 5, "a thread still reads");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let incoming = std::fs::read_dir(directory.path().join("store/incoming")).expect("lists");
    assert_eq!(incoming.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_import_replaced_comes_back() {
    let (_directory, importer) = importer();
    let manifest = testing::import(&importer.store, "a", b"loser");
    let winner = Binding { generation: 2, ..record("a", &manifest).binding };
    let before = TaskRecord { state: TaskState::Conflict { winner }, ..record("a", &manifest) };
    importer.store.put_task(before.clone()).expect("put");
    let place = Permits::new("imports").enter(1).await.expect("a place");
    let done = importer.import(request(testing::source(b"other")), place, Arc::default()).await.expect("imports");
    assert!(!done.announced, "there is no cluster");
    // What the import replaced is dropped once it has ended, and only then.
    let begun = Instant::now();
    while importer.store.contents().len() > 1 {
        assert!(begun.elapsed().as_secs() < 5, "the content without a name stays");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    importer.undo(&done.record, Some(&before)).await.expect("its bytes are lost, so there is nothing to put back");
    assert!(importer.store.task(&name("a").task_id()).is_none());
    assert!(importer.store.contents().is_empty());
}
