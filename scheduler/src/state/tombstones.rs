//! Tombstones kept by a scheduler: bounded in number, each charged to the peer that reported it.
//!
//! When there is no room, the oldest tombstone of the peer with the most is dropped, so a peer that reports very many
//! displaces its own. A tombstone of a task that nobody has bound here proves no delete: it is dropped as soon as no
//! host stands by it any more.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use damselfly_messages::{
    id::TaskId,
    record::{Tombstone, UnixMillis},
};
use libp2p::PeerId;

use super::{holder_index::Gone, tasks::Keep};

/// A peer with tombstones. Never used again for another one.
type AccountId = u32;

/// One tombstone as it is kept.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) generation: u64,
    pub(super) deleted: UnixMillis,
    pub(super) keep: Keep,
    /// When a host last reported it.
    pub(super) told: Duration,
    account: AccountId,
    /// Hosts that announce it.
    reporters: u32,
    /// The task was bound here, before or after.
    bound: bool,
}

/// The tombstones of one peer.
#[derive(Debug)]
struct Account {
    peer: PeerId,
    by_age: BTreeSet<(UnixMillis, TaskId)>,
}

/// What is put in: a tombstone and why it is kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Report {
    pub(super) tombstone: Tombstone,
    pub(super) keep: Keep,
    /// Charged for it.
    pub(super) peer: PeerId,
    /// The task is bound here, or was until now.
    pub(super) bound: bool,
}

/// All tombstones. An account exists exactly while something is charged to it.
#[derive(Debug, Default)]
pub(super) struct Tombstones {
    kept: BTreeMap<TaskId, Kept>,
    accounts: HashMap<AccountId, Account>,
    ids: HashMap<PeerId, AccountId>,
    by_size: BTreeSet<(usize, AccountId)>,
    next: AccountId,
}

impl Tombstones {
    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    pub(super) fn get(&self, task: &TaskId) -> Option<&Kept> {
        self.kept.get(task)
    }

    pub(super) fn contains(&self, task: &TaskId) -> bool {
        self.kept.contains_key(task)
    }

    /// Keeps a tombstone, or raises the one that is there. Whoever raises it is charged for it.
    pub(super) fn put(&mut self, report: Report, at: Duration) {
        let Report { tombstone, keep, peer, bound } = report;
        let Tombstone { task, generation, deleted } = tombstone;
        let mut kept = Kept { generation, deleted, keep, told: at, account: 0, reporters: 0, bound };
        if let Some(known) = self.kept.get_mut(&task) {
            known.bound |= bound;
            (known.keep, known.told) = (keep, at);
            if generation <= known.generation {
                return;
            }
            (kept.reporters, kept.bound) = (known.reporters, known.bound);
            self.remove(&task);
        }
        kept.account = self.charge(peer, deleted, task);
        self.kept.insert(task, kept);
    }

    fn charge(&mut self, peer: PeerId, deleted: UnixMillis, task: TaskId) -> AccountId {
        let id = *self.ids.entry(peer).or_insert_with(|| {
            self.next += 1;
            self.next
        });
        let account = self.accounts.entry(id).or_insert_with(|| Account { peer, by_age: BTreeSet::new() });
        let before = account.by_age.len();
        account.by_age.insert((deleted, task));
        self.by_size.remove(&(before, id));
        self.by_size.insert((account.by_age.len(), id));
        id
    }

    pub(super) fn remove(&mut self, task: &TaskId) -> Option<Kept> {
        let kept = self.kept.remove(task)?;
        if let Some(account) = self.accounts.get_mut(&kept.account) {
            let before = account.by_age.len();
            account.by_age.remove(&(kept.deleted, *task));
            self.by_size.remove(&(before, kept.account));
            if account.by_age.is_empty() {
                self.ids.remove(&account.peer);
                self.accounts.remove(&kept.account);
            } else {
                self.by_size.insert((account.by_age.len(), kept.account));
            }
        }
        Some(kept)
    }

    /// Drops the oldest tombstone of the peer with the most; returns whether there was one.
    pub(super) fn drop_oldest(&mut self) -> bool {
        let largest = self.by_size.last().and_then(|(_, id)| self.accounts.get(id));
        let oldest = largest.and_then(|account| account.by_age.first()).map(|(_, task)| *task);
        oldest.is_some_and(|task| self.remove(&task).is_some())
    }

    /// The task is bound here: its tombstone, if there is one, is of a name that is in use.
    pub(super) fn on_bound(&mut self, task: &TaskId) {
        if let Some(kept) = self.kept.get_mut(task) {
            kept.bound = true;
        }
    }

    /// One more host announces the tombstone of `task`.
    pub(super) fn on_announced(&mut self, task: &TaskId) {
        if let Some(kept) = self.kept.get_mut(task) {
            kept.reporters += 1;
        }
    }

    /// One host less announces it. A host whose lease ended may come back; one that took it back does not stand by it.
    pub(super) fn on_withdrawn(&mut self, task: &TaskId, why: Gone) {
        let Some(kept) = self.kept.get_mut(task) else { return };
        kept.reporters = kept.reporters.saturating_sub(1);
        if why == Gone::Left && kept.reporters == 0 && !kept.bound {
            self.remove(task);
        }
    }

    /// Changes why tombstones are kept.
    pub(super) fn sort(&mut self, keep: impl Fn(&TaskId, Keep) -> Keep) {
        self.kept.iter_mut().for_each(|(task, kept)| kept.keep = keep(task, kept.keep));
    }

    /// Drops those that do not meet `wanted`; returns how many.
    pub(super) fn retain(&mut self, wanted: impl Fn(&Kept) -> bool) -> usize {
        let unwanted: Vec<_> = self.kept.iter().filter(|(_, kept)| !wanted(kept)).map(|(task, _)| *task).collect();
        for task in &unwanted {
            self.remove(task);
        }
        unwanted.len()
    }
}
