//! Identifiers: contents, tasks, clusters.

use std::{fmt, str::FromStr};

use cid::Cid;
use multihash::Multihash;
use sha2::{Digest as _, Sha256};

use crate::{name::Name, wire::Invalid};

/// Multicodec of content without structure.
pub(crate) const RAW: u64 = 0x55;
/// Multihash code of SHA2-256.
pub(crate) const SHA2_256: u64 = 0x12;
/// Multihash code of BLAKE3, used here with 256 bits.
pub(crate) const BLAKE3: u64 = 0x1e;

/// The identity of some bytes: the BLAKE3-256 hash of all of them.
///
/// As text a CIDv1 (codec raw, multihash blake3-256, base32); on the wire and on disk the 32 bytes of the digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentId([u8; 32]);

impl ContentId {
    /// The content whose BLAKE3-256 digest is `digest`.
    pub const fn from_digest(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// The content ID of `bytes`; for streams use [`crate::hasher::ContentHasher`].
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The 32 bytes of the BLAKE3-256 digest.
    pub const fn digest(&self) -> &[u8; 32] {
        &self.0
    }

    /// Reads the 32 bytes of a digest.
    ///
    /// # Errors
    /// [`Invalid`] for any other length.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Invalid> {
        digest_from_bytes("content id", bytes).map(Self)
    }
}

impl fmt::Display for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&cid_text(BLAKE3, &self.0))
    }
}

impl fmt::Debug for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentId({self})")
    }
}

impl FromStr for ContentId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match Name::parse(text, "")?.digest() {
            Some(crate::name::NameDigest::Blake3(content)) => Ok(content),
            _ => Err(Invalid::new("content id", format!("{text:?} is no blake3 digest"))),
        }
    }
}

/// The identity of a task, the thing named by (cid, tag).
///
/// A sha2-256 multihash over a domain string and the length-prefixed canonical cid and tag; as text the multihash in hex.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId([u8; 32]);

/// Separates task IDs from every other use of SHA-256.
const TASK_DOMAIN: &[u8] = b"damselfly task v1\0";

impl TaskId {
    /// The task named by `name`. Lengths are hashed too, so (`a`, `bc`) and (`ab`, `c`) differ.
    pub fn of(name: &Name) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(TASK_DOMAIN);
        for part in [name.cid(), name.tag()] {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part.as_bytes());
        }
        Self(hasher.finalize().into())
    }

    /// The 32 bytes of the digest.
    pub const fn digest(&self) -> &[u8; 32] {
        &self.0
    }

    /// Reads the 32 bytes of a digest.
    ///
    /// # Errors
    /// [`Invalid`] for any other length.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Invalid> {
        digest_from_bytes("task id", bytes).map(Self)
    }

    /// The task's position on the ring: the first eight bytes, big-endian.
    pub fn position(&self) -> u64 {
        let mut first = [0; 8];
        first.copy_from_slice(&self.0[..8]);
        u64::from_be_bytes(first)
    }

    /// Which of the 256 announcement buckets the task falls into. Independent of [`TaskId::position`].
    pub const fn bucket(&self) -> u8 {
        self.0[31]
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&multihash_hex(&self.0))
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TaskId({self})")
    }
}

impl FromStr for TaskId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        multihash_from_hex("task id", text).map(Self)
    }
}

/// The identity of a cluster: the sha2-256 multihash of its first root's public key. As text the multihash in hex.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClusterId([u8; 32]);

impl ClusterId {
    /// The cluster founded by the root with this public key.
    pub fn of_root(root: &libp2p::identity::PublicKey) -> Self {
        Self(Sha256::digest(root.encode_protobuf()).into())
    }

    /// The 32 bytes of the digest.
    pub const fn digest(&self) -> &[u8; 32] {
        &self.0
    }

    /// The cluster with this digest.
    pub(crate) const fn from_digest(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// Reads the 32 bytes of a digest.
    ///
    /// # Errors
    /// [`Invalid`] for any other length.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Invalid> {
        digest_from_bytes("cluster id", bytes).map(Self)
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&multihash_hex(&self.0))
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterId({self})")
    }
}

impl FromStr for ClusterId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        multihash_from_hex("cluster id", text).map(Self)
    }
}

macro_rules! serde_as_text {
    ($($id:ty),*) => {$(
        impl serde::Serialize for $id {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $id {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
serde_as_text!(ContentId, TaskId, ClusterId);

/// The CIDv1 text (raw, base32) of a 32-byte digest made with the hash of multicodec `code`.
pub(crate) fn cid_text(code: u64, digest: &[u8; 32]) -> String {
    Cid::new_v1(RAW, wrap(code, digest)).to_string()
}

fn wrap(code: u64, digest: &[u8; 32]) -> Multihash<64> {
    Multihash::wrap(code, digest).expect("32 bytes fit into a multihash of 64")
}

fn multihash_hex(digest: &[u8; 32]) -> String {
    hex::encode(wrap(SHA2_256, digest).to_bytes())
}

fn multihash_from_hex(what: &'static str, text: &str) -> Result<[u8; 32], Invalid> {
    let wrong = |error: &dyn fmt::Display| Invalid::new(what, format!("{error}; expected 68 hex digits, 1220…"));
    let bytes = hex::decode(text).map_err(|error| wrong(&error))?;
    let hash = Multihash::<64>::from_bytes(&bytes).map_err(|error| wrong(&error))?;
    if hash.code() != SHA2_256 {
        return Err(wrong(&"not a sha2-256 multihash"));
    }
    digest_from_bytes(what, hash.digest())
}

fn digest_from_bytes(what: &'static str, bytes: &[u8]) -> Result<[u8; 32], Invalid> {
    bytes.try_into().map_err(|_| Invalid::new(what, format!("{} bytes instead of 32", bytes.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_named_by_cid_and_tag_apart() {
        let of = |cid, tag| TaskId::of(&Name::parse(cid, tag).expect("a name"));
        assert_ne!(of("a", "bc"), of("ab", "c"));
        assert_eq!(of("a", "bc"), of("a", "bc"));
    }

    #[test]
    fn text_forms_are_stable() {
        let task = TaskId::of(&Name::parse("model", "v1").expect("a name"));
        assert_eq!(task.to_string(), "1220f6c5efbaa8b2a45766e0bb2d3c6dfc7816eb198ca4657a21e299f157db009bff");
        assert_eq!(task.to_string().parse(), Ok(task));
        let content = ContentId::of(b"");
        assert_eq!(content.to_string(), "bafkr4ifpcne3t5pzugtkaqcn5i3nzskjtpfslsnnyejlpte2spfoihzsmi");
        assert_eq!(content.to_string().parse(), Ok(content));
    }

    #[test]
    fn other_lengths_and_hashes_are_refused() {
        assert!(ContentId::from_bytes(&[0; 31]).is_err());
        assert!("1220ab".parse::<TaskId>().is_err());
        assert!("1e20".to_owned().parse::<TaskId>().is_err());
        assert!(format!("1e20{}", "00".repeat(32)).parse::<TaskId>().is_err(), "blake3 is no hash of tasks");
    }
}
