//! Names: what is accepted is canonical and within its limits.

use damselfly_messages::{
    id::{ContentId, TaskId},
    name::{CID_BYTES_MAX, Name, NameDigest, TAG_BYTES_MAX},
};

/// A zero byte separates the cid from the tag.
pub(crate) fn run(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (cid, tag) = text.split_once('\0').unwrap_or((&text, ""));
    let _ = cid.parse::<ContentId>();
    let _ = cid.parse::<TaskId>();
    let Ok(name) = Name::parse(cid, tag) else { return };
    assert!((1..=CID_BYTES_MAX).contains(&name.cid().len()) && name.tag().len() <= TAG_BYTES_MAX);
    assert_eq!(name.tag(), tag, "tags are taken as they are");
    let again = Name::parse(name.cid(), name.tag());
    assert_eq!(again.as_ref(), Ok(&name), "a canonical name is canonical");
    assert_eq!(name.task_id(), again.map(|name| name.task_id()).unwrap_or_else(|_| name.task_id()));
    match name.digest() {
        Some(NameDigest::Blake3(content)) => {
            assert!(name.allows(content) && !name.allows(ContentId::of(b"of no such name")));
            assert_eq!(name.cid(), content.to_string());
        }
        Some(NameDigest::Sha256(_)) => assert!(name.cid().starts_with("sha256:")),
        None => assert_eq!(name.cid(), cid, "a plain name is taken as it is"),
    }
}
