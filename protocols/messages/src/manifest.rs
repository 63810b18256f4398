//! Manifests: what makes every piece checkable by itself.

use std::sync::Arc;

use blake3::hazmat::{HasherExt as _, Mode, merge_subtrees_non_root, merge_subtrees_root};

use crate::{
    id::ContentId,
    piece::{PieceIndex, PieceLayout},
    wire::Invalid,
};

/// Digest of a piece: the chaining value of its subtree in the BLAKE3 tree of the content.
pub type PieceDigest = [u8; 32];

/// The length of a content and one digest per piece, proved to belong to the content ID.
///
/// Content of at most one piece has no digests: its only piece is checked against the content ID itself.
///
/// The digests are proved, the length is not: parent nodes in the tree do not commit to it, so the length is a claim
/// until the last piece has verified. Who gave the manifest is to blame when it does not, not who gave the piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    content: ContentId,
    layout: PieceLayout,
    digests: Arc<[PieceDigest]>,
}

impl Manifest {
    /// Checks that `digests` merge to `content` for a content of `content_bytes`.
    ///
    /// # Errors
    /// [`Invalid`]: too long, another number of digests than pieces, or digests of something else.
    pub fn new(content: ContentId, content_bytes: u64, digests: Vec<PieceDigest>) -> Result<Self, Invalid> {
        let layout = PieceLayout::new(content_bytes)?;
        let expected = digests_of(&layout);
        if digests.len() != expected {
            return Err(Invalid::new("manifest", format!("{} digests instead of {expected}", digests.len())));
        }
        if content_bytes == 0 && content != ContentId::of(b"") {
            return Err(Invalid::new("manifest", "an empty content has another id"));
        }
        if expected > 0 && root(&digests) != *content.digest() {
            return Err(Invalid::new("manifest", "its digests do not merge to the content id"));
        }
        Ok(Self { content, layout, digests: digests.into() })
    }

    /// The content this describes.
    pub const fn content(&self) -> ContentId {
        self.content
    }

    /// How the content is cut.
    pub const fn layout(&self) -> PieceLayout {
        self.layout
    }

    /// One digest per piece; none for a content of at most one piece.
    pub fn digests(&self) -> &[PieceDigest] {
        &self.digests
    }

    /// Whether `bytes` are exactly piece `index`. Hashes them: not for an event loop.
    pub fn verifies(&self, index: PieceIndex, bytes: &[u8]) -> bool {
        if bytes.len() != self.layout.bytes(index) {
            return false;
        }
        match self.digests.get(index.as_usize()) {
            Some(digest) => piece_digest(self.layout.offset(index), bytes) == *digest,
            None => ContentId::of(bytes) == self.content,
        }
    }
}

/// How many digests a manifest of this layout has.
pub fn digests_of(layout: &PieceLayout) -> usize {
    if layout.pieces() > 1 { layout.pieces() as usize } else { 0 }
}

/// The chaining value of the subtree of `bytes`, which begin at `offset` of a content longer than one piece.
fn piece_digest(offset: u64, bytes: &[u8]) -> PieceDigest {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(offset);
    hasher.update(bytes);
    hasher.finalize_non_root()
}

/// Merges the chaining values of at least two neighbouring subtrees, all but the last full, to the root hash.
pub(crate) fn root(digests: &[PieceDigest]) -> [u8; 32] {
    let (left, right) = digests.split_at(left_of(digests.len()));
    *merge_subtrees_root(&subtree(left), &subtree(right), Mode::Hash).as_bytes()
}

/// Merges the chaining values of neighbouring subtrees, all but the last full and as long as each other, to one.
pub(crate) fn subtree(digests: &[PieceDigest]) -> PieceDigest {
    if let [only] = digests {
        return *only;
    }
    let (left, right) = digests.split_at(left_of(digests.len()));
    merge_subtrees_non_root(&subtree(left), &subtree(right), Mode::Hash)
}

/// A left subtree is full and as large as it can be with something left for the right one.
fn left_of(subtrees: usize) -> usize {
    subtrees.next_power_of_two() / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hasher::hash_bytes;

    fn content(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|i| (i.wrapping_mul(31) >> 3) as u8 ^ (i >> 13) as u8).collect()
    }

    #[test]
    fn every_piece_verifies_and_no_other_bytes_do() {
        let bytes = content((2 << 20) + 77);
        let manifest = hash_bytes(&bytes);
        for index in manifest.layout().indices() {
            let range = manifest.layout().range(index);
            let mut piece = bytes[range.start as usize..range.end as usize].to_vec();
            assert!(manifest.verifies(index, &piece));
            piece[0] ^= 1;
            assert!(!manifest.verifies(index, &piece), "a flipped bit");
            piece[0] ^= 1;
            piece.push(0);
            assert!(!manifest.verifies(index, &piece), "a byte too many");
        }
    }

    #[test]
    fn a_manifest_of_something_else_is_refused() {
        let manifest = hash_bytes(&content(3 << 20));
        let (id, length) = (manifest.content(), 3 << 20);
        let digests = manifest.digests().to_vec();
        assert!(Manifest::new(id, length, digests.clone()).is_ok());
        let mut swapped = digests.clone();
        swapped.swap(0, 1);
        assert!(Manifest::new(id, length, swapped).is_err(), "another order");
        assert!(Manifest::new(id, length, digests[..2].to_vec()).is_err(), "a digest missing");
        assert!(Manifest::new(ContentId::of(b"other"), length, digests).is_err(), "another content");
        assert!(Manifest::new(id, 0, Vec::new()).is_err(), "empty");
        assert!(Manifest::new(id, u64::MAX, Vec::new()).is_err(), "endless");
    }

    #[test]
    fn the_length_is_a_claim_until_the_last_piece() {
        let bytes = content((1 << 20) + 9);
        let honest = hash_bytes(&bytes);
        let claim = Manifest::new(honest.content(), (1 << 20) + 10, honest.digests().to_vec()).expect("merges");
        let last = claim.layout().index(1).expect("two pieces");
        assert!(!claim.verifies(last, &bytes[1 << 20..]));
    }
}
