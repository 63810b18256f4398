//! Cluster-wide deletes.

use super::*;

fn delete(asked: Option<u64>) -> RequestBody {
    RequestBody::DeleteTask(DeleteTask { task: name("x").task_id(), asked: asked.map(|at| UnixMillis(START + at)) })
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
fn a_sha256_name_goes_with_all_candidates() {
    let text = format!("sha256:{}", "ab".repeat(32));
    let mut bench = Bench::warm();
    bench.announce(200, complete(&text, binding(content(1), 1, Some(1))));
    bench.announce(201, complete(&text, binding(content(2), 1, Some(2))));
    let body = RequestBody::DeleteTask(DeleteTask { task: name(&text).task_id(), asked: None });
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
    let other = RequestBody::DeleteTask(DeleteTask { task: name("y").task_id(), asked: None });
    assert!(matches!(bench.reply_to(201, request(other)), Some(Reply::Busy(_))));
    assert!(bench.found("y").is_some(), "and nothing happened");
}
