//! What was in force: shown, compared, and brought back.

use damselfly_manager::{
    database::audit::Actor,
    state::{EmptyRing, SettingsPatch},
};
use damselfly_messages::config::{SchedulerEntry, SchedulerState, Settings};
use libp2p::Multiaddr;

use crate::common::{admin, ask, body, sql, start};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_history_is_shown_and_rolled_back_to() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let server = start(&data).await;
    let address = server.http_address();
    let token = admin(&data);
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
async fn a_roll_back_keeps_the_present_schedulers() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = start(&folder.path().join("data")).await;
    let state = server.state();
    let [revoked, stays, joins] = [(); 3].map(|()| libp2p::PeerId::random());
    let listen: Multiaddr = "/ip4/127.0.0.1/tcp/1".parse().expect("an address");
    let entry = |peer| SchedulerEntry::active(peer, vec![listen.clone()]);
    let settings =
        Settings { schedulers: [revoked, stays].map(entry).into(), candidate_parents: 3, ..Settings::default() };
    let both = state.change(settings, Actor::manager(), EmptyRing::Refused, |_| true).await.expect("changed");
    state.revoke(revoked, Actor::manager(), "lost".into()).await.expect("revoked");
    state.add_scheduler(entry(joins)).await.expect("added");
    let drained = state.set_scheduler(stays, SchedulerState::Draining, Actor::manager(), EmptyRing::Refused, |_| true);
    drained.await.expect("drained");
    let patch = SettingsPatch::from_json(b"{\"candidate_parents\":9}").expect("a patch");
    state.patch(patch, Actor::manager(), EmptyRing::Refused, |_| true).await.expect("changed");

    let back = state.roll_back(both, Actor::manager(), EmptyRing::Refused, |_| true).await;
    let (epoch, settings) = back.expect("rolled back");
    let current = state.current().expect("in force");
    assert_eq!((epoch, &settings), (current.configuration.epoch, &current.configuration.settings), "told as it is");
    let schedulers: Vec<_> = settings.schedulers.iter().map(|entry| (entry.peer_id, entry.state)).collect();
    assert_eq!(schedulers, [(stays, SchedulerState::Draining), (joins, SchedulerState::Active)]);
    assert_eq!(settings.candidate_parents, 3);
    assert_eq!(current.configuration.revoked.len(), 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_history_says_what_each_epoch_was_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let server = start(&data).await;
    let token = admin(&data);
    let state = server.state();
    let host = libp2p::PeerId::random();
    let settings = Settings { candidate_parents: 3, ..Settings::default() };
    state.change(settings, Actor::manager(), EmptyRing::Refused, |_| true).await.expect("changed");
    state.revoke(host, Actor::manager(), "stolen".into()).await.expect("revoked");
    state.rotate_root(None, Actor::manager()).await.expect("exchanged");
    state.roll_back(1, Actor::manager(), EmptyRing::Refused, |_| true).await.expect("rolled back");

    let answer = ask(server.http_address(), "GET /api/v1/config/history", &[&token], "").await;
    let history: serde_json::Value = serde_json::from_str(body(&answer)).expect("JSON");
    let revoked = format!("revoked {host}: stolen");
    let expected = [
        (5, Some("back to epoch 1"), 0, false),
        (4, Some("root key exchanged"), 0, true),
        (3, Some(revoked.as_str()), 1, false),
        (2, None, 0, false),
        (1, Some("founded"), 0, false),
    ];
    let items = history["items"].as_array().expect("a list");
    for (item, (epoch, reason, revocations, roots_changed)) in items.iter().zip(expected) {
        assert_eq!((item["epoch"].as_u64(), item["reason"].as_str()), (Some(epoch), reason), "{item}");
        assert_eq!(item["revoked"].as_array().map(Vec::len), Some(revocations), "{item}");
        assert_eq!(item["roots_changed"], roots_changed, "{item}");
        assert_eq!(item["actor"], "(manager)", "{item}");
    }
    assert_eq!(items[2]["revoked"][0], host.to_string());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_the_history_is_bounded() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let server = start(&data).await;
    let token = admin(&data);
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
