//! The manager over HTTP, as `curl` sees it.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::{Duration, SystemTime},
};

use damselfly_manager::{database::audit::Actor, state::EmptyRing};
use damselfly_messages::{
    config::{SchedulerEntry, Settings},
    id::ClusterId,
    membership::{self, Root},
};
use damselfly_transport::{
    admission::Admission,
    network::{self, Network, NetworkConfig, Serves},
    program::{
        follower::{Follower, FollowerConfig, Role, topic},
        identity,
    },
};
use libp2p::{Multiaddr, identity::Keypair};
mod common;

use common::{ask, body, sql, start};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_configuration_is_read_and_changed() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let server = start(&data).await;
    let address = server.http_address();
    let token_file = data.join("admin_token");
    assert_eq!(fs::metadata(&token_file).expect("there").permissions().mode() & 0o777, 0o600);
    let token = format!("authorization: Bearer {}", fs::read_to_string(&token_file).expect("read"));
    let token = token.as_str();

    let read = ask(address, "GET /api/v1/config", &[token], "").await;
    assert!(read.contains("etag: \"1\""), "{read}");
    let settings: Settings = serde_json::from_str(body(&read)).expect("settings and nothing else");
    assert_eq!(settings.replicas, 3, "the first settings are the configured ones");

    let changed = serde_json::to_string(&Settings { replicas: 1, ..settings }).expect("JSON");
    let invalid = changed.replace("\"replicas\":1", "\"replicas\":9");
    let unknown = changed.replace("replicas", "replicsa");
    let long = format!("{changed}{}", " ".repeat(512 << 10));
    let put = "PUT /api/v1/config";
    let cases: [(&str, &[&str], &str, &[&str]); 9] = [
        ("GET /api/v1/config", &[], "", &["401", "unauthorized", "www-authenticate: Bearer"]),
        ("GET /api/v1/config", &["authorization: Bearer wrong"], "", &["401", "application/problem+json"]),
        (put, &[token], &changed, &["428", "if_match_required"]),
        (put, &[token, "if-match: \"7\""], &changed, &["412", "stale", "epoch 1"]),
        (put, &[token, "if-match: \"1\""], &invalid, &["400", "invalid_setting", "\"field\":\"replicas\"", "1–8"]),
        (put, &[token, "if-match: \"1\""], &unknown, &["400", "invalid_body", "replicsa", "expected one of"]),
        (put, &[token, "if-match: \"1\""], &long, &["413", "invalid_body"]),
        ("GET /api/v1/nothing", &[token], "", &["404", "not_found"]),
        ("POST /api/v1/config", &[token], "", &["405", "method_not_allowed"]),
    ];
    for (request, headers, sent, expected) in cases {
        let answer = ask(address, request, headers, sent).await;
        for part in expected {
            assert!(answer.contains(part), "{request}: {part:?} is not in {answer}");
        }
    }

    let answer = ask(address, put, &[token, "if-match: \"1\""], &changed).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("etag: \"2\""), "{answer}");
    let overview = ask(address, "GET /api/v1/overview", &[token], "").await;
    let cluster = server.state().cluster().to_string();
    assert!(overview.contains("\"epoch\":2") && overview.contains(&cluster), "{overview}");
    assert!(ask(address, "GET /metrics", &[], "").await.contains("damselfly_configuration_epoch 2"));
    assert!(ask(address, "GET /readyz", &[], "").await.starts_with("HTTP/1.1 200"));
    server.stop().await;

    let server = start(&data).await;
    let read = ask(server.http_address(), "GET /api/v1/config", &[token], "").await;
    assert!(read.contains("etag: \"2\"") && read.contains("\"replicas\":1"), "a restart keeps it: {read}");
    assert_eq!(server.state().cluster().to_string(), cluster);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_history_is_shown_and_rolled_back_to() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let server = start(&data).await;
    let address = server.http_address();
    let token = format!("authorization: Bearer {}", fs::read_to_string(data.join("admin_token")).expect("read"));
    let first = server.state().current().expect("in force").configuration.settings.clone();
    let second = Settings { candidate_parents: 3, ..first.clone() };
    for settings in [second.clone(), Settings { heartbeat_ms: 200, lease_ms: 900, ..second }] {
        server.state().change(settings, Actor::manager(), EmptyRing::Refused, |_| true).await.expect("changed");
    }
    sql(&data, "UPDATE configurations SET signed = X'00' WHERE epoch = 2").await;
    let get = async |query: &str| ask(address, &format!("GET /api/v1/config/history{query}"), &[&token], "").await;
    let json = |answer: &str| serde_json::from_str::<serde_json::Value>(body(answer)).expect("JSON");

    let all = json(&get("").await);
    let epochs: Vec<_> = all["items"].as_array().expect("a list").iter().map(|item| &item["epoch"]).collect();
    assert_eq!(epochs, [3, 2, 1], "{all}");
    assert!(all["next"].is_null() && all["items"][0]["settings"]["heartbeat_ms"] == 200, "{all}");
    assert!(all["items"][0]["issued"].as_str().is_some_and(|time| time.ends_with('Z')), "RFC 3339: {all}");
    assert!(all["items"][1]["damaged"].is_string() && all["items"][1]["settings"].is_null(), "said, not hidden: {all}");
    let page = json(&get("?limit=2").await);
    assert_eq!(page["next"], "2", "{page}");
    let rest = json(&get("?limit=2&cursor=2").await);
    assert_eq!((&rest["items"][0]["epoch"], rest["next"].is_null()), (&1.into(), true), "{rest}");
    for wrong in ["?limit=0", "?limit=201", "?limit=x", "?cursor=x", "?page=1"] {
        let answer = get(wrong).await;
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("invalid_query"), "{wrong}: {answer}");
    }

    let back = async |headers: &[&str], body: &str| ask(address, "POST /api/v1/config/rollback", headers, body).await;
    for (headers, body, expected) in [
        (&[][..], "{\"epoch\":1}", "401"),
        (&[token.as_str()], "{\"epoch\":9}", "no_such_epoch"),
        (&[token.as_str()], "{\"epoch\":2}", "500"),
        (&[token.as_str()], "{}", "missing field `epoch`"),
        (&[token.as_str(), "if-match: \"2\""], "{\"epoch\":1}", "stale"),
    ] {
        let answer = back(headers, body).await;
        assert!(answer.contains(expected), "{body}: {expected:?} is not in {answer}");
    }
    let answer = back(&[&token], "{\"epoch\":1}").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("etag: \"4\""), "a new epoch: {answer}");
    let current = server.state().current().expect("in force");
    assert_eq!((current.configuration.epoch, &current.configuration.settings), (4, &first), "with the old values");
    let newest = json(&get("?limit=1").await);
    let changed = serde_json::json!(["candidate_parents", "heartbeat_ms", "lease_ms"]);
    let mut told = newest["items"][0]["changed"].as_array().expect("a list").clone();
    told.sort_by_key(ToString::to_string);
    assert_eq!(serde_json::Value::Array(told), changed, "what is other than in epoch 3: {newest}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_changes_at_the_same_time_one_wins() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = start(&folder.path().join("data")).await;
    let state = server.state();
    let change = || state.change(Settings::default(), Actor::manager(), EmptyRing::Refused, |epoch| epoch == 1);
    let results = tokio::join!(change(), change(), change());
    let won = [results.0.is_ok(), results.1.is_ok(), results.2.is_ok()];
    assert_eq!(won.iter().filter(|won| **won).count(), 1, "{won:?}");
}

/// A scheduler as the manager sees it: it keeps a configuration and tells it who asks.
fn scheduler(key: &Keypair, listen: Multiaddr, root: &Keypair, stored: &Path) -> (Network, Follower) {
    let (cluster, day) = (ClusterId::of_root(&root.public()), Duration::from_secs(24 * 3600));
    let issuer = Root::founding(root.clone())
        .certify(Keypair::generate_ed25519(), SystemTime::now().into(), day)
        .expect("certified");
    let admission = Admission::issued(&issuer, key.public().to_peer_id(), [membership::Role::Scheduler], day);
    let (network, inbox) = network::start(NetworkConfig {
        admission: admission.expect("issued"),
        keypair: key.clone(),
        listen: vec![listen],
        serves: Serves { config: true, ..Serves::default() },
        topic: Some(topic(&cluster)),
        limits: Default::default(),
        dial_loopback: true,
    })
    .expect("started");
    let config =
        FollowerConfig { cluster, role: Role::Scheduler, bootstrap: Vec::new(), stored: Some(stored.to_owned()) };
    let follower = Follower::start(config, network.clone(), inbox.gossip, inbox.config).expect("started");
    (network, follower)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("made");
    for entry in fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).expect("copied");
        }
    }
    fs::set_permissions(to, fs::Permissions::from_mode(0o700)).expect("set");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_manager_goes_on_above_what_members_know() {
    let folder = tempfile::tempdir().expect("a folder");
    let (data, backup, stored) =
        (folder.path().join("data"), folder.path().join("backup"), folder.path().join("stored"));
    let server = start(&data).await;
    let root = identity::load(&data.join("root.key")).expect("readable").expect("there");
    let key = Keypair::generate_ed25519();
    let (member, follower) = scheduler(&key, "/ip4/127.0.0.1/tcp/0".parse().expect("an address"), &root, &stored);
    let listen = member.listeners()[0].clone();
    let entry = SchedulerEntry::active(member.peer_id(), vec![listen.clone()]);
    let settings = Settings { schedulers: vec![entry], ..Settings::default() };
    assert_eq!(
        server
            .state()
            .change(settings.clone(), Actor::manager(), EmptyRing::Refused, |_| true)
            .await
            .expect("a new cluster need not wait"),
        2
    );
    copy(&data, &backup);
    let changed = Settings { candidate_parents: 3, ..settings.clone() };
    assert_eq!(
        server.state().change(changed, Actor::manager(), EmptyRing::Refused, |_| true).await.expect("changed"),
        3
    );
    let newest = server.state().current().expect("in force");
    follower.offer(newest.signed.as_bytes(), member.peer_id()).await.expect("taken over");
    server.stop().await;
    member.shutdown().await;
    drop(follower);

    fs::remove_dir_all(&data).expect("lost");
    copy(&backup, &data);
    let server = start(&data).await;
    let token = format!("authorization: Bearer {}", fs::read_to_string(data.join("admin_token")).expect("read"));
    let body = serde_json::to_string(&settings).expect("JSON");
    let headers = [token.as_str(), "if-match: *"];
    let put = || ask(server.http_address(), "PUT /api/v1/config", &headers, &body);
    let answer = put().await;
    for part in ["HTTP/1.1 503", "application/problem+json", "\"code\":\"starting\"", "retry-after: "] {
        assert!(answer.contains(part), "{part:?} is not in {answer}");
    }
    assert!(ask(server.http_address(), "GET /readyz", &[], "").await.starts_with("HTTP/1.1 503"));

    // The only one who knows comes back; its port without the peer ID.
    let listen: Multiaddr = listen.iter().filter(|part| !matches!(part, libp2p::multiaddr::Protocol::P2p(_))).collect();
    let (_member, follower) = scheduler(&key, listen, &root, &stored);
    assert_eq!(follower.epoch(), 3, "as it was stored");
    let answer = loop {
        let answer = put().await;
        if !answer.starts_with("HTTP/1.1 503") {
            break answer;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(answer.contains("etag: \"4\""), "epoch 3 was used: {answer}");
    let history = server.state().history(u64::MAX, 10).await.expect("read");
    assert!(history.iter().any(|(epoch, past)| *epoch == 3 && past.is_ok()), "what members knew is in it: {history:?}");
    let newest = server.state().current().expect("in force");
    follower.offer(newest.signed.as_bytes(), server.network().peer_id()).await.expect("the member goes along");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_that_nobody_answers_waits_no_longer_than_a_few_seconds() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    start(&data).await.stop().await;
    let server = start(&data).await;
    let left = server.state().unsettled().expect("it may have been restored");
    tokio::time::sleep(left).await;
    assert_eq!(
        server
            .state()
            .change(Settings::default(), Actor::manager(), EmptyRing::Refused, |_| true)
            .await
            .expect("changed"),
        2
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_tell_what_is_seen() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let server = start(&data).await;
    let token = format!("authorization: Bearer {}", fs::read_to_string(data.join("admin_token")).expect("read"));
    let answer = ask(server.http_address(), "GET /api/v1/events", &[&token], "").await;
    assert!(answer.contains("event: overview") && answer.contains("\"epoch\":1"), "{answer}");
    let audit = ask(server.http_address(), "GET /api/v1/audit", &[&token], "").await;
    assert!(audit.contains("cluster.found"), "{audit}");
    let headers = [token.as_str(), "content-type: application/json"];
    ask(server.http_address(), "POST /api/v1/join-tokens", &headers, "{\"roles\":[\"node\"]}").await;
    let audit = ask(server.http_address(), "GET /api/v1/audit?action=join_token.create", &[&token], "").await;
    assert!(audit.contains("\"from_address\":\"127.0.0.1\"") && !audit.contains("dfj1_"), "{audit}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_console_takes_nothing_from_elsewhere() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = start(&folder.path().join("data")).await;
    for (path, kind) in [
        ("/", "text/html"),
        ("/setup", "text/html"),
        ("/console/main.js", "text/javascript"),
        ("/console/pages/tasks.js", "text/javascript"),
        ("/console/console.css", "text/css"),
    ] {
        let answer = ask(server.http_address(), &format!("GET {path}"), &[], "").await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(kind), "{path}: {answer}");
        assert!(answer.contains("content-security-policy: default-src 'self'"), "{path}: {answer}");
        let page = body(&answer);
        assert!(!page.contains("://") && !page.contains("innerHTML"), "{path}: from elsewhere, or markup from data");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schedulers_are_drained_and_the_last_one_stays() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let server = start(&data).await;
    let address = server.http_address();
    let token = format!("authorization: Bearer {}", fs::read_to_string(data.join("admin_token")).expect("read"));
    let token = token.as_str();
    let [one, two] = [(); 2].map(|()| libp2p::PeerId::random());
    let listen: Multiaddr = "/ip4/127.0.0.1/tcp/1".parse().expect("an address");
    let entries = [one, two].map(|peer| SchedulerEntry::active(peer, vec![listen.clone()]));
    let settings = Settings { schedulers: entries.into(), ..Settings::default() };
    let without = serde_json::to_string(&Settings { schedulers: Vec::new(), ..settings.clone() }).expect("JSON");
    server.state().change(settings, Actor::manager(), EmptyRing::Refused, |_| true).await.expect("changed");

    let patch = |peer: &str, query: &str| format!("PATCH /api/v1/schedulers/{peer}{query}");
    let (one, two, stranger) = (one.to_string(), two.to_string(), libp2p::PeerId::random().to_string());
    let (drain, activate) = ("{\"state\":\"draining\"}", "{\"state\":\"active\"}");
    let dead = "{\"state\":\"dead\"}";
    let stale = "if-match: \"1\"";
    let put = |query: &str| format!("PUT /api/v1/config{query}");
    let back = |query: &str| format!("POST /api/v1/config/rollback{query}");
    let cases: [(String, &[&str], &str, &[&str]); 13] = [
        (patch(&one, ""), &[], drain, &["401"]),
        (patch(&one, ""), &[token, stale], drain, &["412", "stale", "epoch 2"]),
        (patch(&one, ""), &[token], dead, &["400", "invalid_body", "dead"]),
        (patch(&one, "?force=true"), &[token], drain, &["400", "invalid_query", "force"]),
        (patch(&stranger, ""), &[token], drain, &["404", "no_such_scheduler", &stranger]),
        (patch("x", ""), &[token], drain, &["404", "not_found"]),
        (patch(&one, ""), &[token], activate, &["200", "etag: \"2\"", "\"state\":\"active\""]),
        (patch(&one, ""), &[token, "if-match: \"2\""], drain, &["200", "etag: \"3\"", "\"state\":\"draining\""]),
        (patch(&two, ""), &[token], drain, &["409", "last_scheduler", "allow_empty=true"]),
        (put(""), &[token, "if-match: *"], &without, &["409", "last_scheduler"]),
        (back(""), &[token], "{\"epoch\":1}", &["409", "last_scheduler"]),
        (back("?allow_empty=true"), &[token], "{\"epoch\":1}", &["200", "etag: \"4\""]),
        (put("?allow_empty=true"), &[token, "if-match: *"], &without, &["200", "etag: \"5\""]),
    ];
    for (request, headers, sent, expected) in cases {
        let answer = ask(address, &request, headers, sent).await;
        for part in expected {
            assert!(answer.contains(part), "{request} {sent}: {part:?} is not in {answer}");
        }
    }
    let audit = ask(address, "GET /api/v1/audit?action=scheduler.state", &[token], "").await;
    let audit: serde_json::Value = serde_json::from_str(body(&audit)).expect("JSON");
    let [entry] = audit["items"].as_array().expect("a list").as_slice() else { panic!("one change: {audit}") };
    let of = |when: &str| entry[when]["schedulers"][0]["state"].clone();
    assert_eq!((of("before"), of("after"), &entry["target"]), ("active".into(), "draining".into(), &"3".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_roll_back_brings_nobody_back_who_was_revoked() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = start(&folder.path().join("data")).await;
    let state = server.state();
    let [out, stays] = [(); 2].map(|()| libp2p::PeerId::random());
    let listen: Multiaddr = "/ip4/127.0.0.1/tcp/1".parse().expect("an address");
    let entries = [out, stays].map(|peer| SchedulerEntry::active(peer, vec![listen.clone()]));
    let settings = Settings { schedulers: entries.into(), candidate_parents: 3, ..Settings::default() };
    let both = state.change(settings, Actor::manager(), EmptyRing::Refused, |_| true).await.expect("changed");
    state.revoke(out, Actor::manager(), "lost".into()).await.expect("revoked");
    let back = state.roll_back(both, Actor::manager(), EmptyRing::Refused, |_| true).await;
    let (epoch, settings) = back.expect("rolled back");
    let current = state.current().expect("in force");
    assert_eq!((epoch, &settings), (current.configuration.epoch, &current.configuration.settings), "told as it is");
    let peers: Vec<_> = settings.schedulers.iter().map(|entry| entry.peer_id).collect();
    assert_eq!((peers, settings.candidate_parents), (vec![stays], 3));
    assert_eq!(current.configuration.revoked.len(), 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_are_described_and_compared() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let server = start(&data).await;
    let token = format!("authorization: Bearer {}", fs::read_to_string(data.join("admin_token")).expect("read"));
    let get = async |path: &str| ask(server.http_address(), &format!("GET /api/v1/{path}"), &[&token], "").await;
    let json = |answer: &str| serde_json::from_str::<serde_json::Value>(body(answer)).expect("JSON");

    let fields = json(&get("config/fields").await);
    let items = fields["items"].as_array().expect("a list");
    let field = |name: &str| items.iter().find(|item| item["name"] == name).unwrap_or_else(|| panic!("no {name}"));
    let settings = json(&get("config").await);
    assert!(settings.as_object().expect("an object").keys().all(|name| field(name)["description"].is_string()));
    let replicas = field("replicas");
    assert_eq!((&replicas["minimum"], &replicas["maximum"], &replicas["default"]), (&1.into(), &8.into(), &2.into()));
    assert_eq!((&replicas["overridable"], &replicas["unit"]), (&false.into(), &"schedulers".into()));
    let upload = field("upload_bytes_per_second");
    assert_eq!((&upload["zero"], &upload["overridable"]), (&"no limit".into(), &true.into()));
    assert_eq!(field("blocked_tags")["max_items"], 256);

    let schema = json(&get("openapi.json").await)["components"]["schemas"]["Settings"].clone();
    assert_eq!(schema["additionalProperties"], false);
    assert_eq!(schema["properties"]["replicas"]["maximum"], 8, "{schema}");
    assert_eq!(schema["properties"].as_object().map(serde_json::Map::len), Some(items.len()));

    let second = Settings { candidate_parents: 3, blocked_tags: vec!["bad".to_owned()], ..Settings::default() };
    server.state().change(second, Actor::manager(), EmptyRing::Refused, |_| true).await.expect("changed");
    let diff = json(&get("config/diff?from=1&to=2").await);
    let expected = serde_json::json!([
        { "field": "blocked_tags", "before": [], "after": ["bad"] },
        { "field": "candidate_parents", "before": 16, "after": 3 },
        { "field": "replicas", "before": 3, "after": 2 },
    ]);
    assert_eq!(diff["items"], expected);
    let back = json(&get("config/diff?from=2&to=1").await);
    assert_eq!((&back["items"][1]["before"], &back["items"][1]["after"]), (&3.into(), &16.into()));
    for (query, expected) in
        [("?from=1", "invalid_query"), ("?from=1&to=9", "no_such_epoch"), ("?from=1&to=2&x=1", "invalid_query")]
    {
        let answer = get(&format!("config/diff{query}")).await;
        assert!(answer.contains(expected), "{query}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_the_history_is_bounded() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let server = start(&data).await;
    let token = format!("authorization: Bearer {}", fs::read_to_string(data.join("admin_token")).expect("read"));
    let first = server.state().current().expect("in force").configuration.settings.clone();
    for candidate_parents in 1..=34 {
        let settings = Settings { candidate_parents, ..first.clone() };
        server.state().change(settings, Actor::manager(), EmptyRing::Refused, |_| true).await.expect("changed");
    }
    let mut epochs = Vec::new();
    let mut cursor = String::new();
    for length in [32, 3] {
        let request = format!("GET /api/v1/config/history?limit=200{cursor}");
        let answer = ask(server.http_address(), &request, &[&token], "").await;
        let page: serde_json::Value = serde_json::from_str(body(&answer)).expect("JSON");
        let items = page["items"].as_array().expect("a list");
        assert_eq!(items.len(), length, "{page}");
        epochs.extend(items.iter().map(|item| item["epoch"].as_u64().expect("a number")));
        cursor = page["next"].as_str().map(|next| format!("&cursor={next}")).unwrap_or_default();
    }
    assert_eq!(epochs, (1..=35).rev().collect::<Vec<_>>(), "all of them, by pages");
    assert_eq!(cursor, "", "and no more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_are_told_with_what_each_adds() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let server = start(&data).await;
    let token = format!("authorization: Bearer {}", fs::read_to_string(data.join("admin_token")).expect("read"));
    let answer = ask(server.http_address(), "GET /api/v1/roles", &[&token], "").await;
    let roles: serde_json::Value = serde_json::from_str(body(&answer)).expect("JSON");
    for (at, role, its, scope) in [
        (0, "viewer", ("GET", "/overview"), "hosts:read"),
        (1, "operator", ("PUT", "/config"), "config:write"),
        (2, "admin", ("POST", "/users"), "users"),
    ] {
        assert_eq!(roles["items"][at]["role"], role, "{roles}");
        for (other, told) in roles["items"].as_array().expect("a list").iter().enumerate() {
            let adds = told["adds"].as_array().expect("a list");
            let found = adds.iter().find(|one| (&one["method"], &one["path"]) == (&its.0.into(), &its.1.into()));
            assert_eq!(found.is_some(), other == at, "{its:?} in {told}");
            assert!(found.is_none_or(|one| one["scope"] == scope), "{found:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_too_many_is_a_conflict() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let server = start(&data).await;
    let token = format!("authorization: Bearer {}", fs::read_to_string(data.join("admin_token")).expect("read"));
    let json = "content-type: application/json";
    let rotate = async || {
        ask(server.http_address(), "POST /api/v1/roots/rotate", &[&token, json], "{\"overlap_seconds\":0}").await
    };
    for exchange in 1..membership::ROOTS_MAX {
        let answer = rotate().await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{exchange}: {answer}");
    }
    let epoch = server.state().current().expect("in force").configuration.epoch;
    let answer = rotate().await;
    assert!(answer.starts_with("HTTP/1.1 409") && answer.contains("too_many_roots"), "{answer}");
    assert_eq!(server.state().current().expect("in force").configuration.epoch, epoch, "and nothing has changed");
    server.stop().await;
    start(&data).await.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_many_watch_at_a_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let server = start(&data).await;
    let address = server.http_address();
    let token = format!("authorization: Bearer {}", fs::read_to_string(data.join("admin_token")).expect("read"));
    let mut watching = Vec::new();
    for _ in 0..64 {
        let (answer, stream) = common::begin(address, "GET /api/v1/events", &[&token]).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        watching.push(stream);
    }
    let refused = ask(address, "GET /api/v1/events", &[&token], "").await;
    for part in ["HTTP/1.1 503", "too_many_watchers", "retry-after: "] {
        assert!(refused.contains(part), "{part:?} is not in {refused}");
    }

    watching.pop();
    // That one has left is seen with the next event or sign of life.
    let freed = async {
        while !ask(address, "GET /api/v1/events", &[&token], "").await.starts_with("HTTP/1.1 200") {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), freed).await.expect("a place is given back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_can_look_at_the_document() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = start(&folder.path().join("data")).await;
    let address = server.http_address();
    assert!(ask(address, "GET /docs", &[], "").await.contains("location: /docs/"));
    let page = ask(address, "GET /docs/", &[], "").await;
    assert!(page.starts_with("HTTP/1.1 200") && page.contains("swagger-ui-bundle.js"), "{page}");
    assert!(!body(&page).contains("https://") && !body(&page).contains("<script>"), "nothing from elsewhere: {page}");
    let first = ask(address, "GET /docs/swagger-initializer.js", &[], "").await;
    assert!(first.contains("text/javascript") && first.contains("/api/v1/openapi.json"), "{first}");
    assert!(ask(address, "GET /docs/nothing.js", &[], "").await.starts_with("HTTP/1.1 404"));
}
