//! Whose word counts for whom.

use super::*;

#[test]
fn a_host_speaks_for_itself_only() {
    let mut bench = Bench::warm();
    let task = name("x").task_id();
    bench.announce(200, complete("x", binding(content(1), 1, Some(5))));
    let expected = Some((vec![content(1)], 1, true));
    bench.ask(201, RequestBody::LeaveTask(task));
    assert_eq!(bench.found("x"), expected, "another host left");
    let all = Some(BucketPart { bucket: task.bucket(), first: true, last: true });
    bench.announce_all(201, Vec::new(), all);
    assert_eq!(bench.found("x"), expected, "another host holds nothing");
    bench.announce_all(200, Vec::new(), all);
    assert_eq!(bench.found("x"), None, "the host itself");
}
