//! What the ledger says after each thing that can happen in the store.

use std::{fs, os::unix::fs::FileExt as _};

use damselfly_messages::{
    manifest::Manifest,
    record::{Record, UnixMillis},
};
use tempfile::TempDir;

use super::*;
use crate::{
    store::VerifiedPiece,
    testing::{self, name, record},
};

struct Bench {
    directory: TempDir,
    store: Store,
    announcer: Announcer,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let store = testing::store(&directory.path().join("store"));
        let announcer = testing::announcer(&store);
        Self { directory, store, announcer }
    }

    /// What is told of a name: `+` that it is held, `-` that it is deleted.
    fn told(&self, cids: &[&str]) -> String {
        let ledger = lock(&self.announcer.inner.ledger);
        let sign = |cid: &&str| match ledger.of(&name(cid).task_id()) {
            Some(Record::Held(_)) => '+',
            Some(Record::Deleted(_)) => '-',
            None => '.',
        };
        cids.iter().map(sign).collect()
    }

    /// Lets the content rot and somebody find out.
    fn rot(&self, manifest: &Manifest) {
        let path = self.directory.path().join("store/contents").join(manifest.content().to_string());
        let file = fs::OpenOptions::new().write(true).open(path).expect("opens");
        file.write_all_at(b"rotten", 5).expect("written");
        let reader = self.store.open_content(manifest.content()).expect("sound").expect("held");
        let first = manifest.layout().index(0).expect("a piece");
        reader.read(first, &mut Vec::new()).expect_err("damaged");
    }
}

#[test]
fn the_ledger_follows_a_content_that_rots_and_comes_back() {
    let bench = Bench::new();
    let content = testing::bytes(1, 3000);
    let manifest = testing::import(&bench.store, "a", &content);
    bench.store.bind(record("b", &manifest)).expect("bound");
    assert_eq!(bench.told(&["a", "b"]), "++");
    bench.rot(&manifest);
    assert_eq!(bench.told(&["a", "b"]), "..", "whoever read it, and under all its names");
    let download = bench.store.begin_download(&manifest).expect("begins");
    let index = manifest.layout().index(0).expect("a piece");
    download.write(VerifiedPiece::verify(&manifest, index, &content).expect("the bytes")).expect("written");
    assert_eq!(bench.told(&["a", "b"]), "..", "not complete yet");
    download.finish(vec![record("a", &manifest)]).expect("finished");
    assert_eq!(bench.told(&["a", "b"]), "++", "also under the name that nobody fetched it by");
    bench.rot(&manifest);
    testing::import(&bench.store, "c", &content);
    assert_eq!(bench.told(&["a", "b", "c"]), "+++");
}

#[test]
fn the_ledger_follows_names() {
    let bench = Bench::new();
    let manifest = testing::import(&bench.store, "a", b"x");
    let again = TaskRecord { state: TaskState::Queued, ..record("a", &manifest) };
    bench.store.put_task(again.clone()).expect("put");
    assert_eq!(bench.told(&["a"]), "+", "what is imported again stays announced");
    let new = TaskRecord { binding: Binding { accepted: None, ..again.binding }, ..again };
    bench.store.put_task(new).expect("put");
    assert_eq!(bench.told(&["a"]), ".", "no owner has accepted it");
    bench.store.put_task(record("a", &manifest)).expect("put");
    let task = name("a").task_id();
    bench.store.put_tombstone(Tombstone { task, generation: 1, deleted: UnixMillis(5) }).expect("put");
    assert_eq!(bench.told(&["a"]), "-");
    bench.store.forget_tombstones_before(UnixMillis(6)).expect("forgets");
    assert_eq!(bench.told(&["a"]), ".");
    testing::import(&bench.store, "old", b"y");
    let mut expired = record("old", &manifest_of(b"y"));
    expired.binding.expires = Some(UnixMillis(9));
    bench.store.put_task(expired).expect("put");
    assert_eq!(bench.told(&["old"]), "+");
    bench.store.expire(UnixMillis(9)).expect("expires");
    assert_eq!(bench.told(&["old"]), ".");
}

fn manifest_of(bytes: &[u8]) -> Manifest {
    damselfly_messages::hasher::hash_bytes(bytes)
}

#[test]
fn nothing_old_is_told_after_a_long_absence() {
    let bench = Bench::new();
    testing::import(&bench.store, "a", b"x");
    let now = UnixMillis(100 * REMEMBERED.as_millis() as u64);
    let ago = |time: Duration| UnixMillis(now.0 - time.as_millis() as u64);
    let contact = &bench.announcer.inner.contact;
    contact.mark_stale_if_away(&bench.store, now).expect("marks");
    assert_eq!(bench.told(&["a"]), "+", "never in touch");
    contact.made(ago(REMEMBERED - Duration::from_secs(1)));
    contact.mark_stale_if_away(&bench.store, now).expect("marks");
    assert_eq!(bench.told(&["a"]), "+", "deletes of that time are remembered");
    contact.made(ago(REMEMBERED + Duration::from_secs(1)));
    let before = bench.store.syncs();
    contact.mark_stale_if_away(&bench.store, now).expect("marks");
    assert_eq!(bench.told(&["a"]), ".", "away while it ran");
    assert_eq!(bench.store.syncs() - before, 1);
    assert!(!contact.is_away(now), "once");

    testing::import(&bench.store, "b", b"y");
    assert_eq!(bench.told(&["b"]), "+");
    contact::Contact::keep(&bench.store, UnixMillis(1)).expect("kept");
    let Bench { directory, store, announcer } = bench;
    drop((store, announcer));
    let store = testing::store(&directory.path().join("store"));
    let announcer = testing::announcer(&store);
    let bench = Bench { directory, store, announcer };
    assert_eq!(bench.told(&["b"]), ".", "away while it did not run");
    assert!(bench.store.tasks().iter().all(|record| record.state == TaskState::Stale));
}

#[tokio::test]
async fn a_scheduler_is_not_believed_what_no_delete_can_be() {
    let bench = Bench::new();
    let manifest = testing::import(&bench.store, "a", b"x");
    let (task, time) = (name("a").task_id(), UnixMillis::from(std::time::SystemTime::now()));
    let accepted = Some(UnixMillis(time.0 - 1_000_000));
    let bound = record("a", &manifest);
    let bound = TaskRecord { binding: Binding { accepted, ..bound.binding }, ..bound };
    bench.store.put_task(bound).expect("put");
    let told = |generation, deleted| Tombstone { task, generation, deleted: UnixMillis(deleted) };
    let implausible = [
        (told(u64::MAX, time.0), "a generation that nobody can follow"),
        (told(time.0 + 2 * CLOCK_LEEWAY_MS, time.0), "one beyond the clock"),
        (told(1, time.0 - 2_000_000), "a delete before the name was bound"),
    ];
    for (tombstone, why) in implausible {
        let refused = bench.announcer.obey(tombstone).await;
        assert!(matches!(refused, Err(ObeyError::Implausible(_))), "{why}: {refused:?}");
        assert_eq!(bench.told(&["a"]), "+", "{why}");
    }
    let obeyed = bench.announcer.obey(told(1, time.0 + 100 * CLOCK_LEEWAY_MS)).await;
    assert!(matches!(obeyed, Ok(true)), "a clock ahead is no reason: {obeyed:?}");
    let kept = bench.store.tombstone(&task).expect("kept");
    assert!(
        kept.deleted.0 <= UnixMillis::from(std::time::SystemTime::now()).0 + CLOCK_LEEWAY_MS,
        "but the tombstone is not kept for ever"
    );
    assert_eq!(bench.told(&["a"]), "-");
}
