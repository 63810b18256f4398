//! Stdin and stdout for the daemon: handed over as they are where that works, else through a pipe.
//!
//! The daemon takes regular files and pipes, reads and writes files from their start, and may use
//! offsets. So a terminal, a socket, a device, a fifo with a name, a file that is not at its start,
//! a file in append mode and one that the kernel makes up get a pipe and a thread that copies.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use damselfly_transport::local::client::passable;
use damselfly_transport::local::{Kind, is_made_up};
use damselfly_transport::stdio as standard;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{OFlags, SeekFrom};
use rustix::pipe::PipeFlags;
use tokio::sync::oneshot;

use crate::source::Source;

const BUFFER_BYTES: usize = 256 * 1024;

/// A regular file that was handed over, and whose position others share with us.
#[derive(Debug)]
pub struct Position(OwnedFd);

impl Position {
    /// Moves to where reading or writing `bytes` from the start would have left it.
    pub fn advance(&self, bytes: u64) {
        // Only a later reader or writer of the same descriptor would notice.
        let _ = rustix::fs::seek(&self.0, SeekFrom::Start(bytes));
    }
}

/// Stdin as a source.
///
/// # Errors
/// It is closed; out of descriptors, and the like.
pub fn stdin() -> io::Result<Source> {
    let stdin = standard::stdin()?;
    match handed_over(&stdin, OFlags::RDONLY)? {
        Some(Kind::Pipe) => Ok(Source { fd: stdin, feed: None, position: None }),
        Some(Kind::File) => {
            let position = Some(Position(stdin.try_clone()?));
            Ok(Source { fd: stdin, feed: None, position })
        }
        None => {
            let (fd, feed) = Feed::start(stdin)?;
            Ok(Source { fd, feed: Some(feed), position: None })
        }
    }
}

/// Stdout as a target.
#[derive(Debug)]
pub struct Sink {
    /// A regular file or a pipe.
    pub fd: OwnedFd,
    /// Copies the pipe to stdout, when stdout itself cannot be handed over.
    pub drain: Option<Drain>,
    /// A regular file as stdout: to be moved to its end, as if we had written it.
    pub position: Option<Position>,
}

/// Stdout as a target.
///
/// # Errors
/// It is closed; out of descriptors, and the like.
pub fn stdout() -> io::Result<Sink> {
    let stdout = standard::stdout()?;
    match handed_over(&stdout, OFlags::WRONLY)? {
        Some(Kind::Pipe) => Ok(Sink { fd: stdout, drain: None, position: None }),
        Some(Kind::File) => {
            let position = Some(Position(stdout.try_clone()?));
            Ok(Sink { fd: stdout, drain: None, position })
        }
        None => {
            let (fd, drain) = Drain::start(stdout)?;
            Ok(Sink { fd, drain: Some(drain), position: None })
        }
    }
}

/// What `fd` is, when the daemon can use it just as we would.
fn handed_over(fd: &OwnedFd, wanted: OFlags) -> io::Result<Option<Kind>> {
    let kind = passable(fd)?;
    if kind == Some(Kind::File) && is_made_up(fd)? {
        return Ok(None);
    }
    let flags = rustix::fs::fcntl_getfl(fd)?;
    let mode = flags & OFlags::RWMODE;
    if (mode != wanted && mode != OFlags::RDWR) || flags.contains(OFlags::PATH) {
        return Ok(None);
    }
    if kind == Some(Kind::File) {
        let from_start = rustix::fs::tell(fd)? == 0;
        let empty = wanted == OFlags::RDONLY || rustix::fs::fstat(fd)?.st_size == 0;
        let appends = flags.contains(OFlags::APPEND) && mode != OFlags::RDONLY;
        return Ok(kind.filter(|_| from_start && empty && !appends));
    }
    Ok(kind)
}

/// Whether stdout is a pipe that nobody reads any more.
pub fn stdout_is_broken() -> bool {
    let stdout = io::stdout();
    let mut fds = [PollFd::new(&stdout, PollFlags::empty())];
    let polled = rustix::event::poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 }));
    polled.is_ok() && fds[0].revents().contains(PollFlags::ERR)
}

/// A thread that copies a source into a pipe.
#[derive(Debug)]
pub struct Feed {
    failed: oneshot::Receiver<Torn>,
}

/// The source could not be read to its end.
#[derive(Debug)]
pub struct Torn {
    /// Why.
    pub error: io::Error,
    /// The pipe, still open: closed before the call has ended, it would look like the end of the bytes.
    pub pipe: File,
}

impl Feed {
    /// Begins to copy; gives the end of the pipe to read from.
    ///
    /// # Errors
    /// Out of descriptors, and the like.
    pub fn start(from: OwnedFd) -> io::Result<(OwnedFd, Self)> {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (sender, failed) = oneshot::channel();
        // Never joined: it may be stuck in a read, and ends with the process.
        std::thread::Builder::new().name("stdin".into()).spawn(move || {
            let mut pipe = File::from(write);
            if let Err(CopyError::Read(error)) = copy(&mut File::from(from), &mut pipe) {
                // Nobody listens any more when the call has ended.
                let _ = sender.send(Torn { error, pipe });
            }
        })?;
        Ok((read, Self { failed }))
    }

    /// Waits until reading stdin fails; for ever when it does not.
    pub async fn torn(self) -> Torn {
        match self.failed.await {
            Ok(torn) => torn,
            Err(_) => std::future::pending().await,
        }
    }
}

/// A thread that copies a pipe to stdout.
#[derive(Debug)]
pub struct Drain {
    done: oneshot::Receiver<io::Result<()>>,
}

impl Drain {
    fn start(to: OwnedFd) -> io::Result<(OwnedFd, Self)> {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (sender, done) = oneshot::channel();
        std::thread::Builder::new().name("stdout".into()).spawn(move || {
            let copied = copy(&mut File::from(read), &mut File::from(to));
            let _ = sender.send(copied.map_err(CopyError::into_inner));
        })?;
        Ok((write, Self { done }))
    }

    /// Waits until the pipe has ended and all of it is written.
    ///
    /// # Errors
    /// Writing to stdout failed.
    pub async fn done(&mut self) -> io::Result<()> {
        (&mut self.done).await.unwrap_or_else(|_| Err(io::Error::other("the copying thread ended")))
    }
}

enum CopyError {
    Read(io::Error),
    Write(io::Error),
}

impl CopyError {
    fn into_inner(self) -> io::Error {
        match self {
            Self::Read(error) | Self::Write(error) => error,
        }
    }
}

/// Like [`io::copy`], but says which side failed.
fn copy(from: &mut File, to: &mut File) -> Result<(), CopyError> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(CopyError::Read(e)),
        };
        to.write_all(&buffer[..read]).map_err(CopyError::Write)?;
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Seek;

    use super::*;

    #[test]
    fn only_what_the_daemon_can_use_like_us_is_handed_over() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        std::fs::write(&path, "").expect("a file");
        let open = |options: &mut OpenOptions| options.open(&path).expect("opens");
        let kind = |file: File, wanted| handed_over(&file.into(), wanted).expect("looks");

        let write = || open(OpenOptions::new().write(true));
        assert_eq!(kind(write(), OFlags::WRONLY), Some(Kind::File));
        assert_eq!(kind(write(), OFlags::RDONLY), None, "cannot be read");
        let append = open(OpenOptions::new().append(true));
        assert_eq!(kind(append, OFlags::WRONLY), None, "offsets do not count when appending");
        std::fs::write(&path, "old").expect("writes");
        assert_eq!(kind(write(), OFlags::WRONLY), None, "would be overwritten, not replaced");
        let read = || open(OpenOptions::new().read(true));
        assert_eq!(kind(read(), OFlags::RDONLY), Some(Kind::File));
        let mut moved = read();
        moved.seek(io::SeekFrom::Start(1)).expect("seeks");
        assert_eq!(kind(moved, OFlags::RDONLY), None, "its first byte was read by another");
        let made_up = File::open("/proc/self/comm").expect("opens");
        assert_eq!(kind(made_up, OFlags::RDONLY), None, "its length says nothing");
        let null = File::open("/dev/null").expect("opens");
        assert_eq!(kind(null, OFlags::RDONLY), None, "a device");
        let (end, _other) = rustix::pipe::pipe().expect("a pipe");
        assert_eq!(kind(end.into(), OFlags::RDONLY), Some(Kind::Pipe));
    }

    #[tokio::test]
    async fn a_drain_copies_everything_before_it_is_done() {
        let mut file = tempfile::tempfile().expect("a file");
        let (write, mut drain) = Drain::start(file.try_clone().expect("clones").into()).expect("starts");
        let sent: Vec<u8> = (0..1_000_000_u32).map(|i| i as u8).collect();
        let bytes = sent.clone();
        std::thread::spawn(move || File::from(write).write_all(&bytes));
        drain.done().await.expect("copies");
        let mut copied = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut copied)).expect("reads");
        assert_eq!(copied, sent);
    }

    #[tokio::test]
    async fn a_feed_that_fails_keeps_its_pipe_open() {
        // Reading a directory fails.
        let unreadable = File::open("/").expect("opens");
        let (mut read, feed) = Feed::start(unreadable.into()).map(|(fd, feed)| (File::from(fd), feed)).expect("starts");
        let torn = feed.torn().await;
        let flags = rustix::fs::fcntl_getfl(&read).expect("flags") | OFlags::NONBLOCK;
        rustix::fs::fcntl_setfl(&read, flags).expect("flags");
        let error = read.read(&mut [0]).expect_err("open and empty");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "not the end of the bytes");
        drop(torn);
        assert_eq!(read.read(&mut [0]).expect("ends"), 0);
    }
}
