//! The first admin, sessions, and guessing.

use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt as _};

use serde_json::{Value, json};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpSocket,
};

use super::{Manager, PASSWORD, Who, common::start, request};

/// The answer to ada's login from this loopback address.
async fn log_in_from(ip: [u8; 4], to: SocketAddr) -> String {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::from((ip, 0))).expect("bound");
    let mut stream = socket.connect(to).await.expect("connected");
    let body = json!({ "name": "ada", "password": PASSWORD }).to_string();
    let length = body.len();
    let head =
        format!("POST /api/v1/session HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
    stream.write_all((head + &body).as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answered");
    answer
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
    let elsewhere = log_in_from([127, 0, 0, 2], manager.server.http_address()).await;
    assert!(elsewhere.starts_with("HTTP/1.1 200"), "who guesses keeps nobody out at another address: {elsewhere}");
    assert_eq!(guess("nobody", PASSWORD).await.status, 401, "other names are not slowed down");
    assert_eq!(manager.ask(&ada, "GET /api/v1/session", Value::Null).await.status, 200, "nor who is logged in");
}
