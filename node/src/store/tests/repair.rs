//! What is left of the names when an index is damaged after a kill.

use std::{collections::BTreeMap, fs, path::PathBuf};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use redb::{ReadableTable as _, TableHandle as _};
use tempfile::TempDir;

use super::*;
use crate::store::{Unnamed, now};

const NAMES: usize = 160;
const PLACES: u64 = 200;

/// A store whose daemon was killed.
struct Killed {
    _directory: TempDir,
    root: PathBuf,
    /// The index as the kill left it, and as it was before the last import.
    index: Vec<u8>,
    before: Vec<u8>,
    /// What each name stood for.
    names: BTreeMap<String, Vec<u8>>,
}

impl Killed {
    /// With names that were deleted before, so that old pages lie about in the index. `prepare` changes the index.
    fn new(prepare: impl FnOnce(&redb::Database)) -> Self {
        let (directory, store) = fresh();
        let root = directory.path().join("store");
        let mut names = BTreeMap::new();
        for number in 0..NAMES {
            let length = if number % 16 == 0 { (2 << 20) + number } else { 1 + number * 10 };
            let (cid, content) = (format!("name {number}"), bytes(number as u64, length));
            import(&store, &cid, &content);
            import(&store, &format!("gone {number}"), &content);
            store.remove_task(&name(&format!("gone {number}")).task_id()).expect("removed");
            names.insert(cid, content);
        }
        drop(store);
        let file = root.join("index.redb");
        prepare(&redb::Database::open(&file).expect("opens"));
        let store = open(&root);
        let before = fs::read(&file).expect("reads");
        let last = bytes(4711, 5000);
        import(&store, "last", &last);
        names.insert("last".to_owned(), last);
        // As a kill leaves it: not closed.
        let index = fs::read(&file).expect("reads");
        drop(store);
        Self { _directory: directory, root, index, before, names }
    }

    /// Opens the store with one bit of the index flipped. Returns how many names are lost and how many deleted ones are
    /// back; every content has to be there and to stay.
    fn damaged_at(&self, at: usize, bit: u32) -> (usize, usize) {
        let mut index = self.index.clone();
        index[at] ^= 1 << bit;
        fs::write(self.root.join("index.redb"), &index).expect("written");
        let (store, opened) = Store::open(&self.root, options()).expect("opens");
        let day = UnixMillis(now().0 + 25 * 3600 * 1000);
        store.expire(day).expect("expires");
        let mut lost = 0;
        for (cid, content) in &self.names {
            let id = ContentId::of(content);
            let read = read_all(&store, id).expect("verifies");
            assert!(read.as_ref() == Some(content), "bit {bit} of byte {at}: {cid} is gone: {opened:?}");
            match store.task(&name(cid).task_id()) {
                Some(record) => assert_eq!(record.binding.content, id, "bit {bit} of byte {at}"),
                None => {
                    lost += 1;
                    let named = store.task(&name(&id.to_string()).task_id());
                    assert!(named.is_some() && store.is_unnamed(id), "bit {bit} of byte {at}: {cid}");
                }
            }
        }
        let deleted = store.tasks().iter().filter(|record| record.name.cid().starts_with("gone")).count();
        assert_eq!(store.unnamed().contents, lost as u64, "bit {bit} of byte {at}");
        drop(store);
        for entry in fs::read_dir(&self.root).expect("lists").map(|entry| entry.expect("an entry")) {
            if entry.file_name().to_string_lossy().starts_with("index.redb.damaged-") {
                fs::remove_file(entry.path()).expect("removed");
            }
        }
        (lost, deleted)
    }

    /// Damages places of the index that hold something, one after the other.
    ///
    /// No place may cost more than `most` names.
    fn damaged_everywhere(&self, seed: u64, most: usize) -> (usize, usize) {
        let mut random = StdRng::seed_from_u64(seed);
        let (mut lost, mut deleted) = (0, 0);
        for _ in 0..PLACES {
            let at = loop {
                let at = random.random_range(0..self.index.len());
                if self.index[at] != 0 {
                    break at;
                }
            };
            let (lost_here, deleted_here) = self.damaged_at(at, random.random_range(0..8));
            assert!(lost_here <= most, "byte {at}: {lost_here} names are lost of one wrong bit");
            lost += lost_here;
            deleted += deleted_here;
        }
        (lost, deleted)
    }
}

#[test]
fn one_wrong_bit_after_a_kill_costs_no_more_than_its_row() {
    let killed = Killed::new(|_| {});
    let (lost, deleted) = killed.damaged_everywhere(1, 1);
    eprintln!("{PLACES} places: {lost} names lost, {deleted} deleted ones back");
    assert!(lost < PLACES as usize / 4, "{lost} names");
    assert!(deleted < PLACES as usize, "{deleted} deleted names are back");
}

#[test]
fn rows_of_older_versions_are_found_too() {
    let killed = Killed::new(|database| {
        let transaction = database.begin_write().expect("begins");
        for table in ["contents", "tasks", "tombstones", "queued_deletes"] {
            let table = redb::TableDefinition::<&[u8], &[u8]>::new(table);
            let mut table = transaction.open_table(table).expect("a table");
            let rows = table.iter().expect("reads").map(|row| row.expect("a row"));
            let rows: Vec<_> = rows.map(|(key, row)| (key.value().to_vec(), row.value().to_vec())).collect();
            for (key, row) in rows {
                // Without the checksum at their end.
                table.insert(key.as_slice(), &row[..row.len() - 9]).expect("written");
            }
        }
        transaction.commit().expect("commits");
    });
    // Where a row ends, nothing but the page says.
    let (lost, deleted) = killed.damaged_everywhere(2, 2);
    eprintln!("{PLACES} places: {lost} names lost, {deleted} deleted ones back");
    assert!(lost < PLACES as usize / 4, "{lost} names");
}

#[test]
fn damage_to_the_last_commit_does_not_bring_back_the_one_before() {
    let killed = Killed::new(|_| {});
    let common = killed.before.len().min(killed.index.len());
    let changed: Vec<_> = (0..common).filter(|at| killed.before[*at] != killed.index[*at]).collect();
    let mut lost = 0;
    for (number, at) in changed.iter().step_by(changed.len().div_ceil(60)).enumerate() {
        let here = killed.damaged_at(*at, number as u32 % 8).0;
        assert!(here <= 1, "byte {at}: only the last name can be lost, and its content stays");
        lost += here;
    }
    // All 512 bytes of the header that are used.
    for at in (0..320).filter(|at| killed.index[*at] != 0) {
        assert_eq!(killed.damaged_at(at, at as u32 % 8).0, 0, "byte {at} of the header");
    }
    eprintln!("the last name is lost at {lost} of 60 places");
    assert!(lost < 30, "{lost} names");
}

#[test]
fn a_content_whose_name_was_lost_is_named_or_deleted_by_a_person() {
    let (directory, store) = fresh();
    let (first, second) = (import(&store, "first", b"one"), import(&store, "second", b"two"));
    drop(store);
    let root = directory.path().join("store");
    fs::write(root.join("index.redb"), b"nothing").expect("destroyed");
    let store = open(&root);
    store.expire(UnixMillis(now().0 + 1000 * 24 * 3600 * 1000)).expect("expires");
    assert_eq!(store.unnamed(), Unnamed { contents: 2, bytes: 6 });
    import(&store, "first", b"one");
    assert_eq!(store.unnamed(), Unnamed { contents: 1, bytes: 3 });
    store.remove_task(&name(&second.content().to_string()).task_id()).expect("removed").expect("it was there");
    assert_eq!((store.unnamed(), store.content(second.content())), (Unnamed::default(), None));
    store.remove_task(&name(&first.content().to_string()).task_id()).expect("removed").expect("it was there");
    assert!(store.task(&name("first").task_id()).is_some());
    let (_, opened) = (drop(store), Store::open(&root, options()).expect("opens").1);
    assert_eq!((opened.tasks, opened.adopted.len()), (1, 0));
}

#[test]
fn a_row_proves_itself_under_its_own_key_only() {
    use crate::store::record::Row as _;
    let row = record("a", &manifest_of(b"x"), 1);
    let key = *row.task_id().digest();
    let written = row.to_row(&key);
    assert_eq!(TaskRecord::from_row(key, &written).expect("reads"), row);
    for at in 0..written.len() {
        for bit in 0..8 {
            let mut wrong = written.clone();
            wrong[at] ^= 1 << bit;
            assert!(!TaskRecord::is_sealed(&key, &wrong), "bit {bit} of byte {at}");
        }
    }
    let mut other = key;
    other[0] ^= 1;
    assert!(!TaskRecord::is_sealed(&other, &written));
    assert!(TaskRecord::from_row(key, &written[..written.len() - 9]).is_ok(), "older versions wrote none");
    assert_eq!(crate::store::index::TASKS.name(), "tasks");
}
