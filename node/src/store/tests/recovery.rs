//! What an opening finds and makes of it.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    time::Instant,
};

use super::*;
use crate::store::{ContentState, OpenError};

#[test]
fn one_daemon_at_a_time() {
    let (directory, store) = fresh();
    let path = directory.path().join("store");
    let second = Store::open(&path, options()).map(|_| ()).expect_err("it is locked");
    assert!(matches!(second, OpenError::Locked(_)), "{second}");
    drop(store);
    open(&path);
}

#[test]
fn directories_open_to_others_are_refused() {
    let (directory, store) = fresh();
    let path = directory.path().join("store");
    assert_eq!(path.metadata().expect("a directory").mode() & 0o777, 0o700);
    drop(store);
    for (mode, accepted) in [(0o755, false), (0o770, false), (0o701, false), (0o750, true), (0o700, true)] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
        let opened = Store::open(&path, options()).map(|_| ());
        assert_eq!(opened.is_ok(), accepted, "{mode:o}");
    }
    let file = directory.path().join("file");
    fs::write(&file, "").expect("written");
    assert!(Store::open(&file, options()).is_err());
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&path, Some(12345), None).expect("given away");
        assert!(matches!(Store::open(&path, options()), Err(OpenError::Owner { owner: 12345, .. })));
    }
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let (directory, store) = fresh();
    import(&store, "a", b"x");
    drop(store);
    let path = directory.path().join("store/index.redb");
    {
        let database = redb::Database::open(&path).expect("opens");
        let transaction = database.begin_write().expect("begins");
        let table = redb::TableDefinition::<&[u8], &[u8]>::new("store");
        let newer = 2u64.to_be_bytes();
        transaction.open_table(table).expect("a table").insert(b"format".as_slice(), newer.as_slice()).expect("put");
        transaction.commit().expect("commits");
    }
    let before = fs::read(&path).expect("reads");
    let refused = Store::open(&directory.path().join("store"), options()).map(|_| ()).expect_err("newer");
    assert!(matches!(refused, OpenError::Newer { found: 2, known: 1 }), "{refused}");
    assert!(fs::read(&path).expect("reads") == before, "not a byte is changed");
}

#[test]
fn junk_anywhere_is_tolerated_and_told() {
    let (directory, store) = fresh();
    let manifest = import(&store, "a", b"kept");
    drop(store);
    let root = directory.path().join("store");
    let orphan = ContentId::of(b"orphan").to_string();
    for folder in ["contents", "partial", "incoming"] {
        fs::write(root.join(folder).join("junk"), "junk").expect("written");
        fs::create_dir(root.join(folder).join("folder")).expect("made");
        symlink("/etc/passwd", root.join(folder).join("link")).expect("linked");
        fs::write(root.join(folder).join("x".repeat(255)), "long").expect("written");
    }
    fs::create_dir(root.join("contents").join(ContentId::of(b"a folder").to_string())).expect("made");
    fs::write(root.join("contents").join(&orphan), "orphan").expect("written");
    fs::write(root.join("partial").join(&orphan), "orphan").expect("written");
    fs::write(root.join("incoming/import-7"), "half").expect("written");
    fs::write(root.join("credential"), "another part's").expect("written");
    let (store, opened) = Store::open(&root, options()).expect("opens");
    assert_eq!(opened.set_aside.len(), 13, "{opened:?}");
    assert_eq!(opened.cleaned.len(), 3, "{opened:?}");
    assert_eq!(fs::read_dir(root.join("damaged")).expect("lists").count(), 13, "nothing unexplained is deleted");
    assert_eq!(fs::read_dir(root.join("contents")).expect("lists").count(), 1);
    assert!(root.join("credential").exists());
    assert_eq!(read_all(&store, manifest.content()).expect("sound"), Some(b"kept".to_vec()));
    drop(store);
    let (_store, opened) = Store::open(&root, options()).expect("opens");
    assert!(opened.set_aside.is_empty() && opened.cleaned.is_empty(), "{opened:?}");
}

#[test]
fn folders_that_are_gone_or_are_files_are_made_again() {
    let (directory, store) = fresh();
    let manifest = import(&store, "a", b"x");
    drop(store);
    let root = directory.path().join("store");
    fs::remove_dir_all(root.join("contents")).expect("removed");
    fs::remove_dir_all(root.join("incoming")).expect("removed");
    fs::write(root.join("incoming"), "a file").expect("written");
    let (store, opened) = Store::open(&root, options()).expect("opens");
    assert_eq!((opened.damaged, opened.set_aside.len()), (vec![manifest.content()], 1));
    import(&store, "a", b"x");
    assert!(read_all(&store, manifest.content()).expect("sound").is_some());
}

#[test]
fn a_file_of_another_length_is_set_aside() {
    let (directory, store) = fresh();
    let (short, sound) = (import(&store, "short", b"short"), import(&store, "sound", b"sound"));
    drop(store);
    let root = directory.path().join("store");
    fs::write(root.join("contents").join(short.content().to_string()), "sh").expect("cut");
    let (store, opened) = Store::open(&root, options()).expect("opens");
    assert_eq!(opened.damaged, vec![short.content()]);
    assert_eq!(store.content(short.content()), Some(ContentState::Damaged { bytes: 5 }));
    assert!(read_all(&store, sound.content()).expect("sound").is_some());
    store.remove_task(&name("short").task_id()).expect("removed");
    assert_eq!(fs::read_dir(root.join("damaged")).expect("lists").count(), 0, "explained, so it goes with its name");
}

#[test]
fn contents_outlive_a_lost_index() {
    let (directory, store) = fresh();
    let contents: Vec<_> = (0..4).map(|seed| bytes(seed, 100_000)).collect();
    let manifests: Vec<_> =
        contents.iter().map(|content| import(&store, &manifest_of(content).content().to_string(), content)).collect();
    drop(store);
    let root = directory.path().join("store");
    let rotten = root.join("contents").join(manifests[3].content().to_string());
    fs::write(rotten, "rotten").expect("rots");
    for length in [0, 10, 5000] {
        let index = fs::read(root.join("index.redb")).expect("reads");
        fs::write(root.join("index.redb"), vec![0x55; length]).expect("destroyed");
        let few = Options { adopt_bytes: 1, ..options() };
        let (store, opened) = Store::open(&root, few).expect("opens");
        assert!(opened.index_lost.is_some(), "{length} of {} bytes", index.len());
        assert!(store.tasks().len() <= 1, "only what was hashed at once has a name again");
        let found = opened.adopted.len() + opened.adoptable.len();
        assert!(found == 3 || found == 4, "{opened:?}");
        drop(store);
        // Ended half-way: the rest is still not taken for the rest of an interrupted import.
        let (store, opened) = Store::open(&root, Options { adopt_bytes: 0, ..options() }).expect("opens");
        for id in &opened.adoptable {
            assert_eq!(store.adopt(*id).expect("hashes"), *id != manifests[3].content());
        }
        assert_eq!(store.contents().len(), 3);
        for (content, manifest) in contents.iter().zip(&manifests).take(3) {
            assert!(read_all(&store, manifest.content()).expect("sound").as_ref() == Some(content));
        }
        drop(store);
        let (_, opened) = Store::open(&root, options()).expect("opens");
        assert!(opened.adoptable.is_empty() && opened.cleaned.is_empty(), "{opened:?}");
    }
}

#[test]
fn any_damage_to_the_index_lets_it_start() {
    let (directory, store) = fresh();
    let contents: Vec<_> = (0..200).map(|seed| bytes(seed, 1 + seed as usize * 10)).collect();
    let manifests: Vec<_> =
        contents.iter().map(|content| import(&store, &manifest_of(content).content().to_string(), content)).collect();
    drop(store);
    let root = directory.path().join("store");
    let sound = fs::read(root.join("index.redb")).expect("reads");
    let (mut lost, mut names) = (0, 0);
    for seed in 0..60usize {
        let mut rotten = sound.clone();
        let at = seed * 7919 * 61 % (sound.len() - 64);
        let length = [1, 8, 64][seed % 3];
        rotten[at..at + length].iter_mut().for_each(|byte| *byte ^= 0xa5);
        if seed % 10 == 0 {
            rotten.truncate(at);
        }
        fs::write(root.join("index.redb"), &rotten).expect("destroyed");
        let (store, opened) = Store::open(&root, options()).expect("opens");
        lost += usize::from(opened.index_lost.is_some());
        names += store.tasks().len();
        for (content, manifest) in contents.iter().zip(&manifests) {
            let read = read_all(&store, manifest.content()).expect("sound");
            assert!(read.as_ref() == Some(content), "damage of {length} at {at}");
        }
        import(&store, "new", b"new");
        store.remove_task(&name("new").task_id()).expect("removed");
    }
    eprintln!("{lost} of 60 indexes were damaged, {names} of {} names survived", 60 * 200);
    assert!(lost > 5 && lost < 60, "{lost} of 60");
    assert!(names > 60 * 200 * 3 / 4, "{names} names of 60 times 200");
}

#[test]
fn abandoned_downloads_and_nameless_contents_go_after_a_day() {
    let (_directory, store) = fresh();
    let content = bytes(3, 2 << 20);
    let download = store.begin_download(&manifest_of(&content)).expect("begins");
    fetch(&download, &content, |piece| piece == 0).expect("writes");
    download.checkpoint().expect("commits");
    let day = UnixMillis(crate::store::now().0 + 25 * 3600 * 1000);
    store.expire(day).expect("expires");
    assert_eq!(store.contents().len(), 1, "under way");
    drop(download);
    store.expire(crate::store::now()).expect("expires");
    assert_eq!(store.contents().len(), 1, "too early");
    store.expire(day).expect("expires");
    assert!(store.contents().is_empty());
    assert!(store.inner.disk.list(crate::store::Folder::Partial).expect("lists").is_empty());
}

/// The measure of a start after `kill -9`: run with `--ignored`, in a release build.
#[test]
#[ignore = "a measurement"]
fn start_with_ten_thousand_contents() {
    let (directory, store) = fresh();
    std::thread::scope(|scope| {
        for thread in 0..16 {
            let store = &store;
            scope.spawn(move || {
                for task in 0..625 {
                    import(store, &format!("{thread}/{task}"), &bytes(thread * 1000 + task, 100));
                }
            });
        }
    });
    // As after a kill: nothing is closed, only the lock is gone with the process.
    let copy = directory.path().join("copy");
    let copied = std::process::Command::new("cp").arg("-a").arg(directory.path().join("store")).arg(&copy).status();
    assert!(copied.expect("cp").success());
    let began = Instant::now();
    let (store, opened) = Store::open(&copy, options()).expect("opens");
    eprintln!("start: {:?}, {} contents, {} syncs", began.elapsed(), opened.contents, store.syncs());
    assert_eq!(opened.contents, 10_000);
}

#[test]
fn whatever_a_kill_leaves_in_incoming_is_cleaned_up() {
    let (directory, store) = fresh();
    let left: Vec<_> = crate::store::Temporary::ALL.into_iter().map(|kind| store.inner.temporary(kind).name).collect();
    drop(store);
    let root = directory.path().join("store");
    for name in &left {
        fs::write(root.join("incoming").join(name), "half").expect("written");
    }
    let (_store, opened) = Store::open(&root, options()).expect("opens");
    assert!(opened.set_aside.is_empty() && opened.cleaned.len() == left.len(), "{opened:?}");
    assert_eq!(fs::read_dir(root.join("incoming")).expect("there").count(), 0, "of {left:?}");
}

#[test]
fn the_directory_is_held_whatever_becomes_of_its_path() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let above = directory.path().join("above");
    let store = open(&above.join("store"));
    import(&store, "a", b"before");
    fs::rename(&above, directory.path().join("moved")).expect("moved");
    fs::create_dir_all(above.join("store/contents")).expect("another one in its place");
    let manifest = import(&store, "b", b"after");
    assert!(read_all(&store, manifest.content()).expect("verifies").is_some());
    assert_eq!(fs::read_dir(above.join("store/contents")).expect("lists").count(), 0, "nothing of the store is there");
    drop(store);
    assert_eq!(open(&directory.path().join("moved/store")).tasks().len(), 2);
}

#[test]
fn an_index_that_deletes_have_emptied_is_compacted() {
    let (directory, store) = fresh();
    let root = directory.path().join("store");
    let manifest = import(&store, "a", b"kept");
    for size in [8 << 20, 12 << 20] {
        store.meta_put("large", Some(&vec![7; size])).expect("written");
    }
    store.meta_put("large", None).expect("removed");
    let before = fs::metadata(root.join("index.redb")).expect("there").len();
    let compacted = store.compact().expect("works");
    let after = fs::metadata(root.join("index.redb")).expect("there").len();
    assert!(compacted && before > 8 << 20 && after < 4 << 20, "{before} bytes before, {after} after");
    assert!(!store.compact().expect("works"), "once is enough");
    drop(store);
    assert!(read_all(&open(&root), manifest.content()).expect("verifies").is_some());
}
