//! Owners, former owners, and those that stand in.

use super::*;

/// A name whose owner is `owner` when the schedulers are `schedulers`, with one replica, and `later` when they are
/// `others`.
fn moving(schedulers: &[u32], owner: u32, others: &[u32], later: u32) -> String {
    let (before, after) = (accepted(1, schedulers, 1), accepted(2, others, 1));
    let moves = |text: &String| {
        let task = name(text).task_id();
        before.ring.owns(&peer(owner), &task) && after.ring.owns(&peer(later), &task)
    };
    (0..).map(|number| format!("task {number}")).find(moves).expect("one of infinitely many")
}

fn announce(text: &str) -> RequestBody {
    let record = complete(text, binding(content(1), 1, Some(1)));
    RequestBody::AnnounceTask(AnnounceTask { records: vec![record], bucket: None })
}

#[test]
fn a_stranger_sends_the_asker_on() {
    let mut bench = Bench::with(Limits::default(), accepted(2, &[1, 2], 1));
    bench.pass(WARM_UP);
    let text = moving(&[1, 2], 2, &[1, 2], 2);
    let signed = accepted(2, &[1, 2], 1).signed.as_bytes().to_vec();
    let stat = || RequestBody::StatTask(name(&text));
    let newer = ResponseBody::NotOwner(Some(signed));
    assert_eq!(bench.ask_as(200, 1, false, stat()), newer, "the asker is behind");
    assert_eq!(bench.ask_as(200, 1, false, announce(&text)), newer, "also when it tells");
    assert!(bench.actions.is_empty());
    assert_eq!(bench.ask_as(200, 2, false, stat()), ResponseBody::NotOwner(None), "the asker is wrong");
    let ResponseBody::Announced(outcomes) = bench.ask_as(200, 2, false, announce(&text)) else { panic!("not judged") };
    assert!(matches!(outcomes[..], [Outcome::Refused(_)]), "with the same epoch, record by record");
    assert_eq!(bench.ask_as(200, 3, false, stat()), ResponseBody::NotOwner(None), "the asker is ahead");
    assert!(matches!(bench.actions[..], [Action::Pull { epoch: 3, .. }]), "so its configuration is pulled");
    bench.ask_as(200, 3, false, stat());
    assert_eq!(bench.actions.len(), 1, "but not with every request");
    bench.ask_as(201, 3, false, stat());
    assert_eq!(bench.actions.len(), 2, "whoever claims what it does not have takes nobody else's turn");
}

#[test]
fn without_a_configuration_nothing_is_owned() {
    let mut state = State::new(peer(1), Limits::default(), 7);
    let request = Request { stand_in: true, ..Request::new(4, RequestBody::StatTask(name("x"))) };
    let now = Now { at: Duration::ZERO, wall: UnixMillis(START) };
    let actions = state.handle(Event::Asked { ask: AskId(0), peer: peer(200), request }, now);
    let [Action::Pull { epoch: 4, .. }, Action::Reply { reply: Reply::Response(response), .. }] = &actions[..] else {
        panic!("{actions:?}")
    };
    assert_eq!(response.body, ResponseBody::NotOwner(None));
}

#[test]
fn a_former_owner_answers_questions_for_a_while() {
    let mut bench = Bench::warm();
    let text = moving(&[1], 1, &[1, 2], 2);
    bench.announce(200, complete(&text, binding(content(1), 1, Some(1))));
    let record = complete(&text, binding(content(1), 1, Some(1)));
    let mut digests = BucketDigests::default();
    digests.toggle(&record.task(), record.digest());
    assert_eq!(bench.heartbeat(200, Some(digests.clone())).mismatched, NONE);

    bench.feed(Event::Configured(accepted(2, &[1, 2], 1)));
    assert!(matches!(bench.told()[..], [(_, notify::Request::NewEpoch(2))]));
    assert_eq!(bench.heartbeat(200, Some(BucketDigests::default())).mismatched, NONE, "it counts no more at once");
    bench.pass_alive(Duration::from_secs(14), &[200]);
    assert!(bench.found(&text).is_some(), "questions are answered");
    assert!(matches!(bench.ask_as(201, 1, false, announce(&text)), ResponseBody::NotOwner(Some(_))), "telling is not");
    bench.pass_alive(Duration::from_secs(1), &[200]);
    let stat = RequestBody::StatTask(name(&text));
    assert!(matches!(bench.ask(200, stat), ResponseBody::NotOwner(Some(_))), "after 15 s no more");
    let gauges = bench.state.gauges();
    assert_eq!((gauges.tasks, gauges.announcements), (0, 0), "and all is dropped");
}

#[test]
fn a_former_owner_still_deletes() {
    let mut bench = Bench::warm();
    let text = moving(&[1], 1, &[1, 2], 2);
    bench.announce(200, complete(&text, binding(content(1), 1, Some(1))));
    bench.feed(Event::Configured(accepted(2, &[1, 2], 1)));
    bench.told();
    let body = RequestBody::DeleteTask(DeleteTask::of(name(&text).task_id()));
    assert_eq!(bench.reply_to(201, Request::new(2, body)), None);
    assert!(
        matches!(bench.told()[..], [(_, notify::Request::DropTask(_))]),
        "the new owner may not know the holder yet"
    );
}

#[test]
fn warmth_belongs_to_a_range() {
    let mut bench = Bench::with(Limits::default(), accepted(1, &[1, 2], 1));
    bench.pass(WARM_UP);
    let (kept, gained) = (moving(&[1, 2], 1, &[1], 1), moving(&[1, 2], 2, &[1], 1));
    let warm = |bench: &mut Bench, text: &str| match bench.stat(text) {
        StatAnswer::Missing(missing) => missing.warm,
        StatAnswer::Found { .. } => panic!("found"),
    };
    bench.feed(Event::Configured(accepted(2, &[1], 1)));
    assert!(warm(&mut bench, &kept), "owner before and after");
    assert!(!warm(&mut bench, &gained), "owner since now");
    bench.pass(Duration::from_secs(14));
    bench.feed(Event::Configured(accepted(3, &[1], 1)));
    assert!(!warm(&mut bench, &gained));
    bench.pass(Duration::from_secs(1));
    assert!(warm(&mut bench, &gained), "an epoch with the same ring changes nothing");
    for epoch in 4..20 {
        bench.feed(Event::Configured(accepted(epoch, if epoch % 2 == 0 { &[1, 2] } else { &[1] }, 1)));
        assert!(epoch > 10 || warm(&mut bench, &kept), "owner through many changes");
    }
    assert!(!warm(&mut bench, &gained), "but not of what came and went");
}

#[test]
fn whoever_stands_in_is_warm_when_hosts_had_time_to_tell() {
    let mut bench = Bench::with(Limits::default(), accepted(1, &[1, 2], 1));
    bench.pass(Duration::from_secs(100));
    let text = moving(&[1, 2], 2, &[1, 2], 2);
    let ask = |bench: &mut Bench, body| bench.ask_as(200, 1, true, body);
    let new = || {
        let record = complete(&text, binding(content(1), 1, None));
        RequestBody::AnnounceTask(AnnounceTask { records: vec![record], bucket: None })
    };
    assert_eq!(ask(&mut bench, new()), ResponseBody::Announced(vec![Outcome::Cold(15_000)]));
    bench.pass_alive(WARM_UP, &[200]);
    let ResponseBody::Announced(outcomes) = ask(&mut bench, new()) else { panic!("not announced") };
    assert!(matches!(outcomes[..], [Outcome::Accepted(_)]));
    assert_eq!(bench.heartbeat(200, Some(BucketDigests::default())).mismatched, NONE, "not in the digests");
    let stat = || RequestBody::StatTask(name(&text));
    assert!(matches!(ask(&mut bench, stat()), ResponseBody::Stat(StatAnswer::Found { .. })));
    assert_eq!(bench.ask_as(200, 1, false, stat()), ResponseBody::NotOwner(None), "only who asks for it gets it");
    bench.pass_alive(Duration::from_secs(700), &[200]);
    assert_eq!(bench.state.gauges().announcements, 0, "forgotten when it is not told again");
    let cold = Missing { warm: false, deleted: None };
    assert_eq!(ask(&mut bench, stat()), ResponseBody::Stat(StatAnswer::Missing(cold)), "and cold again");
}

#[test]
fn what_was_stood_in_for_counts_when_the_range_is_inherited() {
    let mut bench = Bench::with(Limits::default(), accepted(1, &[1, 2], 1));
    let text = moving(&[1, 2], 2, &[1], 1);
    bench.ask_as(200, 1, true, announce(&text));
    bench.feed(Event::Configured(accepted(2, &[1], 1)));
    let record = complete(&text, binding(content(1), 1, Some(1)));
    let mut digests = BucketDigests::default();
    digests.toggle(&record.task(), record.digest());
    assert_eq!(bench.heartbeat(200, Some(digests)).mismatched, NONE, "it need not be told again");
    bench.pass_alive(Duration::from_secs(700), &[200]);
    assert!(bench.found(&text).is_some());
}

#[test]
fn a_drained_scheduler_is_a_former_owner() {
    let mut bench = Bench::with(Limits::default(), accepted(1, &[1, 2], 1));
    bench.pass(WARM_UP);
    let text = moving(&[1, 2], 1, &[2], 2);
    bench.announce(200, complete(&text, binding(content(1), 1, Some(1))));
    let mut settings = accepted(2, &[1, 2], 1).configuration.settings.clone();
    settings.schedulers[0].state = SchedulerState::Draining;
    bench.feed(Event::Configured(configured(2, settings)));
    bench.pass_alive(Duration::from_secs(14), &[200]);
    assert!(bench.found(&text).is_some(), "it still answers");
    let told = bench.ask_as(201, 1, false, announce(&text));
    assert!(matches!(told, ResponseBody::NotOwner(Some(_))), "but takes nothing: {told:?}");
}
