//! Imports and downloads.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};

use damselfly_messages::record::Tombstone;
use rustix::fs::{OFlags, fcntl_setfl};
use sha2::{Digest as _, Sha256};

use super::*;
use crate::store::{ContentState, DownloadError, FinishError, Folder, ImportError, hash_source};

fn go_on(_bytes: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn files_of_all_lengths_come_out_as_they_went_in() {
    const MIB: usize = 1 << 20;
    let (_directory, store) = fresh();
    for length in [0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB, 9 * MIB + 7, 21 * MIB] {
        let content = bytes(length as u64, length);
        let imported = store.begin_import(None).expect("begins").with_sha256();
        let imported = imported.copy_from(source(&content), &mut go_on).expect("copies");
        assert_eq!(imported.sha256(), Some(&Sha256::digest(&content).into()), "{length} bytes");
        let task = record(&format!("{length}"), imported.manifest(), 1);
        let manifest = imported.commit(vec![task]).expect("commits");
        assert_eq!(manifest, manifest_of(&content));
        assert_eq!(store.manifest(manifest.content()).expect("sound"), Some(manifest.clone()));
        assert!(read_all(&store, manifest.content()).expect("sound") == Some(content.clone()), "{length} bytes");
        let hashed = hash_source(source(&content), true, &mut go_on).expect("hashes");
        assert_eq!(hashed, (manifest, Some(Sha256::digest(&content).into())));
    }
}

#[test]
fn the_manifest_of_a_download_is_known_from_its_first_checkpoint() {
    let (_directory, store) = fresh();
    let manifest = manifest_of(&bytes(6, 3 << 20));
    let download = store.begin_download(&manifest).expect("begins");
    assert_eq!(store.manifest(manifest.content()).expect("sound"), None, "it may be false");
    download.checkpoint().expect("durable");
    assert_eq!(store.manifest(manifest.content()).expect("sound"), Some(manifest));
}

#[test]
fn a_pipe_is_read_to_its_end() {
    let (_directory, store) = fresh();
    let content = bytes(5, (5 << 20) + 3);
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    let imported = thread::scope(|scope| {
        scope.spawn(|| {
            writer.write_all(&content).expect("written");
            drop(writer);
        });
        let import = store.begin_import(None).expect("begins");
        import.copy_from(std::os::fd::OwnedFd::from(reader), &mut go_on).expect("copies")
    });
    assert_eq!(imported.manifest(), &manifest_of(&content));
}

#[test]
fn a_pipe_that_gives_nothing_is_given_up_when_nobody_wants_it() {
    for flags in [OFlags::empty(), OFlags::NONBLOCK] {
        let (_directory, store) = fresh();
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        fcntl_setfl(&reader, flags).expect("set");
        writer.write_all(b"a beginning").expect("written");
        let begun = Instant::now();
        let give_up = &mut |_| match begun.elapsed().as_millis() {
            ..500 => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        };
        let import = store.begin_import(None).expect("begins");
        let stopped = import.copy_from(std::os::fd::OwnedFd::from(reader), give_up);
        assert!(matches!(stopped, Err(ImportError::Stopped)), "{stopped:?}");
        assert!(begun.elapsed().as_secs() < 5, "its other end is still open");
        drop(writer);
    }
}

#[test]
fn a_content_that_came_another_way_is_complete_while_a_download_runs() {
    let (_directory, store) = fresh();
    let content = bytes(6, (2 << 20) + 100);
    let manifest = manifest_of(&content);
    let download = store.begin_download(&manifest).expect("begins");
    assert!(matches!(store.content(manifest.content()), Some(ContentState::Partial { under_way: true, .. })));
    import(&store, "a", &content);
    let complete = Some(ContentState::Complete { bytes: content.len() as u64 });
    assert_eq!(store.content(manifest.content()), complete);
    assert!(read_all(&store, manifest.content()).expect("sound") == Some(content));
    drop(download);
    assert_eq!(store.content(manifest.content()), complete);
}

#[test]
fn what_must_not_be_imported_leaves_nothing() {
    let (directory, store) = fresh();
    let copy = |file: File, progress: &mut dyn FnMut(u64) -> ControlFlow<()>| {
        store.begin_import(None).expect("begins").copy_from(file, progress).map(|_| ())
    };
    let folder = File::open(directory.path()).expect("opens");
    assert!(matches!(copy(folder, &mut go_on), Err(ImportError::SourceKind("a directory"))));
    let device = File::open("/dev/zero").expect("opens");
    assert!(matches!(copy(device, &mut go_on), Err(ImportError::SourceKind(_))));
    let long = source(&bytes(1, 4 << 20));
    assert!(matches!(copy(long, &mut |_| ControlFlow::Break(())), Err(ImportError::Stopped)));

    let growing = source(&bytes(1, 4 << 20));
    let writer = growing.try_clone().expect("clones");
    let grow = &mut |read| {
        writer.write_all_at(b"more", (4 << 20) + read).expect("written");
        ControlFlow::Continue(())
    };
    assert!(matches!(copy(growing, grow), Err(ImportError::SourceChanged)), "it grows");
    let changing = source(&bytes(1, 4 << 20));
    let writer = changing.try_clone().expect("clones");
    let change = &mut |_| {
        thread::sleep(std::time::Duration::from_millis(10));
        writer.write_all_at(b"other", 0).expect("written");
        ControlFlow::Continue(())
    };
    assert!(matches!(copy(changing, change), Err(ImportError::SourceChanged)), "it changes behind the reader");
    let shrinking = source(&bytes(1, 4 << 20));
    let writer = shrinking.try_clone().expect("clones");
    let shrink = &mut |_| {
        writer.set_len(1 << 20).expect("cut");
        ControlFlow::Continue(())
    };
    assert!(matches!(copy(shrinking, shrink), Err(ImportError::SourceChanged)), "it shrinks");
    assert!(store.inner.disk.list(Folder::Incoming).expect("lists").is_empty());
    assert!(store.contents().is_empty());
}

#[test]
fn a_change_of_anything_but_the_bytes_is_none() {
    let (directory, store) = fresh();
    let (path, content) = (directory.path().join("source"), bytes(1, 4 << 20));
    fs::write(&path, &content).expect("writes");
    let mut times = 0;
    let change = &mut |_| {
        times += 1;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600 + times % 8)).expect("sets");
        fs::hard_link(&path, directory.path().join(format!("link-{times}"))).expect("links");
        ControlFlow::Continue(())
    };
    let import = store.begin_import(None).expect("begins");
    let imported = import.copy_from(File::open(&path).expect("opens"), change).expect("copies");
    assert!(times > 4 && imported.manifest() == &manifest_of(&content));
}

#[test]
fn a_file_without_a_length_is_read_to_its_end() {
    let (_directory, store) = fresh();
    let expected = fs::read("/proc/version").expect("reads");
    let import = store.begin_import(None).expect("begins");
    let imported = import.copy_from(File::open("/proc/version").expect("opens"), &mut go_on).expect("copies");
    assert_eq!(imported.manifest(), &manifest_of(&expected));
    // An empty file that is written to is no such file.
    let growing = source(b"");
    let writer = growing.try_clone().expect("clones");
    let grow = &mut |read| {
        writer.write_all_at(b"more", read).expect("written");
        ControlFlow::Continue(())
    };
    let changed = store.begin_import(None).expect("begins").copy_from(growing, grow);
    assert!(matches!(changed, Err(ImportError::SourceChanged)), "{changed:?}");
}

/// Bytes that a file of the store takes.
fn taken(directory: &tempfile::TempDir, folder: &str, manifest: &Manifest) -> u64 {
    let path = directory.path().join("store").join(folder).join(manifest.content().to_string());
    fs::metadata(path).expect("is there").blocks() * 512
}

#[test]
fn zeros_take_no_room_however_they_come() {
    const MIB: usize = 1 << 20;
    let content = [vec![0; 6 * MIB], bytes(1, MIB), vec![0; 9 * MIB + 77]].concat();
    let manifest = manifest_of(&content);
    let sparse = || {
        let file = source(b"");
        file.set_len(content.len() as u64).expect("sized");
        file.write_all_at(&content[6 * MIB..7 * MIB], 6 * MIB as u64).expect("writes");
        file
    };
    for (file, reason) in [(sparse(), "a source with holes"), (source(&content), "a source full of zeros")] {
        let (directory, store) = fresh();
        let imported = store.begin_import(None).expect("begins").copy_from(file, &mut go_on).expect("copies");
        assert_eq!(imported.manifest(), &manifest, "{reason}");
        imported.commit(vec![record("a", &manifest, 1)]).expect("commits");
        assert!(taken(&directory, "contents", &manifest) < 2 * MIB as u64, "{reason}");
        assert!(read_all(&store, manifest.content()).expect("sound") == Some(content.clone()), "{reason}");
        let reader = store.open_content(manifest.content()).expect("opens").expect("is held");
        assert_eq!(reader.data_bytes(), MIB as u64, "{reason}");
    }
    for data_bytes in [MIB, content.len()] {
        let (directory, store) = fresh();
        let download = store.begin_download_with_holes(&manifest, data_bytes as u64).expect("begins");
        let reserved = taken(&directory, "partial", &manifest);
        assert_eq!(reserved > MIB as u64, data_bytes == content.len(), "{reserved} bytes are set aside");
        fetch(&download, &content, |_| true).expect("writes");
        assert!(taken(&directory, "partial", &manifest) < 2 * MIB as u64, "{data_bytes} bytes of data");
        download.finish(vec![record("a", &manifest, 1)]).expect("finishes");
        drop(download);
        assert!(read_all(&store, manifest.content()).expect("sound") == Some(content.clone()));
    }
}

#[test]
fn a_piece_of_zeros_replaces_what_was_damaged() {
    let (directory, store) = fresh();
    let content = vec![0; 3 << 20];
    let manifest = manifest_of(&content);
    let download = store.begin_download(&manifest).expect("begins");
    fetch(&download, &content, |_| true).expect("writes");
    let path = directory.path().join("store/partial").join(manifest.content().to_string());
    let file = OpenOptions::new().write(true).open(path).expect("opens");
    file.write_all_at(b"rot", (1 << 20) + 5).expect("written");
    let index = manifest.layout().index(1).expect("one of three");
    assert!(matches!(download.read(index, &mut Vec::new()), Err(ReadError::Damaged { .. })));
    assert_eq!(fetch(&download, &content, |piece| piece == 1).expect("writes"), 1);
    download.finish(vec![record("a", &manifest, 1)]).expect("finishes");
    drop(download);
    assert!(read_all(&store, manifest.content()).expect("sound") == Some(content));
}

#[test]
fn a_download_resumes_where_its_checkpoint_was() {
    let (directory, store) = fresh();
    let content = bytes(6, (4 << 20) + 100);
    let manifest = manifest_of(&content);
    let download = store.begin_download(&manifest).expect("begins");
    assert!(matches!(store.begin_download(&manifest), Err(DownloadError::AlreadyUnderWay)));
    assert_eq!(fetch(&download, &content, |piece| piece != 2).expect("writes"), 4);
    download.checkpoint().expect("commits");
    assert!(matches!(download.finish(Vec::new()), Err(FinishError::Incomplete { missing: 1 })));
    drop(download);
    drop(store);

    let store = open(&directory.path().join("store"));
    let bytes_claimed = content.len() as u64;
    let state = ContentState::Partial { bytes: bytes_claimed, held: 4, pieces: 5, under_way: false };
    assert_eq!(store.content(manifest.content()), Some(state));
    assert!(store.open_content(manifest.content()).expect("sound").is_none(), "not complete");
    let download = store.begin_download(&manifest).expect("resumes");
    let mut piece = Vec::new();
    assert!(matches!(download.read(manifest.layout().index(2).expect("five"), &mut piece), Err(ReadError::NotHeld(2))));
    download.read(manifest.layout().index(4).expect("five"), &mut piece).expect("reads");
    assert_eq!(piece, content[4 << 20..]);
    assert_eq!(fetch(&download, &content, |_| true).expect("writes"), 1, "only what is missing");
    store.meta_put("first", Some(b"")).expect("the first commit after an opening takes one more");
    let before = store.syncs();
    download.finish(vec![record("a", &manifest, 1)]).expect("finishes");
    assert_eq!(store.syncs() - before, 3, "data, folder, index");
    drop(download);
    assert!(read_all(&store, manifest.content()).expect("sound") == Some(content));
    assert!(store.inner.disk.list(Folder::Partial).expect("lists").is_empty());
    assert!(matches!(store.begin_download(&manifest), Err(DownloadError::AlreadyComplete)));
}

#[test]
fn a_download_without_a_checkpoint_leaves_nothing() {
    let (_directory, store) = fresh();
    let content = bytes(7, 2 << 20);
    let download = store.begin_download(&manifest_of(&content)).expect("begins");
    fetch(&download, &content, |piece| piece == 0).expect("writes");
    drop(download);
    assert!(store.contents().is_empty() && store.inner.disk.list(Folder::Partial).expect("lists").is_empty());
}

#[test]
fn a_content_that_comes_another_way_ends_its_download() {
    let (_directory, store) = fresh();
    let content = bytes(8, 2 << 20);
    let manifest = manifest_of(&content);
    let download = store.begin_download(&manifest).expect("begins");
    fetch(&download, &content, |_| true).expect("writes");
    import(&store, "a", &content);
    download.finish(vec![record("b", &manifest, 1)]).expect("finishes");
    drop(download);
    assert_eq!(store.tasks_of(manifest.content()).len(), 2);
    assert!(store.inner.disk.list(Folder::Partial).expect("lists").is_empty());
    assert!(read_all(&store, manifest.content()).expect("sound") == Some(content));
}

#[test]
fn only_verified_pieces_of_the_right_content_are_written() {
    let (_directory, store) = fresh();
    let (content, other) = (bytes(1, 2 << 20), bytes(2, 2 << 20));
    let manifest = manifest_of(&content);
    let download = store.begin_download(&manifest).expect("begins");
    let first = manifest.layout().index(0).expect("two");
    assert!(VerifiedPiece::verify(&manifest, first, &other[..1 << 20]).is_none());
    let foreign = manifest_of(&other);
    let piece = VerifiedPiece::verify(&foreign, first, &other[..1 << 20]).expect("its own manifest");
    assert!(download.write(piece).is_err());
    assert_eq!(download.held().held(), 0);
}

#[test]
fn a_damaged_byte_is_found_and_only_its_piece_fetched_again() {
    let (directory, store) = fresh();
    let content = bytes(9, (3 << 20) + 1);
    let manifest = import(&store, "a", &content);
    let path = directory.path().join("store/contents").join(manifest.content().to_string());
    let file = OpenOptions::new().write(true).open(&path).expect("opens");
    file.write_all_at(&[content[(1 << 20) + 9] ^ 1], (1 << 20) + 9).expect("rots");
    assert!(matches!(read_all(&store, manifest.content()), Err(ReadError::Damaged { piece: 1, .. })));
    let damaged = Some(ContentState::Damaged { bytes: content.len() as u64 });
    assert_eq!(store.content(manifest.content()), damaged);
    assert!(!path.exists() && store.open_content(manifest.content()).expect("sound").is_none(), "no longer served");
    drop(store);
    let (store, opened) = Store::open(&directory.path().join("store"), options()).expect("opens");
    assert_eq!((store.content(manifest.content()), opened.damaged), (damaged, vec![manifest.content()]));
    assert!(store.task(&name("a").task_id()).is_some(), "still listed");

    let download = store.begin_download(&manifest).expect("begins");
    assert_eq!(download.held().held(), 3, "the good pieces are kept");
    assert_eq!(fetch(&download, &content, |_| true).expect("writes"), 1);
    download.finish(Vec::new()).expect("finishes");
    assert!(read_all(&store, manifest.content()).expect("sound") == Some(content));
}

#[test]
fn a_file_cut_short_or_gone_is_damage() {
    let (directory, store) = fresh();
    for (cid, length, cut) in [("cut", (2 << 20) + 1, true), ("gone", 77, false)] {
        let content = bytes(10, length);
        let manifest = import(&store, cid, &content);
        let path = directory.path().join("store/contents").join(manifest.content().to_string());
        if cut {
            OpenOptions::new().write(true).open(&path).expect("opens").set_len(1 << 20).expect("cut");
        } else {
            std::fs::remove_file(&path).expect("removed");
        }
        assert!(!matches!(read_all(&store, manifest.content()), Ok(Some(_))), "{cid}");
        assert!(matches!(store.content(manifest.content()), Some(ContentState::Damaged { .. })), "{cid}");
        // Importing it again repairs it as well as a download.
        import(&store, cid, &content);
        assert!(read_all(&store, manifest.content()).expect("sound") == Some(content), "{cid}");
        assert!(store.inner.disk.list(Folder::Damaged).expect("lists").is_empty(), "{cid}");
    }
}

#[test]
fn a_piece_that_rots_while_downloading_is_missing_again() {
    let disk = SimulatedDisk::default();
    let store = simulated(&disk);
    let content = bytes(11, (1 << 20) + 1);
    let manifest = manifest_of(&content);
    let download = store.begin_download(&manifest).expect("begins");
    fetch(&download, &content, |_| true).expect("writes");
    download.checkpoint().expect("commits");
    disk.rot(&Folder::Partial.of(manifest.content()), 5);
    let index = manifest.layout().index(0).expect("two");
    assert!(matches!(download.read(index, &mut Vec::new()), Err(ReadError::Damaged { .. })));
    assert!(!download.holds(index));
    assert!(matches!(download.finish(Vec::new()), Err(FinishError::Incomplete { missing: 1 })));
}

#[test]
fn a_full_disk_is_told_as_such_and_nothing_breaks() {
    let disk = SimulatedDisk::default();
    let options = Options { free_space_floor: 4 << 20, ..Options::default() };
    let (store, _) = Store::open_on(Disk::simulated(disk.clone()), None, options).expect("opens");
    let kept = import(&store, "kept", &bytes(1, 1 << 20));
    let used = u64::MAX - disk.free_bytes().expect("free");
    disk.limit(used + (8 << 20));
    let long = bytes(2, 5 << 20);
    assert!(matches!(store.begin_import(Some(5 << 20)), Err(StoreError::NoSpace { .. })));
    assert!(import_as(&store, "long", &long, 1).is_err_and(|error| error.is_no_space()));
    let refused = store.begin_download(&manifest_of(&long)).map(|_| ());
    assert!(matches!(refused, Err(DownloadError::Store(StoreError::NoSpace { .. }))));
    assert!(store.inner.disk.list(Folder::Partial).expect("lists").is_empty());
    import(&store, "short", &bytes(3, 1 << 20));

    // Now so full that the index cannot grow either; it works again when there is space.
    disk.limit(used);
    let many =
        |store: &Store| (0..2000).try_for_each(|task| store.put_task(record(&format!("{task:0>900}"), &kept, 1)));
    assert!(many(&store).is_err_and(|error| error.is_no_space()));
    disk.limit(u64::MAX);
    many(&store).expect("there is space again");
    assert!(read_all(&store, kept.content()).expect("sound").is_some());
}

#[test]
fn readers_and_deletes_do_not_wait_for_each_other() {
    let (_directory, store) = fresh();
    let content = bytes(12, 3 << 20);
    let manifest = import(&store, "a", &content);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..20 {
                store.remove_task(&name("a").task_id()).expect("removed");
                import(&store, "a", &content);
            }
            stop.store(true, Ordering::Relaxed);
        });
        while !stop.load(Ordering::Relaxed) {
            if let Some(read) = read_all(&store, manifest.content()).expect("never damaged") {
                assert!(read == content);
            }
        }
    });
    assert!(matches!(store.content(manifest.content()), Some(ContentState::Complete { .. })));
}

/// The measure of an import: run with `--ignored --nocapture`, on the file system in question (`TMPDIR`).
#[test]
#[ignore = "a measurement"]
fn import_against_copy_and_sync() {
    let (directory, store) = fresh();
    let path = directory.path().join("source");
    fs::write(&path, bytes(1, 1 << 30)).expect("written");
    File::open(&path).expect("opens").sync_all().expect("synced");
    let copy = || {
        let (began, copy) = (Instant::now(), directory.path().join("copy"));
        assert!(Command::new("cp").arg(&path).arg(&copy).status().expect("cp").success());
        File::open(&copy).expect("opens").sync_all().expect("synced");
        let took = began.elapsed();
        fs::remove_file(&copy).expect("removed");
        took
    };
    let import_once = || {
        let began = Instant::now();
        let import = store.begin_import(None).expect("begins");
        let imported = import.copy_from(File::open(&path).expect("opens"), &mut go_on).expect("copies");
        let task = record("a", imported.manifest(), 1);
        imported.commit(vec![task]).expect("commits");
        let took = began.elapsed();
        store.remove_task(&name("a").task_id()).expect("removed");
        took
    };
    // In turns, and in both orders: who comes second often gets the warmer memory.
    let mut took = [Vec::new(), Vec::new()];
    for round in 0..20 {
        for which in [round / 2 % 2, 1 - round / 2 % 2] {
            took[which].push(if which == 0 { copy() } else { import_once() });
        }
    }
    for (what, mut took) in ["cp and fsync", "import"].into_iter().zip(took) {
        took.sort();
        eprintln!("{what}: minimum {:?}, median {:?}, maximum {:?}", took[0], took[10], took[19]);
    }
    let before = (store.syncs(), Instant::now());
    for task in 0..500 {
        import(&store, &format!("small {task}"), &bytes(task, 1000));
    }
    eprintln!("500 small imports in a row: {:?}, {} syncs", before.1.elapsed(), store.syncs() - before.0);
    let before = (store.syncs(), Instant::now());
    thread::scope(|scope| {
        for thread in 0..32u64 {
            let store = &store;
            scope.spawn(move || {
                (0..16u64)
                    .for_each(|task| drop(import(store, &format!("{thread}/{task}"), &bytes(thread * 99 + task, 1001))))
            });
        }
    });
    eprintln!("512 small imports by 32 threads: {:?}, {} syncs", before.1.elapsed(), store.syncs() - before.0);
}

/// Everything that deletes works on a disk without a free byte, again and again.
#[test]
fn deletes_work_on_a_full_disk_and_make_room() {
    for with_reserve in [true, false] {
        let disk = SimulatedDisk::default();
        let store = simulated(&disk);
        let contents: Vec<_> = (0..60).map(|seed| bytes(seed, 40_000)).collect();
        for (number, content) in contents.iter().enumerate() {
            import(&store, &format!("n{number}"), content);
        }
        if !with_reserve {
            store.inner.disk.remove(&crate::store::Folder::Root.at("index.redb.reserve")).expect("it is there");
        }
        for number in 0..60 {
            // Not even what the delete before has freed is left.
            disk.limit(disk.used());
            let task = name(&format!("n{number}")).task_id();
            let buried = Tombstone { task, generation: 1, deleted: UnixMillis(1) };
            let removed = match number % 3 {
                0 => store.remove_task(&task),
                1 => store.put_tombstone(buried),
                _ => store.queue_delete(crate::store::QueuedDelete {
                    name: name(&format!("n{number}")),
                    queued: UnixMillis(1),
                    uid: None,
                }),
            };
            removed.expect("a delete works").expect("it was there");
        }
        assert!(store.contents().is_empty());
        disk.limit(u64::MAX);
        import(&store, "new", b"new");
        drop(store);
        let store = simulated(&disk.restarted(1));
        assert_eq!((store.tasks().len(), store.queued_deletes().len(), store.tombstones().len()), (1, 20, 20));
    }
}
