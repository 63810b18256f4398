//! Files that get a content's pieces while they arrive.

use std::{
    fs::File,
    io,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use damselfly_messages::piece::{PieceIndex, PieceLayout};
use tokio::sync::Notify;

use super::lock;
use crate::{
    blocking::ClosedAside,
    permits::Permit,
    store::{PieceMap, write_with_holes},
};

/// Arriving pieces that are written at a time. An output that takes longer, as on a file system that hangs, gets the
/// others from the store: nobody else waits for it, and it holds little memory.
const AT_A_TIME: usize = 8;

/// An output file that is being filled, by any number of threads.
///
/// The download offers each piece that arrives after the sink was attached; whatever it does not write, the export does.
pub struct Sink {
    file: ClosedAside,
    layout: PieceLayout,
    state: Mutex<State>,
    bytes: AtomicU64,
    changed: Notify,
    /// Threads that write may block for long, and keep the export's place.
    _place: Permit,
}

struct State {
    written: PieceMap,
    /// Offered, and left to the export.
    put_off: Vec<PieceIndex>,
    /// Offered, and being written.
    under_way: usize,
    failed: Option<io::Error>,
}

/// How it is with a sink.
#[derive(Debug, PartialEq, Eq)]
pub enum Filling {
    /// Every piece is written.
    Done,
    /// These are left to the export.
    Left(Vec<PieceIndex>),
}

impl Sink {
    /// A sink that fills `file` from its beginning.
    pub fn new(file: File, layout: PieceLayout, place: Permit) -> Self {
        let written = PieceMap::empty(&layout);
        Self {
            file: ClosedAside::new(file),
            layout,
            state: Mutex::new(State { written, put_off: Vec::new(), under_way: 0, failed: None }),
            bytes: AtomicU64::new(0),
            changed: Notify::new(),
            _place: place,
        }
    }

    /// Whether a piece that has arrived is to be [written](Self::write_offered) now: not if there is no `room`, nor if too
    /// many are being written. Then it is left to the export.
    pub(super) fn offer(&self, index: PieceIndex, room: bool) -> bool {
        let mut state = lock(&self.state);
        if room && state.under_way < AT_A_TIME {
            state.under_way += 1;
            return true;
        }
        state.put_off.push(index);
        drop(state);
        self.changed.notify_waiters();
        false
    }

    /// Writes a piece that was offered. Blocks.
    pub(super) fn write_offered(&self, index: PieceIndex, bytes: &[u8]) {
        let done = write_with_holes(&self.file, bytes, self.layout.offset(index));
        let mut state = lock(&self.state);
        state.under_way -= 1;
        self.note(state, index, bytes, done);
    }

    /// Writes a verified piece. An error is kept for [`Sink::filling`]. Blocks.
    pub fn write(&self, index: PieceIndex, bytes: &[u8]) {
        let done = write_with_holes(&self.file, bytes, self.layout.offset(index));
        self.note(lock(&self.state), index, bytes, done);
    }

    fn note(&self, mut state: MutexGuard<'_, State>, index: PieceIndex, bytes: &[u8], done: io::Result<()>) {
        match done {
            // One that was damaged in the store and fetched again comes twice.
            Ok(()) if state.written.insert(index) => {
                self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            }
            Ok(()) => {}
            Err(error) => drop(state.failed.get_or_insert(error)),
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Waits until every piece is written, or some are left to the caller.
    ///
    /// # Errors
    /// The first error of a write.
    pub async fn filling(&self) -> io::Result<Filling> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(filling) = self.look()? {
                return Ok(filling);
            }
            changed.await;
        }
    }

    fn look(&self) -> io::Result<Option<Filling>> {
        let mut state = lock(&self.state);
        if let Some(error) = state.failed.take() {
            return Err(error);
        }
        if state.written.held() == self.layout.pieces() {
            return Ok(Some(Filling::Done));
        }
        let left = std::mem::take(&mut state.put_off);
        Ok((!left.is_empty()).then_some(Filling::Left(left)))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use futures::FutureExt as _;

    use super::*;
    use crate::{permits::Permits, testing};

    const BYTES: usize = (2 << 20) + 7;

    async fn sink(file: &File) -> (Sink, [PieceIndex; 3]) {
        let layout = PieceLayout::new(BYTES as u64).expect("short");
        let place = Permits::new("exports").enter(1).await.expect("a place");
        let indices = [0, 1, 2].map(|index| layout.index(index).expect("one of three"));
        (Sink::new(file.try_clone().expect("clones"), layout, place), indices)
    }

    #[tokio::test]
    async fn a_piece_that_comes_twice_is_one() {
        let (mut file, bytes) = (testing::source(b""), testing::bytes(1, BYTES));
        let (sink, [first, second, last]) = sink(&file).await;
        let of = |index| &bytes[sink.layout.range(index).start as usize..sink.layout.range(index).end as usize];
        for index in [first, last, first] {
            assert!(sink.offer(index, true));
            sink.write_offered(index, of(index));
        }
        sink.write(last, of(last));
        assert!(sink.filling().now_or_never().is_none(), "a piece is missing");
        sink.write(second, of(second));
        assert_eq!((sink.filling().await.expect("written"), sink.bytes()), (Filling::Done, BYTES as u64));
        let mut all = Vec::new();
        file.read_to_end(&mut all).expect("reads");
        assert!(all == bytes);
    }

    #[tokio::test]
    async fn what_a_slow_output_cannot_take_is_left_to_the_export() {
        let file = testing::source(b"");
        let (sink, [first, second, last]) = sink(&file).await;
        assert!(!sink.offer(last, false), "no room");
        let begun: Vec<_> = (0..=AT_A_TIME).map(|_| sink.offer(first, true)).collect();
        assert_eq!(begun.iter().filter(|is_begun| **is_begun).count(), AT_A_TIME);
        assert_eq!(sink.filling().await.expect("sound"), Filling::Left(vec![last, first]));
        assert!(sink.filling().now_or_never().is_none(), "each once");
        sink.write_offered(first, b"x");
        assert!(sink.offer(second, true), "one is done");
    }
}
