//! What an import reads: a file that we open ourselves, or stdin.
//!
//! What the kernel makes up, such as files of `/proc` and `/sys`, is read here and not by the daemon: their length says
//! nothing, and what they give depends on who reads.

use std::fs::{FileType, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use damselfly_transport::local::{Code, Failure, is_made_up};
use rustix::fs::OFlags;

use crate::stdio::{self, Feed, Position};

/// What is handed to the daemon.
#[derive(Debug)]
pub struct Source {
    /// A regular file or a pipe.
    pub fd: OwnedFd,
    /// Copies what cannot be handed over itself into the pipe.
    pub feed: Option<Feed>,
    /// A regular file as stdin: to be moved to its end, as if we had read it.
    pub position: Option<Position>,
}

impl Source {
    /// Opens `path`, or stdin for `-`.
    ///
    /// # Errors
    /// Exit 1: it is missing, or neither a regular file nor stdin. Exit 7: it may not be read.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        if path == Path::new("-") {
            return stdio::stdin().map_err(|e| {
                Failure::io("cannot use stdin", &e).with_hint("redirect it from a file or a pipe, or name the file")
            });
        }
        let fd = open_file(path)?;
        let failed = |e: io::Error| Failure::io(format!("cannot read {}", path.display()), &e);
        if !is_made_up(&fd).map_err(|e| failed(e.into()))? {
            return Ok(Self { fd, feed: None, position: None });
        }
        let (fd, feed) = Feed::start(fd).map_err(failed)?;
        Ok(Self { fd, feed: Some(feed), position: None })
    }
}

fn open_file(path: &Path) -> Result<OwnedFd, Failure> {
    let failed = |e: io::Error| Failure::io(format!("cannot open {}", path.display()), &e);
    // Looked at before it is opened, because opening a device can already do something.
    refuse_irregular(path, std::fs::metadata(path).map_err(failed)?.file_type())?;
    // Not blocking, in case it has become a fifo in between.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags((OFlags::NOCTTY | OFlags::NONBLOCK).bits().cast_signed())
        .open(path)
        .map_err(failed)?;
    refuse_irregular(path, file.metadata().map_err(failed)?.file_type())?;
    Ok(file.into())
}

fn refuse_irregular(path: &Path, kind: FileType) -> Result<(), Failure> {
    let (what, hint) = match kind {
        kind if kind.is_file() => return Ok(()),
        kind if kind.is_dir() => ("a directory", "pack it first: `tar c DIR | dfcache import -`"),
        kind if kind.is_fifo() => ("a fifo", "read it from stdin: `dfcache import - < FIFO`"),
        kind if kind.is_socket() => ("a socket", "only regular files and - (stdin) can be imported"),
        _ => ("a device", "read it from stdin: `dfcache import - < DEVICE`"),
    };
    Err(Failure::new(Code::Failed, format!("{} is {what}, not a regular file", path.display())).with_hint(hint))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use rustix::fs::{CWD, Mode};

    use super::*;

    #[test]
    fn only_regular_files_are_opened() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("file");
        std::fs::write(&file, "x").expect("a file");
        std::os::unix::fs::symlink(&file, dir.path().join("link")).expect("a link");
        let fifo = dir.path().join("fifo");
        rustix::fs::mkfifoat(CWD, &fifo, Mode::RUSR | Mode::WUSR).expect("a fifo");
        let socket = dir.path().join("socket");
        let _listener = UnixListener::bind(&socket).expect("a socket");

        let opened = Source::open(&file).expect("opens");
        assert!(opened.feed.is_none(), "handed over as it is");
        let made_up = Source::open(Path::new("/proc/self/comm")).expect("opens");
        assert!(made_up.feed.is_some(), "read here");
        assert!(Source::open(&dir.path().join("link")).is_ok(), "a link to a file is a file");
        let rows = [
            (dir.path(), "a directory"),
            (&fifo, "a fifo"),
            (&socket, "a socket"),
            (Path::new("/dev/null"), "a device"),
        ];
        for (path, what) in rows {
            let failure = Source::open(path).expect_err(what);
            assert_eq!(failure.code, Code::Failed, "{what}");
            assert!(failure.message.contains(what), "{}", failure.message);
            assert!(failure.hint.is_some(), "{what}");
        }
        assert_eq!(Source::open(&dir.path().join("none")).expect_err("missing").code, Code::Failed);
    }
}
