//! Length-limited frames: a big-endian `u32` with the number of bytes, then the bytes.

use std::io;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Bytes in front of each frame.
pub const HEADER_BYTES: usize = 4;

/// What is allocated before a byte of the body has arrived; after that the buffer at most doubles what did arrive.
const FIRST_ALLOCATION_BYTES: usize = 16 * 1024;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The frame is longer than both sides agreed; the stream is unusable from here on.
    #[error("frame of {bytes} bytes, at most {max} are allowed")]
    TooLong {
        /// The claimed length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The stream ended inside of a frame.
    #[error("stream ended inside of a frame")]
    Truncated,
    /// The stream failed.
    #[error("stream failed")]
    Io(#[from] io::Error),
}

impl From<FrameError> for io::Error {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Io(error) => error,
            FrameError::Truncated => Self::new(io::ErrorKind::UnexpectedEof, error.to_string()),
            FrameError::TooLong { .. } => Self::new(io::ErrorKind::InvalidData, error.to_string()),
        }
    }
}

/// Reads one frame of at most `max` bytes; `None` when the stream ended before it.
///
/// The length is checked before anything is allocated, and the buffer grows as bytes arrive, so a frame that is only
/// claimed costs 16 KiB. Not cancel-safe: a dropped future may have consumed a part.
///
/// # Errors
/// Any [`FrameError`]: the stream is of no further use.
pub async fn read<R: AsyncRead + Unpin>(from: &mut R, max: usize) -> Result<Option<Vec<u8>>, FrameError> {
    let mut body = Vec::new();
    Ok(read_into(from, max, &mut body).await?.then_some(body))
}

/// Like [`read`], into a buffer that is reused; `false` when the stream ended before a frame.
///
/// `body` is cleared first and holds exactly the frame afterwards.
///
/// # Errors
/// Any [`FrameError`]: the stream is of no further use.
pub async fn read_into<R: AsyncRead + Unpin>(from: &mut R, max: usize, body: &mut Vec<u8>) -> Result<bool, FrameError> {
    body.clear();
    let Some(bytes) = read_header(from, max).await? else { return Ok(false) };
    while body.len() < bytes {
        let filled = body.len();
        let next = bytes.min((2 * filled).max(FIRST_ALLOCATION_BYTES));
        body.resize(next, 0);
        read_exact(from, &mut body[filled..]).await?;
    }
    Ok(true)
}

/// Reads the length of the next frame, for a caller that reads the body itself; `None` when the stream ended before it.
///
/// # Errors
/// Any [`FrameError`]: the stream is of no further use.
pub async fn read_header<R: AsyncRead + Unpin>(from: &mut R, max: usize) -> Result<Option<usize>, FrameError> {
    let mut header = [0; HEADER_BYTES];
    if from.read(&mut header[..1]).await? == 0 {
        return Ok(None);
    }
    read_exact(from, &mut header[1..]).await?;
    let bytes = u32::from_be_bytes(header) as usize;
    if bytes > max {
        return Err(FrameError::TooLong { bytes, max });
    }
    Ok(Some(bytes))
}

/// Writes one frame of at most `max` bytes, without flushing.
///
/// # Errors
/// [`FrameError::TooLong`] before anything is written; [`FrameError::Io`] leaves the stream of no further use.
pub async fn write<W: AsyncWrite + Unpin>(to: &mut W, body: &[u8], max: usize) -> Result<(), FrameError> {
    let header = header(body.len(), max)?;
    to.write_all(&header).await?;
    to.write_all(body).await?;
    Ok(())
}

/// The header of a frame of `bytes` bytes.
///
/// # Errors
/// [`FrameError::TooLong`] above `max`.
pub fn header(bytes: usize, max: usize) -> Result<[u8; HEADER_BYTES], FrameError> {
    match u32::try_from(bytes) {
        Ok(length) if bytes <= max => Ok(length.to_be_bytes()),
        Ok(_) | Err(_) => Err(FrameError::TooLong { bytes, max }),
    }
}

async fn read_exact<R: AsyncRead + Unpin>(from: &mut R, into: &mut [u8]) -> Result<(), FrameError> {
    from.read_exact(into).await.map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => FrameError::Truncated,
        _ => FrameError::Io(error),
    })
}

#[cfg(test)]
mod tests {
    use futures::{executor::block_on, io::Cursor};
    use proptest::prelude::*;

    use super::*;

    fn written(body: &[u8]) -> Vec<u8> {
        let mut to = Cursor::new(Vec::new());
        block_on(write(&mut to, body, usize::MAX)).expect("a cursor takes all");
        to.into_inner()
    }

    /// Bytes on the stream, limit, length of the frame that comes out, why.
    type Row<'a> = (&'a [u8], usize, Result<Option<usize>, &'a str>, &'a str);

    #[test]
    fn bounds() {
        let long = written(&[7; 100_000]);
        let table: &[Row<'_>] = &[
            (&[], 10, Ok(None), "a clean end is no error"),
            (&[0, 0], 10, Err("stream ended inside of a frame"), "ends in the header"),
            (&[0, 0, 0, 3, 1], 10, Err("stream ended inside of a frame"), "ends in the body"),
            (&[0, 0, 0, 0], 10, Ok(Some(0)), "empty frames are frames"),
            (&[0, 0, 0, 10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 10, Ok(Some(10)), "the limit itself is allowed"),
            (&[0, 0, 0, 11], 10, Err("frame of 11 bytes, at most 10 are allowed"), "one above is not"),
            (&[0xff; 4], 1 << 20, Err("frame of 4294967295 bytes, at most 1048576 are allowed"), "largest claim"),
            (&long, 100_000, Ok(Some(100_000)), "longer than the first allocation"),
        ];
        for (stream, max, expected, why) in table {
            let got = block_on(read(&mut Cursor::new(stream), *max));
            let got = got.map(|body| body.map(|body| body.len())).map_err(|error| error.to_string());
            assert_eq!(got, expected.map_err(str::to_owned), "{why}");
        }
    }

    #[test]
    fn a_claim_allocates_nothing_until_bytes_arrive() {
        let stream = 9_000_000_u32.to_be_bytes();
        let mut body = Vec::new();
        let error = block_on(read_into(&mut Cursor::new(&stream), 9 << 20, &mut body)).expect_err("nothing follows");
        assert!(matches!(error, FrameError::Truncated));
        assert!(body.capacity() <= FIRST_ALLOCATION_BYTES, "allocated {}", body.capacity());
    }

    #[test]
    fn too_long_is_not_written() {
        let mut to = Cursor::new(Vec::new());
        assert!(matches!(block_on(write(&mut to, &[0; 11], 10)), Err(FrameError::TooLong { bytes: 11, max: 10 })));
        assert!(to.into_inner().is_empty());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50_000), 0..5)) {
            let stream = bodies.iter().flat_map(|body| written(body)).collect::<Vec<_>>();
            let mut from = Cursor::new(stream);
            for body in &bodies {
                prop_assert_eq!(block_on(read(&mut from, 50_000)).expect("whole"), Some(body.clone()));
            }
            prop_assert_eq!(block_on(read(&mut from, 50_000)).expect("whole"), None);
        }

        #[test]
        fn noise_never_panics(stream in prop::collection::vec(any::<u8>(), 0..2000)) {
            let mut from = Cursor::new(stream);
            while let Ok(Some(body)) = block_on(read(&mut from, 1000)) {
                prop_assert!(body.len() <= 1000);
            }
        }
    }
}
