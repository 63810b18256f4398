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
