//! Which parents a child is given, and in which order.

use std::cmp::Reverse;

use crate::state::hosts::HostId;

/// A complete host with so many children comes after partial ones: it serves them, and they serve the rest.
const MANY_CHILDREN: u32 = 64;

/// So many children must have had trouble with a parent before others come first: one may have had its own.
const DOUBTFUL: usize = 2;

/// A host that could be a parent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Offer {
    pub(crate) host: HostId,
    /// It has every piece.
    pub(crate) complete: bool,
    /// It has the role seed.
    pub(crate) seed: bool,
    /// Verified pieces, in eighths of the content; below one eighth 0, or 1 with at least one piece.
    pub(crate) eighths: u8,
    /// 0 for the child's own host, then rack, zone, region, and 4 for none of these.
    pub(crate) distance: u8,
    /// Downloads that fetch from it now, of any content.
    pub(crate) children: u32,
    /// Children that had trouble with it.
    pub(crate) doubts: usize,
}

/// Sorts better groups first; what is alike goes by distance, then load, then a tie break of the child's own, so that
/// children that come together do not all begin with the same parent.
pub(crate) fn rank(mut offers: Vec<Offer>, child: HostId, seed: u64, max: usize) -> Vec<HostId> {
    offers.sort_by_cached_key(|offer| {
        let doubtful = offer.doubts >= DOUBTFUL;
        let tie = mix(seed ^ mix(u64::from(child.0) << 32 | u64::from(offer.host.0)));
        (doubtful, group(offer), Reverse(offer.eighths), offer.distance, offer.children, tie)
    });
    offers.truncate(max);
    offers.into_iter().map(|offer| offer.host).collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    Seed,
    Complete,
    Partial,
    Overloaded,
    /// Nothing yet, but it will be pushed to.
    Empty,
}

fn group(offer: &Offer) -> Group {
    match (offer.complete, offer.eighths) {
        (true, _) if offer.children >= MANY_CHILDREN => Group::Overloaded,
        (true, _) if offer.seed => Group::Seed,
        (true, _) => Group::Complete,
        (false, 0) => Group::Empty,
        (false, _) => Group::Partial,
    }
}

/// Eighths of `all` pieces that `held` are; 1 for any at all.
pub(crate) fn eighths(held: u32, all: u32) -> u8 {
    let eighths = u64::from(held) * 8 / u64::from(all.max(1));
    eighths.clamp((held > 0).into(), 8) as u8
}

/// The finalizer of SplitMix64.
const fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Offer =
        Offer { host: HostId(0), complete: false, seed: false, eighths: 4, distance: 4, children: 0, doubts: 0 };
    const COMPLETE: Offer = Offer { complete: true, eighths: 8, ..PLAIN };

    #[test]
    fn the_better_parent_comes_first() {
        let seed = Offer { seed: true, ..COMPLETE };
        let table = [
            (seed, Offer { distance: 0, ..COMPLETE }, "a seed before any other complete host"),
            (COMPLETE, Offer { eighths: 7, distance: 0, ..PLAIN }, "complete before partial"),
            (PLAIN, Offer { eighths: 1, distance: 0, ..PLAIN }, "more pieces before near"),
            (Offer { distance: 1, children: 9, ..PLAIN }, Offer { distance: 2, ..PLAIN }, "near before idle"),
            (Offer { children: 1, ..PLAIN }, Offer { children: 2, ..PLAIN }, "idle before busy"),
            (PLAIN, Offer { children: MANY_CHILDREN, ..seed }, "partial before a swamped seed"),
            (Offer { children: MANY_CHILDREN, ..seed }, Offer { eighths: 0, ..PLAIN }, "swamped before empty"),
            (Offer { eighths: 0, ..PLAIN }, Offer { doubts: DOUBTFUL, ..seed }, "anything before a doubtful one"),
            (Offer { doubts: 1, ..seed }, COMPLETE, "one child's word changes nothing"),
        ];
        for (better, worse, reason) in table {
            let (better, worse) = (Offer { host: HostId(1), ..better }, Offer { host: HostId(2), ..worse });
            for offers in [vec![better, worse], vec![worse, better]] {
                assert_eq!(rank(offers, HostId(0), 7, 2), [HostId(1), HostId(2)], "{reason}");
            }
        }
    }

    #[test]
    fn equal_parents_are_spread_over_children() {
        let offers: Vec<_> = (0..10).map(|host| Offer { host: HostId(host), ..COMPLETE }).collect();
        let first = |child| rank(offers.clone(), HostId(child), 7, 1)[0];
        let used: std::collections::BTreeSet<_> = (100..200).map(first).collect();
        assert_eq!(used.len(), 10);
        assert_eq!(first(100), first(100), "the same seed decides alike");
    }

    #[test]
    fn eighths_of_pieces() {
        for (held, all, expected) in [(0, 8, 0), (1, 1000, 1), (500, 1000, 4), (1000, 1000, 8), (9, 8, 8), (0, 0, 0)] {
            assert_eq!(eighths(held, all), expected, "{held} of {all}");
        }
    }
}
