//! Who may do what, as browsers and programs see it.

use std::{collections::BTreeSet, fs, net::SocketAddr, path::PathBuf};

use damselfly_manager::server::Server;
use serde_json::{Value, json};

#[path = "../common/mod.rs"]
mod common;
mod login;
mod users;

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

    /// A token that is limited to `scopes`.
    async fn limited(&self, who: &Who, scopes: &[&str]) -> Who {
        let made = self.ask(who, "POST /api/v1/tokens", json!({ "label": "CI", "scopes": scopes })).await;
        assert_eq!((made.status, &made.json["scopes"]), (201, &json!(scopes)), "{made:?}");
        Who::token(made.json["token"].as_str().expect("a token"))
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
    ("PATCH", "/schedulers/{peer_id}", "operator"),
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
    ("PATCH", "/config", "operator"),
    ("GET", "/config/fields", "viewer"),
    ("GET", "/config/diff", "viewer"),
    ("GET", "/config/history", "viewer"),
    ("POST", "/config/rollback", "operator"),
    ("GET", "/roots", "viewer"),
    ("POST", "/roots/rotate", "admin"),
    ("GET", "/roles", "viewer"),
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
    ("GET", "/events", "viewer"),
    ("GET", "/ring", "viewer"),
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

/// Every route that a token must have a scope for.
fn scope_of(method: &str, path: &str) -> Option<&'static str> {
    Some(match (method, path.split('/').nth(1).expect("a name")) {
        ("GET", "tasks") => "tasks:read",
        (_, "tasks") => "tasks:delete",
        ("GET", "config") => "config:read",
        (_, "config") | ("PATCH", "schedulers") => "config:write",
        ("POST", "revocations") => "hosts:revoke",
        ("GET", "overview" | "events" | "schedulers" | "ring" | "roots" | "hosts" | "revocations") => "hosts:read",
        (_, "join-tokens") => "join-tokens",
        (_, "users" | "tokens") | ("POST", "roots") => "users",
        ("GET", "audit") => "audit:read",
        (_, "session" | "setup" | "roles" | "openapi.json") => return None,
        (_, other) => panic!("which scope has {other}?"),
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_does_what_its_scopes_and_its_role_both_allow() {
    let manager = Manager::new().await;
    let ada = manager.log_in("ada").await;
    let scopes: BTreeSet<_> = ROUTES.iter().filter_map(|(method, path, _)| scope_of(method, path)).collect();
    for scope in &scopes {
        let caller = manager.limited(&ada, &[scope]).await;
        for (method, path, lowest) in ROUTES {
            let filled = path.replace("{name}", "somebody").replace("{id}", "999");
            let answer = manager.ask(&caller, &format!("{method} /api/v1{filled}"), json!({})).await;
            let is_out = answer.status == 403 && answer.json["code"] == "scope";
            let is_in = *lowest == "nobody" || scope_of(method, path).is_none_or(|needed| needed == *scope);
            assert_eq!(is_out, !is_in, "{scope} {method} {path}: {answer:?}");
        }
    }

    let vera = manager.user(&ada, "vera", "viewer").await;
    let (reads, deletes) =
        (manager.limited(&vera, &["audit:read"]).await, manager.limited(&ada, &["tasks:delete"]).await);
    let answer = manager.ask(&reads, "GET /api/v1/audit", Value::Null).await;
    assert_eq!(
        (answer.status, &answer.json["code"]),
        (403, &"forbidden".into()),
        "the scope gives no role: {answer:?}"
    );
    assert_eq!(manager.ask(&deletes, "GET /api/v1/session", Value::Null).await.status, 200, "every token may ask this");
    for wrong in [json!(["tasks:write"]), json!([]), json!(vec!["users"; 10])] {
        let sent = json!({ "label": "CI", "scopes": wrong });
        let answer = manager.ask(&ada, "POST /api/v1/tokens", sent).await;
        let detail = answer.json["detail"].as_str().unwrap_or_default();
        assert!(answer.status == 422 && scopes.iter().all(|scope| detail.contains(scope)), "{answer:?}");
    }
    let listed = manager.ask(&vera, "GET /api/v1/tokens", Value::Null).await;
    assert_eq!(listed.json["items"][0]["scopes"], json!(["audit:read"]), "{listed:?}");
    let audit = manager.ask(&ada, "GET /api/v1/audit?action=token.create", Value::Null).await;
    assert_eq!(audit.json["items"][0]["after"]["scopes"], json!(["tasks:delete"]), "{audit:?}");
    let (_, plain) = manager.token(&ada, "admin").await;
    assert_eq!(manager.ask(&plain, "GET /api/v1/users", Value::Null).await.status, 200, "not limited");
}
