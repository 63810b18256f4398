//! One pass over a source: read, hash and write, the writing on a second thread.

use std::{
    fs::{File, Metadata},
    io,
    ops::ControlFlow,
    os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _},
    sync::{Mutex, mpsc},
    thread,
};

use damselfly_messages::{hasher::ContentHasher, manifest::Manifest};
use damselfly_transport::local::is_made_up;
use sha2::{Digest as _, Sha256};

use super::{
    disk::DiskFile,
    error::{ImportError, StoreError},
    lock,
    sparse::Holes,
};
use crate::pipes;

/// Stays in the cache between reading, hashing and writing, and is as fast for the file system as longer ones.
const BUFFER_BYTES: usize = 256 << 10;
/// One is read into while one is written and the others wait.
const BUFFERS: usize = 8;
/// How much is written before it is synced on the side, so that the disk works while the source is read.
const SYNC_AHEAD_BYTES: u64 = 64 << 20;

/// Called with the bytes read so far; `Break` stops.
pub type OnProgress<'a> = &'a mut dyn FnMut(u64) -> ControlFlow<()>;

/// Hashes a source without keeping it: the manifest, and the SHA-256 when it was asked for.
///
/// # Errors
/// As [`super::Import::copy_from`], but never about the store.
pub fn hash_source(
    source: File,
    sha256: bool,
    progress: OnProgress<'_>,
) -> Result<(Manifest, Option<[u8; 32]>), ImportError> {
    let mut input = Input::new(source)?;
    let mut sums = Sums::new(sha256);
    copy(&mut input, None, &mut sums, &Buffers::default(), &mut |bytes| go_on(progress(bytes)))?;
    input.check_unchanged(sums.content_bytes())?;
    Ok(sums.finish())
}

/// Turns an answer of the user's into one of ours.
pub(super) fn go_on(answer: ControlFlow<()>) -> Result<(), ImportError> {
    match answer {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(ImportError::Stopped),
    }
}

/// Buffers that wait to be used again.
#[derive(Default)]
pub(super) struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    fn take(&self) -> Vec<u8> {
        lock(&self.0).pop().unwrap_or_else(|| vec![0; BUFFER_BYTES])
    }

    fn put(&self, buffer: Vec<u8>) {
        let mut kept = lock(&self.0);
        if kept.len() < 2 * BUFFERS {
            kept.push(buffer);
        }
    }
}

/// The hashes that are made on the way.
pub(super) struct Sums {
    content: ContentHasher,
    sha256: Option<Sha256>,
}

impl Sums {
    pub fn new(sha256: bool) -> Self {
        Self { content: ContentHasher::new(), sha256: sha256.then(Sha256::new) }
    }

    fn update(&mut self, bytes: &[u8]) -> Result<(), ImportError> {
        self.content.update(bytes).map_err(ImportError::TooLong)?;
        if let Some(sha256) = &mut self.sha256 {
            sha256.update(bytes);
        }
        Ok(())
    }

    pub fn content_bytes(&self) -> u64 {
        self.content.content_bytes()
    }

    pub fn finish(self) -> (Manifest, Option<[u8; 32]>) {
        (self.content.finish(), self.sha256.map(|sha256| sha256.finalize().into()))
    }
}

/// A source: a regular file from its beginning, or a pipe to its end.
pub(super) struct Input {
    file: File,
    kind: Kind,
    offset: u64,
    /// `None`: there are none.
    holes: Option<Holes>,
}

/// What is to be read, and what it looked like before.
enum Kind {
    Pipe,
    /// A regular file whose length is known before.
    Sized(Metadata),
    /// A regular file without a length, as in FUSE and in procfs, or an empty one: read to its end.
    Unsized(Metadata),
    /// One that the kernel makes up: its metadata says nothing.
    MadeUp,
}

impl Input {
    pub fn new(file: File) -> Result<Self, ImportError> {
        let metadata = file.metadata().map_err(ImportError::Source)?;
        let kind = match metadata.file_type() {
            kind if kind.is_fifo() => Kind::Pipe,
            kind if kind.is_dir() => return Err(ImportError::SourceKind("a directory")),
            kind if !kind.is_file() => return Err(ImportError::SourceKind("a device or a socket")),
            _ if is_made_up(&file).map_err(|error| ImportError::Source(error.into()))? => Kind::MadeUp,
            _ if metadata.len() == 0 => Kind::Unsized(metadata),
            _ => Kind::Sized(metadata),
        };
        let holes = match &kind {
            Kind::Sized(metadata) => Holes::of(&file, metadata.len(), metadata.blocks()),
            Kind::Pipe | Kind::Unsized(_) | Kind::MadeUp => None,
        };
        Ok(Self { file, kind, offset: 0, holes })
    }

    /// Bytes of a regular file, where that is known before it is read.
    pub fn bytes(&self) -> Option<u64> {
        match &self.kind {
            Kind::Sized(before) => Some(before.len()),
            Kind::Pipe | Kind::Unsized(_) | Kind::MadeUp => None,
        }
    }

    /// Of these, how many are not in holes.
    pub fn data_bytes(&self) -> Option<u64> {
        self.holes.as_ref().map_or_else(|| self.bytes(), |holes| Some(holes.data_bytes()))
    }

    pub const fn file(&self) -> &File {
        &self.file
    }

    /// Fails unless the bytes of a regular source are those from before and all of them were read. Its mode, owner,
    /// links and name are no bytes: a change of these, which the time of change (ctime) shows too, does not count.
    pub fn check_unchanged(&self, bytes: u64) -> Result<(), ImportError> {
        let before = match &self.kind {
            Kind::Pipe | Kind::MadeUp => return Ok(()),
            Kind::Sized(before) if bytes != before.len() => return Err(ImportError::SourceChanged),
            Kind::Sized(before) | Kind::Unsized(before) => before,
        };
        let after = self.file.metadata().map_err(ImportError::Source)?;
        let state = |of: &Metadata| (of.len(), of.mtime(), of.mtime_nsec());
        if state(before) == state(&after) { Ok(()) } else { Err(ImportError::SourceChanged) }
    }

    /// Fills `buffer` unless the source ends before; returns how much it gave. Asks `go_on` while it waits for a pipe.
    fn fill(
        &mut self,
        buffer: &mut [u8],
        go_on: &mut dyn FnMut() -> Result<(), ImportError>,
    ) -> Result<usize, ImportError> {
        let mut filled = 0;
        while filled < buffer.len() {
            let zeros = self.holes.as_mut().map_or(0, |holes| holes.zeros_at(self.offset));
            if zeros > 0 {
                // Not read: the kernel would keep zeros in memory.
                let end = buffer.len().min(filled.saturating_add(usize::try_from(zeros).unwrap_or(usize::MAX)));
                buffer[filled..end].fill(0);
                self.offset += (end - filled) as u64;
                filled = end;
                continue;
            }
            let read = match &self.kind {
                Kind::Sized(_) | Kind::Unsized(_) | Kind::MadeUp => {
                    self.file.read_at(&mut buffer[filled..], self.offset).map(Some)
                }
                Kind::Pipe => {
                    go_on()?;
                    pipes::read(&self.file, &mut buffer[filled..])
                }
            };
            match read {
                Ok(None) => {}
                Ok(Some(0)) => break,
                Ok(Some(bytes)) => {
                    filled += bytes;
                    self.offset += bytes as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ImportError::Source(error)),
            }
        }
        self.check_length()?;
        Ok(filled)
    }

    /// A file that grows as fast as it is read would never end.
    fn check_length(&self) -> Result<(), ImportError> {
        let grows = match &self.kind {
            Kind::Sized(before) => self.offset > before.len(),
            Kind::Unsized(_) => self.offset > 0 && self.file.metadata().map_err(ImportError::Source)?.len() > 0,
            Kind::Pipe | Kind::MadeUp => false,
        };
        if grows { Err(ImportError::SourceChanged) } else { Ok(()) }
    }
}

/// Hashes everything in `input` and writes it to `target`; `step` is asked after each buffer, and while a pipe is waited
/// for, whether to go on.
pub(super) fn copy(
    input: &mut Input,
    target: Option<&DiskFile>,
    sums: &mut Sums,
    buffers: &Buffers,
    step: &mut dyn FnMut(u64) -> Result<(), ImportError>,
) -> Result<(), ImportError> {
    let mut first = buffers.take();
    let filled = input.fill(&mut first, &mut || step(0))?;
    sums.update(&first[..filled])?;
    step(sums.content_bytes())?;
    if filled < first.len() {
        // All of it: not worth a thread.
        if let Some(target) = target {
            target.write_new_at(&first[..filled], 0).map_err(write_error)?;
            target.extend_to(filled as u64).map_err(write_error)?;
        }
        buffers.put(first);
        return Ok(());
    }
    let Some(target) = target else { return hash_rest(input, first, sums, buffers, step) };
    thread::scope(|scope| {
        let (full, to_write) = mpsc::sync_channel::<(Vec<u8>, usize)>(BUFFERS);
        let (empty, to_fill) = mpsc::channel();
        let (ask, asked) = mpsc::sync_channel::<()>(1);
        let writer = scope.spawn(move || write_all(target, &to_write, &empty, &ask));
        let syncer = scope.spawn(move || asked.iter().try_for_each(|()| target.sync()));
        let read = read_rest(input, (first, filled), sums, (&full, &to_fill), buffers, step);
        drop(full);
        // A reader that lost its writer has nothing to say about the reason. A failed sync must not go unnoticed: the
        // kernel tells of lost bytes only once.
        for thread in [writer, syncer] {
            let done = thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread of the import panicked")));
            done.map_err(write_error)?;
        }
        to_fill.try_iter().for_each(|buffer| buffers.put(buffer));
        read
    })?;
    target.extend_to(sums.content_bytes()).map_err(write_error)
}

fn write_error(source: io::Error) -> ImportError {
    StoreError::Io { action: "write", what: "an import".to_owned(), source }.into()
}

fn hash_rest(
    input: &mut Input,
    mut buffer: Vec<u8>,
    sums: &mut Sums,
    buffers: &Buffers,
    step: &mut dyn FnMut(u64) -> Result<(), ImportError>,
) -> Result<(), ImportError> {
    loop {
        let filled = input.fill(&mut buffer, &mut || step(sums.content_bytes()))?;
        sums.update(&buffer[..filled])?;
        step(sums.content_bytes())?;
        if filled < buffer.len() {
            buffers.put(buffer);
            return Ok(());
        }
    }
}

type Full = mpsc::SyncSender<(Vec<u8>, usize)>;
type Empty = mpsc::Receiver<Vec<u8>>;

/// Reads and hashes on this thread, and hands every buffer to the writer.
fn read_rest(
    input: &mut Input,
    (mut buffer, mut filled): (Vec<u8>, usize),
    sums: &mut Sums,
    (full, empty): (&Full, &Empty),
    buffers: &Buffers,
    step: &mut dyn FnMut(u64) -> Result<(), ImportError>,
) -> Result<(), ImportError> {
    let mut taken = 1;
    loop {
        let last = filled < buffer.len();
        // Fails only when the writer has failed; the caller asks it why.
        if full.send((buffer, filled)).is_err() || last {
            return Ok(());
        }
        buffer = match empty.try_recv() {
            Ok(buffer) => buffer,
            Err(_) if taken < BUFFERS => {
                taken += 1;
                buffers.take()
            }
            Err(_) => match empty.recv() {
                Ok(buffer) => buffer,
                Err(_) => return Ok(()),
            },
        };
        filled = input.fill(&mut buffer, &mut || step(sums.content_bytes()))?;
        sums.update(&buffer[..filled])?;
        step(sums.content_bytes())?;
    }
}

/// Writes buffers in order until there are no more, and asks for a sync now and then.
fn write_all(
    target: &DiskFile,
    to_write: &mpsc::Receiver<(Vec<u8>, usize)>,
    empty: &mpsc::Sender<Vec<u8>>,
    ask: &mpsc::SyncSender<()>,
) -> io::Result<()> {
    let (mut written, mut asked) = (0, 0);
    for (buffer, filled) in to_write {
        target.write_new_at(&buffer[..filled], written)?;
        written += filled as u64;
        // The reader may be done already.
        let _ = empty.send(buffer);
        if written - asked >= SYNC_AHEAD_BYTES {
            // One that is still at it will do.
            let _ = ask.try_send(());
            asked = written;
        }
    }
    Ok(())
}
