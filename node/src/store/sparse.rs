//! Holes: runs of zeros for which a file takes no room.
//!
//! A hole reads as zeros, so verification, digests and lengths know nothing of it. Only these differ: what is written,
//! what is read of a source, and how much room that takes.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt as _};

use rustix::{
    fs::{FallocateFlags, SeekFrom, seek},
    io::Errno,
};

/// Fewer zeros are written like other bytes, because a hole for them would save little and cost an extent. A multiple of
/// every file system's block.
const HOLE_BYTES: usize = 64 << 10;
static ZEROS: [u8; HOLE_BYTES] = [0; HOLE_BYTES];
/// How many holes are looked for when room is counted; what comes after them counts as data.
const HOLES_MAX: usize = 4096;

/// A run of bytes, by where it is among those that are written.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Run {
    Data(Range<usize>),
    Zeros(Range<usize>),
}

/// Cuts `bytes`, which begin at `offset` of a file, into data and zeros. Holes begin and end with blocks of the file, or
/// end with `bytes`.
fn runs(bytes: &[u8], offset: u64) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut begin = 0;
    while begin < bytes.len() {
        let in_block = ((offset + begin as u64) % HOLE_BYTES as u64) as usize;
        let end = bytes.len().min(begin + HOLE_BYTES - in_block);
        // The rest of a block that begins before `bytes` may hold something.
        let is_hole = in_block == 0 && bytes[begin..end] == ZEROS[..end - begin];
        match (runs.last_mut(), is_hole) {
            (Some(Run::Data(last)), false) | (Some(Run::Zeros(last)), true) => last.end = end,
            (_, true) => runs.push(Run::Zeros(begin..end)),
            (_, false) => runs.push(Run::Data(begin..end)),
        }
        begin = end;
    }
    runs
}

/// Writes `bytes` at `offset`, and makes holes of long runs of zeros where the file system can: whatever lay there is
/// gone. Zeros beyond the end of the file leave its length as it is.
///
/// # Errors
/// Those of a write.
pub fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    for run in runs(bytes, offset) {
        match run {
            Run::Zeros(zeros) if punch(file, offset + zeros.start as u64, zeros.len() as u64) => {}
            Run::Data(run) | Run::Zeros(run) => file.write_all_at(&bytes[run.clone()], offset + run.start as u64)?,
        }
    }
    Ok(())
}

/// As [`write_at`], where nothing was ever written: long runs of zeros are left out.
///
/// # Errors
/// Those of a write.
pub fn write_new_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    for run in runs(bytes, offset) {
        if let Run::Data(run) = run {
            file.write_all_at(&bytes[run.clone()], offset + run.start as u64)?;
        }
    }
    Ok(())
}

/// Whether the file system has made a hole there.
fn punch(file: &File, offset: u64, bytes: u64) -> bool {
    rustix::fs::fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, bytes).is_ok()
}

/// Bytes of a file of `bytes` that are not in holes. Moves the file's position.
pub fn data_bytes(file: &File, bytes: u64) -> u64 {
    let (mut data, mut at) = (0, 0);
    for _ in 0..HOLES_MAX {
        if at >= bytes {
            return data;
        }
        let begin = match seek(file, SeekFrom::Data(at)) {
            Ok(begin) => begin.clamp(at, bytes),
            // None until the end.
            Err(Errno::NXIO) => return data,
            Err(_) => break,
        };
        at = match seek(file, SeekFrom::Hole(begin)) {
            // An end that is not beyond the beginning is one that a file system made up.
            Ok(end) if end > begin => end.min(bytes),
            _ => bytes,
        };
        data += at - begin;
    }
    data + (bytes - at)
}

/// Where the holes of a source are, found while it is read from its beginning to its end.
///
/// A source without holes is not asked for any. The position of the descriptor, which others may share, is put back when
/// this is dropped.
#[derive(Debug)]
pub(super) struct Holes {
    file: File,
    bytes: u64,
    /// There is none before this one's end.
    data_until: u64,
    /// Where the source was.
    position: Option<u64>,
}

impl Holes {
    /// The holes of a source of `bytes` bytes, for which it takes `blocks` of 512 bytes on its disk.
    pub fn of(file: &File, bytes: u64, blocks: u64) -> Option<Self> {
        if blocks.saturating_mul(512) >= bytes {
            return None;
        }
        let file = file.try_clone().ok()?;
        let position = rustix::fs::tell(&file).ok();
        Some(Self { file, bytes, data_until: 0, position })
    }

    /// Bytes that are not in holes.
    pub fn data_bytes(&self) -> u64 {
        data_bytes(&self.file, self.bytes)
    }

    /// How many bytes from `offset` on are zeros because there is a hole.
    pub fn zeros_at(&mut self, offset: u64) -> u64 {
        if offset < self.data_until || offset >= self.bytes {
            return 0;
        }
        match seek(&self.file, SeekFrom::Data(offset)) {
            Ok(begin) if begin > offset => begin.min(self.bytes) - offset,
            Err(Errno::NXIO) => self.bytes - offset,
            Ok(_) => {
                let hole = seek(&self.file, SeekFrom::Hole(offset)).ok().filter(|hole| *hole > offset);
                self.data_until = hole.unwrap_or(self.bytes);
                0
            }
            Err(_) => {
                self.data_until = self.bytes;
                0
            }
        }
    }
}

impl Drop for Holes {
    fn drop(&mut self) {
        if let Some(position) = self.position {
            // Only a later reader of the same descriptor would notice.
            let _ = seek(&self.file, SeekFrom::Start(position));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use proptest::prelude::*;

    use super::*;

    const BLOCK: usize = HOLE_BYTES;

    #[test]
    fn zeros_become_holes_by_whole_blocks() {
        let data = |range: Range<usize>| Run::Data(range);
        let zeros = |range: Range<usize>| Run::Zeros(range);
        let with = |length: usize, ones: &[usize]| {
            let mut bytes = vec![0; length];
            ones.iter().for_each(|at| bytes[*at] = 1);
            bytes
        };
        let rows = [
            (with(0, &[]), 0, vec![], "nothing"),
            (with(3 * BLOCK, &[]), 0, vec![zeros(0..3 * BLOCK)], "one run"),
            (with(10, &[]), 0, vec![zeros(0..10)], "the end of a file"),
            (with(BLOCK, &[0]), 0, vec![data(0..BLOCK)], "not a whole block"),
            (with(2 * BLOCK, &[]), 1, vec![data(0..BLOCK - 1), zeros(BLOCK - 1..2 * BLOCK)], "not from its beginning"),
            (
                with(4 * BLOCK, &[BLOCK, 2 * BLOCK + 5]),
                BLOCK as u64,
                vec![zeros(0..BLOCK), data(BLOCK..3 * BLOCK), zeros(3 * BLOCK..4 * BLOCK)],
                "between",
            ),
        ];
        for (bytes, offset, expected, reason) in rows {
            assert_eq!(runs(&bytes, offset), expected, "{reason}");
        }
    }

    /// A file that is full of ones.
    fn full(bytes: usize) -> File {
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(&vec![1; bytes], 0).expect("writes");
        file
    }

    fn all_of(file: &File) -> Vec<u8> {
        let mut all = vec![9; file.metadata().expect("metadata").len() as usize];
        file.read_exact_at(&mut all, 0).expect("reads");
        all
    }

    #[test]
    fn what_lay_in_a_hole_is_gone_and_takes_no_room() {
        let file = full(8 * BLOCK);
        let before = file.metadata().expect("metadata").blocks();
        write_at(&file, &vec![0; 6 * BLOCK], BLOCK as u64).expect("writes");
        let expected: Vec<u8> = [vec![1; BLOCK], vec![0; 6 * BLOCK], vec![1; BLOCK]].concat();
        assert!(all_of(&file) == expected);
        assert!(file.metadata().expect("metadata").blocks() < before / 2, "this file system has holes");
        assert_eq!(data_bytes(&file, 8 * BLOCK as u64), 2 * BLOCK as u64);
    }

    #[test]
    fn holes_of_a_source_are_found_and_its_position_is_put_back() {
        let file = tempfile::tempfile().expect("a file");
        let bytes = 10 * BLOCK as u64;
        file.set_len(bytes).expect("sized");
        for block in [2, 3, 7] {
            file.write_all_at(&vec![1; BLOCK], block * BLOCK as u64).expect("writes");
        }
        seek(&file, SeekFrom::Start(5)).expect("seeks");
        let mut holes = Holes::of(&file, bytes, file.metadata().expect("metadata").blocks()).expect("it has some");
        assert_eq!(holes.data_bytes(), 3 * BLOCK as u64);
        let at = |block: u64| block * BLOCK as u64;
        let rows = [(0, at(2)), (at(1) + 1, at(1) - 1), (at(2), 0), (at(3) + 5, 0), (at(4), at(3)), (at(7), 0)];
        for (offset, zeros) in rows {
            assert_eq!(holes.zeros_at(offset), zeros, "at {offset}");
        }
        assert_eq!((holes.zeros_at(at(8)), holes.zeros_at(bytes)), (at(2), 0));
        drop(holes);
        assert_eq!(rustix::fs::tell(&file).expect("tells"), 5);
        assert!(Holes::of(&full(10), 10, 8).is_none(), "what is full is not asked");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn what_is_written_is_what_is_read(
            blocks in prop::collection::vec(any::<bool>(), 1..12), cut in 0..BLOCK, begin in 0..3 * BLOCK as u64,
        ) {
            let mut bytes: Vec<u8> = blocks.iter().flat_map(|full| vec![u8::from(*full); BLOCK]).collect();
            bytes.truncate(bytes.len() - cut);
            let (old, new) = (full(begin as usize + bytes.len()), tempfile::tempfile().expect("a file"));
            write_at(&old, &bytes, begin).expect("writes");
            new.set_len(begin + bytes.len() as u64).expect("sized");
            write_new_at(&new, &bytes, begin).expect("writes");
            prop_assert!(all_of(&old)[begin as usize..] == bytes[..]);
            prop_assert!(all_of(&old)[..begin as usize].iter().all(|byte| *byte == 1));
            prop_assert!(all_of(&new)[begin as usize..] == bytes[..]);
        }
    }
}
