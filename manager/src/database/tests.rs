//! One suite for both databases.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _, path::Path};

use damselfly_messages::{info::Deletion, name::Name, record::Tombstone};
use libp2p::PeerId;
use serde_json::json;

mod postgres;

use super::{
    audit::{Actor, Filter},
    credentials::{NewAccessToken, TokenError},
    join_tokens::{NewJoinToken, Refused},
    leader::Leader,
    members::{Joining, Member, RenewError},
    prune::{AUDIT_KEPT, ENDED_KEPT},
    users::{NewUser, UserChange, UserError},
    *,
};
use crate::access::Role;
use postgres::Server;

async fn sqlite(folder: &Path) -> Database {
    Database::open(Location::Sqlite(folder.join("a b.db"))).await.expect("opened")
}

/// What is the same with both.
async fn suite(database: &Database) {
    turns(database).await;
    join_tokens(database).await;
    racing(database).await;
    members(database).await;
    audit(database).await;
    users(database).await;
    credentials(database).await;
    again(database).await;
    pruning(database).await;
    managers(database).await;
    deletions(database).await;
}

/// Each owner of a task tells of a delete, and tells again; the audit has it once.
async fn deletions(database: &Database) {
    let name = Name::parse("weights", "v1").expect("a name");
    let (peer, task) = (PeerId::random(), name.task_id());
    let delete = |number, generation, uid| Deletion {
        number,
        peer,
        uid,
        name: Some(name.clone()),
        tombstone: Tombstone { task, generation, deleted: UnixMillis(number) },
    };
    let note =
        async |deletions: &[Deletion], now| database.note_deletions(deletions, UnixMillis(now)).await.expect("noted");
    assert_eq!(note(&[delete(7, 1, Some(1000)), delete(8, 2, None)], 9).await, 2);
    assert_eq!(note(&[delete(17, 1, Some(1000)), delete(18, 3, Some(0))], 19).await, 1, "an owner more");
    let filter = Filter { action: Some("task.delete".to_owned()), actor: None };
    let noted = database.audit(&Page::new(50, None), &filter).await.expect("read").items;
    let who: Vec<_> = noted.iter().map(|entry| (entry.at.0, entry.actor.clone())).collect();
    let expected =
        [(18, format!("uid 0 on {peer}")), (8, format!("somebody on {peer}")), (7, format!("uid 1000 on {peer}"))];
    assert_eq!(who, expected);
    let named = Some(json!({ "cid": "weights", "tag": "v1" }));
    assert!(noted.iter().all(|entry| entry.target == task.to_string() && entry.before == named));
}

/// Managers know of each other, until one has been away for long.
async fn managers(database: &Database) {
    let at = |name: &str| vec![format!("/ip4/192.0.2.1/tcp/4402/p2p/{name}")];
    let see = async |name: &str, now: u64| {
        let times = (UnixMillis(now), UnixMillis(now.saturating_sub(1000)));
        database.see_manager(name, &at(name), times).await.expect("seen");
    };
    see("one", 5000).await;
    assert_eq!(database.other_managers("one").await.expect("read"), Vec::<Vec<String>>::new());
    see("two", 5500).await;
    see("two", 5600).await;
    assert_eq!(database.other_managers("one").await.expect("read"), [at("two")]);
    see("three", 6100).await;
    assert_eq!(database.other_managers("").await.expect("read"), [at("three"), at("two")], "one is forgotten");
}

/// Who writes waits for who writes already.
async fn turns(database: &Database) {
    let first = database.write().await.expect("nobody else writes");
    let other = database.clone();
    let second = tokio::spawn(async move { other.write().await.expect("in time").rollback().await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!second.is_finished());
    database.member("anybody").await.expect("reading goes on");
    first.rollback().await.expect("given up");
    second.await.expect("no panic").expect("given up");
}

fn actor() -> Actor {
    Actor { name: "ada".to_owned(), address: Some("192.0.2.7".to_owned()) }
}

fn token(id: u8, uses: u32, expires: u64) -> NewJoinToken {
    let tags = BTreeMap::from([("rack".to_owned(), "r1".to_owned())]);
    let roles = vec!["node".to_owned()];
    NewJoinToken { id: [id; 16], verifier: [9; 32], roles, tags, uses, expires: UnixMillis(expires) }
}

fn joining(peer_id: &str, serial: u64) -> Joining {
    let addresses = vec!["/ip4/192.0.2.1/tcp/1".to_owned()];
    Joining { peer_id: peer_id.to_owned(), serial, not_after: UnixMillis(500), addresses, version: "1".to_owned() }
}

async fn join_tokens(database: &Database) {
    for (id, uses, expires) in [(1, 2, 100), (2, 1, 100), (3, 1, 10), (4, 1, 100)] {
        database.create_join_token(token(id, uses, expires), &actor(), UnixMillis(1)).await.expect("made");
    }
    assert!(database.revoke_join_token(&[4; 16], &actor(), UnixMillis(2)).await.expect("revoked"));
    assert!(!database.revoke_join_token(&[4; 16], &actor(), UnixMillis(3)).await.expect("once"));
    let consume =
        async |id: u8, peer: &str, now| database.consume_join_token(&[id; 16], joining(peer, 7), UnixMillis(now)).await;
    let member = consume(1, "peer-a", 20).await.expect("joined");
    assert_eq!((member.tags["rack"].as_str(), member.serial, member.joined.0), ("r1", 7, 20));
    assert_eq!(member.roles, ["node"]);
    consume(2, "peer-b", 99).await.expect("joined");
    assert!(matches!(consume(9, "peer-c", 20).await, Err(Refused::Unknown)));
    assert!(matches!(consume(3, "peer-c", 10).await, Err(Refused::Expired)), "at its end");
    assert!(matches!(consume(4, "peer-c", 20).await, Err(Refused::Revoked)));
    assert!(matches!(consume(2, "peer-c", 20).await, Err(Refused::UsedUp)));
    assert!(database.member("peer-c").await.expect("read").is_none(), "refused is not a member");
    // Its answer was lost, or could not be kept: the same host is let in again, and takes no further use.
    for _ in 0..3 {
        assert_eq!(consume(2, "peer-b", 99).await.expect("again").joined.0, 99);
        consume(1, "peer-a", 20).await.expect("again");
    }
    assert!(matches!(consume(2, "peer-b", 1_000_000).await, Err(Refused::Expired)), "but not after its end");
    let used = database.join_token(&[1; 16]).await.expect("read").expect("there");
    assert_eq!((used.uses, used.uses_left, used.created_by.as_str()), (2, 1, "ada"));

    let page = database.join_tokens(&Page::new(3, None)).await.expect("read");
    assert_eq!(page.items.iter().map(|token| token.id[0]).collect::<Vec<_>>(), [4, 3, 2], "newest first");
    let rest = database.join_tokens(&Page::new(3, page.next)).await.expect("read");
    assert_eq!((rest.items[0].id[0], rest.items.len(), rest.next), (1, 1, None));
}

/// More at once than the token has uses.
async fn racing(database: &Database) {
    database.create_join_token(token(20, 3, 1000), &actor(), UnixMillis(1)).await.expect("made");
    let mut joins = tokio::task::JoinSet::new();
    for number in 0..8 {
        let database = database.clone();
        joins.spawn(async move {
            let serial = database.next_serial().await.expect("a number");
            let who = joining(&format!("racer-{number}"), serial);
            (serial, database.consume_join_token(&[20; 16], who, UnixMillis(2)).await)
        });
    }
    let done = joins.join_all().await;
    let joined = done.iter().filter(|(_, joined)| joined.is_ok()).count();
    assert_eq!(joined, 3);
    assert!(done.iter().all(|(_, joined)| matches!(joined, Ok(_) | Err(Refused::UsedUp))), "{done:?}");
    let serials: std::collections::BTreeSet<_> = done.iter().map(|(serial, _)| *serial).collect();
    assert_eq!(serials, (1..=8).collect(), "each serial is given out once");
}

async fn members(database: &Database) {
    database.create_join_token(token(30, 9, 1000), &actor(), UnixMillis(1)).await.expect("made");
    let renewing = Joining { not_after: UnixMillis(900), version: "2".to_owned(), ..joining("peer-a", 8) };
    let renewed = database.renew_member(renewing, UnixMillis(50)).await.expect("renewed");
    assert_eq!(database.member("peer-a").await.expect("read"), Some(renewed.clone()));
    assert_eq!((renewed.joined.0, renewed.renewed.0, renewed.serial), (20, 50, 8));
    assert!(matches!(database.renew_member(joining("nobody", 9), UnixMillis(50)).await, Err(RenewError::Unknown)));
    let ending = async |before, limit| database.credentials_ending(UnixMillis(before), limit).await.expect("read");
    assert_eq!(ending(901, 1).await, [("peer-a".to_owned(), UnixMillis(900))], "the latest first");
    let earlier = ending(900, 999).await;
    assert!(earlier.contains(&("peer-b".to_owned(), UnixMillis(500))), "{earlier:?}");
    assert!(earlier.iter().all(|(peer, _)| peer != "peer-a") && ending(500, 9).await.is_empty(), "{earlier:?}");

    let revoke = async |peer: &str, reason: &str, at| {
        database.revoke_member(peer, reason, &actor(), UnixMillis(at)).await.expect("done")
    };
    assert!(revoke("nobody", "x", 60).await.is_none());
    assert_eq!(revoke("peer-a", "stolen", 60).await.expect("revoked").revoked.expect("told").reason, "stolen");
    assert!(ending(901, 999).await.iter().all(|(peer, _)| peer != "peer-a"), "who is out gets no credential");
    let again = revoke("peer-a", "again", 70).await.expect("there").revoked.expect("told");
    assert_eq!((again.reason.as_str(), again.at.0, again.by.as_str()), ("stolen", 60, "ada"));
    assert!(matches!(database.renew_member(joining("peer-a", 9), UnixMillis(80)).await, Err(RenewError::Revoked)));
    let back = database.consume_join_token(&[30; 16], joining("peer-a", 9), UnixMillis(80)).await;
    assert!(matches!(back, Err(Refused::MemberRevoked)), "another token does not help: {back:?}");
    assert_eq!(database.join_token(&[30; 16]).await.expect("read").expect("there").uses_left, 9, "nor is it used");
    assert_eq!(database.revoked_members(UnixMillis(60), 9).await.expect("read").len(), 1);
    assert_eq!(database.revoked_members(UnixMillis(61), 9).await.expect("read").len(), 0);

    // Who joins again is the same member with another token's roles and a new credential.
    let other = NewJoinToken { roles: vec!["scheduler".to_owned()], ..token(31, 1, 1000) };
    database.create_join_token(other, &actor(), UnixMillis(1)).await.expect("made");
    let joining = Joining { not_after: UnixMillis(901), version: "3".to_owned(), ..joining("peer-b", 12) };
    let again = database.consume_join_token(&[31; 16], joining, UnixMillis(90)).await.expect("joined");
    assert_eq!((again.joined.0, again.renewed.0, again.not_after.0, again.serial), (99, 90, 901, 12));
    assert_eq!(
        (again.version.as_str(), again.token_id, &again.roles[..]),
        ("3", [31; 16], &["scheduler".to_owned()][..])
    );
    assert!(database.member("peer-b").await.expect("read") == Some(again));

    let mut names = Vec::new();
    let mut after = None;
    loop {
        let page = database.members(&Page::new(2, after), Some("node")).await.expect("read");
        names.extend(page.items.into_iter().map(|member| member.peer_id));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(names.len(), 4, "a peer and three racers: {names:?}");
    assert!(names.is_sorted());
    assert!(database.members(&Page::new(9, None), Some("nod")).await.expect("read").items.is_empty());
}

async fn audit(database: &Database) {
    let filter = |action: &str| Filter { action: Some(action.to_owned()), actor: None };
    let joins = database.audit(&Page::new(50, None), &filter("member.join")).await.expect("read");
    assert_eq!(joins.items.len(), 6, "one for each that joined, two for who did so twice");
    assert_eq!(joins.items[0].before.as_ref().expect("it was a member")["roles"], json!(["node"]));
    let revoked = database.audit(&Page::new(50, None), &filter("member.revoke")).await.expect("read");
    assert_eq!((revoked.items.len(), &revoked.items[0].after), (1, &Some(json!({ "reason": "stolen" }))));
    let of_ada = Filter { actor: Some("ada".to_owned()), action: None };
    let first = database.audit(&Page::new(2, None), &of_ada).await.expect("read");
    let second = database.audit(&Page::new(2, first.next), &of_ada).await.expect("read");
    assert!(first.items[1].id > second.items[0].id);
}

async fn users(database: &Database) {
    let (actor, now) = (actor(), UnixMillis(5));
    let new = |name, role| NewUser { name, role, password: "hash" };
    database.create_first_user(new("ada", Role::Admin), &actor, now).await.expect("made");
    let second = database.create_first_user(new("eve", Role::Admin), &actor, now).await;
    assert!(matches!(second, Err(UserError::SetUp)));
    database.create_user(new("bob", Role::Admin), &actor, now).await.expect("made");
    assert!(matches!(database.create_user(new("bob", Role::Viewer), &actor, now).await, Err(UserError::Exists)));

    // Each could go while the other one stays; not both.
    let demoted = UserChange { role: Some(Role::Viewer), ..UserChange::default() };
    let results =
        tokio::join!(database.change_user("ada", demoted, &actor, now), database.delete_user("bob", &actor, now));
    let kept = [matches!(results.0, Err(UserError::LastAdmin)), matches!(results.1, Err(UserError::LastAdmin))];
    assert_eq!(kept.iter().filter(|kept| **kept).count(), 1, "{results:?}");
    let last = if kept[0] { "ada" } else { "bob" };
    let disabled = UserChange { is_disabled: Some(true), ..UserChange::default() };
    assert!(matches!(database.change_user(last, disabled, &actor, now).await, Err(UserError::LastAdmin)));
    assert!(matches!(database.delete_user("nobody", &actor, now).await, Err(UserError::Unknown)));
}

async fn credentials(database: &Database) {
    let user = Actor { name: "cy".to_owned(), address: None };
    let new = NewUser { name: "cy", role: Role::Operator, password: "hash" };
    database.create_user(new, &user, UnixMillis(5)).await.expect("made");
    let begin = async |number: u8, now, since| {
        let since = UnixMillis(since);
        database.begin_session(&[number; 32], &user, UnixMillis(now), since, since).await.expect("begun");
    };
    let lasts = async |number: u8| database.session(&[number; 32]).await.expect("read").is_some();
    for number in 0..17 {
        begin(number, 100 + u64::from(number), 0).await;
    }
    assert!(!lasts(0).await && lasts(1).await && lasts(16).await, "the oldest ends for the seventeenth");
    database.touch_session(&[2; 32], UnixMillis(500)).await.expect("used");
    database.touch_session(&[2; 32], UnixMillis(400)).await.expect("used");
    let session = database.session(&[2; 32]).await.expect("read").expect("there");
    assert_eq!((session.used.0, session.created.0, session.role), (500, 102, Role::Operator));
    begin(99, 600, 110).await;
    assert!(!lasts(9).await && lasts(10).await, "what is over is forgotten");
    database.end_session(&[10; 32]).await.expect("ended");
    assert!(!lasts(10).await);

    let token = |number: u8, expires| NewAccessToken {
        hash: [number; 32],
        user: "cy".to_owned(),
        label: "CI".to_owned(),
        role: Role::Admin,
        scopes: None,
        expires: UnixMillis(expires),
    };
    for number in 0..64 {
        database.create_access_token(token(number, 50), &user, UnixMillis(1)).await.expect("made");
    }
    let further = database.create_access_token(token(64, 90), &user, UnixMillis(49)).await;
    assert!(matches!(further, Err(TokenError::TooMany)), "{further:?}");
    let made = database.create_access_token(token(64, 90), &user, UnixMillis(50)).await.expect("expired ones go");
    let found = database.access_token(&[64; 32]).await.expect("read").expect("there");
    assert_eq!((found.id, found.role), (made.id, Role::Operator), "no more than its user may");
    let tokens = database.access_tokens(&Page::new(9, None), Some("cy")).await.expect("read");
    assert_eq!((tokens.items.len(), &tokens.items[0]), (1, &made));
    let revoke =
        async |user_name| database.revoke_access_token(made.id, user_name, &user, UnixMillis(60)).await.expect("done");
    assert!(!revoke(Some("eve")).await && revoke(Some("cy")).await && !revoke(None).await);
    assert!(database.access_token(&[64; 32]).await.expect("read").is_none());
    let next = database.create_access_token(token(65, 90), &user, UnixMillis(60)).await.expect("made");
    assert!(next.id > made.id, "an id is not used again");

    database.delete_user("cy", &user, UnixMillis(70)).await.expect("deleted");
    assert!(!lasts(99).await && database.access_token(&[65; 32]).await.expect("read").is_none(), "all of it goes");
}

/// Opening it again changes nothing.
async fn again(database: &Database) {
    let other = Database::open(database.place().clone()).await.expect("opened");
    assert!(other.member("peer-a").await.expect("read").is_some());
    assert_eq!(other.next_serial().await.expect("a number"), 9);
    other.close().await;
}

/// What ended long ago goes, and numbers are not used again.
async fn pruning(database: &Database) {
    let after = |kept: Duration, at: u64| UnixMillis(kept.as_millis() as u64 + at);
    let grace = Duration::from_millis(5);
    let all = Page::new(99, None);
    let lasting = database.create_join_token(token(70, 1, 2_000_000), &actor(), UnixMillis(70)).await.expect("made");
    for (id, peer, until) in [(71, "ended", 1_000_000), (72, "lasting", 1_000_005)] {
        database.create_join_token(token(id, 1, 90), &actor(), UnixMillis(70)).await.expect("made");
        let joining = Joining { not_after: UnixMillis(until), ..joining(peer, u64::from(id)) };
        database.consume_join_token(&[id; 16], joining, UnixMillis(71)).await.expect("joined");
    }
    let joined = database.members(&all, None).await.expect("read").items;
    let pruned = database.prune(grace, after(ENDED_KEPT, 1_000_010)).await.expect("pruned");
    assert_eq!(pruned.audit, 0, "that is kept for longer");
    let tokens = database.join_tokens(&all).await.expect("read").items;
    let kept: Vec<_> = tokens.iter().map(|token| token.id[0]).collect();
    assert_eq!(kept, [72, lasting.id[0]], "those that hold, and the newest");
    let members = database.members(&all, None).await.expect("read").items;
    assert_eq!(members.len() as u64 + pruned.members, joined.len() as u64);
    let is_kept = |peer: &str| members.iter().any(|member| member.peer_id == peer);
    assert!(is_kept("lasting") && !is_kept("ended"), "grace counts: {members:?}");
    let revoked = |members: &[Member]| members.iter().filter(|member| member.revoked.is_some()).count();
    assert_eq!((revoked(&members), revoked(&joined)), (1, 1), "who was put out is known for ever");

    let newest = database.audit(&Page::new(1, None), &Filter::default()).await.expect("read").items[0].id;
    let pruned = database.prune(grace, after(AUDIT_KEPT, 3_000_000)).await.expect("pruned");
    assert!(pruned.audit > 10, "{pruned:?}");
    let made = database.create_join_token(token(73, 1, 90), &actor(), UnixMillis(80)).await.expect("made");
    let left = database.audit(&all, &Filter::default()).await.expect("read").items;
    assert_eq!(left.iter().map(|entry| entry.id).collect::<Vec<_>>(), [newest + 1, newest], "no number twice");
    assert_eq!(database.join_tokens(&all).await.expect("read").items[0].id, made.id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletes_of_hosts_do_not_fill_the_audit() {
    let folder = tempfile::tempdir().expect("a folder");
    let database = sqlite(folder.path()).await;
    let deletes: Vec<_> = (0..40u64)
        .map(|number| Deletion {
            number,
            peer: PeerId::random(),
            uid: Some(1000),
            name: None,
            tombstone: Tombstone {
                task: Name::parse(&format!("file {number}"), "").expect("a name").task_id(),
                generation: 1,
                deleted: UnixMillis(number),
            },
        })
        .collect();
    database.create_join_token(token(1, 1, 2_000_000), &actor(), UnixMillis(1)).await.expect("made");
    for (at, delete) in deletes.iter().enumerate() {
        database.note_deletions(std::slice::from_ref(delete), UnixMillis(at as u64)).await.expect("noted");
    }
    let mut writing = database.write().await.expect("begun");
    let change = audit::Change { action: "task.delete", target: "of a user", ..audit::Change::default() };
    audit::append(&mut writing, UnixMillis(50), &actor(), change).await.expect("noted");
    assert_eq!(prune::prune_deletes(&mut writing, 100, 100).await.expect("pruned"), 0, "there are fewer");
    assert_eq!(prune::prune_deletes(&mut writing, 10, 20).await.expect("pruned"), 30, "the latest ten stay");
    writing.commit().await.expect("committed");
    let left = database.audit(&Page::new(99, None), &Filter::default()).await.expect("read").items;
    let by_hosts: Vec<_> = left.iter().filter(|entry| entry.actor.contains(" on ")).map(|entry| entry.at.0).collect();
    assert_eq!(by_hosts, (30..40).rev().collect::<Vec<_>>());
    assert_eq!(left.len(), 12, "what users of the manager did stays: {left:?}");
    assert_eq!(database.note_deletions(&deletes[25..], UnixMillis(60)).await.expect("asked"), 0, "known to be noted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_does_what_is_asked() {
    let folder = tempfile::tempdir().expect("a folder");
    let database = sqlite(folder.path()).await;
    suite(&database).await;
    let mode: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&database.pool).await.expect("read");
    let sync: i64 = sqlx::query_scalar("PRAGMA synchronous").fetch_one(&database.pool).await.expect("read");
    let keys: i64 = sqlx::query_scalar("PRAGMA foreign_keys").fetch_one(&database.pool).await.expect("read");
    assert_eq!((mode.as_str(), sync, keys), ("wal", 2, 1));
    for file in fs::read_dir(folder.path()).expect("a folder") {
        let mode = file.expect("a file").metadata().expect("there").permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "others read nothing");
    }
    assert!(*Leader::start(&database).is_publisher().borrow());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_does_what_is_asked() {
    let Some(server) = Server::start() else { return eprintln!("PostgreSQL is not installed: nothing tested") };
    let database = Database::open(Location::Postgres(server.url().into())).await.expect("opened");
    suite(&database).await;
    database.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_managers_one_publishes_and_the_other_takes_over() {
    let Some(server) = Server::start() else { return eprintln!("PostgreSQL is not installed: nothing tested") };
    let database = Database::open(Location::Postgres(server.url().into())).await.expect("opened");
    let first = Leader::start(&database);
    let limit = std::time::Duration::from_secs(10);
    let mut is_first = first.is_publisher();
    tokio::time::timeout(limit, is_first.wait_for(|is| *is)).await.expect("in time").expect("it runs");
    let second = Leader::start(&database);
    let mut is_second = second.is_publisher();
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert!(*is_first.borrow() && !*is_second.borrow());

    // The server ends the connection of the first, as it does when its host is gone.
    let end = "SELECT CAST(pg_terminate_backend(pid) AS TEXT) FROM pg_locks WHERE locktype = 'advisory'";
    sqlx::query(end).fetch_all(&database.pool).await.expect("done");
    let takes_over = async {
        tokio::select! {
            told = is_second.wait_for(|is| *is) => drop(told.expect("it runs")),
            told = is_first.wait_for(|is| !*is) => drop(told.expect("it runs")),
        }
    };
    tokio::time::timeout(limit, takes_over).await.expect("in time");
    drop(first);
    tokio::time::timeout(limit, is_second.wait_for(|is| *is)).await.expect("in time").expect("it runs");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_said_so_without_the_password() {
    let url = DatabaseUrl::from("postgres://df:hunter2@127.0.0.1:1/df".to_owned());
    let error = Database::open(Location::Postgres(url)).await.expect_err("nobody listens");
    let text = format!("{} {error:?}", damselfly_transport::error_chain::chain(&error));
    assert!(text.contains("refused") && !text.contains("hunter2"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_late_is_waited_for_and_one_that_refuses_is_not() {
    let Some(server) = Server::start() else { return eprintln!("PostgreSQL is not installed: nothing tested") };
    let patience = Duration::from_secs(60);
    let place = Location::Postgres(server.url().into());
    server.end();
    let mut waiting = tokio::spawn(Database::open_when_ready(place.clone(), patience));
    tokio::time::timeout(Duration::from_secs(2), &mut waiting).await.expect_err("it waits");
    tokio::task::block_in_place(|| server.begin());
    waiting.await.expect("no panic").expect("opened").close().await;

    let other = Location::Postgres(server.url().replace("/postgres", "/nothing").into());
    let refused = tokio::time::timeout(patience / 2, Database::open_when_ready(other, patience)).await;
    let error = refused.expect("at once").expect_err("no such database");
    assert!(damselfly_transport::error_chain::chain(&error).contains("does not exist"), "{error:?}");
    server.end();
    let error = Database::open_when_ready(place, Duration::ZERO).await.expect_err("nobody is there");
    assert!(matches!(error, OpenError::Connect(_)), "{error:?}");
    server.begin();
}

#[test]
fn the_migrations_differ_in_the_type_of_bytes_only() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let mut files: Vec<_> = fs::read_dir(folder.join("sqlite")).expect("there").collect();
    assert_eq!(files.len(), fs::read_dir(folder.join("postgres")).expect("there").count());
    for file in files.drain(..) {
        let name = file.expect("an entry").file_name();
        let read = |kind: &str| fs::read_to_string(folder.join(kind).join(&name)).expect("read");
        assert_eq!(read("sqlite").replace("BLOB", "BYTEA"), read("postgres"));
    }
}
