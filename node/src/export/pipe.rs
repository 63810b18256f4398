//! Into a pipe: in order, and never stuck when the reader stalls.

use std::{
    io::{self, Write as _},
    os::fd::AsFd as _,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{local::{CopyError, count, write_failed}, *};

/// When a pipe is ready, so many bytes go into it without waiting (`PIPE_BUF`).
const PART_BYTES: usize = 4096;
/// How often a writer that waits for the reader looks whether anybody still wants it.
const LOOK_EVERY: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

impl Exporter {
    pub(super) async fn copy_to_pipe(&self, reader: Arc<Reader>, target: &Target) -> Result<(), CopyError> {
        for index in reader.manifest().layout().indices() {
            target.limiter.pass(reader.manifest().layout().bytes(index)).await;
            let (reader, file, progress) = (reader.clone(), target.file.clone(), target.progress.clone());
            blocking(move || {
                let mut buffer = Vec::new();
                reader.read(index, &mut buffer).map_err(CopyError::Read)?;
                write_to_pipe(&file, &buffer, &progress)
            })
            .await?;
        }
        Ok(())
    }
}

/// Writes all of `bytes`; blocks, but not beyond the wish for it.
pub(super) fn write_to_pipe(mut file: &File, bytes: &[u8], progress: &ExportProgress) -> Result<(), CopyError> {
    let failed = |error: &io::Error| CopyError::Write(write_failed(error));
    for part in bytes.chunks(PART_BYTES) {
        let mut rest = part;
        while !rest.is_empty() {
            wait_for_reader(file, progress)?;
            match file.write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => return Err(failed(&error)),
            }
        }
    }
    count(progress, bytes.len())
}

fn wait_for_reader(file: &File, progress: &ExportProgress) -> Result<(), CopyError> {
    loop {
        count(progress, 0)?;
        let mut fds = [PollFd::from_borrowed_fd(file.as_fd(), PollFlags::OUT)];
        match poll(&mut fds, Some(&LOOK_EVERY)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            // An error of the pipe shows when it is written.
            Ok(_) => return Ok(()),
            Err(error) => return Err(CopyError::Write(write_failed(&error.into()))),
        }
    }
}
