//! Parents for downloaders, and what is learned from reports.

use super::*;

fn register(bench: &mut Bench, host: u32, text: &str, exclude: &[u32]) -> Vec<Candidate> {
    let exclude = exclude.iter().map(|host| peer(*host)).collect();
    let body = RequestBody::RegisterPeerTask(RegisterPeerTask { name: name(text), exclude });
    match bench.ask(host, body) {
        ResponseBody::Registered(RegisterAnswer::Found(candidates)) => candidates,
        other => panic!("answered with {other:?}"),
    }
}

fn parents(bench: &mut Bench, host: u32, text: &str, exclude: &[u32]) -> Vec<PeerId> {
    register(bench, host, text, exclude)[0].parents.iter().map(|parent| parent.peer).collect()
}

fn report(bench: &mut Bench, host: u32, pieces_held: u32, faults: &[(u32, Option<ParentFault>)]) {
    let result = |(parent, fault): &(u32, Option<ParentFault>)| ParentResult {
        parent: peer(*parent),
        pieces: 1,
        bytes: MIB,
        busy_millis: 10,
        fault: *fault,
    };
    let (task, content) = (name("x").task_id(), content(1));
    let results = faults.iter().map(result).collect();
    let body = RequestBody::ReportPieceResult(ReportPieceResult { task, content, pieces_held, results });
    assert_eq!(bench.ask(host, body), ResponseBody::Noted);
}

fn holder(bench: &mut Bench, host: u32, holding: Holding, seed: bool, tags: &[(&str, &str)]) {
    bench.heartbeat_with(host, None, seed, tags);
    bench.announce(host, held("x", binding(content(1), 1, Some(1)), holding));
}

#[test]
fn the_best_parents_come_first() {
    let mut bench = Bench::warm();
    holder(&mut bench, 200, Holding::Partial { pieces: 2 }, false, &[]);
    holder(&mut bench, 201, Holding::Partial { pieces: 6 }, false, &[]);
    holder(&mut bench, 202, Holding::Complete, false, &[("zone", "a")]);
    holder(&mut bench, 203, Holding::Complete, false, &[("zone", "b"), ("rack", "")]);
    holder(&mut bench, 204, Holding::Complete, true, &[]);
    bench.heartbeat_with(300, None, false, &[("zone", "b")]);
    assert_eq!(parents(&mut bench, 300, "x", &[]), [204, 203, 202, 201, 200].map(peer));
    assert_eq!(parents(&mut bench, 300, "x", &[204, 201]), [203, 202, 200].map(peer), "but for the excluded");
    bench.feed(Event::Disconnected(peer(203)));
    assert_eq!(parents(&mut bench, 300, "x", &[]), [204, 202, 201, 200].map(peer), "and the suspect");
    bench.heartbeat(301, None);
    assert_eq!(parents(&mut bench, 301, "x", &[])[4], peer(300), "a downloader is a parent, if the last one");
    let given = register(&mut bench, 202, "x", &[]).remove(0).parents;
    assert!(given.iter().all(|parent| parent.peer != peer(202)), "nobody fetches from itself");
    assert_eq!(given.iter().filter(|parent| parent.complete).count(), 1);
}

#[test]
fn missing_tasks_say_whether_that_means_something() {
    for (mut bench, warm) in [(Bench::cold(), false), (Bench::warm(), true)] {
        let body = RequestBody::RegisterPeerTask(RegisterPeerTask { name: name("x"), exclude: Vec::new() });
        let missing = RegisterAnswer::Missing(Missing { warm, deleted: None });
        assert_eq!(bench.ask(300, body), ResponseBody::Registered(missing));
    }
}

#[test]
fn a_parent_that_one_child_calls_a_liar_is_spared_that_child_only() {
    let mut bench = Bench::warm();
    holder(&mut bench, 200, Holding::Complete, false, &[]);
    let children = [300, 301, 302];
    for child in children {
        assert_eq!(parents(&mut bench, child, "x", &[])[0], peer(200));
    }
    report(&mut bench, 300, 1, &[(200, Some(ParentFault::Lied))]);
    report(&mut bench, 300, 1, &[(200, Some(ParentFault::Lied))]);
    assert!(parents(&mut bench, 303, "x", &[]).contains(&peer(200)), "one child's word");
    report(&mut bench, 301, 1, &[(200, Some(ParentFault::Lied))]);
    assert!(parents(&mut bench, 303, "x", &[]).contains(&peer(200)), "two are not several");
    report(&mut bench, 302, 1, &[(200, Some(ParentFault::Lied))]);
    assert!(!parents(&mut bench, 303, "x", &[]).contains(&peer(200)), "three are");
    assert_eq!(bench.state.counters().lies, 4);
    assert!(!bench.told().iter().any(|(child, _)| *child == peer(300)), "nor is it offered again to the first");
}

#[test]
fn a_parent_that_nobody_holds_anything_of_cannot_be_blamed() {
    let mut bench = Bench::warm();
    holder(&mut bench, 200, Holding::Complete, false, &[]);
    for child in [300, 301, 302] {
        bench.heartbeat(child, None);
        parents(&mut bench, child, "x", &[]);
        report(&mut bench, child, 1, &[(200, Some(ParentFault::Unreachable)), (201, Some(ParentFault::Lied))]);
    }
    assert_eq!(bench.state.counters().lies, 0);
    holder(&mut bench, 202, Holding::Partial { pieces: 1 }, false, &[]);
    let order = parents(&mut bench, 303, "x", &[]);
    let place = |host| order.iter().position(|parent| *parent == peer(host));
    assert!(place(200) > place(202) && place(200).is_some(), "unreachable for some is only the last choice");
}

#[test]
fn downloaders_hear_of_new_parents_now_and_then() {
    let mut bench = Bench::warm();
    holder(&mut bench, 200, Holding::Complete, false, &[]);
    for child in [300, 301] {
        bench.heartbeat(child, None);
        parents(&mut bench, child, "x", &[]);
    }
    bench.pass(Duration::from_secs(3));
    assert!(bench.told().is_empty(), "nothing is new");
    report(&mut bench, 301, 1, &[(200, None)]);
    holder(&mut bench, 201, Holding::Complete, false, &[]);
    bench.pass(Duration::from_secs(1));
    let told = bench.told();
    let notify::Request::NewParents { parents, .. } = &told[0].1 else { panic!("{told:?}") };
    assert_eq!(told[0].0, peer(300));
    assert_eq!(parents.iter().map(|parent| parent.peer).collect::<Vec<_>>(), [201, 301].map(peer));
    holder(&mut bench, 202, Holding::Complete, false, &[]);
    bench.pass(Duration::from_secs(1));
    assert!(bench.told().is_empty(), "not so soon again");
    bench.pass(Duration::from_secs(1));
    assert_eq!(bench.told().len(), 2, "but then, to both");
    let (task, result) = (name("x").task_id(), PeerResult::Done);
    for child in [300, 301] {
        bench.ask(child, RequestBody::ReportPeerResult(ReportPeerResult { task, content: content(1), result }));
    }
    holder(&mut bench, 203, Holding::Complete, false, &[]);
    bench.pass(Duration::from_secs(3));
    assert!(bench.told().is_empty(), "who is done needs none");
    assert_eq!(bench.state.gauges().downloads, 0);
    assert!(bench.state.hosts.iter().all(|(_, host)| host.children == 0 && host.downloads == 0), "nor is a load");
}

#[test]
fn children_are_spread() {
    let mut bench = Bench::warm();
    let parents_count = 20;
    for host in 200..200 + parents_count {
        holder(&mut bench, host, Holding::Complete, false, &[]);
    }
    let mut first = BTreeMap::<PeerId, u32>::new();
    for child in 300..400 {
        bench.heartbeat(child, None);
        let parents = parents(&mut bench, child, "x", &[]);
        assert_eq!(parents.len(), 16);
        *first.entry(parents[0]).or_default() += 1;
    }
    assert_eq!(first.len(), parents_count as usize, "every one is somebody's first");
    let loads: Vec<_> = bench.state.hosts.iter().map(|(_, host)| host.children).collect();
    let busiest = loads.iter().max().copied().unwrap_or_default();
    assert!((40..=41).contains(&busiest), "100 children use 8 of 20 parents each: {busiest}");
}

#[test]
fn a_restarted_scheduler_learns_of_downloads_by_reports() {
    let mut bench = Bench::warm();
    holder(&mut bench, 200, Holding::Complete, false, &[]);
    bench.heartbeat(300, None);
    report(&mut bench, 300, 5, &[(200, None)]);
    assert_eq!(bench.state.gauges().downloads, 1);
    bench.heartbeat(301, None);
    assert!(parents(&mut bench, 301, "x", &[]).contains(&peer(300)));
    bench.pass(LEASE);
    assert_eq!(bench.state.gauges().downloads, 0, "it ends with the host's lease");
}

#[test]
fn no_download_outlives_its_end() {
    let mut bench = Bench::warm();
    holder(&mut bench, 200, Holding::Complete, false, &[]);
    let downloads = |bench: &Bench| bench.state.gauges().downloads;
    register(&mut bench, 300, "x", &[]);
    report(&mut bench, 300, 3, &[]);
    assert_eq!(downloads(&bench), 1);
    holder(&mut bench, 300, Holding::Complete, false, &[]);
    assert_eq!(downloads(&bench), 0, "it is complete, whether or not its end is reported");
    report(&mut bench, 300, 8, &[]);
    assert_eq!(downloads(&bench), 0, "a report that was late begins no other one");
    register(&mut bench, 301, "x", &[]);
    report(&mut bench, 301, 3, &[]);
    bench.pass_alive(Duration::from_secs(59), &[200, 300, 301]);
    assert_eq!(downloads(&bench), 1, "it may go on");
    bench.pass_alive(Duration::from_secs(10), &[200, 300, 301]);
    assert_eq!(downloads(&bench), 0, "nothing was heard of it for a minute");
    let children = bench.state.hosts.iter().map(|(_, host)| host.children).sum::<u32>();
    assert_eq!(children, 0, "nobody counts as busy with it");
    report(&mut bench, 301, 4, &[]);
    assert_eq!(downloads(&bench), 1, "it goes on after all");
}
