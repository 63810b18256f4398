//! The records that hosts keep and schedulers learn: which content a task is bound to, and which tasks are deleted.

use std::{cmp::Ordering, fmt, time::SystemTime};

use crate::{
    id::{ContentId, TaskId},
    name::Name,
};

/// Highest generation; far more deletes than a name ever sees, and far from overflow.
pub const GENERATION_MAX: u64 = 1 << 48;

/// How far ahead of another host's clock a host's times may be.
pub const CLOCK_LEEWAY_MS: u64 = 300_000;

/// Whether a name would have been deleted more often than once in each millisecond since 1970.
///
/// Without a bound a single member could use up all generations of a name, and nobody could bind it any more. With this one
/// the next generation is always there a moment later, so that a false one is no more than a delete.
pub const fn is_beyond(generation: u64, now: UnixMillis) -> bool {
    generation > now.0.saturating_add(CLOCK_LEEWAY_MS)
}

/// A moment of wall-clock time, in milliseconds since 1970. Compared between hosts, so only as good as their clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// A time of another host's clock, not further ahead of `now` than clocks may be.
    pub fn clamp_to(self, now: Self) -> Self {
        self.min(Self(now.0.saturating_add(CLOCK_LEEWAY_MS)))
    }
}

impl From<SystemTime> for UnixMillis {
    fn from(time: SystemTime) -> Self {
        Self(time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64))
    }
}

/// What a task is bound to: a content, since a moment, in a generation that grows with every delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// The bytes.
    pub content: ContentId,
    /// Their length, as claimed by who announced it.
    pub content_bytes: u64,
    /// 1 at first; a re-import after a delete takes the tombstone's plus one.
    pub generation: u64,
    /// When an owner accepted it; `None` while the import waits for one.
    pub accepted: Option<UnixMillis>,
    /// When hosts that have not pinned it give it up; `None`: never.
    pub expires: Option<UnixMillis>,
}

impl Binding {
    /// Which of two bindings of one task stands: `Greater` when `self` does.
    ///
    /// Higher generation, then accepted over queued, then earlier, then the smaller content ID. `Equal` only for the
    /// same content with the same history, so every host decides alike.
    pub fn precedence(&self, other: &Self) -> Ordering {
        let accepted_first = |binding: &Self| binding.accepted.map_or(u64::MAX, |at| at.0);
        self.generation
            .cmp(&other.generation)
            .then_with(|| accepted_first(other).cmp(&accepted_first(self)))
            .then_with(|| other.content.cmp(&self.content))
    }

    /// Takes over what is stronger in another binding of the same content: the generation, then the earlier acceptance
    /// and the later end. So hosts that merge in any order agree, and nobody who was promised more gets less.
    pub fn merge(&mut self, other: &Self) {
        debug_assert_eq!(self.content, other.content);
        // What a delete has ended promises nothing to the generation after it.
        let expires = match self.generation.cmp(&other.generation) {
            Ordering::Equal => later_end(self.expires, other.expires),
            Ordering::Greater => self.expires,
            Ordering::Less => other.expires,
        };
        if other.precedence(self) == Ordering::Greater {
            *self = *other;
        }
        self.expires = expires;
    }
}

/// The later of two ends; never is the latest.
fn later_end(one: Option<UnixMillis>, other: Option<UnixMillis>) -> Option<UnixMillis> {
    Some(one?.max(other?))
}

/// The durable memory of a delete: beats bindings of its own generation and lower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tombstone {
    /// The deleted task.
    pub task: TaskId,
    /// The highest generation it buries.
    pub generation: u64,
    /// When it was deleted: by the clock of the owner that did it, or, if that had to wait, of the host that asked.
    pub deleted: UnixMillis,
}

impl Tombstone {
    /// Whether the delete holds against `binding`.
    pub const fn buries(&self, binding: &Binding) -> bool {
        binding.generation <= self.generation
    }
}

/// A claim of a host: it holds a content under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// The task's name.
    pub name: Name,
    /// What the host has bound to it.
    pub binding: Binding,
    /// How much of it is there.
    pub holding: Holding,
}

/// What a host keeps durably and tells its tasks' owners.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// It holds a content under a name.
    Held(Announcement),
    /// It knows of a delete.
    Deleted(Tombstone),
}

impl Record {
    /// The task it is about. Hashes the name.
    pub fn task(&self) -> TaskId {
        match self {
            Self::Held(announcement) => announcement.name.task_id(),
            Self::Deleted(tombstone) => tombstone.task,
        }
    }

    /// A digest of what matters to an owner, for comparing what was told with what was heard.
    ///
    /// Of a download under way it leaves out how far it is.
    pub fn digest(&self) -> u64 {
        let mut hasher = blake3::Hasher::new();
        match self {
            Self::Held(Announcement { name, binding, holding }) => {
                hasher.update(b"held").update(name.task_id().digest()).update(binding.content.digest());
                hasher.update(&binding.generation.to_be_bytes());
                hasher.update(&binding.accepted.map_or(u64::MAX, |at| at.0).to_be_bytes());
                hasher.update(&binding.expires.map_or(u64::MAX, |at| at.0).to_be_bytes());
                hasher.update(&[matches!(holding, Holding::Complete).into()]);
            }
            Self::Deleted(tombstone) => {
                hasher.update(b"gone").update(tombstone.task.digest()).update(&tombstone.generation.to_be_bytes());
            }
        }
        let mut first = [0; 8];
        first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        u64::from_be_bytes(first)
    }
}

/// How many buckets the tasks of a host are divided into for [`BucketDigests`].
pub const BUCKETS: usize = 256;

/// For each bucket the exclusive or of its records' digests: equal on both sides when what was told was heard.
#[derive(Clone, PartialEq, Eq)]
pub struct BucketDigests([u64; BUCKETS]);

impl Default for BucketDigests {
    fn default() -> Self {
        Self([0; BUCKETS])
    }
}

impl BucketDigests {
    /// Adds or, as exclusive or undoes itself, removes a record's digest.
    pub fn toggle(&mut self, task: &TaskId, digest: u64) {
        self.0[task.bucket() as usize] ^= digest;
    }

    /// The buckets in which `other` differs.
    pub fn mismatches(&self, other: &Self) -> Vec<u8> {
        (0..=u8::MAX).filter(|bucket| self.0[*bucket as usize] != other.0[*bucket as usize]).collect()
    }

    /// The 256 digests in order.
    pub const fn as_array(&self) -> &[u64; BUCKETS] {
        &self.0
    }
}

impl From<[u64; BUCKETS]> for BucketDigests {
    fn from(digests: [u64; BUCKETS]) -> Self {
        Self(digests)
    }
}

impl fmt::Debug for BucketDigests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let used = self.0.iter().filter(|digest| **digest != 0).count();
        write!(f, "BucketDigests({used} used)")
    }
}

/// How much of a content a host holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holding {
    /// All of it, durable.
    Complete,
    /// So many verified pieces, more to come.
    Partial {
        /// Number of verified pieces.
        pieces: u32,
    },
}

impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (generation {})", self.content, self.generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding(content: u8, generation: u64, accepted: Option<u64>) -> Binding {
        Binding {
            content: ContentId::from_digest([content; 32]),
            content_bytes: 1,
            generation,
            accepted: accepted.map(UnixMillis),
            expires: None,
        }
    }

    #[test]
    fn of_two_ends_the_later_stands_whatever_the_order() {
        let ending = |generation, accepted, end: Option<u64>| Binding {
            expires: end.map(UnixMillis),
            ..binding(1, generation, Some(accepted))
        };
        let cases = [
            (ending(1, 5, Some(70)), ending(1, 4, Some(60)), Some(70), "the later, though accepted later"),
            (ending(1, 5, None), ending(1, 4, Some(60)), None, "never"),
            (ending(2, 9, Some(60)), ending(1, 4, None), Some(60), "what was deleted promises nothing"),
        ];
        for (one, other, end, why) in cases {
            let (mut left, mut right) = (one, other);
            left.merge(&other);
            right.merge(&one);
            assert_eq!((left, left.expires), (right, end.map(UnixMillis)), "{why}");
        }
    }

    #[test]
    fn precedence_is_the_same_seen_from_both_sides() {
        let cases = [
            (binding(9, 2, None), binding(1, 1, Some(1)), "a higher generation"),
            (binding(9, 1, Some(5)), binding(1, 1, None), "accepted over queued"),
            (binding(9, 1, Some(4)), binding(1, 1, Some(5)), "the earlier"),
            (binding(1, 1, Some(4)), binding(9, 1, Some(4)), "the smaller content"),
            (binding(1, 1, None), binding(9, 1, None), "the smaller content, both queued"),
        ];
        for (winner, loser, reason) in cases {
            assert_eq!(winner.precedence(&loser), Ordering::Greater, "{reason}");
            assert_eq!(loser.precedence(&winner), Ordering::Less, "{reason}");
            assert_eq!(winner.precedence(&winner), Ordering::Equal);
        }
    }

    #[test]
    fn a_tombstone_buries_its_generation_and_lower() {
        let tombstone =
            Tombstone { task: TaskId::from_bytes(&[0; 32]).expect("32"), generation: 2, deleted: UnixMillis(0) };
        assert!(tombstone.buries(&binding(1, 2, Some(1))) && tombstone.buries(&binding(1, 1, None)));
        assert!(!tombstone.buries(&binding(1, 3, None)));
    }
}
