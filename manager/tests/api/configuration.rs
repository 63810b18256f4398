//! The configuration: read, changed, described.

use std::{fs, os::unix::fs::PermissionsExt as _};

use damselfly_manager::{database::audit::Actor, state::EmptyRing};
use damselfly_messages::{
    config::{SchedulerEntry, Settings},
    membership,
};
use libp2p::Multiaddr;

use crate::common::{admin, ask, body, start};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_configuration_is_read_and_changed() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let server = start(&data).await;
    let address = server.http_address();
    let token_file = data.join("admin_token");
    assert_eq!(fs::metadata(&token_file).expect("there").permissions().mode() & 0o777, 0o600);
    let token = admin(&data);
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
async fn of_changes_at_the_same_time_one_wins() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = start(&folder.path().join("data")).await;
    let state = server.state();
    let change = || state.change(Settings::default(), Actor::manager(), EmptyRing::Refused, |epoch| epoch == 1);
    let results = tokio::join!(change(), change(), change());
    let won = [results.0.is_ok(), results.1.is_ok(), results.2.is_ok()];
    assert_eq!(won.iter().filter(|won| **won).count(), 1, "{won:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_are_described_and_compared() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let server = start(&data).await;
    let token = admin(&data);
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
async fn schedulers_are_drained_and_the_last_one_stays() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let server = start(&data).await;
    let address = server.http_address();
    let token = admin(&data);
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
        (put(""), &[token, "if-match: *"], &without, &["409", "last_scheduler", "allow_empty=true"]),
        (put(""), &[token, "if-match: *"], "{\"replicas\":1}", &["409", "last_scheduler", "send PATCH", "schedulers"]),
        (back(""), &[token], "{\"epoch\":1}", &["200", "etag: \"4\"", &one, &two]),
        (put("?allow_empty=true"), &[token, "if-match: *"], &without, &["200", "etag: \"5\""]),
    ];
    for (request, headers, sent, expected) in cases {
        let answer = ask(address, &request, headers, sent).await;
        for part in expected {
            assert!(answer.contains(part), "{request} {sent}: {part:?} is not in {answer}");
        }
        assert!(
            sent != "{\"replicas\":1}" || !answer.contains("allow_empty"),
            "it says how to empty the ring: {answer}"
        );
    }
    let audit = ask(address, "GET /api/v1/audit?action=scheduler.state", &[token], "").await;
    let audit: serde_json::Value = serde_json::from_str(body(&audit)).expect("JSON");
    let [entry] = audit["items"].as_array().expect("a list").as_slice() else { panic!("one change: {audit}") };
    let of = |when: &str| entry[when]["schedulers"][0]["state"].clone();
    assert_eq!((of("before"), of("after"), &entry["target"]), ("active".into(), "draining".into(), &"3".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_too_many_is_a_conflict() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let server = start(&data).await;
    let token = admin(&data);
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
async fn a_patch_changes_what_it_names() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let server = start(&data).await;
    let token = admin(&data);
    let token = token.as_str();
    let scheduler = libp2p::PeerId::random();
    let listen: Multiaddr = "/ip4/127.0.0.1/tcp/1".parse().expect("an address");
    let before = Settings {
        schedulers: vec![SchedulerEntry::active(scheduler, vec![listen])],
        candidate_parents: 3,
        ..server.state().current().expect("in force").configuration.settings.clone()
    };
    server.state().change(before.clone(), Actor::manager(), EmptyRing::Refused, |_| true).await.expect("changed");

    let merge = "content-type: application/merge-patch+json";
    let sizes = r#"{"store_quota_bytes":"10GiB","credential_ms":"7d","overrides":[{"match":{"zone":"a"},"set":{"upload_bytes_per_second":"100MiB/s"}}]}"#;
    let cases: [(&[&str], &str, &[&str]); 11] = [
        (&[], "{}", &["401"]),
        (&[token], "{}", &["200", "etag: \"2\""]),
        (&[token], r#"{"candidate_parents":3}"#, &["200", "etag: \"2\""]),
        (&[token, "if-match: \"1\""], r#"{"candidate_parents":4}"#, &["412", "stale"]),
        (&[token], r#"{"candidate_parent":4}"#, &["400", "invalid_body", "candidate_parent`"]),
        (&[token], r#"{"candidate_parents":99}"#, &["400", "invalid_setting", "1–64"]),
        (&[token], r#"{"store_quota_bytes":"10"}"#, &["400", "invalid_body", "has no unit", "10GiB"]),
        (&[token], r#"{"lease_ms":"1s"}"#, &["400", "invalid_setting", "three heartbeats"]),
        (&[token, "content-type: text/plain"], "{}", &["415"]),
        (&[token, "if-match: \"2\"", merge], sizes, &["200", "etag: \"3\"", "10737418240", "604800000", "104857600"]),
        (&[token], r#"{"schedulers":[]}"#, &["409", "last_scheduler"]),
    ];
    for (headers, sent, expected) in cases {
        let answer = ask(server.http_address(), "PATCH /api/v1/config", headers, sent).await;
        for part in expected {
            assert!(answer.contains(part), "{sent}: {part:?} is not in {answer}");
        }
    }
    let now = server.state().current().expect("in force").configuration.settings.clone();
    let changed = Settings {
        store_quota_bytes: 10 << 30,
        credential_ms: 7 * 24 * 3_600_000,
        overrides: now.overrides.clone(),
        ..before
    };
    assert_eq!(now, changed, "and nothing else");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_configuration_is_accepted() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let server = start(&data).await;
    let token = admin(&data);
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md")).expect("the page");
    let examples: Vec<_> = page.split("```json\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    let [patch, full] = examples.as_slice() else { panic!("a patch and a full example, not {}", examples.len()) };
    let full: serde_json::Value = serde_json::from_str(full).expect("JSON");
    let known: serde_json::Value = serde_json::json!(Settings::default());
    let names = |value: &serde_json::Value| value.as_object().expect("an object").keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&full), names(&known), "the full example names every setting");
    let full = full.to_string();
    let answer = ask(server.http_address(), "PUT /api/v1/config", &[&token, "if-match: *"], &full).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let answer = ask(server.http_address(), "PATCH /api/v1/config", &[&token], patch).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}
