use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

fn layout(pieces: u64) -> PieceLayout {
    PieceLayout::new(pieces * MIB).expect("short")
}

fn picker(pieces: u64) -> (PiecePicker, Instant) {
    let now = Instant::now();
    (PiecePicker::new(layout(pieces), layout(pieces).indices(), 0, now), now)
}

fn drain(picker: &mut PiecePicker, peer: &PeerId, now: Instant) -> Vec<u32> {
    std::iter::from_fn(|| picker.next(peer, now)).map(PieceIndex::get).collect()
}

#[test]
fn the_last_piece_comes_first_then_the_run() {
    let (mut picker, now) = picker(10);
    let peer = PeerId::random();
    assert!(picker.add_parent(peer, true, now));
    assert_eq!(drain(&mut picker, &peer, now), [9, 0, 1, 2, 3, 4, 5, 6], "as many as a new parent is allowed");
}

#[test]
fn who_gave_the_manifest_proves_its_length() {
    let (mut picker, now) = picker(3);
    let (author, other) = (PeerId::random(), PeerId::random());
    picker.prove_first_by(author);
    picker.add_parent(author, true, now);
    picker.add_parent(other, true, now);
    assert_eq!(drain(&mut picker, &other, now), [0, 1], "the last piece is not the other's");
    assert_eq!(drain(&mut picker, &author, now), [2]);
    picker.remove_parent(&author, ParentFault::Unreachable, now);
    assert_eq!(drain(&mut picker, &other, now), [2], "unless its author is gone");
}

#[test]
fn who_gave_the_manifest_cannot_put_the_proof_off_for_ever() {
    let (mut picker, now) = picker(1);
    let (author, other) = (PeerId::random(), PeerId::random());
    picker.prove_first_by(author);
    picker.add_parent(author, true, now);
    picker.add_parent(other, true, now);
    let last = picker.next(&author, now).expect("missing");
    picker.on_busy(&author, last, now + STUCK_AFTER, now);
    assert_eq!(picker.next(&other, now + STUCK_AFTER), None, "it may be busy for a while");
    assert_eq!(picker.next(&author, now + STUCK_AFTER), Some(last));
    assert_eq!(picker.next(&other, now + AUTHOR_ALONE), Some(last), "beside the author, who has it again");
    picker.on_own_delay(now + AUTHOR_ALONE);
    picker.give_back(&other, last);
    assert_eq!(picker.next(&other, now + AUTHOR_ALONE), None, "a delay of our own is not its fault");
}

#[test]
fn who_owes_a_piece_and_gives_nothing_is_silent() {
    let (mut picker, now) = picker(3);
    let [mute, slow, new] = [PeerId::random(), PeerId::random(), PeerId::random()];
    picker.add_parent(mute, true, now);
    let piece = |picker: &mut PiecePicker, peer, now| picker.next(peer, now).expect("missing");
    piece(&mut picker, &mute, now);
    picker.add_parent(slow, true, now);
    let [first, _] = [piece(&mut picker, &slow, now), piece(&mut picker, &slow, now)];
    picker.add_parent(new, true, now);
    picker.on_piece(&slow, first, now + Duration::from_millis(1));
    assert!(picker.silent(now + STUCK_AFTER / 2).is_empty(), "not yet");
    assert_eq!(picker.silent(now + STUCK_AFTER), [mute], "neither who gives, nor who owes nothing");
}

#[test]
fn a_liar_is_news_once() {
    let (mut picker, now) = picker(1);
    let liar = PeerId::random();
    picker.add_parent(liar, true, now);
    assert!(picker.remove_parent(&liar, ParentFault::Unreachable, now).is_some());
    assert!(picker.remove_parent(&liar, ParentFault::NotHeld, now).is_none(), "it is out");
    assert!(picker.remove_parent(&liar, ParentFault::Lied, now).is_some(), "that it lied is more");
    assert!(picker.remove_parent(&liar, ParentFault::Lied, now).is_none(), "of each of its pieces");
    assert!(!picker.add_parent(liar, true, now + REST_MAX));
}

#[test]
fn rare_pieces_come_first() {
    let (mut picker, now) = picker(4);
    let (full, partial) = (PeerId::random(), PeerId::random());
    picker.add_parent(full, true, now);
    picker.add_parent(partial, false, now);
    let pieces: Vec<_> = [0, 1, 3].map(|index| layout(4).index(index).expect("exists")).to_vec();
    picker.parent_has(&partial, &pieces);
    assert_eq!(drain(&mut picker, &full, now), [3, 2, 0, 1]);
}

#[test]
fn a_fast_parent_gets_more_at_a_time_and_a_slow_one_less() {
    let (mut picker, now) = picker(1000);
    let peer = PeerId::random();
    picker.add_parent(peer, true, now);
    let first = drain(&mut picker, &peer, now);
    for index in &first {
        picker.on_piece(&peer, layout(1000).index(*index).expect("exists"), now + Duration::from_millis(1));
    }
    let second = drain(&mut picker, &peer, now);
    assert_eq!(second.len(), 16);
    for index in &second {
        picker.on_piece(&peer, layout(1000).index(*index).expect("exists"), now + Duration::from_secs(2));
    }
    assert_eq!(drain(&mut picker, &peer, now).len(), 1, "never less than one");
}

#[test]
fn no_more_is_asked_when_answers_only_wait_longer() {
    let cases =
        [(Duration::from_millis(79), 16, "three times the quickest and 20 ms"), (Duration::from_millis(81), 9, "more")];
    for (took, expected, why) in cases {
        let (mut picker, now) = picker(1000);
        let peer = PeerId::random();
        picker.add_parent(peer, true, now);
        let first = drain(&mut picker, &peer, now);
        for (number, index) in first.iter().enumerate() {
            let took = if number == 0 { Duration::from_millis(20) } else { took };
            picker.on_piece(&peer, layout(1000).index(*index).expect("exists"), now + took);
        }
        // The first one, which is the quickest, always adds one.
        assert_eq!(drain(&mut picker, &peer, now).len(), expected, "{why}");
    }
}

#[test]
fn a_late_piece_is_asked_of_one_other_parent() {
    let (mut picker, now) = picker(1);
    let peers = [PeerId::random(), PeerId::random(), PeerId::random()];
    for peer in peers {
        picker.add_parent(peer, true, now);
    }
    let index = picker.next(&peers[0], now).expect("missing");
    assert_eq!(picker.next(&peers[1], now), None, "not late yet");
    let late = now + LATE_AFTER;
    assert_eq!(picker.next(&peers[1], late), Some(index));
    assert_eq!(picker.next(&peers[2], late), None, "two are enough");
    assert!(picker.on_piece(&peers[1], index, late));
    assert!(!picker.on_piece(&peers[0], index, late), "held already");
    assert!(picker.is_complete());
}

#[test]
fn the_end_of_the_longest_queue_is_asked_first() {
    let (mut picker, mut now) = picker(6);
    let [slow, fast] = [PeerId::random(), PeerId::random()];
    picker.add_parent(slow, true, now);
    let mut queue = Vec::new();
    while let Some(index) = picker.next(&slow, now) {
        queue.push(index.get());
        now += Duration::from_millis(1);
    }
    picker.add_parent(fast, true, now);
    for index in drain(&mut picker, &fast, now) {
        picker.on_piece(&fast, picker.layout.index(index).expect("a piece"), now);
    }
    assert_eq!(picker.next(&fast, now), None, "not so soon");
    let behind = drain(&mut picker, &fast, now + BEHIND_AFTER);
    let newest: Vec<_> = queue.iter().rev().copied().take(queue.len() / 2).collect();
    assert_eq!(behind, newest, "what it comes to last, until both have as much to do");
    let oldest = queue[0];
    assert_eq!(picker.next(&fast, now + STUCK_AFTER).map(PieceIndex::get), Some(oldest), "it is stuck");
}

#[test]
fn what_a_lost_parent_had_is_wanted_again() {
    let (mut picker, now) = picker(3);
    let (gone, other) = (PeerId::random(), PeerId::random());
    picker.add_parent(gone, true, now);
    assert_eq!(drain(&mut picker, &gone, now).len(), 3);
    picker.remove_parent(&gone, ParentFault::Unreachable, now);
    assert!(!picker.has_sources());
    picker.add_parent(other, true, now);
    assert_eq!(drain(&mut picker, &other, now).len(), 3);
}

#[test]
fn who_comes_back_depends_on_the_fault() {
    let cases = [
        (ParentFault::Lied, false, "a liar never"),
        (ParentFault::Unreachable, true, "one that was not reached once"),
        (ParentFault::NotHeld, true, "one that did not hold it yet"),
    ];
    for (fault, welcome, reason) in cases {
        let (mut picker, now) = picker(1);
        let peer = PeerId::random();
        picker.add_parent(peer, true, now);
        picker.remove_parent(&peer, fault, now);
        assert!(!picker.add_parent(peer, true, now), "not at once: {reason}");
        assert_eq!(picker.add_parent(peer, true, now + REST_FIRST), welcome, "{reason}");
    }
}

#[test]
fn a_busy_parent_rests() {
    let (mut picker, now) = picker(2);
    let peer = PeerId::random();
    picker.add_parent(peer, true, now);
    let index = picker.next(&peer, now).expect("missing");
    picker.on_busy(&peer, index, now + Duration::from_secs(1), now);
    assert_eq!(picker.next(&peer, now), None);
    assert_eq!(picker.next(&peer, now + Duration::from_secs(1)), Some(index));
}

proptest! {
    /// Whatever parents do, every piece is fetched exactly once and none is lost.
    #[test]
    fn every_piece_arrives_once(pieces in 1u64..60, start in 0u32..100, script in prop::collection::vec((0usize..3, 0u8..6), 0..400)) {
        let mut now = Instant::now();
        let layout = layout(pieces);
        let mut picker = PiecePicker::new(layout, layout.indices(), start, now);
        let peers = [PeerId::random(), PeerId::random(), PeerId::random()];
        let mut under_way: Vec<Vec<PieceIndex>> = vec![Vec::new(); 3];
        let mut arrived = HashSet::new();
        for (who, what) in script {
            now += Duration::from_millis(50);
            let peer = peers[who];
            match what {
                0 => { picker.add_parent(peer, true, now); }
                1 => under_way[who].extend(std::iter::from_fn(|| picker.next(&peer, now))),
                2 => if let Some(index) = under_way[who].pop() {
                    prop_assert_eq!(picker.on_piece(&peer, index, now), arrived.insert(index));
                },
                3 => if let Some(index) = under_way[who].pop() { picker.on_busy(&peer, index, now, now) },
                4 => if let Some(index) = under_way[who].pop() { picker.give_back(&peer, index) },
                _ => { picker.remove_parent(&peer, ParentFault::NotHeld, now); under_way[who].clear(); }
            }
            prop_assert_eq!(picker.held() as usize, arrived.len());
        }
        let rescuer = PeerId::random();
        for peer in peers { picker.remove_parent(&peer, ParentFault::Lied, now); }
        picker.add_parent(rescuer, true, now);
        while let Some(index) = picker.next(&rescuer, now) {
            prop_assert!(arrived.insert(index));
            picker.on_piece(&rescuer, index, now);
        }
        prop_assert!(picker.is_complete());
    }
}

/// A parent that sends each of its pieces evenly, `rate` bytes per second together, for `seconds`.
fn trickle(
    picker: &mut PiecePicker,
    peer: &PeerId,
    pieces: &[u32],
    from: Instant,
    rate: u64,
    seconds: u64,
) -> Vec<u32> {
    let mut withdrawn = Vec::new();
    for tenth in 1..=seconds * 10 {
        for index in pieces.iter().filter(|index| !withdrawn.contains(*index)).copied().collect::<Vec<_>>() {
            let piece = picker.layout.index(index).expect("a piece");
            let bytes = rate / 10 / (pieces.len() - withdrawn.len()) as u64;
            if picker.on_bytes(peer, piece, bytes, from + Duration::from_millis(tenth * 100)) == Receiving::Withdrawn {
                picker.give_back(peer, piece);
                withdrawn.push(index);
            }
        }
    }
    withdrawn
}

#[test]
fn received_bytes_are_progress() {
    let (mut picker, now) = picker(3);
    let peer = PeerId::random();
    picker.add_parent(peer, true, now);
    let index = picker.next(&peer, now).expect("missing");
    let later = now + Duration::from_secs(29);
    picker.on_bytes(&peer, index, 1, later);
    assert_eq!(picker.last_progress(), later);
}

#[test]
fn a_slow_parent_is_asked_for_what_it_can_send_soon() {
    let (mut picker, now) = picker(100);
    let peer = PeerId::random();
    picker.add_parent(peer, true, now);
    let first = drain(&mut picker, &peer, now);
    assert_eq!(first.len(), OUTSTANDING_FIRST);
    let withdrawn = trickle(&mut picker, &peer, &first, now, 200 << 10, 4);
    assert!(!withdrawn.contains(&99), "what proves the length is kept");
    assert!((4..OUTSTANDING_FIRST).contains(&withdrawn.len()), "20 s of 200 KiB/s are four pieces: {withdrawn:?}");
    assert_eq!(picker.allowed(&peer), 1);
    assert_eq!(drain(&mut picker, &peer, now + Duration::from_secs(4)), [0u32; 0], "it has enough to do");
}

#[test]
fn a_fast_parent_loses_nothing() {
    let (mut picker, now) = picker(100);
    let peer = PeerId::random();
    picker.add_parent(peer, true, now);
    let first = drain(&mut picker, &peer, now);
    assert_eq!(trickle(&mut picker, &peer, &first, now, 1 << 20, 4), [0u32; 0]);
    assert!(picker.allowed(&peer) > 1);
}

#[test]
fn large_pieces_are_asked_for_two_at_a_time() {
    let layout = PieceLayout::new(1 << 40).expect("short enough");
    assert_eq!(layout.piece_bytes(), 16 << 20);
    let now = Instant::now();
    let mut picker = PiecePicker::new(layout, layout.indices().take(100), 0, now);
    let peer = PeerId::random();
    picker.add_parent(peer, true, now);
    assert_eq!(drain(&mut picker, &peer, now).len(), 2);
}

#[test]
fn what_a_much_slower_parent_has_is_asked_elsewhere_before_the_end() {
    let (mut picker, now) = picker(1000);
    let [slow, fast] = [PeerId::random(), PeerId::random()];
    picker.add_parent(slow, true, now);
    let held = picker.next(&slow, now).expect("missing");
    picker.add_parent(fast, true, now);
    let own = picker.next(&fast, now).expect("missing");
    for second in 1..=5 {
        picker.on_bytes(&slow, held, 1, now + Duration::from_secs(second));
        picker.on_bytes(&fast, own, 8 * MIB, now + Duration::from_secs(second));
    }
    let before = now + SLOW_AFTER - Duration::from_millis(1);
    assert_ne!(picker.next(&fast, before), Some(held), "not so soon");
    let late = now + SLOW_AFTER;
    assert_eq!(picker.next(&fast, late), Some(held), "although others are missing that nobody was asked for");
    assert_ne!(picker.next(&fast, late), Some(held), "once");
    assert!(picker.on_piece(&fast, held, late));
    assert_eq!(picker.on_bytes(&slow, held, 1, late), Receiving::Withdrawn, "it is not received twice");
    assert_eq!(picker.while_silent(&slow, held, late, late), Receiving::Withdrawn);
}

#[test]
fn a_silent_parent_is_given_up_when_another_has_what_is_missing() {
    let (mut picker, now) = picker(3);
    let [silent, other] = [PeerId::random(), PeerId::random()];
    picker.add_parent(silent, true, now);
    let index = picker.next(&silent, now).expect("missing");
    let long = now + STREAM_SILENCE_MAX;
    assert_eq!(picker.while_silent(&silent, index, now, long), Receiving::Wanted, "there is nobody else");
    picker.add_parent(other, true, now);
    assert_eq!(picker.while_silent(&silent, index, now, now + SILENCE_MAX / 2), Receiving::Wanted, "not yet");
    assert_eq!(picker.while_silent(&silent, index, now, now + SILENCE_MAX), Receiving::Silent);
    picker.on_bytes(&silent, index, 1, long);
    assert_eq!(picker.while_silent(&silent, index, long, long), Receiving::Wanted);
    assert_eq!(picker.while_silent(&silent, index, now, long), Receiving::Withdrawn, "only this stream is stuck");
}
