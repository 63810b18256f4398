//! What users call a file: a cid and a tag.

use cid::Cid;

use crate::{
    id::{BLAKE3, ContentId, RAW, SHA2_256, TaskId},
    wire::Invalid,
};

/// Longest cid in bytes of UTF-8.
pub const CID_BYTES_MAX: usize = 1024;
/// Longest tag in bytes of UTF-8.
pub const TAG_BYTES_MAX: usize = 256;

/// A canonical (cid, tag): the two parts of a task's name, within their limits.
///
/// A cid that is a digest is canonical whatever its spelling was: blake3 as the content's CIDv1, sha256 as
/// `sha256:<64 lower-case hex digits>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    cid: String,
    tag: String,
}

/// The digest that a cid states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameDigest {
    /// The name is the content ID: proved by every manifest.
    Blake3(ContentId),
    /// Proved only by hashing the whole content.
    Sha256([u8; 32]),
}

impl Name {
    /// Checks and canonicalizes what a user typed or a peer sent.
    ///
    /// # Errors
    /// [`Invalid`]: empty or too long, or a digest of a kind that is not supported.
    pub fn parse(cid: &str, tag: &str) -> Result<Self, Invalid> {
        if cid.is_empty() {
            return Err(Invalid::new("cid", "it is empty"));
        }
        if cid.len() > CID_BYTES_MAX {
            return Err(Invalid::new("cid", format!("{} bytes are more than {CID_BYTES_MAX}", cid.len())));
        }
        if tag.len() > TAG_BYTES_MAX {
            return Err(Invalid::new("tag", format!("{} bytes are more than {TAG_BYTES_MAX}", tag.len())));
        }
        let cid = match parse_digest(cid)? {
            Some(digest) => digest.canonical(),
            None => cid.to_owned(),
        };
        Ok(Self { cid, tag: tag.to_owned() })
    }

    /// The name of a content that was imported without one: its content ID.
    pub fn of_content(content: ContentId, tag: &str) -> Result<Self, Invalid> {
        Self::parse(&content.to_string(), tag)
    }

    /// The canonical cid.
    pub fn cid(&self) -> &str {
        &self.cid
    }

    /// The tag; empty when there is none.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// The task this names.
    pub fn task_id(&self) -> TaskId {
        TaskId::of(self)
    }

    /// The digest that the cid states, if it is one.
    pub fn digest(&self) -> Option<NameDigest> {
        parse_digest(&self.cid).ok().flatten()
    }

    /// Whether content `content` may stand under this name, as far as the name alone tells.
    pub fn allows(&self, content: ContentId) -> bool {
        match self.digest() {
            Some(NameDigest::Blake3(named)) => named == content,
            Some(NameDigest::Sha256(_)) | None => true,
        }
    }
}

impl NameDigest {
    fn canonical(&self) -> String {
        match self {
            Self::Blake3(content) => content.to_string(),
            Self::Sha256(digest) => format!("sha256:{}", hex::encode(digest)),
        }
    }
}

/// The digest `cid` states; `None` when it is only a name.
fn parse_digest(cid: &str) -> Result<Option<NameDigest>, Invalid> {
    if let Some(digits) = cid.strip_prefix("sha256:") {
        return parse_hex(digits).map(NameDigest::Sha256).map(Some);
    }
    if let Some(digits) = cid.strip_prefix("blake3:") {
        return parse_hex(digits).map(ContentId::from_digest).map(NameDigest::Blake3).map(Some);
    }
    match Cid::try_from(cid) {
        Ok(cid) => parse_cid(&cid).map(Some),
        Err(_) => Ok(None),
    }
}

fn parse_hex(digits: &str) -> Result<[u8; 32], Invalid> {
    let mut digest = [0; 32];
    hex::decode_to_slice(digits, &mut digest)
        .map_err(|_| Invalid::new("cid", "a digest is written as 64 hexadecimal digits"))?;
    Ok(digest)
}

fn parse_cid(cid: &Cid) -> Result<NameDigest, Invalid> {
    let refuse = |reason: &str| {
        Invalid::new("cid", format!("{reason}; supported are CIDv1 with codec raw and 256 bits of blake3 or sha2-256"))
    };
    if cid.version() != cid::Version::V1 || cid.codec() != RAW {
        return Err(refuse("this is an IPFS CID of another version or codec"));
    }
    let digest = cid.hash().digest().try_into().map_err(|_| refuse("this CID's digest is not 32 bytes long"))?;
    match cid.hash().code() {
        BLAKE3 => Ok(NameDigest::Blake3(ContentId::from_digest(digest))),
        SHA2_256 => Ok(NameDigest::Sha256(digest)),
        _ => Err(refuse("this CID uses another hash")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::cid_text;

    #[test]
    fn spellings_of_a_digest_are_one_task() {
        let digest = *ContentId::of(b"x").digest();
        let lower = hex::encode(digest);
        for (code, prefix) in [(BLAKE3, "blake3:"), (SHA2_256, "sha256:")] {
            let spellings =
                [format!("{prefix}{lower}"), format!("{prefix}{}", lower.to_uppercase()), cid_text(code, &digest)];
            let tasks = spellings.map(|cid| Name::parse(&cid, "t").expect("a digest").task_id());
            assert!(tasks.iter().all(|task| *task == tasks[0]), "{prefix}");
        }
    }

    #[test]
    fn names_within_and_beyond_their_limits() {
        let cases = [
            ("", "", false, "empty"),
            ("a b/ü \u{1F600}", "", true, "any UTF-8"),
            (&"x".repeat(1024), &"t".repeat(256), true, "the longest"),
            (&"x".repeat(1025), "", false, "cid too long"),
            ("x", &"t".repeat(257), false, "tag too long"),
            ("sha256:abc", "", false, "short digest"),
            ("blake3:zz", "", false, "no hexadecimal digits"),
            ("QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG", "", false, "CIDv0"),
            ("bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi", "", false, "dag-pb"),
            ("md5:d41d8cd98f00b204e9800998ecf8427e", "", true, "another scheme is just a name"),
        ];
        for (cid, tag, accepted, reason) in cases {
            assert_eq!(Name::parse(cid, tag).is_ok(), accepted, "{reason}");
        }
    }

    #[test]
    fn a_blake3_name_allows_only_its_content() {
        let content = ContentId::of(b"x");
        let name = Name::of_content(content, "").expect("a name");
        assert!(name.allows(content) && !name.allows(ContentId::of(b"y")));
        assert!(Name::parse("plain", "").expect("a name").allows(content));
    }
}
