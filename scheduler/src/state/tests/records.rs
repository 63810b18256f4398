//! What hosts announce: acceptance, conflicts, tombstones, digests, leases.

use damselfly_messages::record::{CLOCK_LEEWAY_MS, GENERATION_MAX};

use super::*;

const A: u8 = 1;
const B: u8 = 2;

#[test]
fn a_new_name_waits_until_the_owner_is_warm() {
    let mut bench = Bench::cold();
    let queued = || complete("x", binding(content(A), 1, None));
    assert_eq!(bench.announce(200, queued()), Outcome::Cold(15_000));
    bench.pass(Duration::from_secs(10));
    assert_eq!(bench.announce(200, queued()), Outcome::Cold(5_000));
    let decided = complete("y", binding(content(A), 1, Some(5)));
    assert_eq!(bench.announce(200, decided), Outcome::Accepted(binding(content(A), 1, Some(5))), "decided by another");
    assert_eq!(bench.announce(201, complete("y", binding(content(A), 1, None))), Outcome::Cold(5_000), "may be buried");
    bench.pass(Duration::from_secs(5));
    assert_eq!(bench.announce(200, queued()), Outcome::Accepted(binding(content(A), 1, Some(15_000))));
    assert_eq!(bench.found("x"), Some((vec![content(A)], 1, true)));
}

#[test]
fn one_content_stands_under_a_plain_name() {
    let a = |generation, accepted| binding(content(A), generation, accepted);
    let b = |generation, accepted| binding(content(B), generation, accepted);
    // (known, announced by another host, what stands, why)
    let table = [
        (a(1, Some(5)), b(1, None), content(A), "accepted stands against queued"),
        (a(1, Some(5)), b(1, Some(6)), content(A), "the earlier stands"),
        (a(1, Some(5)), b(1, Some(4)), content(B), "an earlier one replaces it"),
        (b(1, Some(5)), a(1, Some(5)), content(A), "at the same moment, the smaller content"),
        (a(1, Some(5)), b(2, None), content(B), "a re-import takes the next generation"),
        (a(2, Some(5)), b(1, Some(4)), content(A), "an older generation has lost"),
    ];
    for (known, announced, stands, reason) in table {
        let mut bench = Bench::warm();
        assert_eq!(bench.announce(200, complete("x", known)), Outcome::Accepted(known), "{reason}");
        let outcome = bench.announce(201, complete("x", announced));
        let told = bench.told();
        if stands == known.content {
            assert_eq!(outcome, Outcome::Conflict(known), "{reason}");
            assert!(told.is_empty(), "{reason}");
        } else {
            let Outcome::Accepted(winner) = outcome else { panic!("{reason}: {outcome:?}") };
            let task = name("x").task_id();
            assert_eq!(told, [(peer(200), notify::Request::ConflictLost { task, winner })], "{reason}");
        }
        assert_eq!(bench.found("x"), Some((vec![stands], 1, true)), "{reason}");
        assert_eq!(bench.state.gauges().announcements, 1, "{reason}: the loser must find a bucket that differs");
    }
}

#[test]
fn the_same_content_is_merged() {
    let mut bench = Bench::warm();
    bench.announce(200, complete("x", binding(content(A), 1, Some(9))));
    let merged = Outcome::Accepted(binding(content(A), 1, Some(4)));
    assert_eq!(bench.announce(201, complete("x", binding(content(A), 1, Some(4)))), merged, "the earlier acceptance");
    assert_eq!(bench.announce(202, complete("x", binding(content(A), 1, None))), merged, "a later import of the same");
    assert_eq!(bench.found("x"), Some((vec![content(A)], 3, true)));
    let Outcome::Accepted(next) = bench.announce(203, complete("x", binding(content(A), 2, None))) else {
        panic!("refused")
    };
    assert_eq!((next.generation, next.accepted), (2, Some(bench.now().wall)), "never without acceptance");
}

#[test]
fn a_blake3_name_is_its_content() {
    let mut bench = Bench::warm();
    let text = content(A).to_string();
    assert!(matches!(bench.announce(200, complete(&text, binding(content(B), 1, None))), Outcome::Refused(_)));
    assert!(matches!(bench.announce(200, complete(&text, binding(content(A), 1, None))), Outcome::Accepted(_)));
}

#[test]
fn a_sha256_name_has_candidates() {
    let text = format!("sha256:{}", "ab".repeat(32));
    let mut bench = Bench::warm();
    for (host, accepted) in [(203, 3), (201, 1), (202, 2), (204, 4)] {
        let record = complete(&text, binding(content(host as u8), 1, Some(accepted)));
        assert!(matches!(bench.announce(host, record), Outcome::Accepted(_)), "never a conflict");
    }
    let by_acceptance: Vec<_> = [201, 202, 203, 204].map(|host: u32| content(host as u8)).into();
    assert_eq!(bench.found(&text), Some((by_acceptance, 4, true)));
    let fifth = complete(&text, binding(content(9), 1, Some(5)));
    assert!(matches!(bench.announce(205, fifth), Outcome::Refused(_)), "four others precede it");
    let earlier = complete(&text, binding(content(9), 1, Some(0)));
    assert!(matches!(bench.announce(205, earlier), Outcome::Accepted(_)), "every owner keeps the same four");
    let (candidates, ..) = bench.found(&text).expect("found");
    assert_eq!(candidates, [9, 201, 202, 203].map(content));
    assert!(bench.told().is_empty(), "who is left out is not in conflict");
}

#[test]
fn a_false_candidate_goes_to_the_end_and_then_away() {
    let text = format!("sha256:{}", "ab".repeat(32));
    let task = name(&text).task_id();
    let mut bench = Bench::warm();
    bench.announce(200, complete(&text, binding(content(A), 1, Some(1))));
    bench.announce(201, complete(&text, binding(content(B), 1, Some(2))));
    let report = |bench: &mut Bench, host| {
        bench.ask(host, RequestBody::RegisterPeerTask(RegisterPeerTask { name: name(&text), exclude: Vec::new() }));
        let progress = ReportPieceResult { task, content: content(A), pieces_held: 8, results: Vec::new() };
        bench.ask(host, RequestBody::ReportPieceResult(progress));
        let result = PeerResult::FalseCandidate;
        bench.ask(host, RequestBody::ReportPeerResult(ReportPeerResult { task, content: content(A), result }));
    };
    let stranger = ReportPeerResult { task, content: content(A), result: PeerResult::FalseCandidate };
    bench.ask(300, RequestBody::ReportPeerResult(stranger));
    assert_eq!(bench.found(&text).expect("found").0, [content(A), content(B)], "who did not fetch it cannot say");
    report(&mut bench, 301);
    assert_eq!(bench.found(&text).expect("found").0, [content(B), content(A)], "to the end");
    report(&mut bench, 301);
    assert_eq!(bench.found(&text).expect("found").0.len(), 2, "one reporter counts once");
    report(&mut bench, 302);
    assert_eq!(bench.found(&text).expect("found").0, [content(B)], "more reporters than holders");
    let again = complete(&text, binding(content(A), 1, Some(1)));
    assert!(
        matches!(bench.announce(202, again.clone()), Outcome::Refused(_)),
        "and does not come back with a heartbeat"
    );
    bench.pass_alive(Duration::from_secs(3700), &[200, 201]);
    assert!(matches!(bench.announce(202, again), Outcome::Accepted(_)), "it is tried again later");
}

#[test]
fn no_host_can_use_up_the_generations_of_a_name() {
    let mut bench = Bench::warm();
    bench.announce(200, complete("x", binding(content(A), 1, None)));
    let now = bench.now().wall;
    let task = name("x").task_id();
    let deleted = |generation| Record::Deleted(Tombstone { task, generation, deleted: now });
    for generation in [GENERATION_MAX, now.0 + CLOCK_LEEWAY_MS + 1] {
        assert!(matches!(bench.announce(201, deleted(generation)), Outcome::Refused(_)), "{generation}");
        let bound = complete("x", binding(content(B), generation, Some(0)));
        assert!(matches!(bench.announce(201, bound), Outcome::Refused(_)), "{generation}");
    }
    assert_eq!(bench.found("x"), Some((vec![content(A)], 1, true)), "as it was");
    let highest = now.0 + CLOCK_LEEWAY_MS;
    assert_eq!(bench.announce(201, deleted(highest)), Outcome::Noted, "no more than a delete");
    bench.at += Duration::from_millis(1);
    let again = complete("x", binding(content(B), highest + 1, None));
    assert!(matches!(bench.announce(200, again), Outcome::Accepted(_)), "the next one is there a moment later");
}

#[test]
fn a_tombstone_buries_its_generation_and_lower() {
    let task = name("x").task_id();
    let tombstone = Tombstone { task, generation: 2, deleted: UnixMillis(START) };
    let mut bench = Bench::warm();
    bench.announce(200, complete("x", binding(content(A), 2, Some(1))));
    bench.announce(201, complete("x", binding(content(A), 1, Some(1))));
    assert_eq!(bench.announce(202, Record::Deleted(tombstone)), Outcome::Noted);
    let drop_it = notify::Request::DropTask(tombstone);
    assert_eq!(bench.told(), [(peer(200), drop_it.clone()), (peer(201), drop_it)], "all holders");
    let missing = Missing { warm: true, deleted: Some(tombstone) };
    assert_eq!(bench.stat("x"), StatAnswer::Missing(missing));
    let late = complete("x", binding(content(A), 2, Some(0)));
    assert_eq!(bench.announce(203, late), Outcome::Buried(tombstone), "deleted stays deleted");
    let lower = Tombstone { generation: 1, ..tombstone };
    assert_eq!(bench.announce(203, Record::Deleted(lower)), Outcome::Noted);
    assert_eq!(bench.stat("x"), StatAnswer::Missing(missing), "the highest generation counts");
    assert!(matches!(bench.announce(203, complete("x", binding(content(B), 3, None))), Outcome::Accepted(_)));
    assert!(bench.found("x").is_some(), "a re-import");
}

#[test]
fn tombstones_end_after_thirty_days_of_a_clock_that_may_be_wrong() {
    const DAY: u64 = 24 * 3_600_000;
    let table = [
        (START - 31 * DAY, false, "too old"),
        (START - 29 * DAY, true, "not yet"),
        (START + 365 * DAY, true, "a clock ahead"),
    ];
    for (deleted, kept, reason) in table {
        let mut bench = Bench::warm();
        let task = name("x").task_id();
        let tombstone = Tombstone { task, generation: 1, deleted: UnixMillis(deleted) };
        assert_eq!(bench.announce(200, Record::Deleted(tombstone)), Outcome::Noted);
        let StatAnswer::Missing(missing) = bench.stat("x") else { panic!("{reason}") };
        assert_eq!(missing.deleted.is_some(), kept, "{reason}");
        let clamped = missing.deleted.is_none_or(|known| known.deleted.0 <= bench.now().wall.0 + 300_000);
        assert!(clamped, "{reason}: a clock ahead prolongs nothing");
    }
}

#[test]
fn buckets_differ_until_what_was_told_was_heard() {
    let mut bench = Bench::warm();
    let records: Vec<_> =
        (0..50).map(|number| complete(&format!("task {number}"), binding(content(A), 1, Some(number)))).collect();
    let mut told = BucketDigests::default();
    for record in &records {
        told.toggle(&record.task(), record.digest());
    }
    let all = bench.heartbeat(200, Some(told.clone())).mismatched;
    assert!(!all.is_empty(), "nothing was heard yet");
    assert_eq!(bench.heartbeat(200, None).mismatched, NONE, "an asker that sorts compares nothing");
    for bucket in all {
        let in_bucket = |record: &&Record| record.task().bucket() == bucket;
        let part = BucketPart { bucket, first: true, last: true };
        bench.announce_all(200, records.iter().filter(in_bucket).cloned().collect(), Some(part));
    }
    assert_eq!(bench.heartbeat(200, Some(told.clone())).mismatched, NONE, "all was heard");
    let conflicting = complete("task 0", binding(content(B), 1, Some(99)));
    bench.announce(201, conflicting);
    assert_eq!(bench.heartbeat(201, Some(BucketDigests::default())).mismatched, NONE, "what lost is not recorded");
    bench.announce(200, complete("task 1", binding(content(A), 1, Some(0))));
    assert_eq!(bench.heartbeat(200, Some(told)).mismatched, [records[1].task().bucket()], "it said something else");
}

#[test]
fn a_bucket_told_anew_replaces_what_was_known() {
    let mut bench = Bench::warm();
    let names = (0..).map(|number| format!("task {number}")).filter(|text| name(text).task_id().bucket() == 7);
    let names: Vec<_> = names.take(3).collect();
    let record = |text: &String| complete(text, binding(content(A), 1, Some(1)));
    bench.announce_all(200, names.iter().map(record).collect(), None);
    let part = |first, last| Some(BucketPart { bucket: 7, first, last });
    bench.announce_all(200, vec![record(&names[0])], part(true, false));
    assert!(bench.found(&names[2]).is_some(), "only the last part decides");
    bench.announce_all(200, vec![record(&names[1])], part(false, true));
    let known: Vec<_> = names.iter().map(|text| bench.found(text).is_some()).collect();
    assert_eq!(known, [true, true, false], "what was not repeated is forgotten");
    bench.announce_all(200, Vec::new(), part(false, true));
    assert!(bench.found(&names[0]).is_some(), "a last part without a first one replaces nothing");
}

#[test]
fn holders_count_while_their_lease_lives() {
    let mut bench = Bench::warm();
    bench.announce(200, complete("x", binding(content(A), 1, Some(1))));
    bench.announce(201, held("x", binding(content(A), 1, Some(1)), Holding::Partial { pieces: 4 }));
    assert_eq!(bench.found("x"), Some((vec![content(A)], 1, true)));
    bench.feed(Event::Disconnected(peer(200)));
    assert_eq!(bench.found("x"), Some((vec![content(A)], 0, false)), "suspect at once; half of it is not enough");
    bench.heartbeat(200, None);
    assert_eq!(bench.found("x"), Some((vec![content(A)], 1, true)), "it spoke again");
    bench.announce(202, held("x", binding(content(A), 1, Some(1)), Holding::Partial { pieces: 4 }));
    bench.pass_alive(LEASE - Duration::from_secs(5), &[201, 202]);
    assert_eq!(bench.found("x").expect("found").1, 1);
    bench.pass_alive(Duration::from_secs(5), &[201, 202]);
    assert_eq!(bench.found("x"), Some((vec![content(A)], 0, true)), "two halves may be the whole");
    bench.pass(LEASE);
    assert_eq!(bench.found("x"), Some((vec![content(A)], 0, false)), "unavailable, not unknown");
    let other = complete("x", binding(content(B), 1, None));
    assert!(matches!(bench.announce(203, other), Outcome::Conflict(_)), "its name is not free");
    bench.pass(Duration::from_secs(24 * 3600 + 60));
    assert_eq!(bench.found("x"), None, "after a day it is");
    assert_eq!(bench.state.gauges().announcements, 0);
}

#[test]
fn a_name_is_free_when_the_last_holder_leaves() {
    let mut bench = Bench::warm();
    for host in [200, 201] {
        bench.announce(host, complete("x", binding(content(A), 1, Some(1))));
    }
    let leave = || RequestBody::LeaveTask(name("x").task_id());
    assert_eq!(bench.ask(200, leave()), ResponseBody::Noted);
    assert_eq!(bench.found("x"), Some((vec![content(A)], 1, true)));
    assert_eq!(bench.ask(201, leave()), ResponseBody::Noted);
    assert_eq!(bench.stat("x"), StatAnswer::Missing(Missing { warm: true, deleted: None }));
    assert!(matches!(bench.announce(202, complete("x", binding(content(B), 1, None))), Outcome::Accepted(_)));
}

#[test]
fn a_name_is_free_when_it_expires_although_its_holder_is_away() {
    let ends = |at: u64| Binding { expires: Some(UnixMillis(START + at)), ..binding(content(A), 1, Some(5)) };
    let mut bench = Bench::warm();
    let end = bench.now().wall.0 - START + 2 * LEASE.as_millis() as u64;
    bench.announce(200, complete("x", ends(end)));
    bench.announce(200, complete("pinned", ends(0)));
    bench.pass(LEASE);
    assert_eq!(bench.found("x"), Some((vec![content(A)], 0, false)), "unavailable, not missing");
    assert_eq!(bench.found("pinned"), None, "only its holder kept it");
    bench.pass(LEASE);
    assert_eq!(bench.found("x"), None);
    let next = bench.announce(201, complete("x", binding(content(B), 1, None)));
    assert!(matches!(next, Outcome::Accepted(_)), "{next:?}");
}

#[test]
fn of_two_ends_the_later_stands() {
    let ends = |at: Option<u64>| Binding { expires: at.map(UnixMillis), ..binding(content(A), 1, Some(5)) };
    let mut bench = Bench::warm();
    for (told, stands) in [(Some(70), Some(70)), (Some(60), Some(70)), (Some(80), Some(80)), (None, None)] {
        assert_eq!(bench.announce(200, complete("x", ends(told))), Outcome::Accepted(ends(stands)));
    }
}

#[test]
fn the_manager_is_told_of_hosts_and_tasks() {
    let mut bench = Bench::warm();
    for host in 200..204 {
        bench.heartbeat(host, None);
    }
    for (host, task, byte) in [(200, "a", A), (201, "a", A), (200, "b", B), (201, "c", A)] {
        bench.announce(host, complete(task, binding(content(byte), 1, Some(1))));
    }
    for (host, pieces) in [(202, 2), (203, 5)] {
        bench.announce(host, held("a", binding(content(A), 1, Some(1)), Holding::Partial { pieces }));
    }
    let status_of = |request| bench.state.status_of(&request, bench.now());
    let info::Response::Hosts(hosts) = status_of(info::Request::Hosts { after: None }) else { panic!("not hosts") };
    assert_eq!((hosts.hosts, hosts.tasks, hosts.epoch, hosts.more, hosts.items.len()), (4, 3, 1, false, 4));
    assert!(hosts.items.iter().all(|host| host.report.contents == 7 && host.epoch == 1), "as they said");
    let after = Some(hosts.items[1].peer);
    let info::Response::Hosts(rest) = status_of(info::Request::Hosts { after }) else { panic!("not hosts") };
    assert_eq!(rest.items, hosts.items[2..], "the rest");

    let tasks = |after, limit, of| match status_of(info::Request::Tasks { after, limit, of }) {
        info::Response::Tasks(tasks) => tasks,
        other => panic!("not tasks: {other:?}"),
    };
    let all = info::TaskFilter::default();
    let first = tasks(None, 2, all.clone());
    let rest = tasks(first.more_after, 2, all);
    assert_eq!((first.items.len(), rest.items.len(), rest.more_after), (2, 1, None));
    let named = tasks(None, 2, info::TaskFilter { task: Some(name("a").task_id()), ..info::TaskFilter::default() });
    let candidate = &named.items[0].candidates[0];
    assert_eq!((candidate.holders, candidate.available, candidate.peers.len()), (2, true, 2));
    let partial: Vec<_> = candidate.partial.iter().map(|holder| (holder.peer, holder.pieces)).collect();
    assert_eq!(partial, [(peer(203), 5), (peer(202), 2)], "those with most come first");
    assert!(first.items.iter().flat_map(|task| &task.candidates).all(|one| one.partial.is_empty()), "lists are short");
    let of_a = tasks(None, 9, info::TaskFilter { content: Some(content(A)), ..info::TaskFilter::default() });
    assert_eq!(of_a.items.len(), 2, "by content");
    assert!(
        tasks(None, 9, info::TaskFilter { task: Some(name("none").task_id()), ..info::TaskFilter::default() })
            .items
            .is_empty()
    );
}

#[test]
fn tasks_are_found_by_their_names() {
    let mut bench = Bench::warm();
    for (cid, tag) in [("models/a", "v1"), ("models/a", "v2"), ("models/b", ""), ("sets/a", "v1")] {
        let name = Name::parse(cid, tag).expect("a name");
        let announcement = Announcement { name, binding: binding(content(A), 1, Some(1)), holding: Holding::Complete };
        assert!(matches!(bench.announce(200, Record::Held(announcement)), Outcome::Accepted(_)));
    }
    let found = |bench: &Bench, cid_prefix: Option<&str>, tag: Option<&str>| {
        let of = info::TaskFilter {
            cid_prefix: cid_prefix.map(str::to_owned),
            tag: tag.map(str::to_owned),
            ..info::TaskFilter::default()
        };
        let request = info::Request::Tasks { after: None, limit: 100, of };
        let info::Response::Tasks(answer) = bench.state.status_of(&request, bench.now()) else { panic!("tasks") };
        let text = |state: info::TaskState| state.name.map(|name| format!("{} {}", name.cid(), name.tag()));
        let mut names: Vec<_> = answer.items.into_iter().filter_map(text).collect();
        names.sort();
        names.join(", ")
    };
    // (prefix of the cid, tag, what is found, why)
    let table = [
        (None, None, "models/a v1, models/a v2, models/b , sets/a v1", "all, with their names"),
        (Some("models/"), None, "models/a v1, models/a v2, models/b ", "by the beginning of the cid"),
        (None, Some("v1"), "models/a v1, sets/a v1", "by the tag alone"),
        (Some("models/a"), Some("v2"), "models/a v2", "by both"),
        (None, Some(""), "models/b ", "without a tag"),
        (Some("a"), None, "", "not by what is within"),
    ];
    for (prefix, tag, names, why) in table {
        assert_eq!(found(&bench, prefix, tag), names, "{why}");
    }
    bench.ask(200, RequestBody::LeaveTask(Name::parse("sets/a", "v1").expect("a name").task_id()));
    bench.pass_alive(Duration::from_secs(61), &[200]);
    assert_eq!(found(&bench, Some("sets"), None), "", "a name goes with its task");
    assert_eq!(bench.state.names.get(&Name::parse("sets/a", "v1").expect("a name").task_id()), None);
}
