//! Pieces: how a content is cut.

use std::ops::Range;

use crate::wire::Invalid;

/// Shortest piece length: 1 MiB.
pub const PIECE_BYTES_MIN: u32 = 1 << 20;
/// Longest piece length: 16 MiB.
pub const PIECE_BYTES_MAX: u32 = 16 << 20;
/// So many pieces are preferred to longer ones.
pub const PIECES_PREFERRED: u64 = 16_384;
/// Longest content: 4 TiB.
pub const CONTENT_BYTES_MAX: u64 = 4 << 40;

/// How a content of a known length is cut into pieces. The last piece may be short; empty content has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PieceLayout {
    content_bytes: u64,
    piece_bytes: u32,
}

/// The index of a piece that exists in some layout; made by [`PieceLayout::index`] only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PieceIndex(u32);

impl PieceIndex {
    /// The index as a number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The index into a vector with one entry per piece.
    pub const fn as_usize(self) -> usize {
        self.0 as usize
    }
}

impl PieceLayout {
    /// The layout of a content of `content_bytes`: the smallest piece length of 1, 2, 4, 8, 16 MiB that gives at most
    /// 16,384 pieces, else 16 MiB.
    ///
    /// # Errors
    /// [`Invalid`] above 4 TiB.
    pub fn new(content_bytes: u64) -> Result<Self, Invalid> {
        if content_bytes > CONTENT_BYTES_MAX {
            return Err(Invalid::new("content length", format!("{content_bytes} bytes are more than 4 TiB")));
        }
        let mut piece_bytes = PIECE_BYTES_MIN;
        while piece_bytes < PIECE_BYTES_MAX && content_bytes.div_ceil(piece_bytes.into()) > PIECES_PREFERRED {
            piece_bytes *= 2;
        }
        Ok(Self { content_bytes, piece_bytes })
    }

    /// Length of the content in bytes.
    pub const fn content_bytes(&self) -> u64 {
        self.content_bytes
    }

    /// Length of every piece but the last, in bytes.
    pub const fn piece_bytes(&self) -> u32 {
        self.piece_bytes
    }

    /// Number of pieces; at most 262,144.
    pub const fn pieces(&self) -> u32 {
        self.content_bytes.div_ceil(self.piece_bytes as u64) as u32
    }

    /// Checks an index from outside.
    ///
    /// # Errors
    /// [`Invalid`] when there is no such piece.
    pub fn index(&self, index: u32) -> Result<PieceIndex, Invalid> {
        if index < self.pieces() {
            Ok(PieceIndex(index))
        } else {
            Err(Invalid::new("piece index", format!("{index} of {} pieces", self.pieces())))
        }
    }

    /// All pieces, in order.
    pub fn indices(&self) -> impl DoubleEndedIterator<Item = PieceIndex> + ExactSizeIterator + use<> {
        (0..self.pieces()).map(PieceIndex)
    }

    /// Where the piece begins in the content, in bytes.
    pub const fn offset(&self, index: PieceIndex) -> u64 {
        index.0 as u64 * self.piece_bytes as u64
    }

    /// Length of the piece in bytes.
    pub fn bytes(&self, index: PieceIndex) -> usize {
        let left = self.content_bytes.saturating_sub(self.offset(index));
        left.min(self.piece_bytes.into()) as usize
    }

    /// The bytes of the content that the piece covers.
    pub fn range(&self, index: PieceIndex) -> Range<u64> {
        let start = self.offset(index);
        start..start + self.bytes(index) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn piece_length_grows_with_content() {
        const MIB: u64 = 1 << 20;
        const GIB: u64 = 1 << 30;
        let cases = [
            (0, 1, 0, "empty"),
            (1, 1, 1, "one byte"),
            (MIB, 1, 1, "one full piece"),
            (MIB + 1, 1, 2, "one byte more"),
            (16 * GIB, 1, 16_384, "the most pieces of 1 MiB"),
            (16 * GIB + 1, 2, 8_193, "then 2 MiB"),
            (256 * GIB, 16, 16_384, "the most preferred pieces"),
            (256 * GIB + 1, 16, 16_385, "beyond, more pieces"),
            (CONTENT_BYTES_MAX, 16, 262_144, "the longest content"),
        ];
        for (bytes, piece_mib, pieces, reason) in cases {
            let layout = PieceLayout::new(bytes).expect(reason);
            assert_eq!((layout.piece_bytes() >> 20, layout.pieces()), (piece_mib, pieces), "{reason}");
        }
        assert!(PieceLayout::new(CONTENT_BYTES_MAX + 1).is_err());
    }

    #[test]
    fn ranges_cover_the_content() {
        let layout = PieceLayout::new((3 << 20) + 5).expect("short enough");
        let ranges: Vec<_> = layout.indices().map(|index| layout.range(index)).collect();
        assert_eq!(ranges.last(), Some(&((3 << 20)..(3 << 20) + 5)));
        assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert!(layout.index(4).is_err());
    }
}
