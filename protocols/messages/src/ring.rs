//! The hash ring: which schedulers own a task.
//!
//! Every program computes it from the same configuration, so its points are part of the wire format: SHA-256 of a domain
//! string, the member's PeerId and the number of the point, of which the first eight bytes count, big-endian.

use std::collections::HashSet;

use libp2p::PeerId;
use sha2::{Digest as _, Sha256};

use crate::id::TaskId;

/// Points on the ring per unit of weight.
const POINTS_PER_WEIGHT: u32 = 128;
/// A task has no more owners; the settings allow no more either.
pub const REPLICAS_MAX: usize = 8;
/// Separates the points from every other use of SHA-256.
const POINT_DOMAIN: &[u8] = b"damselfly ring v1\0";

/// A consistent-hash ring of schedulers.
#[derive(Debug, Clone, Default)]
pub struct Ring {
    /// Position and member, sorted.
    points: Vec<(u64, u16)>,
    members: Vec<PeerId>,
    replicas: usize,
}

impl Ring {
    /// A ring of weighted members in which each task has `replicas` owners, [`REPLICAS_MAX`] at most, or all members if
    /// there are fewer.
    pub fn new(members: impl IntoIterator<Item = (PeerId, u32)>, replicas: usize) -> Self {
        let mut ring = Self { points: Vec::new(), members: Vec::new(), replicas: replicas.min(REPLICAS_MAX) };
        for (member, weight) in members {
            let number = ring.members.len() as u16;
            ring.members.push(member);
            ring.points.extend((0..weight * POINTS_PER_WEIGHT).map(|point| (position(&member, point), number)));
        }
        // Points that collide are ordered by PeerId, so that the order of members does not matter.
        let Self { points, members, .. } = &mut ring;
        points.sort_unstable_by_key(|(position, number)| (*position, members[*number as usize]));
        ring
    }

    /// All members, in the order given.
    pub fn members(&self) -> &[PeerId] {
        &self.members
    }

    /// How many owners a task has.
    pub fn replicas(&self) -> usize {
        self.replicas.min(self.members.len())
    }

    /// All members in the order in which they answer for `task`: the owners, then those that stand in for them.
    pub fn walk(&self, task: &TaskId) -> impl Iterator<Item = PeerId> + '_ {
        let mut seen = HashSet::with_capacity(self.members.len());
        self.clockwise(task)
            .filter(move |number| seen.insert(*number))
            .map(|number| self.members[number as usize])
            .take(self.members.len())
    }

    /// The owners of `task`, the first one deciding about new names.
    ///
    /// Allocates nothing: a scheduler asks this for every record.
    pub fn owners(&self, task: &TaskId) -> impl Iterator<Item = PeerId> + '_ {
        let (mut seen, mut count) = ([0; REPLICAS_MAX], 0);
        self.clockwise(task)
            .filter(move |number| {
                let new = !seen[..count].contains(number);
                // The last owner ends the iteration, so there is room for it.
                if let Some(next) = seen.get_mut(count).filter(|_| new) {
                    *next = *number;
                    count += 1;
                }
                new
            })
            .map(|number| self.members[number as usize])
            .take(self.replicas())
    }

    /// The members' numbers from the task's position on, once round the ring.
    fn clockwise(&self, task: &TaskId) -> impl Iterator<Item = u16> + '_ {
        let start = self.points.partition_point(|(position, _)| *position < task.position());
        let (before, after) = self.points.split_at(start);
        after.iter().chain(before).map(|(_, number)| *number)
    }

    /// The parts of the ring clockwise, each with the position where it ends and who is the first to answer for it. A part
    /// begins after the end of the one before; the first one goes on where the last one ends.
    pub fn arcs(&self) -> impl Iterator<Item = (u64, PeerId)> + '_ {
        self.points.iter().map(|(position, number)| (*position, self.members[*number as usize]))
    }

    /// Whether `member` owns `task`.
    pub fn owns(&self, member: &PeerId, task: &TaskId) -> bool {
        self.owners(task).any(|owner| owner == *member)
    }
}

fn position(member: &PeerId, point: u32) -> u64 {
    let digest: [u8; 32] = Sha256::new()
        .chain_update(POINT_DOMAIN)
        .chain_update(member.to_bytes())
        .chain_update(point.to_be_bytes())
        .finalize()
        .into();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(first)
}

#[cfg(test)]
mod tests {
    use libp2p::identity::Keypair;
    use proptest::prelude::*;

    use super::*;
    use crate::name::Name;

    fn member(seed: u8) -> PeerId {
        Keypair::ed25519_from_bytes([seed; 32]).expect("32 bytes").public().to_peer_id()
    }

    fn task(number: usize) -> TaskId {
        Name::parse(&format!("task {number}"), "").expect("a name").task_id()
    }

    #[test]
    fn golden_vectors() {
        let ring = Ring::new([(member(1), 1), (member(2), 1), (member(3), 2)], 2);
        let owners =
            |number| ring.owners(&task(number)).map(|peer| (1..4).find(|n| member(*n) == peer)).collect::<Vec<_>>();
        let table: Vec<_> = (0..8).map(owners).collect();
        let expected: [[u8; 2]; 8] = [[2, 3], [1, 3], [3, 1], [3, 1], [1, 2], [3, 1], [1, 3], [3, 1]];
        assert_eq!(table, expected.map(|pair| pair.map(Some).to_vec()));
        assert_eq!(position(&member(1), 0), 5_358_784_829_113_915_713);
    }

    #[test]
    fn owners_are_distinct_and_the_order_of_members_does_not_matter() {
        let forth = Ring::new((1..6).map(|seed| (member(seed), 1)), 3);
        let back = Ring::new((1..6).rev().map(|seed| (member(seed), 1)), 3);
        for number in 0..200 {
            let owners: Vec<_> = forth.owners(&task(number)).collect();
            assert_eq!(owners.iter().collect::<HashSet<_>>().len(), 3);
            assert_eq!(owners, back.owners(&task(number)).collect::<Vec<_>>());
            assert_eq!(forth.walk(&task(number)).count(), 5);
        }
        assert_eq!(Ring::default().owners(&task(0)).count(), 0);
        assert_eq!(Ring::new([(member(1), 1)], 2).owners(&task(0)).count(), 1);
    }

    #[test]
    fn arcs_say_who_is_the_first_owner() {
        let ring = Ring::new([(member(1), 1), (member(2), 2), (member(3), 1)], 2);
        let arcs: Vec<_> = ring.arcs().collect();
        assert!(arcs.len() == 4 * POINTS_PER_WEIGHT as usize && arcs.is_sorted_by_key(|(end, _)| *end));
        for number in 0..500 {
            let task = task(number);
            let arc = arcs.iter().find(|(end, _)| task.position() <= *end).unwrap_or(&arcs[0]);
            assert_eq!(ring.owners(&task).next(), Some(arc.1));
        }
        assert_eq!(Ring::default().arcs().count(), 0);
    }

    #[test]
    fn owners_are_the_first_of_the_walk() {
        for replicas in 0..=REPLICAS_MAX {
            let ring = Ring::new((1..=10).map(|seed| (member(seed), 1)), replicas);
            for number in 0..200 {
                let task = task(number);
                let expected: Vec<_> = ring.walk(&task).take(replicas).collect();
                assert_eq!(ring.owners(&task).collect::<Vec<_>>(), expected);
                assert!(ring.members().iter().all(|peer| ring.owns(peer, &task) == expected.contains(peer)));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        /// A member that comes or goes moves about 1/N of the tasks, and only to or from itself.
        #[test]
        fn a_change_of_one_member_moves_only_its_share(seeds in prop::collection::hash_set(1u8..=255, 3..12)) {
            const TASKS: usize = 2000;
            let seeds: Vec<_> = seeds.into_iter().collect();
            let all = Ring::new(seeds.iter().map(|seed| (member(*seed), 1)), 1);
            let fewer = Ring::new(seeds[1..].iter().map(|seed| (member(*seed), 1)), 1);
            let changed = member(seeds[0]);
            let mut moved = 0;
            for number in 0..TASKS {
                let (before, after) = (fewer.owners(&task(number)).next(), all.owners(&task(number)).next());
                if before != after {
                    prop_assert_eq!(after, Some(changed));
                    moved += 1;
                }
            }
            let share = moved as f64 / TASKS as f64 * seeds.len() as f64;
            prop_assert!((0.6..1.5).contains(&share), "{} of 1/N moved", share);
        }
    }
}
