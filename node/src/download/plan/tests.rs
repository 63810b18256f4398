use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

fn layout(pieces: u64) -> PieceLayout {
    PieceLayout::new(pieces * MIB).expect("short")
}

fn plan(pieces: u64) -> (Plan, Instant) {
    let now = Instant::now();
    (Plan::new(layout(pieces), layout(pieces).indices(), 0, now), now)
}

fn drain(plan: &mut Plan, peer: &PeerId, now: Instant) -> Vec<u32> {
    std::iter::from_fn(|| plan.next(peer, now)).map(PieceIndex::get).collect()
}

#[test]
fn the_last_piece_comes_first_then_the_run() {
    let (mut plan, now) = plan(10);
    let peer = PeerId::random();
    assert!(plan.add_parent(peer, true, now));
    assert_eq!(drain(&mut plan, &peer, now), [9, 0, 1, 2, 3, 4, 5, 6], "as many as a new parent is allowed");
}

#[test]
fn who_gave_the_manifest_proves_its_length() {
    let (mut plan, now) = plan(3);
    let (author, other) = (PeerId::random(), PeerId::random());
    plan.prove_first_by(author);
    plan.add_parent(author, true, now);
    plan.add_parent(other, true, now);
    assert_eq!(drain(&mut plan, &other, now), [0, 1], "the last piece is not the other's");
    assert_eq!(drain(&mut plan, &author, now), [2]);
    plan.remove_parent(&author, ParentFault::Unreachable, now);
    assert_eq!(drain(&mut plan, &other, now), [2], "unless its author is gone");
}

#[test]
fn who_gave_the_manifest_cannot_put_the_proof_off_for_ever() {
    let (mut plan, now) = plan(1);
    let (author, other) = (PeerId::random(), PeerId::random());
    plan.prove_first_by(author);
    plan.add_parent(author, true, now);
    plan.add_parent(other, true, now);
    let last = plan.next(&author, now).expect("missing");
    plan.on_busy(&author, last, now + STUCK_AFTER, now);
    assert_eq!(plan.next(&other, now + STUCK_AFTER), None, "it may be busy for a while");
    assert_eq!(plan.next(&author, now + STUCK_AFTER), Some(last));
    assert_eq!(plan.next(&other, now + AUTHOR_ALONE), Some(last), "beside the author, who has it again");
    plan.on_own_delay(now + AUTHOR_ALONE);
    plan.give_back(&other, last);
    assert_eq!(plan.next(&other, now + AUTHOR_ALONE), None, "a delay of our own is not its fault");
}

#[test]
fn who_owes_a_piece_and_gives_nothing_is_silent() {
    let (mut plan, now) = plan(3);
    let [mute, slow, new] = [PeerId::random(), PeerId::random(), PeerId::random()];
    plan.add_parent(mute, true, now);
    let piece = |plan: &mut Plan, peer, now| plan.next(peer, now).expect("missing");
    piece(&mut plan, &mute, now);
    plan.add_parent(slow, true, now);
    let [first, _] = [piece(&mut plan, &slow, now), piece(&mut plan, &slow, now)];
    plan.add_parent(new, true, now);
    plan.on_piece(&slow, first, now + Duration::from_millis(1));
    assert!(plan.silent(now + STUCK_AFTER / 2).is_empty(), "not yet");
    assert_eq!(plan.silent(now + STUCK_AFTER), [mute], "neither who gives, nor who owes nothing");
}

#[test]
fn a_liar_is_news_once() {
    let (mut plan, now) = plan(1);
    let liar = PeerId::random();
    plan.add_parent(liar, true, now);
    assert!(plan.remove_parent(&liar, ParentFault::Unreachable, now).is_some());
    assert!(plan.remove_parent(&liar, ParentFault::NotHeld, now).is_none(), "it is out");
    assert!(plan.remove_parent(&liar, ParentFault::Lied, now).is_some(), "that it lied is more");
    assert!(plan.remove_parent(&liar, ParentFault::Lied, now).is_none(), "of each of its pieces");
    assert!(!plan.add_parent(liar, true, now + REST_MAX));
}

#[test]
fn rare_pieces_come_first() {
    let (mut plan, now) = plan(4);
    let (full, partial) = (PeerId::random(), PeerId::random());
    plan.add_parent(full, true, now);
    plan.add_parent(partial, false, now);
    let pieces: Vec<_> = [0, 1, 3].map(|index| layout(4).index(index).expect("exists")).to_vec();
    plan.parent_has(&partial, &pieces);
    assert_eq!(drain(&mut plan, &full, now), [3, 2, 0, 1]);
}

#[test]
fn a_fast_parent_gets_more_at_a_time_and_a_slow_one_less() {
    let (mut plan, now) = plan(1000);
    let peer = PeerId::random();
    plan.add_parent(peer, true, now);
    let first = drain(&mut plan, &peer, now);
    for index in &first {
        plan.on_piece(&peer, layout(1000).index(*index).expect("exists"), now + Duration::from_millis(1));
    }
    let second = drain(&mut plan, &peer, now);
    assert_eq!(second.len(), 16);
    for index in &second {
        plan.on_piece(&peer, layout(1000).index(*index).expect("exists"), now + Duration::from_secs(2));
    }
    assert_eq!(drain(&mut plan, &peer, now).len(), 1, "never less than one");
}

#[test]
fn no_more_is_asked_when_answers_only_wait_longer() {
    let cases =
        [(Duration::from_millis(79), 16, "three times the quickest and 20 ms"), (Duration::from_millis(81), 9, "more")];
    for (took, expected, why) in cases {
        let (mut plan, now) = plan(1000);
        let peer = PeerId::random();
        plan.add_parent(peer, true, now);
        let first = drain(&mut plan, &peer, now);
        for (number, index) in first.iter().enumerate() {
            let took = if number == 0 { Duration::from_millis(20) } else { took };
            plan.on_piece(&peer, layout(1000).index(*index).expect("exists"), now + took);
        }
        // The first one, which is the quickest, always adds one.
        assert_eq!(drain(&mut plan, &peer, now).len(), expected, "{why}");
    }
}

#[test]
fn a_late_piece_is_asked_of_one_other_parent() {
    let (mut plan, now) = plan(1);
    let peers = [PeerId::random(), PeerId::random(), PeerId::random()];
    for peer in peers {
        plan.add_parent(peer, true, now);
    }
    let index = plan.next(&peers[0], now).expect("missing");
    assert_eq!(plan.next(&peers[1], now), None, "not late yet");
    let late = now + LATE_AFTER;
    assert_eq!(plan.next(&peers[1], late), Some(index));
    assert_eq!(plan.next(&peers[2], late), None, "two are enough");
    assert!(plan.on_piece(&peers[1], index, late));
    assert!(!plan.on_piece(&peers[0], index, late), "held already");
    assert!(plan.is_complete());
}

#[test]
fn the_end_of_the_longest_queue_is_asked_first() {
    let (mut plan, mut now) = plan(6);
    let [slow, fast] = [PeerId::random(), PeerId::random()];
    plan.add_parent(slow, true, now);
    let mut queue = Vec::new();
    while let Some(index) = plan.next(&slow, now) {
        queue.push(index.get());
        now += Duration::from_millis(1);
    }
    plan.add_parent(fast, true, now);
    for index in drain(&mut plan, &fast, now) {
        plan.on_piece(&fast, plan.layout.index(index).expect("a piece"), now);
    }
    assert_eq!(plan.next(&fast, now), None, "not so soon");
    let behind = drain(&mut plan, &fast, now + BEHIND_AFTER);
    let newest: Vec<_> = queue.iter().rev().copied().take(queue.len() / 2).collect();
    assert_eq!(behind, newest, "what it comes to last, until both have as much to do");
    let oldest = queue[0];
    assert_eq!(plan.next(&fast, now + STUCK_AFTER).map(PieceIndex::get), Some(oldest), "it is stuck");
}

#[test]
fn what_a_lost_parent_had_is_wanted_again() {
    let (mut plan, now) = plan(3);
    let (gone, other) = (PeerId::random(), PeerId::random());
    plan.add_parent(gone, true, now);
    assert_eq!(drain(&mut plan, &gone, now).len(), 3);
    plan.remove_parent(&gone, ParentFault::Unreachable, now);
    assert!(!plan.has_sources());
    plan.add_parent(other, true, now);
    assert_eq!(drain(&mut plan, &other, now).len(), 3);
}

#[test]
fn who_comes_back_depends_on_the_fault() {
    let cases = [
        (ParentFault::Lied, false, "a liar never"),
        (ParentFault::Unreachable, true, "one that was not reached once"),
        (ParentFault::NotHeld, true, "one that did not hold it yet"),
    ];
    for (fault, welcome, reason) in cases {
        let (mut plan, now) = plan(1);
        let peer = PeerId::random();
        plan.add_parent(peer, true, now);
        plan.remove_parent(&peer, fault, now);
        assert!(!plan.add_parent(peer, true, now), "not at once: {reason}");
        assert_eq!(plan.add_parent(peer, true, now + REST_FIRST), welcome, "{reason}");
    }
}

#[test]
fn a_busy_parent_rests() {
    let (mut plan, now) = plan(2);
    let peer = PeerId::random();
    plan.add_parent(peer, true, now);
    let index = plan.next(&peer, now).expect("missing");
    plan.on_busy(&peer, index, now + Duration::from_secs(1), now);
    assert_eq!(plan.next(&peer, now), None);
    assert_eq!(plan.next(&peer, now + Duration::from_secs(1)), Some(index));
}

proptest! {
    /// Whatever parents do, every piece is fetched exactly once and none is lost.
    #[test]
    fn every_piece_arrives_once(pieces in 1u64..60, start in 0u32..100, script in prop::collection::vec((0usize..3, 0u8..6), 0..400)) {
        let mut now = Instant::now();
        let layout = layout(pieces);
        let mut plan = Plan::new(layout, layout.indices(), start, now);
        let peers = [PeerId::random(), PeerId::random(), PeerId::random()];
        let mut under_way: Vec<Vec<PieceIndex>> = vec![Vec::new(); 3];
        let mut arrived = HashSet::new();
        for (who, what) in script {
            now += Duration::from_millis(50);
            let peer = peers[who];
            match what {
                0 => { plan.add_parent(peer, true, now); }
                1 => under_way[who].extend(std::iter::from_fn(|| plan.next(&peer, now))),
                2 => if let Some(index) = under_way[who].pop() {
                    prop_assert_eq!(plan.on_piece(&peer, index, now), arrived.insert(index));
                },
                3 => if let Some(index) = under_way[who].pop() { plan.on_busy(&peer, index, now, now) },
                4 => if let Some(index) = under_way[who].pop() { plan.give_back(&peer, index) },
                _ => { plan.remove_parent(&peer, ParentFault::NotHeld, now); under_way[who].clear(); }
            }
            prop_assert_eq!(plan.held() as usize, arrived.len());
        }
        let rescuer = PeerId::random();
        for peer in peers { plan.remove_parent(&peer, ParentFault::Lied, now); }
        plan.add_parent(rescuer, true, now);
        while let Some(index) = plan.next(&rescuer, now) {
            prop_assert!(arrived.insert(index));
            plan.on_piece(&rescuer, index, now);
        }
        prop_assert!(plan.is_complete());
    }
}

/// A parent that sends each of its pieces evenly, `rate` bytes per second together, for `seconds`.
fn trickle(plan: &mut Plan, peer: &PeerId, pieces: &[u32], from: Instant, rate: u64, seconds: u64) -> Vec<u32> {
    let mut withdrawn = Vec::new();
    for tenth in 1..=seconds * 10 {
        for index in pieces.iter().filter(|index| !withdrawn.contains(*index)).copied().collect::<Vec<_>>() {
            let piece = plan.layout.index(index).expect("a piece");
            let bytes = rate / 10 / (pieces.len() - withdrawn.len()) as u64;
            if plan.on_bytes(peer, piece, bytes, from + Duration::from_millis(tenth * 100)) == Receiving::Withdrawn {
                plan.give_back(peer, piece);
                withdrawn.push(index);
            }
        }
    }
    withdrawn
}

#[test]
fn received_bytes_are_progress() {
    let (mut plan, now) = plan(3);
    let peer = PeerId::random();
    plan.add_parent(peer, true, now);
    let index = plan.next(&peer, now).expect("missing");
    let later = now + Duration::from_secs(29);
    plan.on_bytes(&peer, index, 1, later);
    assert_eq!(plan.last_progress(), later);
}

#[test]
fn a_slow_parent_is_asked_for_what_it_can_send_soon() {
    let (mut plan, now) = plan(100);
    let peer = PeerId::random();
    plan.add_parent(peer, true, now);
    let first = drain(&mut plan, &peer, now);
    assert_eq!(first.len(), OUTSTANDING_FIRST);
    let withdrawn = trickle(&mut plan, &peer, &first, now, 200 << 10, 4);
    assert!(!withdrawn.contains(&99), "what proves the length is kept");
    assert!((4..OUTSTANDING_FIRST).contains(&withdrawn.len()), "20 s of 200 KiB/s are four pieces: {withdrawn:?}");
    assert_eq!(plan.allowed(&peer), 1);
    assert_eq!(drain(&mut plan, &peer, now + Duration::from_secs(4)), [0u32; 0], "it has enough to do");
}

#[test]
fn a_fast_parent_loses_nothing() {
    let (mut plan, now) = plan(100);
    let peer = PeerId::random();
    plan.add_parent(peer, true, now);
    let first = drain(&mut plan, &peer, now);
    assert_eq!(trickle(&mut plan, &peer, &first, now, 1 << 20, 4), [0u32; 0]);
    assert!(plan.allowed(&peer) > 1);
}

#[test]
fn large_pieces_are_asked_for_two_at_a_time() {
    let layout = PieceLayout::new(1 << 40).expect("short enough");
    assert_eq!(layout.piece_bytes(), 16 << 20);
    let now = Instant::now();
    let mut plan = Plan::new(layout, layout.indices().take(100), 0, now);
    let peer = PeerId::random();
    plan.add_parent(peer, true, now);
    assert_eq!(drain(&mut plan, &peer, now).len(), 2);
}

#[test]
fn what_a_much_slower_parent_has_is_asked_elsewhere_before_the_end() {
    let (mut plan, now) = plan(1000);
    let [slow, fast] = [PeerId::random(), PeerId::random()];
    plan.add_parent(slow, true, now);
    let held = plan.next(&slow, now).expect("missing");
    plan.add_parent(fast, true, now);
    let own = plan.next(&fast, now).expect("missing");
    for second in 1..=5 {
        plan.on_bytes(&slow, held, 1, now + Duration::from_secs(second));
        plan.on_bytes(&fast, own, 8 * MIB, now + Duration::from_secs(second));
    }
    let before = now + SLOW_AFTER - Duration::from_millis(1);
    assert_ne!(plan.next(&fast, before), Some(held), "not so soon");
    let late = now + SLOW_AFTER;
    assert_eq!(plan.next(&fast, late), Some(held), "although others are missing that nobody was asked for");
    assert_ne!(plan.next(&fast, late), Some(held), "once");
    assert!(plan.on_piece(&fast, held, late));
    assert_eq!(plan.on_bytes(&slow, held, 1, late), Receiving::Withdrawn, "it is not received twice");
    assert_eq!(plan.while_silent(&slow, held, late, late), Receiving::Withdrawn);
}

#[test]
fn a_silent_parent_is_given_up_when_another_has_what_is_missing() {
    let (mut plan, now) = plan(3);
    let [silent, other] = [PeerId::random(), PeerId::random()];
    plan.add_parent(silent, true, now);
    let index = plan.next(&silent, now).expect("missing");
    let long = now + STREAM_SILENCE_MAX;
    assert_eq!(plan.while_silent(&silent, index, now, long), Receiving::Wanted, "there is nobody else");
    plan.add_parent(other, true, now);
    assert_eq!(plan.while_silent(&silent, index, now, now + SILENCE_MAX / 2), Receiving::Wanted, "not yet");
    assert_eq!(plan.while_silent(&silent, index, now, now + SILENCE_MAX), Receiving::Silent);
    plan.on_bytes(&silent, index, 1, long);
    assert_eq!(plan.while_silent(&silent, index, long, long), Receiving::Wanted);
    assert_eq!(plan.while_silent(&silent, index, now, long), Receiving::Withdrawn, "only this stream is stuck");
}
