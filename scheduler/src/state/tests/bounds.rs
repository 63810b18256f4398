//! What remote parties may fill, and what that costs.

use super::*;

fn numbered(number: u64) -> Record {
    complete(&format!("task {number}"), binding(content(1), 1, Some(number)))
}

fn bench(limits: Limits) -> Bench {
    let mut bench = Bench::with(limits, accepted(1, &[1], 2));
    bench.pass(WARM_UP);
    bench
}

#[test]
fn above_a_bound_there_is_an_answer() {
    let mut bench = bench(Limits { announcements_per_host: 3, announcements: 4, hosts: 2, ..Limits::default() });
    let accepted = |outcome: &Outcome| matches!(outcome, Outcome::Accepted(_));
    let first = bench.announce_all(200, (0..4).map(numbered).collect(), None);
    assert_eq!(first.iter().map(accepted).collect::<Vec<_>>(), [true, true, true, false], "per host");
    let second = bench.announce_all(201, (0..2).map(numbered).collect(), None);
    assert_eq!(second.iter().map(accepted).collect::<Vec<_>>(), [true, false], "of all hosts");
    assert!(accepted(&bench.announce(200, numbered(0))), "what is known may be said again");
    let tombstone = Tombstone { task: name("task 0").task_id(), generation: 1, deleted: UnixMillis(START) };
    assert_eq!(bench.announce(200, Record::Deleted(tombstone)), Outcome::Noted, "and deleted");
    let announce = AnnounceTask { records: vec![numbered(9)], bucket: None };
    let request = || Request::new(1, RequestBody::AnnounceTask(announce.clone()));
    assert!(matches!(bench.reply_to(202, request()), Some(Reply::Refused(_))), "hosts");
    bench.pass(LEASE);
    assert!(matches!(bench.reply_to(202, request()), Some(Reply::Response(_))), "a place became free");
}

#[test]
fn memory_is_bounded_before_it_is_used() {
    let mut bench = bench(Limits { bytes: 1 << 20, ..Limits::default() });
    let outcomes = bench.announce_all(200, (0..4096).map(numbered).collect(), None);
    let refused = outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Refused(_))).count();
    assert!(refused > 1000, "{refused} refused");
    assert!(bench.state.gauges().bytes <= (1 << 20) + 1000);
    assert_eq!(bench.state.counters().over_bounds, refused as u64);
}

#[test]
fn downloads_are_bounded() {
    let mut bench = bench(Limits { downloads: 3, downloads_per_host: 2, ..Limits::default() });
    bench.announce_all(200, (0..4).map(numbered).collect(), None);
    let mut begins = |host, number| {
        let register = RegisterPeerTask { name: name(&format!("task {number}")), exclude: Vec::new() };
        let body = RequestBody::RegisterPeerTask(register);
        match bench.reply_to(host, Request::new(1, body)) {
            Some(Reply::Response(_)) => true,
            Some(Reply::Busy(_)) => false,
            other => panic!("answered with {other:?}"),
        }
    };
    let table = [
        (300, 0, true, "the first"),
        (300, 1, true, "the second"),
        (300, 2, false, "too many of one host"),
        (300, 1, true, "the same again"),
        (301, 0, true, "another host's"),
        (302, 0, false, "too many of all"),
    ];
    for (host, number, begun, reason) in table {
        assert_eq!(begins(host, number), begun, "{reason}");
    }
}

fn tombstone(number: u64, deleted: u64) -> Tombstone {
    let task = name(&format!("task {number}")).task_id();
    Tombstone { task, generation: 1, deleted: UnixMillis(START + deleted) }
}

fn deletes(numbers: std::ops::Range<u64>) -> Vec<Record> {
    numbers.map(|number| Record::Deleted(tombstone(number, number))).collect()
}

/// Takes everything back that a host has announced.
fn withdraw_all(bench: &mut Bench, host: u32) {
    for bucket in 0..=u8::MAX {
        bench.announce_all(host, Vec::new(), Some(BucketPart { bucket, first: true, last: true }));
    }
}

fn is_deleted(bench: &mut Bench, number: u64) -> bool {
    matches!(bench.stat(&format!("task {number}")), StatAnswer::Missing(Missing { deleted: Some(_), .. }))
}

#[test]
fn deletes_of_tasks_that_nobody_bound_go_with_the_word_of_who_reported_them() {
    let mut bench = bench(Limits { bytes: 1 << 20, ..Limits::default() });
    for round in 0..20 {
        let numbers = round * 4_096..(round + 1) * 4_096;
        bench.announce_all(200, deletes(numbers), None);
        withdraw_all(&mut bench, 200);
        let kept = bench.state.gauges();
        assert_eq!((kept.tombstones, kept.announced_tombstones), (0, 0), "round {round}");
    }
    assert!(matches!(bench.announce(201, numbered(1)), Outcome::Accepted(_)), "a new name of another host");
    // A host that is away may come back, so its word stands.
    bench.announce_all(200, deletes(5..6), None);
    bench.pass_alive(LEASE, &[201]);
    assert!(is_deleted(&mut bench, 5));
}

#[test]
fn a_host_with_very_many_deletes_displaces_its_own() {
    let limits = Limits { tombstones: 1_000, announced_tombstones: 100_000, ..Limits::default() };
    let mut bench = bench(limits);
    for number in 0..10 {
        bench.announce(201, numbered(number));
        bench.announce(202, numbered(number));
        let delete = RequestBody::DeleteTask(DeleteTask::of(name(&format!("task {number}")).task_id()));
        bench.reply_to(201, Request::new(1, delete));
    }
    // Each of the attacker's names was bound, so its tombstones are as good as those of others.
    for round in 1..10 {
        let numbers = round * 1_000..(round + 1) * 1_000;
        bench.announce_all(200, numbers.clone().map(numbered).collect(), None);
        bench.announce_all(200, deletes(numbers), None);
        withdraw_all(&mut bench, 200);
    }
    assert_eq!(bench.state.gauges().tombstones, 1_000);
    assert!((0..10).all(|number| is_deleted(&mut bench, number)), "what others deleted is remembered");
    assert!(is_deleted(&mut bench, 9_999) && !is_deleted(&mut bench, 1_000), "of its own the newest are kept");
    assert!(matches!(bench.announce(203, numbered(20_000)), Outcome::Accepted(_)), "a new name");
}

#[test]
fn new_names_go_before_deletes() {
    let mut bench = bench(Limits { bytes: 1 << 20, announced_tombstones: 40_000, ..Limits::default() });
    let refused =
        |outcomes: Vec<Outcome>| outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Refused(_))).count();
    let told = bench.announce_all(200, deletes(100_000..104_000), None);
    assert!(refused(told) > 500, "deletes are refused where there is no room");
    let full = bench.state.gauges();
    assert_eq!(refused(bench.announce_all(201, (0..100).map(numbered).collect(), None)), 0, "names are not");
    let after = bench.state.gauges();
    assert!(after.tombstones < full.tombstones && after.bytes <= (1 << 20) + 1_000, "{after:?}");
    let known = Record::Deleted(tombstone(1, 0));
    drop(bench.announce(200, known));
    assert_eq!(bench.found("task 1"), None, "what is bound can always be deleted");
}

#[test]
fn every_host_has_a_share_of_the_deletes_told() {
    let mut bench = bench(Limits { announced_tombstones: 1_000, ..Limits::default() });
    let noted = |outcomes: Vec<Outcome>| outcomes.iter().filter(|outcome| **outcome == Outcome::Noted).count();
    for host in [200, 201, 202, 203] {
        bench.heartbeat(host, None);
    }
    let mut told = |host, numbers| noted(bench.announce_all(host, deletes(numbers), None));
    assert_eq!(told(200, 0..400), 250, "a quarter of all");
    assert_eq!(told(201, 0..400), 250);
    assert_eq!(told(202, 0..400), 125, "above the half an equal part");
    assert_eq!(told(203, 0..400), 125, "the last one too");
    assert_eq!(bench.state.gauges().announced_tombstones, 750);
}

#[test]
fn a_job_that_deletes_very_much_is_remembered_as_far_as_there_is_room() {
    let mut bench = bench(Limits { tombstones: 500, ..Limits::default() });
    for number in 0..3_000 {
        bench.at += Duration::from_millis(10);
        assert!(matches!(bench.announce(200, numbered(number)), Outcome::Accepted(_)), "import {number}");
        let delete = RequestBody::DeleteTask(DeleteTask::of(name(&format!("task {number}")).task_id()));
        assert!(matches!(bench.reply_to(200, Request::new(1, delete)), Some(Reply::Response(_))), "delete {number}");
    }
    assert_eq!(bench.state.gauges().tombstones, 500);
    assert!(is_deleted(&mut bench, 2_999) && is_deleted(&mut bench, 2_500) && !is_deleted(&mut bench, 2_499));
    assert_eq!(bench.state.counters().forgotten_tombstones, 2_500);
}

/// 100,000 announcements, each of its own task: the dearest kind.
#[test]
fn a_million_announcements_fit_into_400_mib() {
    let mut bench = bench(Limits::default());
    let before = resident_bytes();
    for part in 0..100 {
        let outcomes = bench.announce_all(200, (part * 1000..(part + 1) * 1000).map(numbered).collect(), None);
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Accepted(_))));
    }
    let used = resident_bytes().saturating_sub(before);
    let gauges = bench.state.gauges();
    assert_eq!((gauges.announcements, gauges.tasks), (100_000, 100_000));
    eprintln!("{} bytes estimated, {used} more resident", gauges.bytes);
    assert!(gauges.bytes < 41 << 20, "{} bytes estimated", gauges.bytes);
    // Other tests run beside this one; the estimate may be too high, but not too low by much.
    assert!(used < 80 << 20, "{used} bytes resident");
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: usize = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
    pages * 4096
}
