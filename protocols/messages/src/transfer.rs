//! `/damselfly/piece/1` and `/damselfly/have/1`: frames of the streams on which contents move.
//!
//! A piece stream carries requests one way and answers the other, in the order of the requests. An answer is a small
//! header and then, for a piece or a manifest, its body. On a have stream the child asks once and the parent sends
//! updates until it holds everything.

use prost::Message as _;

use crate::{
    id::ContentId,
    manifest::{Manifest, digests_of},
    pb::{self, have_update, piece_response, required},
    piece::{PIECE_BYTES_MAX, PieceIndex, PieceLayout},
    trace::{TraceContext, trace_bytes},
    wire::{Invalid, Wire},
};

/// Longest frame of these protocols that is no body: a have bitmap of 262,144 pieces and its envelope.
pub const FRAME_BYTES_MAX: usize = 64 << 10;
/// Most indices in one have update.
pub const GAINED_MAX: usize = 8192;

/// Asks a parent for something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PieceRequest {
    /// Of which content.
    pub content: ContentId,
    /// Which piece, unchecked; `None` asks for the manifest.
    pub index: Option<u32>,
    /// What it is asked by.
    pub trace: Option<TraceContext>,
}

/// The header of a parent's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PieceResponse {
    /// The piece follows.
    Piece {
        /// Length of the body in bytes, at most 16 MiB.
        bytes: usize,
    },
    /// The digests follow, 32 bytes each.
    Manifest {
        /// Claimed length of the content.
        content_bytes: u64,
        /// How many follow: what [`digests_of`] says for that length.
        digests: usize,
        /// How many bytes are said not to be in holes, at most `content_bytes`. Nothing proves it: it only says how much
        /// room to look for.
        data_bytes: u64,
    },
    /// Ask again after so many milliseconds.
    Busy {
        /// Milliseconds.
        retry_millis: u32,
    },
    /// It does not have it.
    NotHeld,
}

impl PieceResponse {
    /// Announces the body of `manifest`, of which so many bytes are not in holes.
    pub fn manifest(manifest: &Manifest, data_bytes: u64) -> Self {
        let content_bytes = manifest.layout().content_bytes();
        let data_bytes = data_bytes.min(content_bytes);
        Self::Manifest { content_bytes, digests: manifest.digests().len(), data_bytes }
    }
}

/// Reads the body of a manifest of `content`, as announced by [`PieceResponse::Manifest`].
///
/// # Errors
/// [`Invalid`]: the digests do not merge to the content ID. Who sent it lied.
pub fn manifest_from_body(content: ContentId, content_bytes: u64, body: &[u8]) -> Result<Manifest, Invalid> {
    let (digests, rest) = body.as_chunks::<32>();
    if !rest.is_empty() {
        return Err(Invalid::new("manifest", "a digest is cut off"));
    }
    Manifest::new(content, content_bytes, digests.to_vec())
}

impl Wire for PieceRequest {
    fn to_bytes(&self) -> Vec<u8> {
        let trace = trace_bytes(self.trace);
        pb::PieceRequest { content: self.content.digest().to_vec(), index: self.index, trace }.encode_to_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, Invalid> {
        let request: pb::PieceRequest = pb::decode("piece request", bytes)?;
        let (content, trace) = (ContentId::from_bytes(&request.content)?, TraceContext::from_bytes(&request.trace));
        Ok(Self { content, index: request.index, trace })
    }
}

impl Wire for PieceResponse {
    fn to_bytes(&self) -> Vec<u8> {
        use piece_response::Body;
        let body = match *self {
            Self::Piece { bytes } => Body::PieceBytes(bytes as u64),
            Self::Manifest { content_bytes, digests, data_bytes } => Body::Manifest(pb::ManifestHeader {
                content_bytes,
                digests: digests as u32,
                data_bytes: (data_bytes < content_bytes).then_some(data_bytes),
            }),
            Self::Busy { retry_millis } => Body::BusyMillis(retry_millis),
            Self::NotHeld => Body::NotHeld(pb::Nothing {}),
        };
        pb::PieceResponse { body: Some(body) }.encode_to_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, Invalid> {
        use piece_response::Body;
        let response: pb::PieceResponse = pb::decode("piece answer", bytes)?;
        Ok(match required("piece answer", response.body)? {
            Body::PieceBytes(bytes) if bytes <= PIECE_BYTES_MAX.into() => Self::Piece { bytes: bytes as usize },
            Body::PieceBytes(bytes) => return Err(Invalid::new("piece answer", format!("a piece of {bytes} bytes"))),
            Body::Manifest(header) => {
                let expected = digests_of(&PieceLayout::new(header.content_bytes)?);
                if header.digests as usize != expected {
                    return Err(Invalid::new("piece answer", "a manifest with another number of digests than pieces"));
                }
                let data_bytes = header.data_bytes.unwrap_or(u64::MAX).min(header.content_bytes);
                Self::Manifest { content_bytes: header.content_bytes, digests: expected, data_bytes }
            }
            Body::BusyMillis(retry_millis) => Self::Busy { retry_millis },
            Body::NotHeld(_) => Self::NotHeld,
        })
    }
}

/// Asks a parent which pieces it has and to be told of those it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HaveRequest {
    /// Of which content.
    pub content: ContentId,
}

/// What a parent says it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HaveUpdate {
    /// All of it, from now on.
    Complete,
    /// The pieces whose bit is set: bit `i % 8` of byte `i / 8`.
    Bitmap(Vec<u8>),
    /// These too, unchecked; at most [`GAINED_MAX`].
    Gained(Vec<u32>),
    /// Nothing, and it does not fetch it.
    NotHeld,
}

impl HaveUpdate {
    /// The pieces of `layout` that a bitmap or a list of gained pieces names.
    ///
    /// # Errors
    /// [`Invalid`] when it names a piece that does not exist.
    pub fn pieces(&self, layout: &PieceLayout) -> Result<Vec<PieceIndex>, Invalid> {
        match self {
            Self::Complete => Ok(layout.indices().collect()),
            Self::NotHeld => Ok(Vec::new()),
            Self::Gained(indices) => indices.iter().map(|index| layout.index(*index)).collect(),
            Self::Bitmap(bits) => {
                let set = |index: &u32| bits[*index as usize / 8] & (1 << (index % 8)) != 0;
                (0..bits.len() as u32 * 8).filter(set).map(|index| layout.index(index)).collect()
            }
        }
    }

    /// The bitmap of `pieces` of `layout`.
    pub fn bitmap(layout: &PieceLayout, pieces: impl IntoIterator<Item = PieceIndex>) -> Self {
        let mut bits = vec![0; layout.pieces().div_ceil(8) as usize];
        for index in pieces {
            bits[index.as_usize() / 8] |= 1 << (index.get() % 8);
        }
        Self::Bitmap(bits)
    }
}

impl Wire for HaveRequest {
    fn to_bytes(&self) -> Vec<u8> {
        pb::HaveRequest { content: self.content.digest().to_vec() }.encode_to_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, Invalid> {
        let request: pb::HaveRequest = pb::decode("have request", bytes)?;
        Ok(Self { content: ContentId::from_bytes(&request.content)? })
    }
}

impl Wire for HaveUpdate {
    fn to_bytes(&self) -> Vec<u8> {
        use have_update::Body;
        let body = match self {
            Self::Complete => Body::Complete(pb::Nothing {}),
            Self::Bitmap(bits) => Body::Bitmap(bits.clone()),
            Self::Gained(indices) => Body::Gained(pb::GainedPieces { indices: indices.clone() }),
            Self::NotHeld => Body::NotHeld(pb::Nothing {}),
        };
        pb::HaveUpdate { body: Some(body) }.encode_to_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, Invalid> {
        use have_update::Body;
        let update: pb::HaveUpdate = pb::decode("have update", bytes)?;
        Ok(match required("have update", update.body)? {
            Body::Complete(_) => Self::Complete,
            Body::Bitmap(bits) => Self::Bitmap(bits),
            Body::Gained(gained) => Self::Gained(pb::at_most("gained pieces", gained.indices, GAINED_MAX)?),
            Body::NotHeld(_) => Self::NotHeld,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_holes_is_never_more_than_the_content() {
        let digests = digests_of(&PieceLayout::new(1000).expect("short"));
        let header = |data_bytes| {
            let manifest = pb::ManifestHeader { content_bytes: 1000, digests: digests as u32, data_bytes };
            let response = pb::PieceResponse { body: Some(piece_response::Body::Manifest(manifest)) };
            PieceResponse::from_bytes(&response.encode_to_vec())
        };
        let rows = [
            (None, 1000, "an older holder says nothing"),
            (Some(10), 10, "mostly holes"),
            (Some(0), 0, "nothing but holes"),
            (Some(u64::MAX), 1000, "more than there is"),
        ];
        for (said, data_bytes, reason) in rows {
            let expected = PieceResponse::Manifest { content_bytes: 1000, digests, data_bytes };
            let read = header(said).expect("a manifest");
            assert_eq!(read, expected, "{reason}");
            assert_eq!(PieceResponse::from_bytes(&read.to_bytes()), Ok(expected), "{reason}");
        }
    }
}
