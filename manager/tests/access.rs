//! Who may do what, as browsers and programs see it.

use std::{collections::BTreeSet, fs, net::SocketAddr, os::unix::fs::PermissionsExt as _, path::PathBuf};

use damselfly_manager::server::Server;
use serde_json::{Value, json};

mod common;

use common::{ask, body, sql, start};

const PASSWORD: &str = "correct horse battery";

/// A manager that is set up, with its first admin `ada`.
struct Manager {
    server: Server,
    data: PathBuf,
    _folder: tempfile::TempDir,
}

/// What came back.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    json: Value,
}

/// Headers that say who asks.
#[derive(Debug, Clone, Default)]
struct Who(Vec<String>);

impl Who {
    fn token(token: &str) -> Self {
        Self(vec![format!("authorization: Bearer {token}")])
    }
}

async fn request(address: SocketAddr, who: &Who, line: &str, sent: &Value) -> Answer {
    let headers: Vec<_> = who.0.iter().map(String::as_str).collect();
    let sent = if sent.is_null() { String::new() } else { sent.to_string() };
    let answer = ask(address, line, &headers, &sent).await;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    let head = answer.split("\r\n\r\n").next().unwrap_or_default().to_owned();
    Answer { status, head, json: serde_json::from_str(body(&answer)).unwrap_or_default() }
}

impl Manager {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let data = folder.path().join("data");
        let manager = Self { server: start(&data).await, data, _folder: folder };
        let set_up = json!({ "secret": manager.secret(), "name": "ada", "password": PASSWORD });
        let made = manager.ask(&Who::default(), "POST /api/v1/setup", set_up).await;
        assert_eq!((made.status, &made.json["role"]), (201, &"admin".into()), "{made:?}");
        manager
    }

    fn secret(&self) -> String {
        let link = fs::read_to_string(self.data.join("setup_link")).expect("a link");
        assert!(link.starts_with(&format!("http://{}/setup#", self.server.http_address())), "{link}");
        link.split_once("secret=").expect("a secret").1.to_owned()
    }

    async fn ask(&self, who: &Who, line: &str, sent: Value) -> Answer {
        request(self.server.http_address(), who, line, &sent).await
    }

    async fn log_in(&self, name: &str) -> Who {
        let sent = json!({ "name": name, "password": PASSWORD });
        let answer = self.ask(&Who::default(), "POST /api/v1/session", sent).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let cookie = answer.head.lines().find_map(|line| line.strip_prefix("set-cookie: ")).expect("a cookie");
        let (session, attributes) = cookie.split_once("; ").expect("attributes");
        assert_eq!(attributes, "HttpOnly; SameSite=Strict; Path=/; Max-Age=43200");
        let csrf = answer.json["csrf_token"].as_str().expect("a token");
        assert!(!session.contains(csrf), "a page may read the one and not the other");
        Who(vec![format!("cookie: a=b; {session}"), format!("x-csrf-token: {csrf}")])
    }

    /// Makes a user and logs it in.
    async fn user(&self, admin: &Who, name: &str, role: &str) -> Who {
        let sent = json!({ "name": name, "role": role, "password": PASSWORD });
        assert_eq!(self.ask(admin, "POST /api/v1/users", sent).await.status, 201);
        self.log_in(name).await
    }

    /// The id and the secret of a new token.
    async fn token(&self, who: &Who, role: &str) -> (String, Who) {
        let made = self.ask(who, "POST /api/v1/tokens", json!({ "label": "CI", "role": role })).await;
        let text = |name: &str| made.json[name].as_str().unwrap_or_else(|| panic!("{made:?}")).to_owned();
        assert!(text("token").starts_with("dfp_") && made.status == 201);
        (text("id"), Who::token(&text("token")))
    }
}

/// Every route with the lowest role that may use it; what the manager says of itself is compared with this.
const ROUTES: &[(&str, &str, &str)] = &[
    ("GET", "/overview", "viewer"),
    ("GET", "/schedulers", "viewer"),
    ("GET", "/hosts", "viewer"),
    ("GET", "/tasks", "viewer"),
    ("GET", "/tasks/{task_id}", "viewer"),
    ("DELETE", "/tasks/{task_id}", "operator"),
    ("GET", "/join-tokens", "admin"),
    ("POST", "/join-tokens", "admin"),
    ("DELETE", "/join-tokens/{id}", "admin"),
    ("GET", "/revocations", "viewer"),
    ("POST", "/revocations", "admin"),
    ("GET", "/config", "viewer"),
    ("PUT", "/config", "operator"),
    ("GET", "/config/history", "viewer"),
    ("POST", "/config/rollback", "operator"),
    ("POST", "/setup", "nobody"),
    ("POST", "/session", "nobody"),
    ("GET", "/session", "viewer"),
    ("GET", "/users", "admin"),
    ("POST", "/users", "admin"),
    ("PATCH", "/users/{name}", "admin"),
    ("DELETE", "/users/{name}", "admin"),
    ("GET", "/tokens", "viewer"),
    ("POST", "/tokens", "viewer"),
    ("DELETE", "/tokens/{id}", "viewer"),
    ("GET", "/audit", "operator"),
    ("GET", "/openapi.json", "viewer"),
    // The last one: it ends the session of who asks.
    ("DELETE", "/session", "viewer"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_route_is_for_whom_it_is_meant() {
    let manager = Manager::new().await;
    let ada = manager.log_in("ada").await;
    let document = manager.ask(&ada, "GET /api/v1/openapi.json", Value::Null).await.json;
    let mut told = BTreeSet::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        let path = path.strip_prefix("/api/v1").expect("below");
        let methods = item.as_object().expect("methods").keys();
        told.extend(methods.map(|method| (method.to_ascii_uppercase(), path.to_owned())));
    }
    let known: BTreeSet<_> =
        ROUTES.iter().map(|(method, path, _)| ((*method).to_owned(), (*path).to_owned())).collect();
    assert_eq!(told, known, "the document has every route and no other");

    let olga = manager.user(&ada, "olga", "operator").await;
    let (id, revoked) = manager.token(&ada, "admin").await;
    assert_eq!(manager.ask(&ada, &format!("DELETE /api/v1/tokens/{id}"), Value::Null).await.status, 204);
    let late = manager.user(&ada, "late", "admin").await;
    let idle = manager.user(&ada, "idle", "admin").await;
    let expired = manager.user(&ada, "expired", "admin").await;
    let (_, expired) = manager.token(&expired, "admin").await;
    let vera = manager.user(&ada, "vera", "viewer").await;
    sql(&manager.data, "UPDATE sessions SET used = 1 WHERE user_name = 'idle'").await;
    sql(&manager.data, "UPDATE sessions SET created = 1 WHERE user_name = 'late'").await;
    sql(&manager.data, "UPDATE access_tokens SET expires = 1 WHERE user_name = 'expired'").await;
    let callers = [
        ("anonymous", Who::default(), 0),
        ("a wrong token", Who::token("dfp_0000"), 0),
        ("a revoked token", revoked, 0),
        ("an expired token", expired, 0),
        ("an idle session", idle, 0),
        ("an old session", late, 0),
        ("viewer", vera, 1),
        ("operator", olga, 2),
        ("admin", ada, 3),
    ];
    for (who, caller, rank) in &callers {
        for (method, path, lowest) in ROUTES {
            let path = path.replace("{name}", "somebody").replace("{id}", "999");
            let answer = manager.ask(caller, &format!("{method} /api/v1{path}"), json!({})).await;
            let needed = ["nobody", "viewer", "operator", "admin"].iter().position(|role| role == lowest);
            let code = answer.json["code"].as_str().unwrap_or_default();
            let expected = match (needed.expect("a role") <= *rank, *rank) {
                (true, _) => {
                    !matches!(answer.status, 401 | 403 | 404 | 405 | 500)
                        || code.starts_with("no_such")
                        || code == "not_found"
                }
                (false, 0) => answer.status == 401 && code == "unauthorized",
                (false, _) => answer.status == 403 && code == "forbidden",
            };
            assert!(expected, "{who} {method} {path}: {answer:?}");
        }
    }
    for path in ["/api/v1/nothing", "/api/v1/users/a/b"] {
        let answer = manager.ask(&Who::default(), &format!("GET {path}"), Value::Null).await;
        assert_eq!(answer.status, 401, "what there is not is told to nobody: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_admin_is_made_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let server = start(&data).await;
    let file = data.join("setup_link");
    assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600);
    let link = fs::read_to_string(&file).expect("read");
    let secret = link.split_once("secret=").expect("a secret").1;
    server.stop().await;

    let server = start(&data).await;
    let again = fs::read_to_string(&file).expect("read");
    assert_eq!(again.split_once("secret=").expect("a secret").1, secret, "a restart does not change it");
    let ask = async |secret: &str, name: &str, password: &str| {
        let sent = json!({ "secret": secret, "name": name, "password": password });
        request(server.http_address(), &Who::default(), "POST /api/v1/setup", &sent).await
    };
    for (secret, name, password, code) in [
        ("", "ada", PASSWORD, "wrong_secret"),
        (&secret[1..], "ada", PASSWORD, "wrong_secret"),
        (secret, "Ada", PASSWORD, "invalid_value"),
        (secret, "ada", "short", "invalid_value"),
    ] {
        let answer = ask(secret, name, password).await;
        assert_eq!(answer.json["code"], code, "{answer:?}");
    }
    assert_eq!(ask(secret, "ada", PASSWORD).await.status, 201);
    assert!(!file.exists(), "it is used");
    let second = ask(secret, "eve", PASSWORD).await;
    assert_eq!((second.status, &second.json["code"]), (409, &"set_up".into()));
    server.stop().await;
    let server = start(&data).await;
    assert!(!file.exists());
    let sent = json!({ "secret": secret, "name": "eve", "password": PASSWORD });
    let late = request(server.http_address(), &Who::default(), "POST /api/v1/setup", &sent).await;
    assert_eq!(late.json["code"], "wrong_secret", "{late:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_need_more_than_the_cookie_and_end() {
    let manager = Manager::new().await;
    let ada = manager.log_in("ada").await;
    let session = manager.ask(&ada, "GET /api/v1/session", Value::Null).await;
    assert_eq!((&session.json["name"], &session.json["role"]), (&"ada".into(), &"admin".into()));
    assert!(ada.0[1].ends_with(session.json["csrf_token"].as_str().expect("told again")));
    for header in ["x-content-type-options: nosniff", "cache-control: no-store", "frame-ancestors 'none'"] {
        assert!(session.head.contains(header), "{header} is not in {}", session.head);
    }
    assert!(!session.head.contains("unsafe-inline"));

    let new = || json!({ "name": "eve", "role": "admin", "password": PASSWORD });
    let cookie_only = Who(vec![ada.0[0].clone()]);
    let wrong = Who(vec![ada.0[0].clone(), "x-csrf-token: 00".to_owned()]);
    let elsewhere = Who([ada.0.clone(), vec!["sec-fetch-site: cross-site".to_owned()]].concat());
    for (who, code) in [(&cookie_only, "csrf"), (&wrong, "csrf"), (&elsewhere, "cross_site")] {
        let answer = manager.ask(who, "POST /api/v1/users", new()).await;
        assert_eq!((answer.status, &answer.json["code"]), (403, &code.into()), "{answer:?}");
    }
    assert_eq!(manager.ask(&cookie_only, "GET /api/v1/users", Value::Null).await.json["items"][0]["name"], "ada");

    assert_eq!(manager.ask(&ada, "DELETE /api/v1/session", Value::Null).await.status, 204);
    assert_eq!(manager.ask(&ada, "GET /api/v1/session", Value::Null).await.status, 401, "it has ended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guessing_tells_nothing_and_is_slowed_down() {
    let manager = Manager::new().await;
    let ada = manager.log_in("ada").await;
    manager.user(&ada, "off", "viewer").await;
    let off = json!({ "disabled": true });
    assert_eq!(manager.ask(&ada, "PATCH /api/v1/users/off", off).await.status, 200);
    let guess = async |name: &str, password: &str| {
        let sent = json!({ "name": name, "password": password });
        manager.ask(&Who::default(), "POST /api/v1/session", sent).await
    };
    let wrong = guess("ada", "a wrong password").await;
    assert_eq!((wrong.status, &wrong.json["code"]), (401, &"wrong_login".into()));
    for (name, password) in [("nobody", PASSWORD), ("off", PASSWORD), ("ada", "short"), ("A/", PASSWORD)] {
        assert_eq!(guess(name, password).await.json, wrong.json, "{name}");
    }
    let mut answer = wrong;
    for _ in 0..12 {
        answer = guess("ada", "a wrong password").await;
    }
    assert_eq!((answer.status, &answer.json["code"]), (429, &"too_many_tries".into()));
    assert!(answer.head.contains("retry-after: "), "{answer:?}");
    assert_eq!(guess("ada", PASSWORD).await.status, 429, "the right one is not found out either");
    assert_eq!(guess("nobody", PASSWORD).await.status, 401, "other names are not slowed down");
    assert_eq!(manager.ask(&ada, "GET /api/v1/session", Value::Null).await.status, 200, "nor who is logged in");
}

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
