//! What must hold when the cluster has come to rest.

use std::collections::{BTreeMap, BTreeSet};

use damselfly_messages::{
    id::TaskId,
    record::{Binding, Tombstone},
};
use libp2p::PeerId;

use super::World;

/// How much happened, so that a simulation in which nothing does is noticed.
#[derive(Debug, Default)]
pub(super) struct Summary {
    imported: usize,
    deleted: usize,
    lost: usize,
    held: usize,
    conflicts: u64,
}

impl Summary {
    pub(super) fn add(&mut self, other: Self) {
        self.imported += other.imported;
        self.deleted += other.deleted;
        self.lost += other.lost;
        self.held += other.held;
        self.conflicts += other.conflicts;
    }

    pub(super) fn assert_busy(&self, imports: usize) {
        eprintln!("{self:?}");
        assert!(
            self.imported >= imports && self.deleted >= imports / 10 && self.held > 0 && self.conflicts > 0,
            "{self:?}"
        );
        assert!(self.lost * 20 <= self.imported, "acknowledged names are lost to others too often: {self:?}");
    }
}

pub(super) fn check(world: &World, which: &str) -> Summary {
    let newest_deletes = newest_deletes(world);
    let mut summary = Summary::default();
    for node in &world.nodes {
        summary.deleted += node.deleted.len();
        for tombstone in &node.deleted {
            let kept =
                newest_deletes.get(&tombstone.task).is_some_and(|newest| newest.generation >= tombstone.generation);
            assert!(kept, "{which}: a delete is forgotten: {tombstone:?}");
        }
        for (task, binding) in &node.imported {
            summary.imported += 1;
            summary.lost += usize::from(!is_kept(world, &newest_deletes, node.peer, task, binding, which));
        }
    }
    let held = winners(world, &newest_deletes, which);
    summary.held = held.len();
    let states = world.schedulers.values().filter_map(|scheduler| scheduler.state.as_ref());
    summary.conflicts = states.map(|state| state.counters().conflicts).sum();
    check_owners(world, &newest_deletes, &held, which);
    summary
}

/// The highest tombstone of each task that any host keeps.
fn newest_deletes(world: &World) -> BTreeMap<TaskId, Tombstone> {
    let mut newest_deletes = BTreeMap::<TaskId, Tombstone>::new();
    for tombstone in world.nodes.iter().flat_map(|node| node.tombstones.values()) {
        let newest = newest_deletes.entry(tombstone.task).or_insert(*tombstone);
        if newest.generation < tombstone.generation {
            *newest = *tombstone;
        }
    }
    newest_deletes
}

/// Whether an acknowledged import still stands, or was deleted; not if it lost its name, which its host must know.
fn is_kept(
    world: &World,
    newest_deletes: &BTreeMap<TaskId, Tombstone>,
    host: PeerId,
    task: &TaskId,
    binding: &Binding,
    which: &str,
) -> bool {
    if newest_deletes.get(task).is_some_and(|newest| newest.buries(binding)) {
        return true;
    }
    let entry = world.nodes[world.by_peer[&host]].entries.get(task);
    let entry = entry.unwrap_or_else(|| panic!("{which}: {host} has lost {task} {binding}"));
    assert_eq!(entry.binding.content, binding.content, "{which}: {task}");
    match entry.lost_to {
        None => true,
        Some(winner) => {
            assert!(winner.precedence(&entry.binding).is_gt(), "{which}: lost to a weaker one");
            false
        }
    }
}

/// Each task's content and holders. One winner per name, and nothing that was deleted.
fn winners(
    world: &World,
    newest_deletes: &BTreeMap<TaskId, Tombstone>,
    which: &str,
) -> BTreeMap<TaskId, (Binding, BTreeSet<PeerId>)> {
    let mut winners = BTreeMap::<TaskId, (Binding, BTreeSet<PeerId>)>::new();
    for node in &world.nodes {
        for (task, entry) in node.entries.iter().filter(|(_, entry)| entry.lost_to.is_none()) {
            let deleted = newest_deletes.get(task).is_some_and(|newest| newest.buries(&entry.binding));
            assert!(!deleted, "{which}: {} keeps {task} {} although it is deleted", node.peer, entry.binding);
            let (winner, holders) = winners.entry(*task).or_insert((entry.binding, BTreeSet::new()));
            assert_eq!(winner.content, entry.binding.content, "{which}: two contents stand under {task}");
            holders.insert(node.peer);
        }
    }
    winners
}

/// Every owner knows exactly what the hosts hold and what is deleted.
fn check_owners(
    world: &World,
    newest_deletes: &BTreeMap<TaskId, Tombstone>,
    held: &BTreeMap<TaskId, (Binding, BTreeSet<PeerId>)>,
    which: &str,
) {
    let newest = &world.epochs[&world.epoch()];
    for (number, scheduler) in &world.schedulers {
        let state = scheduler.state.as_ref().expect("it runs");
        assert_eq!(state.ring_history.epoch(), world.epoch(), "{which}");
        for task in newest_deletes.keys().chain(held.keys()).filter(|task| newest.ring.owns(number, task)) {
            // A host tells one record per task: a binding of the next generation stands for the tombstone before it.
            let known = state.tombstones.get(task).map(|kept| kept.generation);
            let implied = held.get(task).map_or(0, |(binding, _)| binding.generation - 1);
            let generation = newest_deletes.get(task).map(|newest| newest.generation);
            assert!(
                known == generation || generation <= Some(implied),
                "{which}: tombstone of {task}: {known:?}, not {generation:?}"
            );
            let candidate = state.tasks.get(task).and_then(|known| known.candidates.first());
            let known = candidate.filter(|candidate| !candidate.holders.is_empty());
            let peer = |holder: &crate::state::tasks::Holder| state.hosts.get(holder.host).expect("a host").peer;
            let known = known
                .map(|candidate| (candidate.binding.content, candidate.holders.iter().map(peer).collect()))
                .map(|(content, holders): (_, BTreeSet<_>)| (content, holders));
            let expected = held.get(task).map(|(binding, holders)| (binding.content, holders.clone()));
            assert_eq!(known, expected, "{which}: owner {number} of {task}");
        }
        let unheld = state.tasks.iter().filter(|(task, known)| {
            !held.contains_key(task) && known.candidates.iter().any(|candidate| !candidate.holders.is_empty())
        });
        assert_eq!(unheld.count(), 0, "{which}: holders of what nobody holds");
        let told: usize = state.hosts.iter().map(|(_, host)| host.told_len()).sum();
        let deleted: usize = state.hosts.iter().map(|(_, host)| host.told_tombstones()).sum();
        let counted = (state.announcements, state.announced_tombstones);
        assert_eq!((told - deleted, deleted), counted, "{which}: counted wrongly");
        for node in &world.nodes {
            let Some(host) = state.hosts.id(&node.peer).and_then(|id| state.hosts.get(id)) else { continue };
            let digests = node.digests(number);
            assert_eq!(host.digests().mismatches(&digests), super::super::NONE, "{which}: digests");
        }
    }
}
