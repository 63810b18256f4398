//! Messages: decoding, encoding and decoding again gives the same.

use std::fmt::Debug;

use damselfly_messages::{
    config::{self, SignedConfiguration},
    info,
    membership::{SignedCredential, Succession, join},
    notify,
    piece::{CONTENT_BYTES_MAX, PieceLayout},
    scheduler,
    transfer::{HaveRequest, HaveUpdate, PieceRequest, PieceResponse},
    wire::Wire,
};

use crate::head;

/// Every message that is sent as one frame. A new implementation of [`Wire`] belongs here; a test counts them.
pub(crate) const MESSAGES: [fn(&[u8]); 18] = [
    round_trip::<config::Request>,
    round_trip::<config::Response>,
    round_trip::<config::Gossip>,
    round_trip::<SignedConfiguration>,
    round_trip::<info::Request>,
    round_trip::<info::Response>,
    round_trip::<join::Greeting>,
    round_trip::<join::Request>,
    round_trip::<join::Answer>,
    round_trip::<Succession>,
    round_trip::<SignedCredential>,
    round_trip::<scheduler::Request>,
    round_trip::<scheduler::Response>,
    round_trip::<notify::Request>,
    round_trip::<notify::Response>,
    round_trip::<PieceRequest>,
    round_trip::<PieceResponse>,
    round_trip::<HaveRequest>,
];

/// The first byte says which message the others are.
pub(crate) fn run(bytes: &[u8]) {
    let ([which], body) = head(bytes);
    MESSAGES[usize::from(which) % MESSAGES.len()](body);
}

/// What was decoded is encoded to bytes that mean the same, and that are encoded to the same bytes.
pub(crate) fn round_trip<T: Wire + PartialEq + Debug>(bytes: &[u8]) {
    let Ok(first) = T::from_bytes(bytes) else { return };
    let encoded = first.to_bytes();
    let second = T::from_bytes(&encoded).unwrap_or_else(|error| panic!("{first:?} is refused: {error}"));
    // A number that is none differs from itself.
    #[allow(clippy::eq_op)]
    let comparable = first == first;
    assert!(!comparable || first == second, "{first:?} became {second:?}");
    assert_eq!(second.to_bytes(), encoded, "{first:?}");
}

/// News of pieces, read for a content whose length the first eight bytes give.
pub(crate) fn have(bytes: &[u8]) {
    let (length, body) = head(bytes);
    let Ok(layout) = PieceLayout::new(u64::from_le_bytes(length) % (CONTENT_BYTES_MAX + 1)) else { return };
    round_trip::<HaveUpdate>(body);
    let Ok(update) = HaveUpdate::from_bytes(body) else { return };
    let Ok(pieces) = update.pieces(&layout) else { return };
    assert!(pieces.iter().all(|piece| piece.get() < layout.pieces()), "a piece that does not exist");
    if let HaveUpdate::Bitmap(_) = update {
        let again = HaveUpdate::bitmap(&layout, pieces.iter().copied());
        assert_eq!(again.pieces(&layout), Ok(pieces), "a bitmap of the same pieces");
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::MESSAGES;

    /// Implementations in the sources, but for that of the `have` target.
    #[test]
    fn every_message_is_fuzzed() {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../protocols/messages/src");
        let mut folders = vec![sources];
        let mut found = 0;
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("a folder of sources") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let text = fs::read_to_string(&path).expect("a source file");
                    found += text.lines().filter(|line| line.starts_with("impl Wire for ")).count();
                }
            }
        }
        assert_eq!(found, MESSAGES.len() + 1, "a message that no fuzz target decodes");
    }
}
