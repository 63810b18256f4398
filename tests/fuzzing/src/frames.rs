//! Frames: no longer than allowed, and no more memory than has arrived.

use damselfly_transport::frame;
use futures::{executor::block_on, io::Cursor};

use crate::head;

/// What a frame costs before its first byte has arrived.
const FIRST_BYTES: usize = 16 * 1024;

/// The first two bytes are the limit of a frame, the others are a stream of frames.
pub(crate) fn run(bytes: &[u8]) {
    let (limit, stream) = head(bytes);
    let max = usize::from(u16::from_le_bytes(limit));
    let mut from = Cursor::new(stream);
    let mut body = Vec::new();
    let mut written = Vec::new();
    while let Ok(true) = block_on(frame::read_into(&mut from, max, &mut body)) {
        assert!(body.len() <= max, "a frame of {} bytes, {max} are allowed", body.len());
        block_on(frame::write(&mut written, &body, max)).expect("what was read can be written");
    }
    assert!(body.capacity() <= FIRST_BYTES + 2 * stream.len(), "{} bytes for nothing", body.capacity());
    assert!(stream.starts_with(&written), "frames are written as they were read");
}
