//! How downloads end, and who learns of it.

use std::time::Duration;

use damselfly_messages::hasher::hash_bytes;
use tempfile::TempDir;
use tokio::time::timeout;

use super::*;
use crate::{store::VerifiedPiece, testing};

/// A download that was interrupted after a piece, and of whose content nobody is known.
async fn download(directory: &TempDir) -> Interest {
    let exporter = testing::exporter(&directory.path().join("store"));
    let bytes = testing::bytes(1, 3 << 20);
    let manifest = hash_bytes(&bytes);
    let first = manifest.layout().index(0).expect("three pieces");
    let interrupted = exporter.store.begin_download(&manifest).expect("begins");
    interrupted.write(VerifiedPiece::verify(&manifest, first, &bytes[..1 << 20]).expect("true")).expect("written");
    interrupted.checkpoint().expect("durable");
    drop(interrupted);
    let wanted = Wanted {
        name: testing::name("a"),
        binding: testing::record("a", &manifest).binding,
        parents: Vec::new(),
        sequential: false,
        limiter: Limiter::default(),
        record: None,
    };
    exporter.downloads.want(wanted).await.expect("begins").expect("two pieces are missing")
}

#[tokio::test]
async fn who_looks_after_the_end_is_told_of_it() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let download = download(&directory).await;
    download.end(Err(FetchError::Abandoned));
    let mut progress = download.progress();
    timeout(Duration::from_secs(10), progress.changed()).await.expect("at once").expect("it is there");
    assert!(matches!(progress.borrow().ended, Some(Err(FetchError::Abandoned))));
}

#[tokio::test]
async fn what_has_ended_settles_and_is_off_the_list() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let download = download(&directory).await;
    let downloads = Downloads { shared: Arc::clone(&download.shared) };
    let content = download.manifest().content();
    assert!(downloads.get(content).is_some());
    download.end(Err(FetchError::NoSource("for a test".into())));
    timeout(Duration::from_secs(10), download.settled.cancelled()).await.expect("it settles");
    assert!(downloads.get(content).is_none(), "it is off the list");
}
