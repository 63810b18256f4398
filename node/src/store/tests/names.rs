//! Names, deletes and expiry.

use std::{os::unix::fs::MetadataExt as _, thread};

use damselfly_messages::record::{Tombstone, UnixMillis};

use super::*;
use crate::store::{ContentState, QueuedDelete};

#[test]
fn an_import_is_three_syncs_and_survives_a_restart() {
    let (directory, store) = fresh();
    let content = bytes(1, 3000);
    let before = store.syncs();
    let manifest = import(&store, "a", &content);
    assert_eq!(store.syncs() - before, 3, "data, folder, index");
    store.put_task(record("b", &manifest, 1)).expect("put");
    assert_eq!(store.syncs() - before, 4);
    drop(store);
    let store = open(&directory.path().join("store"));
    assert_eq!(store.task(&name("a").task_id()), Some(record("a", &manifest, 1)));
    assert_eq!(store.content(manifest.content()), Some(ContentState::Complete { bytes: 3000 }));
    assert_eq!(read_all(&store, manifest.content()).expect("sound"), Some(content));
}

#[test]
fn names_share_a_content_and_the_last_one_drops_it() {
    let (directory, store) = fresh();
    let content = bytes(2, (1 << 20) + 5);
    let manifest = import(&store, "a", &content);
    let before = store.syncs();
    import(&store, "b", &content);
    assert_eq!(store.syncs() - before, 1, "nothing is written twice");
    let file = directory.path().join("store/contents").join(manifest.content().to_string());
    let metadata = file.metadata().expect("a flat file per content");
    assert_eq!((metadata.len(), metadata.mode() & 0o777), (content.len() as u64, 0o600));

    let reader = store.open_content(manifest.content()).expect("sound").expect("held");
    assert!(store.remove_task(&name("a").task_id()).expect("removed").is_some());
    assert!(file.exists() && store.content(manifest.content()).is_some());
    assert!(store.remove_task(&name("b").task_id()).expect("removed").is_some());
    assert!(!file.exists() && store.content(manifest.content()).is_none());
    assert!(store.open_content(manifest.content()).expect("sound").is_none());
    assert!(store.remove_task(&name("b").task_id()).expect("nothing to do").is_none());
    let mut piece = Vec::new();
    let index = manifest.layout().index(1).expect("two pieces");
    reader.read(index, &mut piece).expect("who has it open goes on");
    assert_eq!(piece, content[1 << 20..]);
}

#[test]
fn a_name_keeps_its_content_until_it_is_deleted() {
    let (_directory, store) = fresh();
    let (old, new) = (bytes(3, 10), bytes(4, 10));
    let first = import(&store, "a", &old);
    assert!(
        matches!(import_as(&store, "a", &new, 1), Err(StoreError::Bound(found)) if found.binding.content == first.content())
    );
    assert!(store.content(manifest_of(&new).content()).is_none(), "nothing of it is kept");
    assert_eq!(store.inner.disk.list(crate::store::Folder::Incoming).expect("lists").len(), 0);

    let tombstone = Tombstone { task: name("a").task_id(), generation: 1, deleted: UnixMillis(5) };
    assert!(store.put_tombstone(tombstone).expect("put").is_some());
    assert!(store.content(first.content()).is_none());
    assert!(matches!(import_as(&store, "a", &new, 1), Err(StoreError::Buried(_))));
    import_as(&store, "a", &new, 2).expect("the next generation");
    assert!(store.put_tombstone(tombstone).expect("put").is_none(), "an old delete does nothing to a new import");
    assert_eq!(store.tombstones(), vec![tombstone]);
    assert_eq!(store.forget_tombstones_before(UnixMillis(6)).expect("forgets"), 1);
    assert!(store.tombstone(&tombstone.task).is_none());
}

#[test]
fn a_delete_spares_what_was_imported_after_it() {
    let (_directory, store) = fresh();
    let manifest = import(&store, "a", b"x");
    let delete = |deleted| Tombstone { task: name("a").task_id(), generation: 1, deleted: UnixMillis(deleted) };
    let queued = TaskRecord { state: TaskState::Queued, imported: UnixMillis(10), ..record("a", &manifest, 1) };
    store.put_task(queued.clone()).expect("put");
    assert!(store.put_tombstone(delete(9)).expect("put").is_none());
    let kept = store.task(&name("a").task_id()).expect("it stays");
    assert_eq!((kept.binding.generation, kept.state), (2, TaskState::Queued));
    let (_other, store) = fresh();
    import(&store, "a", b"x");
    store.put_task(queued).expect("put");
    assert!(store.put_tombstone(delete(10)).expect("put").is_some(), "imported before");
}

#[test]
fn a_name_that_moves_to_another_content_drops_the_old_one() {
    let (_directory, store) = fresh();
    let first = import(&store, "a", b"first");
    let second = import(&store, "b", b"second");
    store.put_task(record("a", &second, 1)).expect("put");
    assert!(store.content(first.content()).is_none());
    assert_eq!(store.tasks_of(second.content()).len(), 2);
    assert!(matches!(store.put_task(record("c", &first, 1)), Err(StoreError::NotHeld(_))));
}

#[test]
fn what_is_kept_can_be_put_back() {
    let (_directory, store) = fresh();
    let first = import(&store, "a", b"first");
    let lost =
        TaskRecord { state: TaskState::Conflict { winner: record("a", &first, 2).binding }, ..record("a", &first, 1) };
    store.put_task(lost.clone()).expect("put");
    let kept = store.keep(first.content());
    import_as(&store, "a", b"second", 1).expect("a conflict does not hold the name");
    assert!(store.expire(UnixMillis(u64::MAX)).expect("expires").is_empty());
    store.drop_unnamed(first.content()).expect("nothing to do");
    store.put_task(lost.clone()).expect("put back");
    assert_eq!(store.task(&name("a").task_id()), Some(lost));
    assert_eq!(store.contents(), [first.content()], "what replaced it is gone");
    import_as(&store, "a", b"second", 1).expect("imports");
    drop(kept);
    store.drop_unnamed(first.content()).expect("drops");
    assert_eq!(store.contents(), [manifest_of(b"second").content()]);
}

#[test]
fn only_what_still_stands_is_acknowledged() {
    let (_directory, store) = fresh();
    let manifest = import(&store, "a", b"x");
    let task = name("a").task_id();
    let accepted = Binding { accepted: Some(UnixMillis(7)), ..record("a", &manifest, 1).binding };
    let other = Binding { content: manifest_of(b"y").content(), ..accepted };
    assert!(!store.acknowledge(&task, other).expect("no error"), "another content");
    assert!(store.acknowledge(&task, accepted).expect("kept"));
    let kept = store.task(&task).expect("held");
    assert_eq!((kept.binding, kept.state), (accepted, TaskState::Acknowledged));
    store.remove_task(&task).expect("removed");
    assert!(!store.acknowledge(&task, accepted).expect("no error"), "it does not come back");
    assert!(store.task(&task).is_none());
}

#[test]
fn what_expires_goes_unless_it_is_pinned() {
    let (directory, store) = fresh();
    let manifest = import(&store, "kept", b"x");
    store.put_task(expiring(record("old", &manifest, 1), 100)).expect("put");
    store.put_task(TaskRecord { pinned: true, ..expiring(record("pinned", &manifest, 1), 100) }).expect("put");
    let before = store.syncs();
    store.touch(&name("kept").task_id(), UnixMillis(50));
    assert_eq!(store.syncs(), before, "a use costs no sync");
    assert!(store.expire(UnixMillis(99)).expect("expires").is_empty());
    let gone = store.expire(UnixMillis(100)).expect("expires");
    assert_eq!(gone.iter().map(|record| record.name.cid()).collect::<Vec<_>>(), ["old"]);
    let before = store.syncs();
    store.touch(&name("kept").task_id(), UnixMillis(60));
    assert!(store.expire(UnixMillis(101)).expect("nothing to do").is_empty());
    assert_eq!(store.syncs(), before, "looking for what has expired costs no sync");
    store.touch(&name("kept").task_id(), UnixMillis(50));
    store.keep_last_used().expect("kept");
    store.keep_last_used().expect("nothing to do");
    assert_eq!(store.syncs(), before + 1);
    drop(store);
    let store = open(&directory.path().join("store"));
    assert_eq!(store.tasks().len(), 2);
    assert_eq!(store.task(&name("kept").task_id()).map(|record| record.last_used), Some(UnixMillis(60)));
}

#[test]
fn the_daemons_values_and_queued_deletes_last() {
    let (directory, store) = fresh();
    let delete = QueuedDelete { name: name("gone"), queued: UnixMillis(7), uid: Some(1000) };
    store.put_queued_delete(delete.clone()).expect("put");
    store.put_queued_delete(QueuedDelete { queued: UnixMillis(8), ..delete.clone() }).expect("put");
    store.meta_put("configuration", Some(b"signed")).expect("put");
    store.meta_put("other", Some(b"")).expect("put");
    store.meta_put("other", None).expect("put");
    drop(store);
    let store = open(&directory.path().join("store"));
    assert_eq!(store.queued_deletes(), vec![delete.clone()]);
    assert_eq!(store.meta_get("configuration").expect("reads"), Some(b"signed".to_vec()));
    assert_eq!(store.meta_get("other").expect("reads"), None);
    store.remove_queued_delete(&delete.name).expect("removed");
    assert!(store.queued_deletes().is_empty());
}

#[test]
fn commits_at_the_same_time_share_their_syncs() {
    let (_directory, store) = fresh();
    let manifest = import(&store, "a", b"x");
    let before = store.syncs();
    thread::scope(|scope| {
        for thread in 0..8 {
            let (store, manifest) = (&store, &manifest);
            scope.spawn(move || {
                for task in 0..50 {
                    store.put_task(record(&format!("{thread}/{task}"), manifest, 1)).expect("put");
                }
            });
        }
    });
    assert_eq!(store.tasks().len(), 401);
    let syncs = store.syncs() - before;
    assert!(syncs < 300, "400 commits took {syncs} syncs");
}

#[test]
fn a_content_dropped_and_imported_at_once_is_whole_or_gone() {
    let (_directory, store) = fresh();
    let content = bytes(9, 100);
    thread::scope(|scope| {
        for thread in 0..4 {
            let (store, content) = (&store, &content);
            scope.spawn(move || {
                let cid = format!("name {thread}");
                for _ in 0..50 {
                    let manifest = import(store, &cid, content);
                    let read = read_all(store, manifest.content()).expect("sound");
                    assert_eq!(read.as_ref(), Some(content), "held while this name stands");
                    store.remove_task(&name(&cid).task_id()).expect("removed");
                }
            });
        }
    });
    assert!(store.contents().is_empty());
    assert_eq!(store.inner.disk.list(crate::store::Folder::Contents).expect("lists").len(), 0);
}
