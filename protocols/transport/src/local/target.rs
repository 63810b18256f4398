//! The file an export makes: nameless, or hidden beside its target, until all of it is there.
//!
//! The one rule for what may stand at the target, for dfcache and for the paths that the daemon opens itself. It is
//! judged after following links:
//!
//! | at the path | without `force` | with `force` |
//! |---|---|---|
//! | nothing | created | created |
//! | a regular file, a link to one, a link to nothing | refused: exists | replaced; of a link, the link itself |
//! | a directory | refused | refused |
//! | a device, fifo or socket; a link that leads to a descriptor (`/dev/stdout`); anything that the kernel makes up (`/proc`, `/sys`) | refused | refused |
//!
//! Nothing is synced to disk: whoever needs that of the file calls `sync`, and the copy in the
//! daemon's store is durable on its own.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::error::{Code, Failure};
use super::filesystem::is_made_up;

/// Tries for a name nobody has; one is practically always enough.
const NAME_ATTEMPTS: usize = 8;
/// Links that lead to links, as far as Linux follows them.
const MAX_LINKS: usize = 40;

/// Where the bytes are before they have their name.
#[derive(Debug)]
enum Staging {
    /// `O_TMPFILE`: gone by itself when nobody has it open.
    Nameless,
    /// A hidden name, for file systems without `O_TMPFILE`.
    Hidden(OsString),
    /// Where it was to go.
    Done,
}

/// A file on its way to its name. Dropped before [`Target::commit`], it leaves nothing.
#[derive(Debug)]
pub struct Target {
    /// Held, so that it is the same directory at the end.
    dir: OwnedFd,
    name: OsString,
    path: PathBuf,
    force: bool,
    file: OwnedFd,
    place: Staging,
}

impl Target {
    /// Checks that `path` can be written, and makes an empty file in its directory.
    ///
    /// # Errors
    /// [`Code::Failed`]: it exists and `force` is not set, it is something that is never replaced, or its directory is
    /// missing. [`Code::Permission`]: its directory may not be written.
    pub fn prepare(path: &Path, force: bool) -> Result<Self, Failure> {
        let name = file_name(path)?;
        let dir = open_dir(path)?;
        refuse_existing(&dir, name, path, force)?;
        let (file, place) = match create_nameless(&dir, path)? {
            Some(file) => (file, Staging::Nameless),
            None => create_hidden(&dir, path).map(|(file, name)| (file, Staging::Hidden(name)))?,
        };
        Ok(Self { dir, name: name.to_owned(), path: path.to_owned(), force, file, place })
    }

    /// The file, open for reading and writing.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Gives the file its name, at once and whole.
    ///
    /// # Errors
    /// As [`Target::prepare`]: somebody else may have made the file meanwhile. Then theirs is untouched.
    pub fn commit(mut self) -> Result<(), Failure> {
        refuse_existing(&self.dir, &self.name, &self.path, self.force)?;
        let renamed = match &self.place {
            Staging::Nameless if self.force => self.link_and_rename(),
            Staging::Nameless => self.link(&self.name),
            Staging::Hidden(hidden) => self.rename(hidden),
            Staging::Done => Ok(()),
        };
        match renamed {
            Ok(()) => {
                self.place = Staging::Done;
                Ok(())
            }
            Err(Errno::EXIST) => Err(exists(&self.path)),
            Err(e) => Err(failed("cannot write", &self.path, e)),
        }
    }

    /// Gives a nameless file a name that nobody has.
    fn link(&self, name: &OsStr) -> rustix::io::Result<()> {
        rustix::fs::linkat(CWD, proc_path(&self.file), &self.dir, name, AtFlags::SYMLINK_FOLLOW)
    }

    /// Linking never replaces; renaming does.
    fn link_and_rename(&self) -> rustix::io::Result<()> {
        let hidden = (0..NAME_ATTEMPTS)
            .map(|_| hidden_name())
            .find_map(|name| match self.link(&name) {
                Ok(()) => Some(Ok(name)),
                Err(Errno::EXIST) => None,
                Err(e) => Some(Err(e)),
            })
            .unwrap_or(Err(Errno::EXIST))?;
        rustix::fs::renameat(&self.dir, &hidden, &self.dir, &self.name).inspect_err(|_| {
            let _ = rustix::fs::unlinkat(&self.dir, &hidden, AtFlags::empty());
        })
    }

    /// Opens a hidden file to whom umask allows, then renames it.
    fn rename(&self, hidden: &OsStr) -> rustix::io::Result<()> {
        rustix::fs::fchmod(&self.file, Mode::from_raw_mode(0o666) - umask())?;
        if self.force {
            return rustix::fs::renameat(&self.dir, hidden, &self.dir, &self.name);
        }
        let flags = RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(&self.dir, hidden, &self.dir, &self.name, flags) {
            // Not every file system knows the flag; those without it, such as NFS, have hard links.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                rustix::fs::linkat(&self.dir, hidden, &self.dir, &self.name, AtFlags::empty())?;
                rustix::fs::unlinkat(&self.dir, hidden, AtFlags::empty())
            }
            renamed => renamed,
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Staging::Hidden(hidden) = &self.place {
            let _ = rustix::fs::unlinkat(&self.dir, hidden, AtFlags::empty());
        }
    }
}

/// The last part of a path that can name a file.
fn file_name(path: &Path) -> Result<&OsStr, Failure> {
    match path.file_name() {
        Some(name) if !path.as_os_str().as_bytes().ends_with(b"/") => Ok(name),
        _ if path.as_os_str().is_empty() => Err(Failure::new(Code::Failed, "the output path is empty")),
        _ => Err(is_directory(path)),
    }
}

fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn open_dir(path: &Path) -> Result<OwnedFd, Failure> {
    let parent = parent_of(path);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, parent, flags, Mode::empty()).map_err(|e| match e {
        Errno::NOENT => Failure::new(Code::Failed, format!("the directory {} does not exist", parent.display()))
            .with_hint("make it first"),
        e => failed("cannot use the directory", parent, e),
    })
}

/// What stands at a path, judged after following links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Nothing,
    /// A regular file, or a link to one.
    File,
    /// A link to a path where there is nothing.
    DanglingLink,
    Directory,
    Device,
    Fifo,
    Socket,
    /// A link of procfs, which stands for an open descriptor and not for a path.
    Descriptor,
    /// A file that the kernel makes up.
    MadeUp,
}

fn refuse_existing(dir: &OwnedFd, name: &OsStr, path: &Path, force: bool) -> Result<(), Failure> {
    let what = match standing(dir, name).map_err(|e| failed("cannot look at", path, e))? {
        Standing::Nothing => return Ok(()),
        Standing::File | Standing::DanglingLink if force => return Ok(()),
        Standing::File | Standing::DanglingLink => return Err(exists(path)),
        Standing::Directory => return Err(is_directory(path)),
        Standing::Device => "is a device",
        Standing::Fifo => "is a fifo",
        Standing::Socket => "is a socket",
        Standing::Descriptor => "leads to an open descriptor",
        Standing::MadeUp => "is a file of the kernel",
    };
    Err(Failure::new(Code::Failed, format!("{} {what}, not a regular file", path.display()))
        .with_hint("write to stdout with `-O -`, and redirect that with `> PATH` where needed"))
}

/// Follows links one by one, because the kernel would go through a link of procfs without saying so.
fn standing(dir: &OwnedFd, name: &OsStr) -> rustix::io::Result<Standing> {
    if is_made_up(dir)? {
        return Ok(Standing::MadeUp);
    }
    let (mut followed, mut name) = (None::<OwnedFd>, name.to_owned());
    for _ in 0..MAX_LINKS {
        let absent = if followed.is_some() { Standing::DanglingLink } else { Standing::Nothing };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = match rustix::fs::openat(followed.as_ref().unwrap_or(dir), &name, flags, Mode::empty()) {
            Ok(found) => found,
            Err(Errno::NOENT) => return Ok(absent),
            Err(e) => return Err(e),
        };
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode);
        if kind != FileType::Symlink {
            return standing_of(&found, kind);
        }
        if is_made_up(&found)? {
            return Ok(Standing::Descriptor);
        }
        let link = rustix::fs::readlinkat(&found, "", Vec::new())?;
        let link = Path::new(OsStr::from_bytes(link.as_bytes()));
        let Ok(next) = file_name(link) else { return Ok(Standing::Directory) };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::openat(followed.as_ref().unwrap_or(dir), parent_of(link), flags, Mode::empty()) {
            Ok(parent) => followed = Some(parent),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(Standing::DanglingLink),
            Err(e) => return Err(e),
        }
        name = next.to_owned();
    }
    // Links in a circle lead nowhere.
    Ok(Standing::DanglingLink)
}

fn standing_of(found: &OwnedFd, kind: FileType) -> rustix::io::Result<Standing> {
    Ok(match kind {
        FileType::RegularFile if is_made_up(found)? => Standing::MadeUp,
        FileType::RegularFile => Standing::File,
        FileType::Directory => Standing::Directory,
        FileType::Fifo => Standing::Fifo,
        FileType::Socket => Standing::Socket,
        _ => Standing::Device,
    })
}

/// A file without a name, with the mode that umask gives; `None` where there is no such thing.
fn create_nameless(dir: &OwnedFd, path: &Path) -> Result<Option<OwnedFd>, Failure> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::openat(dir, ".", flags, Mode::from_raw_mode(0o666)) {
        // It gets its name through /proc, which may be missing.
        Ok(file) => Ok(rustix::fs::stat(proc_path(&file)).is_ok().then_some(file)),
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT | Errno::NOSYS) => Ok(None),
        Err(e) => Err(failed("cannot write", path, e)),
    }
}

/// A file that only we can open, under a hidden name.
fn create_hidden(dir: &OwnedFd, path: &Path) -> Result<(OwnedFd, OsString), Failure> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::RDWR | OFlags::CLOEXEC;
    for _ in 0..NAME_ATTEMPTS {
        let name = hidden_name();
        match rustix::fs::openat(dir, &name, flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => return Ok((file, name)),
            Err(Errno::EXIST) => {}
            Err(e) => return Err(failed("cannot write", path, e)),
        }
    }
    Err(failed("cannot write", path, Errno::EXIST))
}

fn hidden_name() -> OsString {
    format!(".dfcache-{:016x}.part", rand::random::<u64>()).into()
}

fn proc_path(file: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// The mask of new files. Read from procfs, because the system call cannot read it without setting it, and the daemon
/// makes other files meanwhile.
fn umask() -> Mode {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    match mask.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok()) {
        Some(mask) => Mode::from_raw_mode(mask),
        None => {
            let mask = rustix::process::umask(Mode::RWXG | Mode::RWXO);
            rustix::process::umask(mask);
            mask
        }
    }
}

fn exists(path: &Path) -> Failure {
    Failure::new(Code::Failed, format!("{} exists already", path.display())).with_hint("replace it with --force")
}

fn is_directory(path: &Path) -> Failure {
    Failure::new(Code::Failed, format!("{} is a directory", path.display())).with_hint("name a file in it")
}

fn failed(what: &str, path: &Path, error: Errno) -> Failure {
    Failure::io(format!("{what} {}", path.display()), &io::Error::from(error))
}

#[cfg(test)]
mod tests;
