//! One pass over bytes of unknown length gives the content ID and every piece's digest.

use blake3::hazmat::HasherExt as _;

use crate::{
    id::ContentId,
    manifest::{Manifest, PieceDigest, digests_of, root, subtree},
    piece::{CONTENT_BYTES_MAX, PIECE_BYTES_MAX, PIECE_BYTES_MIN, PIECES_PREFERRED, PieceLayout},
    wire::Invalid,
};

/// Hashes a content as it streams by. Holds at most 8 MiB of digests, whatever the length.
///
/// The piece length is known only at the end, so digests are kept for units that are at most as long as a piece and
/// merged when the content has grown so far that its pieces must be longer.
pub struct ContentHasher {
    /// Hashes the unit that is being filled; from offset 0 it can still become the root.
    unit: blake3::Hasher,
    unit_filled: usize,
    /// Digests of the full units, each `units_bytes` long.
    units: Vec<PieceDigest>,
    units_bytes: u32,
    /// Digests of full smallest units that do not yet make one of `units_bytes`.
    fraction: Vec<PieceDigest>,
    content_bytes: u64,
}

impl Default for ContentHasher {
    fn default() -> Self {
        Self::new()
    }
}

impl ContentHasher {
    /// A hasher that has seen nothing.
    pub fn new() -> Self {
        Self {
            unit: blake3::Hasher::new(),
            unit_filled: 0,
            units: Vec::new(),
            units_bytes: PIECE_BYTES_MIN,
            fraction: Vec::new(),
            content_bytes: 0,
        }
    }

    /// Bytes seen so far.
    pub const fn content_bytes(&self) -> u64 {
        self.content_bytes
    }

    /// Hashes the next bytes.
    ///
    /// # Errors
    /// [`Invalid`] when the content gets longer than 4 TiB.
    pub fn update(&mut self, mut bytes: &[u8]) -> Result<(), Invalid> {
        if self.content_bytes + bytes.len() as u64 > CONTENT_BYTES_MAX {
            return Err(Invalid::new("content length", "it is more than 4 TiB"));
        }
        while !bytes.is_empty() {
            // A full unit is closed only when more follows: the first one may be all there is, and then it is the root.
            if self.unit_filled == PIECE_BYTES_MIN as usize {
                self.close_unit();
            }
            let (now, later) = bytes.split_at(bytes.len().min(PIECE_BYTES_MIN as usize - self.unit_filled));
            self.unit.update(now);
            self.unit_filled += now.len();
            self.content_bytes += now.len() as u64;
            bytes = later;
        }
        Ok(())
    }

    /// The manifest of everything seen.
    pub fn finish(mut self) -> Manifest {
        if self.content_bytes <= PIECE_BYTES_MIN.into() {
            let content = ContentId::from_digest(*self.unit.finalize().as_bytes());
            return built(Manifest::new(content, self.content_bytes, Vec::new()));
        }
        self.fraction.push(self.unit.finalize_non_root());
        let layout = built(PieceLayout::new(self.content_bytes));
        // Units are never longer than pieces: they grow only when the content already needs longer pieces.
        let units_per_piece = (layout.piece_bytes() / self.units_bytes) as usize;
        self.units.push(subtree(&self.fraction));
        let digests: Vec<_> = self.units.chunks(units_per_piece).map(subtree).collect();
        debug_assert_eq!(digests.len(), digests_of(&layout));
        let content = ContentId::from_digest(root(&digests));
        built(Manifest::new(content, self.content_bytes, digests))
    }

    fn close_unit(&mut self) {
        self.fraction.push(self.unit.finalize_non_root());
        self.unit = blake3::Hasher::new();
        self.unit.set_input_offset(self.content_bytes);
        self.unit_filled = 0;
        if self.fraction.len() * PIECE_BYTES_MIN as usize == self.units_bytes as usize {
            self.units.push(subtree(&self.fraction));
            self.fraction.clear();
            if self.units.len() as u64 == 2 * PIECES_PREFERRED && self.units_bytes < PIECE_BYTES_MAX {
                self.units = self.units.chunks(2).map(subtree).collect();
                self.units_bytes *= 2;
            }
        }
    }
}

/// The manifest of bytes in memory.
///
/// Only for small inputs and tests; files are hashed as they stream by.
pub fn hash_bytes(bytes: &[u8]) -> Manifest {
    let mut hasher = ContentHasher::new();
    built(hasher.update(bytes));
    hasher.finish()
}

/// What this module computes itself is within the limits that [`ContentHasher::update`] checked.
fn built<T>(result: Result<T, Invalid>) -> T {
    result.expect("digests computed here fit the content they were computed from")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|i| (i.wrapping_mul(2_654_435_761) >> 7) as u8).collect()
    }

    #[test]
    fn pieces_merge_to_the_hash_of_the_whole() {
        const PIECE: usize = PIECE_BYTES_MIN as usize;
        let lengths = [
            0,
            1,
            1023,
            1024,
            1025,
            PIECE - 1,
            PIECE,
            PIECE + 1,
            2 * PIECE - 1,
            2 * PIECE,
            2 * PIECE + 1,
            3 * PIECE,
            5 * PIECE + 1024,
            7 * PIECE - 1,
            8 * PIECE,
            9 * PIECE + 1,
        ];
        let bytes = content(10 * PIECE);
        for length in lengths {
            let manifest = hash_bytes(&bytes[..length]);
            assert_eq!(manifest.content(), ContentId::of(&bytes[..length]), "{length} bytes");
            for index in manifest.layout().indices() {
                let range = manifest.layout().range(index);
                assert!(manifest.verifies(index, &bytes[range.start as usize..range.end as usize]), "{length} bytes");
            }
        }
    }

    #[test]
    fn the_size_of_updates_does_not_matter() {
        let bytes = content((3 << 20) + 11);
        let whole = hash_bytes(&bytes);
        for step in [1000, 4096, (1 << 20) - 1, 1 << 20, (1 << 20) + 1] {
            let mut hasher = ContentHasher::new();
            for part in bytes.chunks(step) {
                hasher.update(part).expect("short");
            }
            assert_eq!(hasher.finish(), whole, "{step} bytes at a time");
        }
    }

    #[test]
    fn units_merge_when_pieces_must_be_longer() {
        // The digests themselves are made up: what is tested is which are kept and how they merge.
        let mut hasher = ContentHasher::new();
        let unit = blake3::Hasher::new().update(&[7; 64]).finalize_non_root();
        hasher.units = vec![unit; 2 * PIECES_PREFERRED as usize - 1];
        hasher.content_bytes = (2 * PIECES_PREFERRED - 1) * u64::from(PIECE_BYTES_MIN);
        hasher.unit.set_input_offset(hasher.content_bytes);
        hasher.update(&content((2 << 20) + 1)).expect("short");
        assert_eq!((hasher.units.len() as u64, hasher.units_bytes), (PIECES_PREFERRED, 2 * PIECE_BYTES_MIN));
        let manifest = hasher.finish();
        assert_eq!(manifest.layout().piece_bytes(), 4 * PIECE_BYTES_MIN);
        assert_eq!(manifest.digests().len() as u32, manifest.layout().pieces());
    }
}
