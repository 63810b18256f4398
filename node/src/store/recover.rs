//! Opening a store: whatever a crash, a rotten disk or a person left behind, it starts.
//!
//! What is explained by an interrupted operation is finished or cleaned up; what is not goes to `damaged/`. A file
//! among the complete contents that the index does not know is the rest of an interrupted import or delete and is
//! unlinked, unless the index itself was lost: then such files are hashed and taken in as contents without a name.

use std::{
    collections::HashSet,
    ffi::OsString,
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use damselfly_messages::id::ContentId;
use rustix::fs::OFlags;

use super::{
    Temporary,
    disk::{At, Disk, Entry, Folder, Root, parse_name},
    error::{OpenError, StoreError},
    index::{FORMAT, Found, Index, index_file},
    io_error, now,
    pages::Image,
    record::{ContentRecord, Held},
    repair::{Salvaged, last_commit, salvage},
    state::{Overlay, State},
};

/// A daemon that was killed keeps its lock for a moment after it can be seen no more.
const LOCK_WAIT: Duration = Duration::from_secs(1);

/// What an opening found. Everything but the first two is worth a line in the log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Opened {
    /// Number of contents that the index knows.
    pub contents: usize,
    /// Number of tasks.
    pub tasks: usize,
    /// Why the index was set aside and a new one begun, if it was: with every sound row of it, so tasks may be missing.
    pub index_lost: Option<String>,
    /// The last commit was torn or damaged, and what is sound of it was committed again.
    pub index_mended: bool,
    /// Contents that are damaged: set aside now or earlier, and not fetched again yet.
    pub damaged: Vec<ContentId>,
    /// What was moved to `damaged/` because nothing explains it.
    pub set_aside: Vec<String>,
    /// Rests of interrupted operations that were unlinked.
    pub cleaned: Vec<String>,
    /// Records of the index that cannot be read, with the reason; they stay.
    pub unreadable: Vec<String>,
    /// Contents from before the index was lost that were hashed and taken in. Those that no name is left of are named
    /// by their content ID.
    pub adopted: Vec<ContentId>,
    /// More of them, left for [`super::Store::adopt`].
    pub adoptable: Vec<ContentId>,
}

/// A store directory that has been looked through.
pub(super) struct Recovered {
    pub index: Index,
    pub state: State,
    pub opened: Opened,
    pub repairs: Vec<(ContentId, Repair)>,
    /// What the index says that redb did not open it with.
    pub mending: Option<Salvaged>,
}

/// How a record is made to agree with the files.
pub(super) enum Repair {
    Damaged,
    Forget,
    /// There is only a task that names so many bytes.
    Missing(u64),
}

/// Makes the directory if need be, checks whose it is, and locks it.
pub(super) fn claim(directory: &Path) -> Result<(Root, File), OpenError> {
    let refused = |action| {
        move |source| OpenError::Store(StoreError::Io { action, what: directory.display().to_string(), source })
    };
    DirBuilder::new().recursive(true).mode(0o700).create(directory).or_else(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Ok(()),
        _ => Err(refused("make the store")(error)),
    })?;
    if !directory.metadata().map_err(refused("look at"))?.is_dir() {
        return Err(OpenError::NotADirectory(directory.to_owned()));
    }
    // What is checked is what is used from here on, whatever becomes of the path.
    let root = Root::open(directory).map_err(refused("open"))?;
    let metadata = root.metadata().map_err(refused("look at"))?;
    let directory = directory.to_owned();
    let daemon = rustix::process::geteuid().as_raw();
    if metadata.uid() != daemon {
        return Err(OpenError::Owner { directory, owner: metadata.uid(), daemon });
    }
    let mode = metadata.mode() & 0o777;
    if mode & 0o027 != 0 {
        return Err(OpenError::Mode { directory, mode });
    }
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600).custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
    let file = options.open(root.join("LOCK")).map_err(refused("open the LOCK of"))?;
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok((root, file)),
            Err(TryLockError::WouldBlock) if begun.elapsed() < LOCK_WAIT => thread::sleep(LOCK_WAIT / 100),
            Err(TryLockError::WouldBlock) => return Err(OpenError::Locked(directory)),
            Err(TryLockError::Error(error)) => return Err(refused("lock")(error)),
        }
    }
}

/// Opens the index and makes files agree with it, as far as that needs no change of the index.
pub(super) fn recover(disk: &Disk) -> Result<Recovered, OpenError> {
    let mut opened = Opened::default();
    let root = list(disk, Folder::Root)?;
    let has_index = root.iter().any(|entry| entry.name == index_file().name);
    let found = if has_index { open_index(disk, &mut opened)? } else { FoundIndex::default() };
    make_folders(disk, &root, found.index.is_some(), &mut opened)?;
    let (index, state) = match found.index {
        Some(found) => found,
        None => {
            let adopting = !list(disk, Folder::Contents)?.is_empty();
            if has_index {
                opened.set_aside.extend(set_index_aside(disk)?);
            }
            let index = Index::create(disk, adopting, &found.salvaged)?;
            let (state, _) = index.load()?;
            (index, state)
        }
    };
    let adopting = index.is_adopting();
    if found.mending.is_some() {
        // A file without a record may be that of an import which the torn or damaged commit has acknowledged.
        index.begin_adopting()?;
        opened.index_mended = true;
    }
    let mending = found.mending;
    let mut walk = Walk { disk, state: &state, opened, repairs: Vec::new(), adopting, mending: mending.as_ref() };
    walk.folders()?;
    let Walk { mut opened, repairs, .. } = walk;
    opened.contents = state.contents.len();
    opened.tasks = state.tasks.len();
    Ok(Recovered { index, state, opened, repairs, mending })
}

/// What was made of the index that is there.
#[derive(Default)]
struct FoundIndex {
    /// The index and everything in it; `None` when it is damaged.
    index: Option<(Index, State)>,
    /// The sound rows of a damaged one.
    salvaged: Overlay,
    /// See [`Recovered::mending`].
    mending: Option<Salvaged>,
}

fn open_index(disk: &Disk, opened: &mut Opened) -> Result<FoundIndex, OpenError> {
    // redb changes a file that was not closed when it opens it, and goes back by a commit without a word when the last
    // one is not whole. So it is read before.
    let image = unclean_image(disk);
    let reason = match Index::open(disk)? {
        Found::Newer(found) => return Err(OpenError::Newer { found, known: FORMAT }),
        Found::Damaged(reason) => reason,
        Found::Index(index) => match index.load() {
            Ok((state, unreadable)) => {
                opened.unreadable = unreadable.iter().map(ToString::to_string).collect();
                let mending = image.map(|image| last_commit(disk, &image)).filter(|last| !last.is_all_of(&state));
                return Ok(FoundIndex { index: Some((index, state)), mending, ..FoundIndex::default() });
            }
            Err(error) => error.to_string(),
        },
    };
    opened.index_lost = Some(reason);
    let image = match image {
        Some(image) => image,
        // Where it cannot be read at all, all contents are adopted.
        None => Image::read(disk, &index_file()).unwrap_or_default(),
    };
    Ok(FoundIndex { salvaged: salvage(disk, &image), ..FoundIndex::default() })
}

/// The index in memory, if it was not closed.
fn unclean_image(disk: &Disk) -> Option<Image> {
    let image = Image::read_head(disk, &index_file()).ok()?;
    image.is_unclean().then(|| Image::read(disk, &index_file()).ok()).flatten()
}

/// Keeps the damaged index under a second name, for who wants to look into it; the new one will replace the first.
fn set_index_aside(disk: &Disk) -> Result<Option<String>, StoreError> {
    let aside = Folder::Root.at(format!("index.redb.damaged-{}", now().0));
    match disk.link(&index_file(), &aside) {
        Ok(()) => Ok(Some(aside.to_string())),
        Err(error) => {
            tracing::warn!(%error, "the damaged index is not kept: the file system has no second name for it");
            Ok(None)
        }
    }
}

/// Makes the folders that are missing; anything else that has such a name makes way.
fn make_folders(disk: &Disk, root: &[Entry], has_index: bool, opened: &mut Opened) -> Result<(), StoreError> {
    let mut made = false;
    for folder in Folder::INNER {
        if !root.iter().any(|entry| entry.name == folder.name()) {
            made = true;
        } else if let Err(error) = disk.list(folder) {
            if error.kind() != io::ErrorKind::NotADirectory {
                return Err(io_error("list", &folder.at(""))(error));
            }
            let (junk, aside) = (Folder::Root.at(folder.name()), format!("{}.damaged-{}", folder.name(), now().0));
            disk.rename(&junk, &Folder::Root.at(&aside)).map_err(io_error("set aside", &junk))?;
            opened.set_aside.push(aside);
            made = true;
        }
        disk.create_folder(folder).map_err(io_error("make", &folder.at("")))?;
    }
    // A new index syncs the folder it lies in anyway.
    if made && has_index {
        disk.sync_folder(Folder::Root).map_err(io_error("sync", &Folder::Root.at("")))?;
    }
    Ok(())
}

fn list(disk: &Disk, folder: Folder) -> Result<Vec<Entry>, StoreError> {
    disk.list(folder).map_err(io_error("list", &folder.at("")))
}

/// Compares every folder with the index.
struct Walk<'a> {
    disk: &'a Disk,
    state: &'a State,
    opened: Opened,
    repairs: Vec<(ContentId, Repair)>,
    /// Files without a record are from before the index was lost.
    adopting: bool,
    /// What a last commit says that redb did not open.
    mending: Option<&'a Salvaged>,
}

impl Walk<'_> {
    fn folders(&mut self) -> Result<(), StoreError> {
        for entry in list(self.disk, Folder::Incoming)? {
            let at = Folder::Incoming.at(entry.name);
            let name = at.name.to_string_lossy();
            if Temporary::is_one(&name) && entry.bytes.is_some() { self.clean(at)? } else { self.set_aside(&at)? }
        }
        let complete = self.complete()?;
        let partial = self.partial(&complete)?;
        let mut damaged = HashSet::new();
        for entry in list(self.disk, Folder::Damaged)? {
            damaged.extend(parse_name::<ContentId>(&entry.name));
        }
        for (id, content) in &self.state.contents {
            match content.record.state {
                Held::Complete if complete.contains(id) => {}
                Held::Complete => self.damage(*id),
                Held::Partial(_) if partial.contains(id) => {}
                Held::Partial(_) if self.state.tasks_of(*id).next().is_none() => {
                    self.repairs.push((*id, Repair::Forget));
                }
                Held::Partial(_) => self.damage(*id),
                Held::Damaged => self.opened.damaged.push(*id),
            }
        }
        for record in self.state.tasks.values() {
            let (id, bytes) = (record.binding.content, record.binding.content_bytes);
            if !self.state.contents.contains_key(&id) && !self.opened.adoptable.contains(&id) {
                self.repairs.push((id, Repair::Missing(bytes)));
                self.opened.damaged.push(id);
            }
        }
        Ok(())
    }

    /// Looks through the complete contents; returns those that are as the index says.
    fn complete(&mut self) -> Result<HashSet<ContentId>, StoreError> {
        let mut complete = HashSet::new();
        for entry in list(self.disk, Folder::Contents)? {
            let at = Folder::Contents.at(entry.name);
            let (Some(id), Some(bytes)) = (parse_name::<ContentId>(&at.name), entry.bytes) else {
                self.set_aside(&at)?;
                continue;
            };
            match self.state.contents.get(&id).map(|content| &content.record) {
                Some(ContentRecord { state: Held::Complete, bytes: expected, .. }) if *expected == bytes => {
                    complete.insert(id);
                }
                // The commit that was to follow the rename is missing: the download goes on from its checkpoint.
                Some(ContentRecord { state: Held::Partial(_), .. }) => self.rename(&at, &Folder::Partial.of(id))?,
                Some(_) => self.rename(&at, &Folder::Damaged.of(id))?,
                None if self.adopting || self.mending.is_some_and(|last| last.may_hold(id)) => {
                    self.opened.adoptable.push(id);
                }
                None => self.clean(at)?,
            }
        }
        Ok(complete)
    }

    /// Looks through the downloads; returns those that can be resumed.
    fn partial(&mut self, complete: &HashSet<ContentId>) -> Result<HashSet<ContentId>, StoreError> {
        let mut partial = HashSet::new();
        for entry in list(self.disk, Folder::Partial)? {
            let at = Folder::Partial.at(entry.name);
            let (Some(id), Some(_)) = (parse_name::<ContentId>(&at.name), entry.bytes) else {
                self.set_aside(&at)?;
                continue;
            };
            // A file whose content is complete is the old name of a rename, or its content came another way; one
            // without a record belongs to a download that never reached a checkpoint.
            if self.state.contents.contains_key(&id) && !complete.contains(&id) {
                partial.insert(id);
            } else {
                self.clean(at)?;
            }
        }
        Ok(partial)
    }

    fn damage(&mut self, id: ContentId) {
        self.repairs.push((id, Repair::Damaged));
        self.opened.damaged.push(id);
    }

    fn clean(&mut self, at: At) -> Result<(), StoreError> {
        self.disk.remove(&at).map_err(io_error("remove", &at))?;
        self.opened.cleaned.push(at.to_string());
        Ok(())
    }

    /// Moves what nobody can explain to `damaged/`, under a name that is free.
    fn set_aside(&mut self, at: &At) -> Result<(), StoreError> {
        let mut name = OsString::from(format!("{}-{}-", at.folder.name(), now().0));
        name.push(&at.name);
        // Too long a name is cut to what every file system takes.
        let name = if name.len() > 255 { format!("{}-{}", now().0, self.opened.set_aside.len()).into() } else { name };
        let aside = Folder::Damaged.at(name);
        self.rename(at, &aside)?;
        self.opened.set_aside.push(at.to_string());
        Ok(())
    }

    fn rename(&self, from: &At, to: &At) -> Result<(), StoreError> {
        self.disk.rename(from, to).map_err(io_error("set aside", from))
    }
}
