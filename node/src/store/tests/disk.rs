//! A file system in memory that can lose its power.
//!
//! What a sync did not cover may be lost, kept, or torn, each write and each directory entry by itself; after the
//! power is cut every call fails until the disk is started again.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsString,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use crate::store::disk::{At, Entry, Folder};

const SECTOR: usize = 512;

#[derive(Clone, Default)]
pub(in crate::store) struct SimulatedDisk(Arc<Mutex<Tracks>>);

#[derive(Default)]
struct Tracks {
    files: HashMap<u64, Inode>,
    next: u64,
    names: BTreeMap<(Folder, OsString), Name>,
    steps: u64,
    /// The step at which the power goes.
    cut: Option<u64>,
    /// How many syncs of files go well before one fails.
    good_syncs: Option<u64>,
    capacity: Option<u64>,
}

#[derive(Default, Clone)]
struct Inode {
    now: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Pending>,
}

#[derive(Clone)]
enum Pending {
    Write(u64, Vec<u8>),
    Length(u64),
}

/// What a name stood for: first what is durable, then every change since.
#[derive(Default, Clone)]
struct Name {
    durable: Option<u64>,
    since: Vec<Option<u64>>,
}

impl Name {
    fn now(&self) -> Option<u64> {
        self.since.last().copied().unwrap_or(self.durable)
    }
}

impl SimulatedDisk {
    fn lock(&self) -> MutexGuard<'_, Tracks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cuts the power when so many more calls have been made.
    pub fn cut_after(&self, steps: u64) {
        let mut tracks = self.lock();
        tracks.cut = Some(tracks.steps + steps);
    }

    /// Lets one sync of a file fail, after so many that do not: what was to be written is lost, and reads still give it.
    pub fn fail_sync_after(&self, syncs: u64) {
        self.lock().good_syncs = Some(syncs);
    }

    /// Whether the sync that was to fail has failed.
    pub fn has_failed(&self) -> bool {
        self.lock().good_syncs.is_none()
    }

    pub fn is_cut(&self) -> bool {
        let tracks = self.lock();
        tracks.cut.is_some_and(|cut| tracks.steps > cut)
    }

    pub fn limit(&self, bytes: u64) {
        self.lock().capacity = Some(bytes);
    }

    /// What the disk holds when the power is back: everything that was synced, and any part of the rest.
    pub fn restarted(&self, seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let tracks = self.lock();
        let mut files = HashMap::new();
        let mut names = BTreeMap::new();
        for (at, name) in &tracks.names {
            let kept = random.random_range(0..=name.since.len());
            let inode = if kept == 0 { name.durable } else { name.since[kept - 1] };
            if let Some(inode) = inode {
                names.insert(at.clone(), Name { durable: Some(inode), since: Vec::new() });
                files.entry(inode).or_insert_with(|| tracks.files[&inode].after_power_loss(&mut random));
            }
        }
        Self(Arc::new(Mutex::new(Tracks {
            files,
            names,
            next: tracks.next,
            capacity: tracks.capacity,
            ..Tracks::default()
        })))
    }

    /// Bytes of all files together.
    pub fn used(&self) -> u64 {
        self.lock().used()
    }

    pub fn step(&self) -> io::Result<()> {
        self.lock().step()
    }

    pub fn list(&self, folder: Folder) -> io::Result<Vec<Entry>> {
        let mut tracks = self.lock();
        tracks.step()?;
        let mut entries: Vec<_> = (Folder::INNER.iter().filter(|_| folder == Folder::Root))
            .map(|inner| Entry { name: inner.name().into(), bytes: None })
            .collect();
        for ((of, name), inode) in &tracks.names {
            if let (true, Some(inode)) = (*of == folder, inode.now()) {
                entries.push(Entry { name: name.clone(), bytes: Some(tracks.files[&inode].now.len() as u64) });
            }
        }
        Ok(entries)
    }

    pub fn open(&self, at: &At, create: bool) -> io::Result<SimulatedFile> {
        let mut tracks = self.lock();
        tracks.step()?;
        let inode = match (tracks.find(at), create) {
            (Some(_), true) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Some(inode), false) => inode,
            (None, false) => return Err(io::ErrorKind::NotFound.into()),
            (None, true) => {
                tracks.next += 1;
                let inode = tracks.next;
                tracks.files.insert(inode, Inode::default());
                tracks.set(at, Some(inode));
                inode
            }
        };
        Ok(SimulatedFile { disk: self.clone(), inode })
    }

    pub fn rename(&self, from: &At, to: &At) -> io::Result<()> {
        let mut tracks = self.lock();
        tracks.step()?;
        let inode = tracks.find(from).ok_or(io::ErrorKind::NotFound)?;
        tracks.set(to, Some(inode));
        tracks.set(from, None);
        Ok(())
    }

    pub fn link(&self, from: &At, to: &At) -> io::Result<()> {
        let mut tracks = self.lock();
        tracks.step()?;
        let inode = tracks.find(from).ok_or(io::ErrorKind::NotFound)?;
        tracks.set(to, Some(inode));
        Ok(())
    }

    pub fn remove(&self, at: &At) -> io::Result<()> {
        let mut tracks = self.lock();
        tracks.step()?;
        tracks.find(at).ok_or(io::ErrorKind::NotFound)?;
        tracks.set(at, None);
        Ok(())
    }

    pub fn sync_folder(&self, folder: Folder) -> io::Result<()> {
        let mut tracks = self.lock();
        tracks.step()?;
        for (_, name) in tracks.names.iter_mut().filter(|((of, _), _)| *of == folder) {
            name.durable = name.now();
            name.since.clear();
        }
        Ok(())
    }

    pub fn free_bytes(&self) -> io::Result<u64> {
        let mut tracks = self.lock();
        tracks.step()?;
        Ok(tracks.capacity.unwrap_or(u64::MAX).saturating_sub(tracks.used()))
    }

    /// Flips one bit of a file, as a rotting disk does.
    pub fn rot(&self, at: &At, byte: usize) {
        let mut tracks = self.lock();
        let inode = tracks.find(at).expect("a file to rot");
        let file = tracks.files.get_mut(&inode).expect("its bytes");
        file.now[byte] ^= 1;
        file.durable[byte] ^= 1;
    }
}

impl Tracks {
    fn step(&mut self) -> io::Result<()> {
        self.steps += 1;
        match self.cut {
            Some(cut) if self.steps > cut => Err(io::Error::other("the power is cut")),
            _ => Ok(()),
        }
    }

    fn used(&self) -> u64 {
        self.names.values().filter_map(Name::now).map(|inode| self.files[&inode].now.len() as u64).sum()
    }

    fn find(&self, at: &At) -> Option<u64> {
        self.names.get(&(at.folder, at.name.clone()))?.now()
    }

    fn set(&mut self, at: &At, inode: Option<u64>) {
        self.names.entry((at.folder, at.name.clone())).or_default().since.push(inode);
    }
}

impl Inode {
    fn after_power_loss(&self, random: &mut StdRng) -> Self {
        let mut durable = self.durable.clone();
        for pending in &self.pending {
            match pending {
                Pending::Length(bytes) if random.random_bool(0.5) => durable.resize(*bytes as usize, 0),
                Pending::Write(offset, bytes) => match random.random_range(0..4) {
                    0 => {}
                    1 => torn(&mut durable, *offset as usize, bytes, random),
                    _ => put(&mut durable, *offset as usize, bytes),
                },
                Pending::Length(_) => {}
            }
        }
        Self { now: durable.clone(), durable, pending: Vec::new() }
    }
}

/// Some sectors of a write reach the disk.
fn torn(file: &mut Vec<u8>, offset: usize, bytes: &[u8], random: &mut StdRng) {
    let mut done = 0;
    while done < bytes.len() {
        let run = random.random_range(1..=bytes.len().div_ceil(SECTOR)) * SECTOR - (offset + done) % SECTOR;
        let end = bytes.len().min(done + run);
        if random.random_bool(0.5) {
            put(file, offset + done, &bytes[done..end]);
        }
        done = end;
    }
}

fn put(file: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if file.len() < offset + bytes.len() {
        file.resize(offset + bytes.len(), 0);
    }
    file[offset..offset + bytes.len()].copy_from_slice(bytes);
}

pub(in crate::store) struct SimulatedFile {
    disk: SimulatedDisk,
    inode: u64,
}

impl SimulatedFile {
    fn with<R>(&self, act: impl FnOnce(&mut Inode) -> R) -> io::Result<R> {
        let mut tracks = self.disk.lock();
        tracks.step()?;
        Ok(act(tracks.files.get_mut(&self.inode).expect("an open file exists")))
    }

    pub fn len(&self) -> io::Result<u64> {
        self.with(|file| file.now.len() as u64)
    }

    pub fn set_len(&self, bytes: u64) -> io::Result<()> {
        if bytes.saturating_sub(self.len()?) > self.disk.free_bytes()? {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.with(|file| {
            file.now.resize(bytes as usize, 0);
            file.pending.push(Pending::Length(bytes));
        })
    }

    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.with(|file| {
            let range = offset as usize..offset as usize + buffer.len();
            buffer.copy_from_slice(file.now.get(range).ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })?
    }

    pub fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let full = self.disk.free_bytes()? < bytes.len() as u64 && self.len()? < offset + bytes.len() as u64;
        if full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.with(|file| {
            put(&mut file.now, offset as usize, bytes);
            file.pending.push(Pending::Write(offset, bytes.to_vec()));
        })
    }

    pub fn sync(&self) -> io::Result<()> {
        let fails = {
            let mut tracks = self.disk.lock();
            let left = tracks.good_syncs;
            tracks.good_syncs = left.and_then(|left| left.checked_sub(1));
            left == Some(0)
        };
        self.with(|file| {
            let pending = std::mem::take(&mut file.pending);
            if fails {
                return Err(io::Error::from(rustix::io::Errno::IO));
            }
            for pending in pending {
                match pending {
                    Pending::Write(offset, bytes) => put(&mut file.durable, offset as usize, &bytes),
                    Pending::Length(bytes) => file.durable.resize(bytes as usize, 0),
                }
            }
            Ok(())
        })?
    }
}
