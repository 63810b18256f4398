//! `/api/v1/ring`: the schedulers' shards, small enough for a picture.

use std::collections::HashMap;

use axum::{Json, extract};
use damselfly_messages::ring::Ring;
use libp2p::PeerId;
use serde::Serialize;
use utoipa::ToSchema;

use super::Problem;
use crate::state::{ChangeError, State};

/// The ring is shown in so many parts of the same length, whatever number of points it has.
const SLOTS: u16 = 360;
/// Positions on the ring.
const WHOLE: u128 = 1 << 64;

/// The ring of an epoch.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub(super) struct RingPicture {
    epoch: u64,
    /// How many owners each task has.
    replicas: usize,
    /// Equal parts of the ring that `arcs` count in.
    slots: u16,
    members: Vec<RingMember>,
    /// Clockwise from position 0, without gaps.
    arcs: Vec<RingArc>,
}

/// A scheduler of the ring.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub(super) struct RingMember {
    peer_id: String,
    /// For how much of the ring it is the first owner, in percent; exact, not from `arcs`.
    share_percent: f64,
}

/// Neighbouring slots in which one member has most.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub(super) struct RingArc {
    /// The first slot.
    from: u16,
    /// The slot after the last one.
    to: u16,
    /// Index into `members`.
    member: usize,
}

pub(super) async fn show(extract::State(state): extract::State<State>) -> Result<Json<RingPicture>, Problem> {
    let current = state.current().ok_or(ChangeError::Nothing)?;
    Ok(Json(cluster_view(&current.ring, current.configuration.epoch)))
}

fn cluster_view(ring: &Ring, epoch: u64) -> RingPicture {
    let numbers: HashMap<PeerId, usize> = ring.members().iter().copied().zip(0..).collect();
    let arcs: Vec<_> = ring.arcs().map(|(end, peer)| (end, numbers[&peer])).collect();
    let mut shares = vec![0; numbers.len()];
    let mut in_slots = vec![vec![0; numbers.len()]; if arcs.is_empty() { 0 } else { usize::from(SLOTS) }];
    for (from, to, member) in parts(&arcs) {
        shares[member] += to - from;
        split(from, to, |slot, length| in_slots[slot][member] += length);
    }
    let most = |lengths: &Vec<u128>| (0..lengths.len()).max_by_key(|member| lengths[*member]).unwrap_or_default();
    let percent = |share: u128| 100.0 * share as f64 / WHOLE as f64;
    let members = ring.members().iter().zip(shares);
    RingPicture {
        epoch,
        replicas: ring.replicas(),
        slots: SLOTS,
        members: members
            .map(|(peer, share)| RingMember { peer_id: peer.to_string(), share_percent: percent(share) })
            .collect(),
        arcs: merged(in_slots.iter().map(most)),
    }
}

/// From and to of each arc and who has it, from position 0 to the end of the ring.
fn parts(arcs: &[(u64, usize)]) -> Vec<(u128, u128, usize)> {
    let Some((_, first)) = arcs.first() else { return Vec::new() };
    let mut from = 0;
    let ends = arcs.iter().map(|(end, member)| (u128::from(*end) + 1, *member)).chain([(WHOLE, *first)]);
    ends.map(|(to, member)| (std::mem::replace(&mut from, to), to, member)).filter(|(from, to, _)| from < to).collect()
}

/// Tells of each slot how much of it lies between `from` and `to`.
fn split(from: u128, to: u128, mut tell: impl FnMut(usize, u128)) {
    let slots = u128::from(SLOTS);
    // Slot n begins with the position n/360 of the ring, rounded up.
    let begin = |slot: u128| (slot * WHOLE).div_ceil(slots);
    let (first, last) = (from * slots / WHOLE, (to - 1) * slots / WHOLE);
    for slot in first..=last {
        tell(slot as usize, to.min(begin(slot + 1)).saturating_sub(from.max(begin(slot))));
    }
}

fn merged(slots: impl Iterator<Item = usize>) -> Vec<RingArc> {
    let mut arcs: Vec<RingArc> = Vec::new();
    for (slot, member) in (0..).zip(slots) {
        match arcs.last_mut().filter(|last| last.member == member) {
            Some(last) => last.to = slot + 1,
            None => arcs.push(RingArc { from: slot, to: slot + 1, member }),
        }
    }
    arcs
}

#[cfg(test)]
mod tests {
    use libp2p::identity::Keypair;

    use super::*;

    fn ring(weights: &[u32]) -> Ring {
        let member = |seed: u8| Keypair::ed25519_from_bytes([seed; 32]).expect("32 bytes").public().to_peer_id();
        Ring::new((1..).map(member).zip(weights.iter().copied()), 2)
    }

    #[test]
    fn the_picture_has_the_whole_ring_and_is_small() {
        for weights in [&[1][..], &[1, 1], &[1, 2, 3], &[100; 16]] {
            let cluster_view = cluster_view(&ring(weights), 7);
            assert_eq!((cluster_view.epoch, cluster_view.members.len()), (7, weights.len()));
            let shares: f64 = cluster_view.members.iter().map(|member| member.share_percent).sum();
            assert!((shares - 100.0).abs() < 1e-9, "{shares}");
            assert_eq!(cluster_view.arcs.first().map(|arc| arc.from), Some(0));
            assert_eq!(cluster_view.arcs.last().map(|arc| arc.to), Some(SLOTS));
            for pair in cluster_view.arcs.windows(2) {
                assert!(pair[0].to == pair[1].from && pair[0].member != pair[1].member, "{pair:?}");
            }
            let weight: u32 = weights.iter().sum();
            for (member, own) in cluster_view.members.iter().zip(weights) {
                let fair = 100.0 * f64::from(*own) / f64::from(weight);
                assert!((member.share_percent - fair).abs() < 0.3 * fair, "{weights:?}: {}", member.share_percent);
            }
        }
    }

    #[test]
    fn an_empty_ring_has_no_arcs() {
        let cluster_view = cluster_view(&Ring::default(), 1);
        assert!(cluster_view.members.is_empty() && cluster_view.arcs.is_empty());
    }

    #[test]
    fn a_slot_is_whose_part_of_it_is_longest() {
        let slot = WHOLE / u128::from(SLOTS);
        let arcs = [((slot / 4) as u64, 0), ((2 * slot) as u64, 1), ((3 * slot + slot / 3) as u64, 0)];
        let mut lengths = [[0; 2]; 5];
        for (from, to, member) in parts(&arcs) {
            split(from, to, |slot, length| {
                if let Some(slot) = lengths.get_mut(slot) {
                    slot[member] += length;
                }
            });
        }
        let most: Vec<_> = lengths.iter().map(|[zero, one]| usize::from(one > zero)).collect();
        assert_eq!(most, [1, 1, 0, 0, 0], "{lengths:?}");
        assert!(lengths.iter().all(|[zero, one]| (zero + one).abs_diff(slot) <= 1), "{lengths:?}");
    }
}
