//! A damaged index: the store opens, and knows no name that was never given.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, File},
    io::{Seek as _, Write as _},
    ops::ControlFlow,
    os::unix::fs::DirBuilderExt as _,
    path::Path,
    sync::OnceLock,
};

use damselfly_messages::{
    name::Name,
    record::{Binding, UnixMillis},
};
use damselfly_node::store::{OpenError, Options, Store, TaskRecord, TaskState};

use crate::head;

const NAMES: usize = 48;
/// A page of redb; an edit goes to a page first, so that headers and rows are both met.
const PAGE_BYTES: usize = 4096;
const EDITS_MAX: usize = 16;

/// An index with some names, as a clean end leaves it.
struct Sound {
    bytes: Vec<u8>,
    names: BTreeSet<Name>,
}

fn options() -> Options {
    Options { free_space_floor: 0, ..Options::default() }
}

fn sound() -> &'static Sound {
    static SOUND: OnceLock<Sound> = OnceLock::new();
    SOUND.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("store");
        let mut names = BTreeSet::new();
        {
            let (store, _) = Store::open(&path, options()).expect("a new store");
            for number in 0..NAMES {
                let name = Name::parse(&format!("name-{number}"), "tag").expect("a name");
                import(&store, &name, format!("content {number}").as_bytes());
                names.insert(name);
            }
        }
        Sound { bytes: fs::read(path.join("index.redb")).expect("an index"), names }
    })
}

fn import(store: &Store, name: &Name, bytes: &[u8]) {
    let mut source: File = tempfile::tempfile().expect("a temporary file");
    source.write_all(bytes).expect("written");
    source.rewind().expect("rewound");
    let import = store.begin_import(Some(bytes.len() as u64)).expect("begun");
    let imported = import.copy_from(source, &mut |_| ControlFlow::Continue(())).expect("copied");
    let manifest = imported.manifest();
    let binding = Binding {
        content: manifest.content(),
        content_bytes: manifest.layout().content_bytes(),
        generation: 1,
        accepted: Some(UnixMillis(1)),
        expires: None,
    };
    let record = TaskRecord {
        name: name.clone(),
        binding,
        state: TaskState::Acknowledged,
        imported: UnixMillis(1),
        last_used: UnixMillis(1),
        pinned: false,
        fetched: false,
    };
    imported.commit(vec![record]).expect("committed");
}

/// The first byte chooses a truncation or none; each five bytes then name a page, a place in it and a value.
pub(crate) fn run(bytes: &[u8]) {
    let sound = sound();
    let ([how], edits) = head(bytes);
    let mut index = sound.bytes.clone();
    if how >= 0xF0 {
        index.truncate(index.len() * usize::from(how - 0xF0) / 16);
    }
    let pages = index.len().div_ceil(PAGE_BYTES).max(1);
    for edit in edits.chunks_exact(5).take(EDITS_MAX) {
        let page = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % pages;
        let at = page * PAGE_BYTES + usize::from(u16::from_le_bytes([edit[2], edit[3]])) % PAGE_BYTES;
        if let Some(byte) = index.get_mut(at) {
            *byte ^= edit[4];
        }
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    check(&folder.path().join("store"), &index, &sound.names);
}

fn check(path: &Path, index: &[u8], names: &BTreeSet<Name>) {
    DirBuilder::new().mode(0o700).create(path).expect("a folder");
    fs::write(path.join("index.redb"), index).expect("written");
    match Store::open(path, options()) {
        Ok((store, _)) => {
            for task in store.tasks() {
                assert!(names.contains(&task.name), "{:?} was never given", task.name);
            }
        }
        Err(OpenError::Newer { .. }) => {}
        Err(error) => panic!("a damaged index stops a start: {error}"),
    }
}
