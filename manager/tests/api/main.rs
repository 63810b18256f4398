//! The manager over HTTP, as `curl` sees it.

use std::time::Duration;

#[path = "../common/mod.rs"]
mod common;
mod configuration;
mod history;
mod renewed;
mod restored;

use common::{admin, ask, body, start};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_tell_what_is_seen() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let server = start(&data).await;
    let token = admin(&data);
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
async fn roles_are_told_with_what_each_adds() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let server = start(&data).await;
    let token = admin(&data);
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
async fn so_many_watch_at_a_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let server = start(&data).await;
    let address = server.http_address();
    let token = admin(&data);
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
