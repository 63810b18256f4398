//! The power is cut at seeded moments of imports, downloads, deletes and expiry.
//!
//! After each: the store opens, what was acknowledged is there and right, what was removed stays away, and no read
//! gives a wrong byte.

use std::{
    collections::{BTreeMap, HashMap},
    thread,
};

use damselfly_messages::record::Tombstone;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::*;
use crate::store::{ContentState, Folder, Opened};

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
const SEEDS: u64 = 700;
const ROUNDS: u32 = 2;

/// What a name may stand for: one thing when it was told, two while a change was under way.
type Allowed = Vec<Option<ContentId>>;

struct World {
    disk: SimulatedDisk,
    random: StdRng,
    contents: HashMap<ContentId, Vec<u8>>,
    names: BTreeMap<&'static str, Allowed>,
    /// The generation of a name's next import, and whether its tombstone must be there.
    generations: HashMap<&'static str, u64>,
    tombstones: HashMap<&'static str, u64>,
    seed: u64,
    opened_once: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            disk: SimulatedDisk::default(),
            random: StdRng::seed_from_u64(seed),
            contents: HashMap::new(),
            names: NAMES.iter().map(|name| (*name, vec![None])).collect(),
            generations: HashMap::new(),
            tombstones: HashMap::new(),
            seed,
            opened_once: false,
        }
    }

    fn generation(&self, cid: &str) -> u64 {
        self.generations.get(cid).copied().unwrap_or(1)
    }

    /// A content that few others have; every eighth has several pieces.
    fn some_bytes(&mut self) -> (ContentId, Vec<u8>) {
        let long = self.random.random_ratio(1, 8);
        let length =
            if long { self.random.random_range(1 << 20..(3 << 20) + 9) } else { self.random.random_range(0..5000) };
        let content = bytes(self.random.random_range(0..40), length);
        let id = ContentId::of(&content);
        self.contents.insert(id, content.clone());
        (id, content)
    }

    fn some_name(&mut self) -> &'static str {
        NAMES[self.random.random_range(0..NAMES.len())]
    }

    /// Runs until the power is cut, or for a while.
    fn run(&mut self) {
        let store = match Store::open_on(Disk::simulated(self.disk.clone()), None, options()) {
            Ok((store, opened)) => {
                self.check(&store, &opened);
                store
            }
            // Cut while it was opening.
            Err(_) => return,
        };
        let fuse = self.random.random_range(0..220);
        self.disk.cut_after(fuse);
        if self.seed % 4 == 1 {
            let syncs = self.random.random_range(0..30);
            self.disk.fail_sync_after(syncs);
        }
        for _ in 0..14 {
            // After a failed sync it goes on; what fails then must be told, and what does not must last.
            if self.act(&store).is_err() && self.disk.is_cut() {
                return;
            }
        }
    }

    fn act(&mut self, store: &Store) -> Result<(), StoreError> {
        match self.random.random_range(0..10) {
            0..4 => self.import(store),
            4..6 => self.download(store),
            6..8 => self.delete(store),
            8 => self.expire(store),
            _ => self.read(store),
        }
    }

    fn import(&mut self, store: &Store) -> Result<(), StoreError> {
        let (cid, (id, content)) = (self.some_name(), self.some_bytes());
        let before = self.names[cid].clone();
        self.names.entry(cid).or_default().push(Some(id));
        match import_as(store, cid, &content, self.generation(cid)) {
            Ok(_) => drop(self.names.insert(cid, vec![Some(id)])),
            Err(StoreError::Bound(old)) => {
                assert!(before.contains(&Some(old.binding.content)), "{}: bound to what was never told", self.seed);
                self.names.insert(cid, before);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn download(&mut self, store: &Store) -> Result<(), StoreError> {
        let (cid, (id, content)) = (self.some_name(), self.some_bytes());
        let manifest = manifest_of(&content);
        let download = match store.begin_download(&manifest) {
            Ok(download) => download,
            Err(crate::store::DownloadError::Store(error)) => return Err(error),
            Err(_) => return Ok(()),
        };
        let part = self.random.random_range(1..4);
        fetch(&download, &content, |piece| piece % part == 0)?;
        download.checkpoint()?;
        if self.random.random_ratio(1, 3) {
            return Ok(());
        }
        fetch(&download, &content, |_| true)?;
        let before = self.names[cid].clone();
        self.names.entry(cid).or_default().push(Some(id));
        match download.finish(vec![record(cid, &manifest, self.generation(cid))]) {
            Ok(()) => drop(self.names.insert(cid, vec![Some(id)])),
            Err(crate::store::FinishError::Store(StoreError::Bound(_))) => drop(self.names.insert(cid, before)),
            Err(crate::store::FinishError::Store(error)) => return Err(error),
            Err(error) => panic!("{}: {error}", self.seed),
        }
        Ok(())
    }

    fn delete(&mut self, store: &Store) -> Result<(), StoreError> {
        let cid = self.some_name();
        self.names.entry(cid).or_default().push(None);
        if self.random.random_ratio(1, 2) {
            let generation = self.generation(cid);
            // Taken before it is told: after a cut nobody knows, and the next one is right in both cases.
            self.generations.insert(cid, generation + 1);
            store.put_tombstone(Tombstone { task: name(cid).task_id(), generation, deleted: UnixMillis(1) })?;
            self.tombstones.insert(cid, generation);
        } else {
            store.remove_task(&name(cid).task_id())?;
        }
        self.names.insert(cid, vec![None]);
        Ok(())
    }

    fn expire(&mut self, store: &Store) -> Result<(), StoreError> {
        let cid = self.some_name();
        let Some(record) = store.task(&name(cid).task_id()) else { return Ok(()) };
        store.put_task(expiring(record, 10))?;
        self.names.entry(cid).or_default().push(None);
        store.expire(UnixMillis(10))?;
        // Others may have been left with a moment to expire by a cut between the two calls.
        for cid in NAMES {
            if store.task(&name(cid).task_id()).is_none() {
                self.names.insert(cid, vec![None]);
            }
        }
        Ok(())
    }

    fn read(&mut self, store: &Store) -> Result<(), StoreError> {
        for id in store.contents() {
            if let Ok(Some(reader)) = store.open_content(id) {
                let mut piece = Vec::new();
                for index in reader.manifest().layout().indices() {
                    if reader.read(index, &mut piece).is_ok() {
                        let range = reader.manifest().layout().range(index);
                        assert!(piece == self.contents[&id][range.start as usize..range.end as usize], "{}", self.seed);
                    }
                }
            }
        }
        Ok(())
    }

    /// What must hold whenever a store has been opened.
    fn check(&mut self, store: &Store, opened: &Opened) {
        let seed = self.seed;
        assert!(!self.opened_once || opened.index_lost.is_none(), "{seed}: {opened:?}");
        self.opened_once = true;
        assert!(opened.damaged.is_empty() && opened.unreadable.is_empty(), "{seed}: {opened:?}");
        for cid in NAMES {
            let found = store.task(&name(cid).task_id());
            let content = found.as_ref().map(|record| record.binding.content);
            assert!(
                self.names[cid].contains(&content),
                "{seed}: {cid} is {content:?}, not one of {:?}",
                self.names[cid]
            );
            if let Some(id) = content {
                let read = read_all(store, id).expect("a named content verifies");
                assert!(read.as_ref() == Some(&self.contents[&id]), "{seed}: {cid} reads as something else");
            }
            self.names.insert(cid, vec![content]);
            if let Some(generation) = self.tombstones.get(cid) {
                let tombstone = store.tombstone(&name(cid).task_id()).expect("a tombstone lasts");
                assert!(tombstone.generation >= *generation, "{seed}: {tombstone:?}");
            }
        }
        self.check_files(store);
    }

    fn check_files(&mut self, store: &Store) {
        let seed = self.seed;
        let (mut complete, mut partial) = (0, 0);
        for id in store.contents() {
            match store.content(id) {
                Some(ContentState::Complete { .. }) => complete += 1,
                Some(ContentState::Partial { .. }) => {
                    partial += 1;
                    // Every piece that a checkpoint vouches for is good.
                    let download = store.begin_download(&manifest_of(&self.contents[&id])).expect("resumes");
                    let held = download.held();
                    for index in download.manifest().layout().indices().filter(|index| held.contains(*index)) {
                        download.read(index, &mut Vec::new()).expect("a checkpoint is not committed before its data");
                    }
                }
                other => panic!("{seed}: {id} is {other:?}"),
            }
        }
        let count = |folder| store.inner.disk.list(folder).expect("lists").len();
        let files = [Folder::Contents, Folder::Partial, Folder::Incoming, Folder::Damaged].map(count);
        assert_eq!(files, [complete, partial, 0, 0], "{seed}: files that nobody needs, or too few");
    }
}

fn cut_again_and_again(seed: u64) -> u32 {
    let mut world = World::new(seed);
    let mut cuts = 0;
    for round in 0..ROUNDS {
        if seed.is_multiple_of(3) {
            // Also while it opens, which is when it cleans up after the cut before.
            let fuse = world.random.random_range(0..60);
            world.disk.cut_after(fuse);
            let store = Store::open_on(Disk::simulated(world.disk.clone()), None, options());
            world.opened_once |= store.is_ok();
            drop(store);
            world.disk = world.disk.restarted(seed * 100 + u64::from(round) + 50);
            cuts += 1;
        }
        world.run();
        world.disk = world.disk.restarted(seed * 100 + u64::from(round));
        cuts += 1;
    }
    let (store, opened) = Store::open_on(Disk::simulated(world.disk.clone()), None, options()).expect("opens");
    world.check(&store, &opened);
    cuts
}

#[test]
fn no_power_loss_breaks_a_promise() {
    let cuts: u32 = thread::scope(|scope| {
        let halves = [0, 1].map(|half| {
            scope.spawn(move || (0..SEEDS).filter(|seed| seed % 2 == half).map(cut_again_and_again).sum::<u32>())
        });
        halves.into_iter().map(|half| half.join().expect("every seed holds")).sum()
    });
    assert!(cuts >= 1000, "{cuts} power losses");
}

/// As after EIO of fdatasync: the pages count as written, reads give them, and they are not on the disk.
#[test]
fn nothing_that_follows_a_failed_sync_is_lost() {
    let mut failed = 0;
    for syncs in 0..40 {
        let disk = SimulatedDisk::default();
        let store = simulated(&disk);
        disk.fail_sync_after(syncs);
        let mut kept = Vec::new();
        for number in 0..12u64 {
            let (cid, content) = (format!("n{number}"), bytes(number, 1 + number as usize * 200_000));
            match import_as(&store, &cid, &content, 1) {
                Ok(_) => kept.push((cid, content)),
                Err(error) => assert!(disk.has_failed(), "{error}"),
            }
        }
        failed += u32::from(disk.has_failed());
        assert!(kept.len() >= 11, "after {syncs} syncs: {} imports", kept.len());
        for seed in 0..3 {
            let store = simulated(&disk.restarted(seed));
            assert_eq!(store.tasks().len(), kept.len(), "after {syncs} syncs: those that were refused are not there");
            for (cid, content) in &kept {
                let record = store.task(&name(cid).task_id()).expect("an import that was acknowledged lasts");
                let read = read_all(&store, record.binding.content).expect("it verifies");
                assert!(read.as_ref() == Some(content), "after {syncs} syncs: {cid}");
            }
        }
    }
    assert!(failed >= 20, "{failed} failed syncs");
}

#[test]
fn a_download_whose_sync_failed_is_begun_again() {
    let disk = SimulatedDisk::default();
    let store = simulated(&disk);
    let content = bytes(5, 5 << 20);
    let manifest = manifest_of(&content);
    let download = store.begin_download(&manifest).expect("begins");
    fetch(&download, &content, |piece| piece < 2).expect("writes");
    download.checkpoint().expect("commits");
    fetch(&download, &content, |piece| piece < 4).expect("writes");
    disk.fail_sync_after(0);
    download.checkpoint().expect_err("the sync fails");
    download.checkpoint().expect_err("and does not go well the second time");
    fetch(&download, &content, |_| true).expect_err("nothing more is taken");
    drop(download);
    let download = store.begin_download(&manifest).expect("begins again");
    assert_eq!(download.held().held(), 0);
    fetch(&download, &content, |_| true).expect("writes");
    download.finish(vec![record("a", &manifest, 1)]).expect("finishes");
    drop(download);
    let store = simulated(&disk.restarted(1));
    assert!(read_all(&store, manifest.content()).expect("verifies").as_ref() == Some(&content));
}
