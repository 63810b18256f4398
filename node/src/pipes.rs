//! Pipes of users': read and written without ever being stuck in one.
//!
//! Whether a pipe blocks is a flag that its other users share, so it is left as it is: each wait is a poll of a moment,
//! after which the caller looks whether anybody still wants it.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut, Read as _, Write as _},
    os::fd::AsFd as _,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, ReadWriteFlags, preadv2, pwritev2},
};

/// How long a pipe is waited for before the caller is asked again.
const MOMENT: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
/// When a pipe is ready, so many bytes go into it without waiting (`PIPE_BUF`).
const PART_BYTES: usize = 4096;
/// As the offset: where the pipe is.
const HERE: u64 = u64::MAX;

/// Reads what there is, 0 bytes at the end; `None`: nothing came for a moment.
///
/// # Errors
/// Those of the pipe.
pub fn read(mut pipe: &File, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    if !ready(pipe, PollFlags::IN)? {
        return Ok(None);
    }
    // Another reader may have been quicker than this one, which must not wait for that reader's sake.
    match preadv2(pipe, &mut [IoSliceMut::new(buffer)], HERE, ReadWriteFlags::NOWAIT) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::SPIPE) => not_yet(pipe.read(buffer)),
        done => not_yet(done.map_err(Into::into)),
    }
}

/// Writes some of `bytes`; `None`: there was no room for a moment.
///
/// # Errors
/// Those of the pipe.
pub fn write(mut pipe: &File, bytes: &[u8]) -> io::Result<Option<usize>> {
    if !ready(pipe, PollFlags::OUT)? {
        return Ok(None);
    }
    match pwritev2(pipe, &[IoSlice::new(bytes)], HERE, ReadWriteFlags::NOWAIT) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::SPIPE) => {
            not_yet(pipe.write(&bytes[..bytes.len().min(PART_BYTES)]))
        }
        done => not_yet(done.map_err(Into::into)),
    }
}

/// Waits a moment. An error of the pipe counts as ready: it shows when the pipe is used.
fn ready(pipe: &File, flags: PollFlags) -> io::Result<bool> {
    match poll(&mut [PollFd::from_borrowed_fd(pipe.as_fd(), flags)], Some(&MOMENT)) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn not_yet(done: io::Result<usize>) -> io::Result<Option<usize>> {
    match done {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        os::fd::OwnedFd,
        time::{Duration, Instant},
    };

    use rustix::fs::{OFlags, fcntl_setfl};

    use super::*;

    fn pair() -> (File, File) {
        let (reader, writer) = io::pipe().expect("a pipe");
        (File::from(OwnedFd::from(reader)), File::from(OwnedFd::from(writer)))
    }

    #[test]
    fn nothing_is_waited_for_longer_than_a_moment() {
        for flags in [OFlags::empty(), OFlags::NONBLOCK] {
            let (reader, mut writer) = pair();
            fcntl_setfl(&reader, flags).expect("set");
            fcntl_setfl(&writer, flags).expect("set");
            let begun = Instant::now();
            let mut buffer = vec![0; 1 << 20];
            assert_eq!(read(&reader, &mut buffer).expect("no error"), None, "nothing was written");
            let mut written = 0;
            while let Some(bytes) = write(&writer, &buffer).expect("no error") {
                written += bytes;
            }
            assert!(written >= PART_BYTES, "{written} bytes went in");
            assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
            let mut read_bytes = 0;
            while let Some(bytes) = read(&reader, &mut buffer).expect("no error") {
                read_bytes += bytes;
            }
            assert_eq!(read_bytes, written);
            writer.flush().expect("flushed");
            drop(writer);
            assert_eq!(read(&reader, &mut buffer).expect("no error"), Some(0), "the end");
        }
    }

    #[test]
    fn a_pipe_that_nobody_reads_is_an_error() {
        let (reader, writer) = pair();
        drop(reader);
        assert_eq!(write(&writer, b"x").expect_err("broken").kind(), io::ErrorKind::BrokenPipe);
    }
}
