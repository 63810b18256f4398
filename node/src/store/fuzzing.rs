//! What fuzz targets need of the inside of the store.

use std::fmt::Debug;

use damselfly_messages::record::Tombstone;

use super::record::{ContentRecord, QueuedDelete, Row, TaskRecord};

/// Reads `row` as each kind of row that may stand under `key`. What is accepted is written and read back as the same.
///
/// # Panics
/// When it is not.
pub fn check_rows(key: [u8; 32], row: &[u8]) {
    check::<ContentRecord>(key, row);
    check::<TaskRecord>(key, row);
    check::<Tombstone>(key, row);
    check::<QueuedDelete>(key, row);
}

fn check<R: Row + PartialEq + Debug>(key: [u8; 32], row: &[u8]) {
    let Ok(read) = R::from_row(key, row) else { return };
    assert_eq!(R::from_row(key, &read.to_row(&key)).as_ref(), Ok(&read));
}
