//! Which pieces of a content are held.

use damselfly_messages::piece::{PieceIndex, PieceLayout};

/// A set of pieces of one content: a bitmap with a count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PieceMap {
    words: Vec<u64>,
    pieces: u32,
    held: u32,
}

impl PieceMap {
    /// No piece of a content cut like `layout`.
    pub fn empty(layout: &PieceLayout) -> Self {
        let pieces = layout.pieces();
        Self { words: vec![0; pieces.div_ceil(64) as usize], pieces, held: 0 }
    }

    /// Whether the piece is in the set.
    pub fn contains(&self, index: PieceIndex) -> bool {
        self.words.get(index.as_usize() / 64).is_some_and(|word| word >> (index.get() % 64) & 1 == 1)
    }

    /// Adds a piece; whether it was missing.
    pub fn insert(&mut self, index: PieceIndex) -> bool {
        let new = !self.contains(index);
        if let (true, Some(word)) = (new, self.words.get_mut(index.as_usize() / 64)) {
            *word |= 1 << (index.get() % 64);
            self.held += 1;
        }
        new
    }

    /// Takes a piece out; whether it was there.
    pub fn remove(&mut self, index: PieceIndex) -> bool {
        let held = self.contains(index);
        if let (true, Some(word)) = (held, self.words.get_mut(index.as_usize() / 64)) {
            *word &= !(1 << (index.get() % 64));
            self.held -= 1;
        }
        held
    }

    /// How many pieces are in the set.
    pub const fn held(&self) -> u32 {
        self.held
    }

    /// How many pieces the content has.
    pub const fn pieces(&self) -> u32 {
        self.pieces
    }

    /// Whether no piece is missing.
    pub const fn is_full(&self) -> bool {
        self.held == self.pieces
    }

    /// The set as bytes, piece 0 in the lowest bit of the first byte; at most 32 KiB.
    pub fn to_bytes(&self) -> Vec<u8> {
        let bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes[..self.pieces.div_ceil(8) as usize].to_vec()
    }

    /// Reads what [`PieceMap::to_bytes`] wrote; `None` when it is of another layout.
    pub fn from_bytes(layout: &PieceLayout, bytes: &[u8]) -> Option<Self> {
        let mut map = Self::empty(layout);
        if bytes.len() != map.pieces.div_ceil(8) as usize {
            return None;
        }
        for (word, bytes) in map.words.iter_mut().zip(bytes.chunks(8)) {
            let mut full = [0; 8];
            full[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_le_bytes(full);
        }
        let beyond = map.pieces % 64;
        if beyond > 0 && map.words.last().is_some_and(|last| last >> beyond != 0) {
            return None;
        }
        map.held = map.words.iter().map(|word| word.count_ones()).sum();
        Some(map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_back() {
        for pieces in [0u64, 1, 7, 8, 9, 63, 64, 65, 130] {
            let layout = PieceLayout::new(pieces << 20).expect("short");
            let mut map = PieceMap::empty(&layout);
            for index in layout.indices().step_by(3) {
                assert!(map.insert(index) && !map.insert(index) && map.contains(index));
            }
            assert_eq!(PieceMap::from_bytes(&layout, &map.to_bytes()), Some(map.clone()), "{pieces} pieces");
            for index in layout.indices() {
                assert_eq!(map.remove(index), index.get() % 3 == 0);
            }
            assert_eq!(map.held(), 0);
        }
    }

    #[test]
    fn pieces_that_do_not_exist_are_refused() {
        let layout = PieceLayout::new(9 << 20).expect("short");
        assert!(PieceMap::from_bytes(&layout, &[0xff, 0x01]).is_some_and(|map| map.is_full()));
        assert!(PieceMap::from_bytes(&layout, &[0xff, 0x03]).is_none(), "a tenth piece");
        assert!(PieceMap::from_bytes(&layout, &[0xff]).is_none(), "too short");
    }
}
