//! Files that are either there with all their bytes, or not there, whatever happens meanwhile.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::fs::{CWD, RenameFlags, renameat_with};

/// Replaces `path` by a file with `bytes` and permissions `mode`; on return it survives a power loss.
///
/// A sync that failed is never tried again on the same file: the kernel may count its pages as written then. The next
/// call writes a new file.
///
/// # Errors
/// [`io::Error`]: what was there is untouched, unless only the last sync of the directory failed.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    write(path, bytes, mode, RenameFlags::empty(), sync_folder)
}

/// Like [`replace`], but fails with [`io::ErrorKind::AlreadyExists`] when there is such a file.
///
/// # Errors
/// [`io::Error`]: what was there is untouched, and there is no new file: the next start must not take one for durable
/// that is only in memory.
pub fn create(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    write(path, bytes, mode, RenameFlags::NOREPLACE, sync_folder)
}

/// Whether [`replace`] has room for `bytes` bytes: writes so many into a file beside `path`, and removes it.
///
/// # Errors
/// [`io::Error`]: it has not, or the folder cannot be written.
pub fn check_room(path: &Path, bytes: usize, mode: u32) -> io::Result<()> {
    let temporary = temporary(folder(path));
    let written = write_synced(&temporary, &vec![0x5a; bytes], mode);
    let removed = match fs::remove_file(&temporary) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    };
    written.and(removed)
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn write(
    path: &Path,
    bytes: &[u8],
    mode: u32,
    flags: RenameFlags,
    sync_folder: fn(&Path) -> io::Result<()>,
) -> io::Result<()> {
    let folder = folder(path);
    let temporary = temporary(folder);
    let written = write_synced(&temporary, bytes, mode)
        .and_then(|()| renameat_with(CWD, &temporary, CWD, path, flags).map_err(io::Error::from));
    if let Err(error) = written {
        // What cannot be removed is a leftover that nothing reads.
        drop(fs::remove_file(&temporary));
        return Err(error);
    }
    let synced = sync_folder(folder);
    if synced.is_err() && flags.contains(RenameFlags::NOREPLACE) {
        drop(fs::remove_file(path));
    }
    synced
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn write_synced(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// A name that no other process and no other call uses.
fn temporary(folder: &Path) -> PathBuf {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    folder.join(format!(".{}-{number}-{:08x}.new", std::process::id(), rand::random::<u32>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_file_whose_folder_was_not_synced_is_taken_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        let failing = |_: &Path| Err(io::Error::from(rustix::io::Errno::IO));
        write(&path, b"one", 0o600, RenameFlags::NOREPLACE, failing).expect_err("the sync fails");
        assert_eq!(fs::read_dir(folder.path()).expect("list").count(), 0, "nothing that a second try would take");
        create(&path, b"one", 0o600).expect("the second try makes it");
        write(&path, b"two", 0o600, RenameFlags::empty(), failing).expect_err("the sync fails");
        assert_eq!(fs::read(&path).expect("read"), b"two", "what was there is gone, and the caller knows");
    }

    #[test]
    fn create_keeps_what_is_there_and_replace_does_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        create(&path, b"one", 0o600).expect("created");
        let error = create(&path, b"two", 0o600).expect_err("it exists");
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).expect("read"), b"one");
        replace(&path, b"two", 0o600).expect("replaced");
        assert_eq!(fs::read(&path).expect("read"), b"two");
        assert_eq!(fs::read_dir(folder.path()).expect("list").count(), 1, "no temporary file is left");
    }
}
