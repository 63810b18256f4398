//! Piece buffers: reused, bounded for the whole daemon, and shared between those that cause them.
//!
//! An account may take memory while what it has is at most what would be left. So one account alone gets half of the
//! budget, each of `n` gets one part of `n + 1`, and one more always finds that part free, however long the others hold
//! theirs. A parent's account is a part of its download's in the same way. A peer that is served has at most an eighth, or one
//! piece: peers that do not read hold what they have for long.

use std::{
    collections::HashMap,
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use damselfly_messages::id::ContentId;
use libp2p::PeerId;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Granularity in which memory is counted.
const UNIT_BYTES: usize = 64 << 10;
/// A peer that is served has at most one part of so many of the budget, beyond its first piece.
const UPLOAD_PART: usize = 8;
/// Free buffers are kept up to this size; larger ones are rare and go back.
const KEPT_BYTES_MAX: usize = 1 << 20;
/// How many free buffers are kept.
const KEPT_MAX: usize = 32;
/// A buffer that grows begins with this length, ...
const FIRST_BYTES: usize = UNIT_BYTES;
/// ... and is this many times as long after each step: what has arrived is copied, so there are few steps.
const GROWTH: usize = 16;

/// A bounded amount of memory for pieces on their way; cheap to clone.
#[derive(Clone)]
pub struct Buffers {
    budget: Arc<Budget>,
    /// Half of it, for buffers that may be kept for any time.
    lasting: Arc<Semaphore>,
    free: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// What memory is charged to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Account {
    /// Pieces on their way to a peer.
    Upload(PeerId),
    /// Pieces of a content that arrive from a parent.
    Download(ContentId, PeerId),
}

/// One level of shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Share {
    Peer(PeerId),
    Content(ContentId),
    Parent(ContentId, PeerId),
}

impl Account {
    /// The wider share first.
    fn shares(self) -> impl Iterator<Item = Share> {
        let shares = match self {
            Self::Upload(peer) => [Some(Share::Peer(peer)), None],
            Self::Download(content, parent) => [Some(Share::Content(content)), Some(Share::Parent(content, parent))],
        };
        shares.into_iter().flatten()
    }
}

/// Memory in units of [`UNIT_BYTES`].
#[derive(Debug)]
struct Budget {
    units: usize,
    state: Mutex<Used>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Used {
    all: usize,
    by_share: HashMap<Share, usize>,
    waiting: usize,
}

/// Memory that is charged until this is dropped.
pub struct Charge {
    budget: Arc<Budget>,
    account: Account,
    units: usize,
}

/// A buffer that goes back when it is dropped.
pub struct Buffer {
    bytes: Vec<u8>,
    free: Arc<Mutex<Vec<Vec<u8>>>>,
    charge: Charge,
}

impl Budget {
    /// Waits until `account` may have `units` more.
    async fn charge(&self, account: Account, units: usize) {
        if self.lock().try_charge(account, units, self.units) {
            return;
        }
        let _waiting = Waiting::begin(self);
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // From here on nothing that is freed is missed.
            freed.as_mut().enable();
            if self.lock().try_charge(account, units, self.units) {
                return;
            }
            freed.await;
        }
    }

    fn give_back(&self, account: Account, units: usize) {
        let mut used = self.lock();
        used.all -= units;
        for share in account.shares() {
            if let Some(of_share) = used.by_share.get_mut(&share) {
                *of_share -= units;
                if *of_share == 0 {
                    used.by_share.remove(&share);
                }
            }
        }
        let is_awaited = used.waiting > 0;
        drop(used);
        if is_awaited {
            self.freed.notify_waiters();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Used {
    fn try_charge(&mut self, account: Account, units: usize, most: usize) -> bool {
        let mut left = most.saturating_sub(self.all);
        if units > left {
            return false;
        }
        for share in account.shares() {
            let used = self.by_share.get(&share).copied().unwrap_or(0);
            let is_upload = matches!(share, Share::Peer(_));
            if is_upload && used > 0 && used + units > most / UPLOAD_PART {
                return false;
            }
            // One that has nothing may always have something.
            if used > 0 && used + units > left {
                return false;
            }
            left = left.saturating_sub(used);
        }
        self.all += units;
        for share in account.shares() {
            *self.by_share.entry(share).or_default() += units;
        }
        true
    }
}

/// Somebody waits for memory, until this is dropped.
struct Waiting<'a>(&'a Budget);

impl<'a> Waiting<'a> {
    fn begin(budget: &'a Budget) -> Self {
        budget.lock().waiting += 1;
        Self(budget)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.lock().waiting -= 1;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.give_back(self.account, self.units);
    }
}

impl Buffers {
    /// Buffers of `budget_bytes` together.
    pub fn new(budget_bytes: usize) -> Self {
        let units = (budget_bytes / UNIT_BYTES).max(1);
        let lasting = Arc::new(Semaphore::new(units / 2));
        let budget = Budget { units, state: Mutex::default(), freed: Notify::new() };
        Self { budget: Arc::new(budget), lasting, free: Arc::default() }
    }

    /// Waits until `account` may have `bytes` more, then gives a buffer of that length. What it holds is left over.
    pub async fn take(&self, account: Account, bytes: usize) -> Buffer {
        let charge = self.charge(account, bytes).await;
        let mut vector = lock(&self.free).pop().unwrap_or_default();
        vector.resize(bytes, 0);
        Buffer { bytes: vector, free: Arc::clone(&self.free), charge }
    }

    /// A buffer for the first of `bytes` that arrive; it [grows](Self::grow) as they do.
    pub async fn begin(&self, account: Account, bytes: usize) -> Buffer {
        let first = bytes.min(FIRST_BYTES);
        let charge = self.charge(account, first).await;
        // Not one of the free ones, which are longer than what is charged.
        Buffer { bytes: vec![0; first], free: Arc::clone(&self.free), charge }
    }

    /// Makes a buffer that is full longer, `bytes` at most. When the future is dropped it is as it was.
    pub async fn grow(&self, buffer: &mut Buffer, bytes: usize) {
        let longer = bytes.min(buffer.len() * GROWTH);
        let units = self.units_of(longer) - buffer.charge.units;
        self.budget.charge(buffer.charge.account, units).await;
        buffer.charge.units += units;
        let mut vector = lock(&self.free).pop().unwrap_or_default();
        vector.resize(longer, 0);
        vector[..buffer.len()].copy_from_slice(buffer);
        buffer.bytes = vector;
    }

    /// Leave to keep a buffer of `bytes` however long it takes; `None` when those that are kept so are half of all.
    pub fn share(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.lasting).try_acquire_many_owned(self.units_of(bytes) as u32).ok()
    }

    /// Waits until `account` may have `bytes` more, for memory that is not a [`Buffer`].
    pub async fn charge(&self, account: Account, bytes: usize) -> Charge {
        let units = self.units_of(bytes);
        self.budget.charge(account, units).await;
        Charge { budget: Arc::clone(&self.budget), account, units }
    }

    fn units_of(&self, bytes: usize) -> usize {
        bytes.div_ceil(UNIT_BYTES).clamp(1, self.budget.units)
    }
}

impl Buffer {
    /// The vector itself, for those who set its length.
    pub const fn as_vec(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        if (FIRST_BYTES + 1..=KEPT_BYTES_MAX).contains(&bytes.capacity()) {
            let mut free = lock(&self.free);
            if free.len() < KEPT_MAX {
                free.push(bytes);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use damselfly_messages::hasher::hash_bytes;
    use futures::FutureExt as _;

    use super::*;

    const MIB: usize = 1 << 20;

    fn take_all(buffers: &Buffers, account: Account) -> Vec<Buffer> {
        std::iter::from_fn(|| buffers.take(account, MIB).now_or_never()).collect()
    }

    #[test]
    fn one_more_peer_always_finds_room() {
        let (buffers, mut held) = (Buffers::new(64 * MIB), Vec::new());
        for peer in 1..=4 {
            let taken = take_all(&buffers, Account::Upload(PeerId::random()));
            assert_eq!(taken.len(), 64 / UPLOAD_PART, "peer {peer}");
            held.extend(taken);
        }
        assert!(held.len() < 64, "room is left");
        let room: Vec<_> = (0..64 - held.len()).map(|_| Account::Upload(PeerId::random())).collect();
        let others: Vec<_> = room.into_iter().map(|other| buffers.take(other, MIB).now_or_never()).collect();
        assert!(others.iter().all(Option::is_some), "a piece for each of as many as there is room for");
    }

    #[test]
    fn a_peer_has_one_piece_of_any_length() {
        let buffers = Buffers::new(64 * MIB);
        let large = |account| buffers.take(account, 16 * MIB).now_or_never();
        let (stalled, other) = (Account::Upload(PeerId::random()), Account::Upload(PeerId::random()));
        let _held = [large(stalled).expect("one"), large(other).expect("one for another")];
        assert!(large(stalled).is_none() && large(other).is_none(), "no second one");
        assert!(large(Account::Upload(PeerId::random())).is_some(), "two that stall leave room for a third");
    }

    #[tokio::test]
    async fn who_waits_is_next_when_some_is_given_back() {
        let (buffers, peer) = (Buffers::new(4 * MIB), Account::Upload(PeerId::random()));
        let mut held = take_all(&buffers, peer);
        assert_eq!(held.len(), 1, "one piece");
        let mut waiting = Box::pin(buffers.take(peer, MIB));
        assert!(waiting.as_mut().now_or_never().is_none());
        held.pop();
        assert!(waiting.now_or_never().is_some());
        drop(held);
        assert_eq!(buffers.budget.lock().all, 0);
        assert!(buffers.budget.lock().by_share.is_empty());
    }

    #[test]
    fn parents_share_what_their_download_may_have() {
        let buffers = Buffers::new(96 * MIB);
        let content = hash_bytes(b"slow").content();
        let slow: Vec<_> =
            (0..3).flat_map(|_| take_all(&buffers, Account::Download(content, PeerId::random()))).collect();
        assert!(slow.len() < 48, "{} pieces", slow.len());
        let beside = take_all(&buffers, Account::Download(content, PeerId::random()));
        assert!(!beside.is_empty(), "a fourth parent of that content has room");
        let other = Account::Download(hash_bytes(b"other").content(), PeerId::random());
        assert!(take_all(&buffers, other).len() >= 16, "another content has more");
    }

    #[tokio::test]
    async fn memory_is_charged_as_bytes_arrive() {
        let (buffers, parent) = (Buffers::new(96 * MIB), PeerId::random());
        let account = Account::Download(hash_bytes(b"slow").content(), parent);
        let mut buffer = buffers.begin(account, 16 * MIB).await;
        buffer.fill(7);
        for expected in [FIRST_BYTES, MIB, 16 * MIB] {
            assert_eq!((buffer.len(), buffers.budget.lock().all * UNIT_BYTES), (expected, expected));
            assert!(buffer[..FIRST_BYTES].iter().all(|byte| *byte == 7), "what had arrived is kept");
            if expected < 16 * MIB {
                buffers.grow(&mut buffer, 16 * MIB).await;
            }
        }
        drop(buffer);
        assert_eq!(buffers.budget.lock().all, 0);
    }
}
