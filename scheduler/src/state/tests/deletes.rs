//! Cluster-wide deletes.

use super::*;

fn delete(asked: Option<u64>) -> RequestBody {
    RequestBody::DeleteTask(DeleteTask {
        asked: asked.map(|at| UnixMillis(START + at)),
        ..DeleteTask::of(name("x").task_id())
    })
}

fn deleted(reply: Option<Reply>) -> DeleteAnswer {
    match reply {
        Some(Reply::Response(Response { body: ResponseBody::Deleted(answer), .. })) => answer,
        other => panic!("answered with {other:?}"),
    }
}

fn request(body: RequestBody) -> Request {
    Request::new(1, body)
}

#[test]
fn it_returns_when_every_holder_has_answered() {
    let mut bench = Bench::warm();
    bench.announce(200, complete("x", binding(content(1), 3, Some(1))));
    bench.announce(201, held("x", binding(content(1), 3, Some(1)), Holding::Partial { pieces: 1 }));
    let register = RegisterPeerTask { name: name("x"), exclude: Vec::new() };
    bench.ask(202, RequestBody::RegisterPeerTask(register));
    bench.announce(203, complete("x", binding(content(1), 3, Some(1))));
    let waiting = AskId(bench.asked);
    assert_eq!(bench.reply_to(203, request(delete(None))), None, "it waits");
    let told: Vec<_> = bench.told().into_iter().map(|(peer, _)| peer).collect();
    assert_eq!(told, [200, 201, 202].map(peer), "complete, partial and downloading; the asker knows by the answer");
    for (host, answered) in [(200, true), (201, false), (202, true)] {
        assert_eq!(bench.reply_of(waiting), None, "host {host} has yet to answer");
        bench.feed(Event::Notified { delete: DeleteId(0), peer: peer(host), answered });
    }
    let answer = deleted(bench.reply_of(waiting));
    let tombstone = Tombstone { task: name("x").task_id(), generation: 3, deleted: bench.now().wall };
    assert_eq!(answer, DeleteAnswer { tombstone: Some(tombstone), dropped: 2, unreachable: 1, warm: true });
    assert_eq!(bench.stat("x"), StatAnswer::Missing(Missing { warm: true, deleted: Some(tombstone) }));
    let again = deleted(bench.reply_to(203, request(delete(None))));
    assert_eq!(again, DeleteAnswer { tombstone: Some(tombstone), dropped: 0, unreachable: 0, warm: true }, "once more");
}

#[test]
fn it_does_not_wait_for_ever() {
    let mut bench = Bench::warm();
    bench.announce(200, complete("x", binding(content(1), 1, Some(1))));
    let waiting = AskId(bench.asked);
    assert_eq!(bench.reply_to(201, request(delete(None))), None);
    bench.pass(Duration::from_secs(15));
    assert_eq!(deleted(bench.reply_of(waiting)).unreachable, 1);
}

#[test]
fn nothing_to_delete() {
    let mut cold = Bench::cold();
    assert!(!deleted(cold.reply_to(201, request(delete(None)))).warm, "not knowing means nothing yet");
    let mut bench = Bench::warm();
    let nothing = DeleteAnswer { tombstone: None, dropped: 0, unreachable: 0, warm: true };
    assert_eq!(deleted(bench.reply_to(201, request(delete(None)))), nothing, "unknown");
    bench.announce(200, complete("x", binding(content(1), 1, Some(100))));
    assert_eq!(deleted(bench.reply_to(201, request(delete(Some(99))))), nothing, "accepted after the delete was asked");
    assert!(bench.found("x").is_some());
    bench.told();
    assert_eq!(bench.reply_to(201, request(delete(Some(100)))), None, "accepted before");
    assert_eq!(bench.told().len(), 1);
}

#[test]
fn the_manager_is_told_who_deleted_what() {
    let mut bench = Bench::warm();
    let told = |bench: &Bench, after| match bench.state.status_of(&info::Request::Deletions { after }, bench.now()) {
        info::Response::Deletions(told) => told.items,
        other => panic!("not deletions: {other:?}"),
    };
    bench.reply_to(201, request(delete(None)));
    assert_eq!(told(&bench, 0), [], "there was nothing to delete");
    for (generation, uid) in [(1, 1000), (2, 0)] {
        bench.announce(201, complete("x", binding(content(1), generation, None)));
        let wanted = DeleteTask { name: Some(name("x")), uid: Some(uid), ..DeleteTask::of(name("x").task_id()) };
        bench.reply_to(201, request(RequestBody::DeleteTask(wanted)));
    }
    let all = told(&bench, 0);
    let who: Vec<_> = all.iter().map(|one| (one.peer, one.uid, one.name.clone(), one.tombstone.generation)).collect();
    assert_eq!(who, [(peer(201), Some(1000), Some(name("x")), 1), (peer(201), Some(0), Some(name("x")), 2)]);
    assert_eq!((told(&bench, all[0].number), told(&bench, all[1].number)), (vec![all[1].clone()], Vec::new()));
    bench.pass(Duration::from_secs(8 * 24 * 3600));
    assert_eq!(told(&bench, 0), [], "that is long ago");
}

#[test]
fn a_sha256_name_goes_with_all_candidates() {
    let text = format!("sha256:{}", "ab".repeat(32));
    let mut bench = Bench::warm();
    bench.announce(200, complete(&text, binding(content(1), 1, Some(1))));
    bench.announce(201, complete(&text, binding(content(2), 1, Some(2))));
    let body = RequestBody::DeleteTask(DeleteTask::of(name(&text).task_id()));
    bench.reply_to(202, request(body));
    assert_eq!(bench.told().len(), 2);
    assert!(bench.found(&text).is_none());
}

#[test]
fn too_many_deletes_are_put_off() {
    let limits = Limits { deletes: 1, ..Limits::default() };
    let mut bench = Bench::with(limits, accepted(1, &[1], 2));
    bench.pass(WARM_UP);
    for text in ["x", "y"] {
        bench.announce(200, complete(text, binding(content(1), 1, Some(1))));
    }
    assert_eq!(bench.reply_to(201, request(delete(None))), None);
    let other = RequestBody::DeleteTask(DeleteTask::of(name("y").task_id()));
    assert!(matches!(bench.reply_to(201, request(other)), Some(Reply::Busy(_))));
    assert!(bench.found("y").is_some(), "and nothing happened");
}
