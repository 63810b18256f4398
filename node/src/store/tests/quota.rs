//! Quota: what goes, in which order, and what stays.

use super::*;
use crate::store::{DownloadError, ImportError, Quota};

const PIECES: usize = 100_000;

const fn quota(bytes: usize) -> Quota {
    Quota { bytes: bytes as u64, high_percent: 90, low_percent: 50 }
}

/// Downloads a content as others have it, used at that time.
fn fetched(store: &Store, cid: &str, seed: u64, used: u64) -> Manifest {
    let bytes = bytes(seed, PIECES);
    let manifest = manifest_of(&bytes);
    let download = store.begin_download(&manifest).expect("begins");
    fetch(&download, &bytes, |_| true).expect("written");
    let record = TaskRecord {
        state: TaskState::Acknowledged,
        last_used: UnixMillis(used),
        fetched: true,
        ..record(cid, &manifest, 1)
    };
    download.finish(vec![record]).expect("finished");
    manifest
}

fn held(store: &Store) -> Vec<String> {
    let mut held: Vec<_> = store.tasks().iter().map(|record| record.name.cid().to_owned()).collect();
    held.sort();
    held
}

#[test]
fn copies_used_least_lately_go_and_everything_else_stays() {
    let (_directory, store) = fresh();
    import(&store, "imported", &bytes(1, PIECES));
    fetched(&store, "new", 2, 30);
    fetched(&store, "old", 3, 10);
    fetched(&store, "older, and used again", 4, 5);
    let pinned = fetched(&store, "pinned", 5, 1);
    store.put_task(TaskRecord { pinned: true, ..store.task(&name("pinned").task_id()).expect("held") }).expect("put");
    let read = fetched(&store, "being read", 6, 1);
    let reader = store.open_content(read.content()).expect("opens").expect("held");
    let both = fetched(&store, "fetched", 7, 1);
    store.bind(TaskRecord { fetched: false, ..record("imported too", &both, 1) }).expect("bound");
    store.touch(&name("older, and used again").task_id(), UnixMillis(20));
    assert_eq!(store.used_bytes(), 7 * PIECES as u64);

    store.keep_quota().expect("there is none");
    store.set_quota(Some(quota(8 * PIECES)));
    store.keep_quota().expect("below the mark");
    assert_eq!((held(&store).len(), store.take_evicted().len()), (8, 0));
    store.set_quota(Some(Quota { low_percent: 72, ..quota(7 * PIECES) }));
    store.keep_quota().expect("kept");
    let went: Vec<_> = store.take_evicted().iter().map(|record| record.name.cid().to_owned()).collect();
    assert_eq!(went, ["old", "older, and used again"], "to the lower mark and no further");
    assert_eq!((store.used_bytes(), store.removed().evicted), (5 * PIECES as u64, 2));
    assert_eq!(store.removed().evicted_bytes, 2 * PIECES as u64);
    store.set_quota(Some(quota(PIECES)));
    store.keep_quota().expect("kept");
    assert_eq!(held(&store), ["being read", "fetched", "imported", "imported too", "pinned"]);
    assert_eq!(store.stuck().map(|stuck| stuck.used), Some(4 * PIECES as u64), "nothing more can go");
    drop(reader);
    assert_eq!(store.stuck(), None);
    store.keep_quota().expect("kept");
    assert_eq!(held(&store), ["fetched", "imported", "imported too", "pinned"]);
    assert_eq!(read_all(&store, pinned.content()).expect("sound"), Some(bytes(5, PIECES)));
    assert_eq!(read_all(&store, read.content()).expect("gone"), None);
}

#[test]
fn what_was_fetched_is_known_after_a_restart_and_an_import_makes_it_mine() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("store");
    let store = open(&path);
    fetched(&store, "a", 1, 1);
    fetched(&store, "b", 2, 2);
    import(&store, "b", &bytes(2, PIECES));
    drop(store);
    let store = open(&path);
    assert_eq!(store.used_bytes(), 2 * PIECES as u64);
    store.set_quota(Some(quota(10)));
    store.keep_quota().expect("kept");
    assert_eq!(held(&store), ["b"], "who imports it again has it for good");
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_written_or_removed() {
    let (directory, store) = fresh();
    let over = |result: Result<_, ImportError>| match result.map(drop) {
        Err(ImportError::Store(error @ StoreError::OverQuota { .. })) => error.to_string(),
        other => panic!("{other:?}"),
    };
    let copy = |length: usize| {
        let import = store.begin_import(None)?;
        import.copy_from(source(&bytes(9, length)), &mut |_| ControlFlow::Continue(()))
    };
    store.set_quota(Some(quota(3 * PIECES)));
    import(&store, "imported", &bytes(1, PIECES));
    fetched(&store, "copy", 2, 1);
    let told = over(copy(2 * PIECES + 1));
    assert!(told.contains("quota of 300000 bytes") && told.contains("200001 more"), "{told}");
    assert_eq!(held(&store), ["copy", "imported"], "it would not have fitted without the copy either");
    // One that is under way has its bytes already, and gives them back.
    let first = copy(PIECES).expect("fits");
    assert_eq!((store.used_bytes(), held(&store).len()), (3 * PIECES as u64, 2));
    let second = copy(PIECES).expect("fits without the copy");
    assert_eq!(held(&store), ["imported"]);
    over(copy(1));
    drop((first, second));
    assert_eq!(store.used_bytes(), PIECES as u64);
    let large = manifest_of(&bytes(3, 2 * PIECES + 1));
    let refused = store.begin_download(&large);
    assert!(matches!(refused, Err(DownloadError::Store(StoreError::OverQuota { .. }))));
    let fits = store.begin_download(&manifest_of(&bytes(3, 2 * PIECES))).expect("fits");
    assert_eq!(store.used_bytes(), 3 * PIECES as u64);
    over(copy(1));
    drop(fits);
    for folder in ["incoming", "partial"] {
        let left = std::fs::read_dir(directory.path().join("store").join(folder)).expect("a folder").count();
        assert_eq!(left, 0, "{folder}");
    }
}

#[test]
fn a_pipe_is_stopped_when_it_is_too_long() {
    let (_directory, store) = fresh();
    store.set_quota(Some(quota(PIECES)));
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    let feeding = std::thread::spawn(move || writer.write_all(&bytes(1, 10 * PIECES)));
    let import = store.begin_import(None).expect("begins");
    let file = File::from(std::os::fd::OwnedFd::from(reader));
    let stopped = import.copy_from(file, &mut |_| ControlFlow::Continue(()));
    assert!(matches!(stopped, Err(ImportError::Store(StoreError::OverQuota { .. }))), "{stopped:?}");
    assert!(feeding.join().expect("no panic").is_err(), "nobody reads on");
    assert_eq!(store.used_bytes(), 0);
}

#[test]
fn an_interrupted_download_goes_before_what_is_complete_and_newer() {
    let (_directory, store) = fresh();
    let whole = bytes(1, 3 << 20);
    let download = store.begin_download(&manifest_of(&whole)).expect("begins");
    fetch(&download, &whole, |index| index == 0).expect("written");
    download.checkpoint().expect("kept");
    store.set_quota(Some(quota(1 << 20)));
    store.keep_quota().expect("kept");
    assert!(store.content(manifest_of(&whole).content()).is_some(), "it is under way");
    drop(download);
    fetched(&store, "newer", 2, u64::MAX);
    store.set_quota(Some(quota(1 << 20)));
    store.keep_quota().expect("kept");
    assert_eq!(held(&store), ["newer"]);
    assert_eq!(store.content(manifest_of(&whole).content()), None);
}
