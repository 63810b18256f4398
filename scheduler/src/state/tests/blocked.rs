//! Tags that are blocked.

use super::*;

#[test]
fn what_is_blocked_is_not_announced_and_not_fetched_but_known() {
    let mut bench = Bench::warm();
    let blocked = Name::parse("x", "bad").expect("a name");
    let record = |accepted| {
        let (binding, holding) = (binding(content(1), 1, accepted), Holding::Complete);
        Record::Held(Announcement { name: blocked.clone(), binding, holding })
    };
    let register = |name: &Name| {
        let body = RequestBody::RegisterPeerTask(RegisterPeerTask { name: name.clone(), exclude: Vec::new() });
        Request::new(2, body)
    };
    assert!(matches!(bench.announce(200, record(None)), Outcome::Accepted(_)), "it was not blocked then");
    bench.announce(200, complete("x", binding(content(1), 1, Some(1))));

    let mut settings = accepted(1, &[1], 2).configuration.settings.clone();
    settings.blocked_tags = vec!["bad".to_owned()];
    bench.feed(Event::Configured(configured(2, settings)));
    let refused = Outcome::Refused("the tag is blocked in this cluster".into());
    assert_eq!(bench.announce(201, record(None)), refused, "a new name");
    let told = bench.announce(201, record(Some(1)));
    assert!(matches!(told, Outcome::Accepted(_)), "what was accepted once is told again, to be found: {told:?}");
    let reply = bench.reply_to(300, register(&blocked));
    assert!(matches!(reply, Some(Reply::Refused("the tag is blocked in this cluster"))), "{reply:?}");
    assert!(matches!(bench.reply_to(300, register(&name("x"))), Some(Reply::Response(_))), "another tag");
    let ResponseBody::Stat(found) = bench.ask(300, RequestBody::StatTask(blocked.clone())) else { panic!("no stat") };
    assert!(matches!(found, StatAnswer::Found { holders: 2, .. }), "it can be looked up: {found:?}");
    let delete = DeleteTask::of(blocked.task_id());
    bench.reply_to(300, Request::new(2, RequestBody::DeleteTask(delete)));
    let told = bench.told();
    let drops = told.iter().filter(|(_, request)| matches!(request, notify::Request::DropTask(_)));
    assert_eq!(drops.count(), 2, "it can be deleted: its holders are told: {told:?}");
}
