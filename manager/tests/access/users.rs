//! Users, their tokens, and what they did.

use std::fs;

use serde_json::{Value, json};

use super::{Manager, PASSWORD, Who};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_are_managed_and_an_admin_stays() {
    let manager = Manager::new().await;
    let ada = manager.log_in("ada").await;
    let eve = manager.user(&ada, "eve", "operator").await;
    let change =
        async |who: &Who, name: &str, sent: Value| manager.ask(who, &format!("PATCH /api/v1/users/{name}"), sent).await;
    for (line, sent, code) in [
        ("POST /api/v1/users", json!({ "name": "eve", "role": "viewer", "password": PASSWORD }), "user_exists"),
        ("POST /api/v1/users", json!({ "name": "bob", "role": "viewer", "password": "short" }), "invalid_value"),
        ("POST /api/v1/users", json!({ "name": "bob", "role": "root", "password": PASSWORD }), "invalid_body"),
        ("PATCH /api/v1/users/ada", json!({ "role": "viewer" }), "last_admin"),
        ("PATCH /api/v1/users/ada", json!({ "disabled": true }), "last_admin"),
        ("DELETE /api/v1/users/ada", Value::Null, "last_admin"),
        ("DELETE /api/v1/users/bob", Value::Null, "no_such_user"),
    ] {
        let answer = manager.ask(&ada, line, sent).await;
        assert_eq!(answer.json["code"], code, "{line}: {answer:?}");
    }

    // Of oneself: the password, with the old one, and no more.
    let next = "another long password";
    for (sent, code) in [
        (json!({ "role": "admin" }), "forbidden"),
        (json!({ "password": next }), "invalid_value"),
        (json!({ "password": next, "current_password": next }), "wrong_login"),
    ] {
        let answer = change(&eve, "eve", sent).await;
        assert_eq!(answer.json["code"], code, "{answer:?}");
    }
    let (_, token) = manager.token(&eve, "operator").await;
    let sent = json!({ "password": next, "current_password": PASSWORD });
    assert_eq!(change(&token, "eve", sent.clone()).await.json["code"], "session_required");
    assert_eq!(change(&eve, "eve", sent).await.status, 200);
    assert_eq!(manager.ask(&eve, "GET /api/v1/session", Value::Null).await.status, 401, "sessions end with it");
    let old = json!({ "name": "eve", "password": PASSWORD });
    assert_eq!(manager.ask(&Who::default(), "POST /api/v1/session", old).await.status, 401);

    // What a token may, its user may too, at any time.
    let role = async || manager.ask(&token, "GET /api/v1/session", Value::Null).await.json["role"].clone();
    assert_eq!(role().await, "operator");
    assert_eq!(change(&ada, "eve", json!({ "role": "viewer" })).await.json["role"], "viewer");
    assert_eq!(role().await, "viewer");
    assert_eq!(change(&ada, "eve", json!({ "role": "admin" })).await.json["role"], "admin");
    assert_eq!(role().await, "operator", "no more than it was made for");
    change(&ada, "eve", json!({ "disabled": true })).await;
    assert_eq!(manager.ask(&token, "GET /api/v1/session", Value::Null).await.status, 401);
    assert_eq!(manager.ask(&ada, "DELETE /api/v1/users/eve", Value::Null).await.status, 204);
    let left = manager.ask(&ada, "GET /api/v1/tokens", Value::Null).await;
    assert_eq!(left.json, json!({ "items": [], "next": null }), "its tokens went with it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_shown_once_and_are_their_users() {
    let manager = Manager::new().await;
    let ada = manager.log_in("ada").await;
    let vera = manager.user(&ada, "vera", "viewer").await;
    let (of_ada, token) = manager.token(&ada, "operator").await;
    let (of_vera, _) = manager.token(&vera, "viewer").await;
    for (who, sent, code) in [
        (&vera, json!({ "label": "CI", "role": "operator" }), "forbidden"),
        (&vera, json!({ "label": "" }), "invalid_value"),
        (&vera, json!({ "label": "CI", "ttl_seconds": 0 }), "invalid_value"),
        (&token, json!({ "label": "CI" }), "session_required"),
    ] {
        let answer = manager.ask(who, "POST /api/v1/tokens", sent).await;
        assert_eq!(answer.json["code"], code, "{answer:?}");
    }
    let listed = async |who: &Who, query: &str| {
        let answer = manager.ask(who, &format!("GET /api/v1/tokens{query}"), Value::Null).await;
        assert!(!answer.json.to_string().contains("dfp_"), "{answer:?}");
        answer.json
    };
    assert_eq!(listed(&vera, "").await["items"].as_array().expect("a list").len(), 1, "one's own");
    let page = listed(&ada, "?limit=1").await;
    assert_eq!((&page["items"][0]["id"], &page["next"]), (&json!(of_vera), &json!(of_vera)), "newest first: {page}");
    let rest = listed(&ada, &format!("?limit=1&cursor={of_vera}")).await;
    assert_eq!((&rest["items"][0]["id"], &rest["next"]), (&json!(of_ada), &Value::Null), "{rest}");
    assert_eq!(manager.ask(&ada, "GET /api/v1/tokens?cursor=x", Value::Null).await.json["code"], "invalid_query");
    let revoke =
        async |who: &Who, id: &str| manager.ask(who, &format!("DELETE /api/v1/tokens/{id}"), Value::Null).await.status;
    assert_eq!(revoke(&vera, &of_ada).await, 404, "not hers");
    assert_eq!(revoke(&ada, &of_vera).await, 204);
    assert_eq!(revoke(&ada, &of_vera).await, 404);
    for file in ["manager.db", "manager.db-wal"] {
        let bytes = fs::read(manager.data.join(file)).expect("read");
        let secret = token.0[0].rsplit(' ').next().expect("a token").as_bytes();
        assert!(!bytes.windows(secret.len()).any(|window| window == secret), "the secret is in {file}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_audit_says_who_did_what() {
    let manager = Manager::new().await;
    let ada = manager.log_in("ada").await;
    let olga = manager.user(&ada, "olga", "operator").await;
    let mut settings = manager.ask(&olga, "GET /api/v1/config", Value::Null).await.json;
    settings["replicas"] = 2.into();
    let put = Who([olga.0.clone(), vec!["if-match: \"1\"".to_owned()]].concat());
    assert_eq!(manager.ask(&put, "PUT /api/v1/config", settings.clone()).await.status, 200);
    assert_eq!(manager.ask(&put, "PUT /api/v1/config", settings).await.status, 412, "refused: not in the audit");
    let admin = Who::token(&fs::read_to_string(manager.data.join("admin_token")).expect("read"));
    assert_eq!(manager.ask(&admin, "POST /api/v1/config/rollback", json!({ "epoch": 1 })).await.status, 200);

    let audit = async |query: &str| manager.ask(&ada, &format!("GET /api/v1/audit{query}"), Value::Null).await.json;
    let all = audit("").await;
    let told: Vec<_> = all["items"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|entry| {
            let text = |name: &str| entry[name].as_str().expect("text").to_owned();
            format!("{} {} {}", text("actor"), text("action"), text("target"))
        })
        .collect();
    let expected = [
        "(admin token) config.rollback 3",
        "olga config.change 2",
        "olga session.begin olga",
        "ada user.create olga",
        "ada session.begin ada",
        "(set-up) user.create ada",
        "(manager) cluster.found 1",
    ];
    assert_eq!(told, expected, "{all}");
    let change = &all["items"][1];
    assert_eq!((&change["before"]["replicas"], &change["after"]["replicas"]), (&json!(3), &json!(2)));
    assert!(change["at"].as_str().is_some_and(|at| at.ends_with('Z')), "{change}");
    assert!(!all.to_string().contains("argon2"), "no hash of a password");
    let of_olga = audit("?actor=olga&action=config.change").await;
    assert_eq!(of_olga["items"].as_array().expect("a list").len(), 1);
    let page = audit("?limit=2").await;
    let rest = audit(&format!("?limit=2&cursor={}", page["next"].as_str().expect("more"))).await;
    assert_eq!(rest["items"][0]["action"], "session.begin", "{rest}");
}
