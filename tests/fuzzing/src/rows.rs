//! Rows of the store's index, and sets of pieces.

use damselfly_messages::piece::{CONTENT_BYTES_MAX, PieceLayout};
use damselfly_node::store::{self, PieceMap};

use crate::head;

/// The first 32 bytes are the key of a row; the first eight, the length of a content.
pub(crate) fn run(bytes: &[u8]) {
    let (key, row) = head::<32>(bytes);
    store::fuzzing::check_rows(key, row);
    let (length, _) = head(bytes);
    let Ok(layout) = PieceLayout::new(u64::from_le_bytes(length) % (CONTENT_BYTES_MAX + 1)) else { return };
    let Some(map) = PieceMap::from_bytes(&layout, row) else { return };
    assert_eq!(map.to_bytes(), row, "a set of pieces is written as it was read");
    let held = layout.indices().filter(|index| map.contains(*index)).count();
    assert_eq!(held, map.held() as usize);
    assert_eq!(map.is_full(), held == layout.pieces() as usize);
}
