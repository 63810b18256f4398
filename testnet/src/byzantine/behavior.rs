//! What a liar tells schedulers and answers other hosts. Pure: no I/O, no clock.

use damselfly_messages::{
    hasher::hash_bytes,
    manifest::Manifest,
    name::Name,
    piece::PieceIndex,
    record::{Announcement, Binding, GENERATION_MAX, Holding, Record, Tombstone, UnixMillis},
    transfer::{HaveUpdate, PieceRequest, PieceResponse},
};
use serde::{Deserialize, Serialize};

/// After so many milliseconds it may be asked again.
const RETRY_MILLIS: u32 = 200;
/// Later than any import of a test.
const LATER_MILLIS: u64 = 60_000;

/// How a liar lies: as a holder of bytes, or about names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Behavior {
    /// One bit of each piece is wrong.
    WrongBytes,
    /// Each piece lacks its last byte.
    ShortBytes,
    /// Manifest and pieces are of other bytes.
    WrongManifest,
    /// The manifest has the right digests, and the pieces are of the false length that it says.
    WrongLength,
    /// The same manifest, but the piece that would prove the length is put off for ever.
    UnprovedLength,
    /// The manifest is right, and all pieces are put off for ever.
    PutOff,
    /// Nothing is ever answered.
    Silent,
    /// Each piece stops in the middle.
    Stalled,
    /// Each piece comes byte by byte.
    Dripping,
    /// It says that it holds everything, and then that it holds nothing.
    FalseHolder,
    /// It says again and again which pieces it has, and then that it has not.
    FalseHave,
    /// It tells schedulers another length of the content than it has.
    FalseSize,
    /// Under a sha256 name it has other bytes, as if they had been accepted first.
    FalseCandidate,
    /// It binds the name of others to other bytes.
    OtherBytes,
    /// The same, as if an owner had accepted it, after that of the others.
    LaterBytes,
    /// It binds a blake3 name to other bytes.
    OtherDigest,
    /// It says that the name was deleted as often as can be, so that no generation is left.
    UsedUpName,
    /// It deletes the name of others, as every member may.
    Deleted,
}

/// What schedulers have to say of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    /// It counts as a holder.
    Accepted,
    /// The name stands for other bytes.
    Conflict,
    /// It cannot be.
    Refused,
    /// The name is deleted.
    Deleted,
}

impl Behavior {
    /// Each of them.
    pub(crate) const ALL: [Self; 18] = [
        Self::WrongBytes,
        Self::ShortBytes,
        Self::WrongManifest,
        Self::WrongLength,
        Self::UnprovedLength,
        Self::PutOff,
        Self::Silent,
        Self::Stalled,
        Self::Dripping,
        Self::FalseHolder,
        Self::FalseHave,
        Self::FalseSize,
        Self::FalseCandidate,
        Self::OtherBytes,
        Self::LaterBytes,
        Self::OtherDigest,
        Self::UsedUpName,
        Self::Deleted,
    ];

    /// As it is written.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::WrongBytes => "wrong-bytes",
            Self::ShortBytes => "short-bytes",
            Self::WrongManifest => "wrong-manifest",
            Self::WrongLength => "wrong-length",
            Self::UnprovedLength => "unproved-length",
            Self::PutOff => "put-off",
            Self::Silent => "silent",
            Self::Stalled => "stalled",
            Self::Dripping => "dripping",
            Self::FalseHolder => "false-holder",
            Self::FalseHave => "false-have",
            Self::FalseSize => "false-size",
            Self::FalseCandidate => "false-candidate",
            Self::OtherBytes => "other-bytes",
            Self::LaterBytes => "later-bytes",
            Self::OtherDigest => "other-digest",
            Self::UsedUpName => "used-up-name",
            Self::Deleted => "deleted",
        }
    }

    /// What every owner has to say of what it tells.
    pub(crate) const fn verdict(self) -> Verdict {
        match self {
            Self::WrongBytes
            | Self::ShortBytes
            | Self::WrongManifest
            | Self::WrongLength
            | Self::UnprovedLength
            | Self::PutOff
            | Self::Silent
            | Self::Stalled
            | Self::Dripping
            | Self::FalseHolder
            | Self::FalseHave
            | Self::FalseSize
            | Self::FalseCandidate => Verdict::Accepted,
            Self::OtherBytes | Self::LaterBytes => Verdict::Conflict,
            Self::OtherDigest | Self::UsedUpName => Verdict::Refused,
            Self::Deleted => Verdict::Deleted,
        }
    }

    /// Whether exporters find out whom they have to name. The length that schedulers are told is of no weight to them.
    pub(crate) fn is_found_out(self) -> bool {
        self.verdict() == Verdict::Accepted && self != Self::FalseSize
    }

    /// Whether it sends what does not verify, which schedulers are to know too.
    pub(crate) const fn is_proved(self) -> bool {
        matches!(
            self,
            Self::WrongBytes | Self::ShortBytes | Self::WrongManifest | Self::WrongLength | Self::UnprovedLength
        )
    }

    /// The name that it lies about, of all that might be given to these bytes.
    pub(crate) const fn naming(self) -> Naming {
        match self {
            Self::FalseCandidate => Naming::Sha256,
            Self::OtherDigest => Naming::Blake3,
            _ => Naming::Plain,
        }
    }

    /// What it tells the owners of a name; `None`: it asks them to delete it.
    pub(crate) fn record(self, name: Name, content: &Content, now: UnixMillis) -> Option<Record> {
        let whole = |binding| Announcement { name: name.clone(), binding, holding: Holding::Complete };
        let [truth, other] = [binding(&content.truth), binding(&content.other)];
        let accepted = |millis, binding: Binding| Binding { accepted: Some(UnixMillis(millis)), ..binding };
        let announcement = match self {
            Self::FalseHave => {
                let pieces = content.truth.manifest.layout().pieces();
                Announcement { holding: Holding::Partial { pieces }, ..whole(truth) }
            }
            Self::FalseSize => whole(Binding { content_bytes: truth.content_bytes + 1, ..accepted(1, truth) }),
            Self::FalseCandidate => whole(accepted(1, other)),
            Self::OtherBytes | Self::OtherDigest => whole(other),
            Self::LaterBytes => whole(accepted(now.0 + LATER_MILLIS, other)),
            Self::UsedUpName => {
                let tombstone = Tombstone { task: name.task_id(), generation: GENERATION_MAX, deleted: now };
                return Some(Record::Deleted(tombstone));
            }
            Self::Deleted => return None,
            _ => whole(truth),
        };
        Some(Record::Held(announcement))
    }

    /// What it answers on a piece stream.
    pub(crate) fn answer(self, content: &Content, request: &PieceRequest) -> Answer {
        let Some(held) = content.held(self, request) else { return Answer::at_once(PieceResponse::NotHeld) };
        match (self, request.index) {
            (Self::Silent, _) => Answer { pace: Pace::Never, ..Answer::at_once(PieceResponse::NotHeld) },
            (Self::FalseHolder, _) | (Self::FalseHave, Some(_)) => Answer::at_once(PieceResponse::NotHeld),
            (Self::WrongManifest, None) => content.other.manifest(),
            (Self::WrongLength | Self::UnprovedLength, None) => held.manifest_of_length(held.false_length()),
            (_, None) => held.manifest(),
            (_, Some(index)) => match held.manifest.layout().index(index) {
                Ok(index) => self.piece(content, held, index),
                Err(_) => Answer::at_once(PieceResponse::NotHeld),
            },
        }
    }

    fn piece(self, content: &Content, held: &Held, index: PieceIndex) -> Answer {
        let is_last = index.get() + 1 == held.manifest.layout().pieces();
        let put_off = || Answer::at_once(PieceResponse::Busy { retry_millis: RETRY_MILLIS });
        let mut body = held.piece(index).to_vec();
        match self {
            Self::WrongBytes => {
                if let Some(byte) = body.first_mut() {
                    *byte ^= 1;
                }
            }
            Self::ShortBytes => drop(body.pop()),
            Self::WrongManifest => body = content.other.piece(index).to_vec(),
            Self::WrongLength if is_last => drop(body.pop()),
            Self::UnprovedLength if is_last => return put_off(),
            Self::PutOff => return put_off(),
            _ => {}
        }
        let pace = match self {
            Self::Stalled => Pace::Half,
            Self::Dripping => Pace::Drip,
            _ => Pace::AtOnce,
        };
        Answer { response: PieceResponse::Piece { bytes: body.len() }, body, pace }
    }

    /// What it says that it has, on a have stream: once, or again and again.
    pub(crate) fn have(self, content: &Content) -> (HaveUpdate, bool) {
        let layout = content.truth.manifest.layout();
        match self {
            Self::FalseHave => (HaveUpdate::bitmap(&layout, layout.indices()), true),
            _ => (HaveUpdate::Complete, false),
        }
    }
}

/// What kind of name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Naming {
    /// Any.
    Plain,
    /// The SHA-256 of the bytes.
    Sha256,
    /// Their BLAKE3.
    Blake3,
}

/// Bytes of others, and other bytes of the same length.
#[derive(Debug)]
pub(crate) struct Content {
    truth: Held,
    other: Held,
}

impl Content {
    pub(crate) fn of(bytes: Vec<u8>) -> Self {
        let other = bytes.iter().map(|byte| !byte).collect();
        Self { truth: Held::of(bytes), other: Held::of(other) }
    }

    /// The bytes that are asked for, if the liar says that it has them.
    fn held(&self, lie: Behavior, request: &PieceRequest) -> Option<&Held> {
        let held = if lie == Behavior::FalseCandidate { &self.other } else { &self.truth };
        (held.manifest.content() == request.content).then_some(held)
    }
}

#[derive(Debug)]
struct Held {
    bytes: Vec<u8>,
    manifest: Manifest,
}

impl Held {
    fn of(bytes: Vec<u8>) -> Self {
        Self { manifest: hash_bytes(&bytes), bytes }
    }

    fn piece(&self, index: PieceIndex) -> &[u8] {
        let range = self.manifest.layout().range(index);
        &self.bytes[range.start as usize..range.end as usize]
    }

    /// One byte less, with as many pieces: content whose last piece is one byte long is not lied about.
    const fn false_length(&self) -> u64 {
        self.manifest.layout().content_bytes() - 1
    }

    fn manifest(&self) -> Answer {
        self.manifest_of_length(self.manifest.layout().content_bytes())
    }

    fn manifest_of_length(&self, content_bytes: u64) -> Answer {
        let digests = self.manifest.digests();
        let response = PieceResponse::Manifest { content_bytes, digests: digests.len(), data_bytes: content_bytes };
        Answer { response, body: digests.as_flattened().to_vec(), pace: Pace::AtOnce }
    }
}

fn binding(held: &Held) -> Binding {
    let content_bytes = held.manifest.layout().content_bytes();
    Binding { content: held.manifest.content(), content_bytes, generation: 1, accepted: None, expires: None }
}

/// An answer on a piece stream.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) response: PieceResponse,
    pub(crate) body: Vec<u8>,
    pub(crate) pace: Pace,
}

impl Answer {
    const fn at_once(response: PieceResponse) -> Self {
        Self { response, body: Vec::new(), pace: Pace::AtOnce }
    }
}

/// How an answer comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// All of it.
    AtOnce,
    /// The first half, and then nothing.
    Half,
    /// A byte now and then.
    Drip,
    /// Not at all.
    Never,
}

#[cfg(test)]
mod tests {
    use damselfly_messages::transfer::manifest_from_body;

    use super::*;

    fn content() -> Content {
        Content::of((0..(2 << 20) + 77).map(|at: u32| (at >> 3) as u8 ^ (at >> 13) as u8).collect())
    }

    fn ask(lie: Behavior, content: &Content, index: Option<u32>) -> Answer {
        lie.answer(content, &PieceRequest { content: content.truth.manifest.content(), index, trace: None })
    }

    #[test]
    fn names_are_as_they_are_written() {
        for lie in Behavior::ALL {
            let written = serde_json::to_value(lie).expect("text");
            assert_eq!(written, lie.name());
        }
    }

    #[test]
    fn a_lie_is_one() {
        let content = content();
        let id = content.truth.manifest.content();
        let believed = |lie| {
            let Answer { response, body, .. } = ask(lie, &content, None);
            let PieceResponse::Manifest { content_bytes, .. } = response else { panic!("{lie:?}: {response:?}") };
            manifest_from_body(id, content_bytes, &body)
        };
        assert!(believed(Behavior::WrongManifest).is_err());
        for lie in [Behavior::WrongLength, Behavior::UnprovedLength] {
            let manifest = believed(lie).expect("its digests are right");
            assert_ne!(manifest.layout(), content.truth.manifest.layout());
        }
        for lie in [Behavior::WrongBytes, Behavior::ShortBytes, Behavior::WrongManifest, Behavior::WrongLength] {
            let manifest = believed(lie).unwrap_or_else(|_| content.truth.manifest.clone());
            let last = manifest.layout().index(2).expect("three pieces");
            let Answer { body, .. } = ask(lie, &content, Some(2));
            assert!(!manifest.verifies(last, &body), "{lie:?}");
        }
        let Answer { body, .. } = ask(Behavior::Stalled, &content, Some(0));
        assert_eq!(body, content.truth.bytes[..1 << 20], "it would be right, if it came");
        assert_eq!(ask(Behavior::FalseHolder, &content, None).response, PieceResponse::NotHeld);
    }
}
