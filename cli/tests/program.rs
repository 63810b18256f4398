//! The program itself: exit codes, and what it writes where.

mod common;

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::Served;
use damselfly_transport::local::Code;

fn dfcache(socket: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dfcache"));
    command.arg("--socket").arg(socket).args(args).stdin(Stdio::null());
    command
}

async fn output(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output()).await.expect("runs").expect("starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn error(output: &Output) -> serde_json::Value {
    let object: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one object");
    object["error"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_code_of_the_daemon_is_an_exit_code() {
    let served = Served::start();
    for code in Code::ALL.into_iter().filter(|code| *code != Code::Unreachable) {
        let plain = output(dfcache(&served.socket, &["stat", "-i", code.name()])).await;
        assert_eq!(plain.status.code(), Some(code.exit().into()), "{code:?}");
        assert!(plain.stdout.is_empty(), "{code:?}");
        assert_eq!(text(&plain.stderr), format!("error: because of {}\nhint: do something\n", code.name()));

        let json = output(dfcache(&served.socket, &["stat", "-i", code.name(), "--json"])).await;
        assert_eq!(json.status.code(), Some(code.exit().into()), "{code:?}");
        assert!(json.stderr.is_empty(), "{code:?}");
        let expected = serde_json::json!({
            "code": code.name(), "exit": code.exit(), "message": format!("because of {}", code.name()),
            "hint": "do something",
        });
        assert_eq!(error(&json), expected);
    }
}

#[test]
fn without_a_daemon_it_says_where_it_looked() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("none.sock");
    fs::write(dir.path().join("file"), "x").expect("writes");
    let file = dir.path().join("file");
    let out = dir.path().join("out");
    let (file, out) = (file.to_str().expect("text"), out.to_str().expect("text"));
    let rows: [&[&str]; 7] = [
        &["import", file],
        &["stat", "-i", "a"],
        &["export", "-i", "a", out],
        &["export", "-i", "a", "-O", "-"],
        &["delete", "-i", "a"],
        &["ls"],
        &["health"],
    ];
    for args in rows {
        let output = dfcache(&socket, args).output().expect("runs");
        assert_eq!(output.status.code(), Some(4), "{args:?}");
        assert!(output.stdout.is_empty(), "{args:?}");
        let stderr = text(&output.stderr);
        assert!(stderr.contains(socket.to_str().expect("text")) && stderr.contains("hint: "), "{stderr}");
    }
    assert_eq!(fs::read_dir(dir.path()).expect("reads").count(), 1, "a failed export leaves nothing");
}

#[test]
fn bad_files_are_refused_before_the_daemon_is_asked() {
    let dir = tempfile::tempdir().expect("a directory");
    let old = dir.path().join("old");
    fs::write(&old, "old").expect("writes");
    let (dir_path, old_path) = (dir.path().to_str().expect("text"), old.to_str().expect("text"));
    let rows: [(&[&str], i32, &str); 6] = [
        (&["import", "/nonexistent"], 1, "cannot open"),
        (&["import", dir_path], 1, "a directory"),
        (&["export", "-i", "a", old_path], 1, "exists already"),
        (&["export", "-i", "a", "-f", dir_path], 1, "is a directory"),
        (&["export", "-i", "a", "/nonexistent/out"], 1, "does not exist"),
        (&["import", "--replicas", "2", old_path], 2, "--replicas"),
    ];
    for (args, exit, expected) in rows {
        let output = dfcache(Path::new("/nonexistent/sock"), args).output().expect("runs");
        assert_eq!(output.status.code(), Some(exit), "{args:?}");
        assert!(text(&output.stderr).contains(expected), "{args:?}: {}", text(&output.stderr));
    }
    assert_eq!(fs::read_to_string(&old).expect("reads"), "old");
}

#[test]
fn wrong_usage_says_what_was_probably_meant() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join("file"), "x").expect("writes");
    let file = dir.path().join("file");
    let file = file.to_str().expect("text");
    let rows: [(&[&str], &str); 10] = [
        (&["stat", "models/7b"], "`dfcache stat -i models/7b`"),
        (&["delete", "models/7b"], "`dfcache delete -i models/7b`"),
        (&["export", "-i", "a", "out", "more"], "hint: "),
        (&["import", "--ttl", "-5s", file], "such as 90s"),
        (&["import", "--ttl", "5", file], "such as 90s"),
        (&["import", "--cdi", "x", file], "--cid"),
        (&["stat", "--josn", "-i", "x"], "--json"),
        (&["import", "--rate-limit", "10", file], "such as 64MiB/s"),
        (&["import", "--unheard-of", file], "see `dfcache import --help`"),
        (&["statt"], "'stat'"),
    ];
    for (args, expected) in rows {
        let output = dfcache(Path::new("/nonexistent/sock"), args).output().expect("runs");
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains(expected), "{args:?}: {stderr}");
        assert!(!stderr.contains("as a value"), "{args:?}: {stderr}");
    }
    let output = dfcache(Path::new(file), &["ls"]).output().expect("runs");
    assert_eq!(output.status.code(), Some(4));
    assert!(text(&output.stderr).contains("is not a socket"), "{}", text(&output.stderr));
}

#[test]
fn what_may_not_be_read_or_written_is_not_permitted() {
    if !rustix::process::geteuid().is_root() {
        return; // Only root can become somebody without rights.
    }
    let dir = tempfile::tempdir().expect("a directory");
    // Where another user can run it from, and see the file but not read it.
    let program = dir.path().join("dfcache");
    fs::copy(env!("CARGO_BIN_EXE_dfcache"), &program).expect("copies");
    let secret = dir.path().join("secret");
    fs::write(&secret, "x").expect("writes");
    for (path, mode) in [(dir.path(), 0o755), (&program, 0o755), (&secret, 0o600)] {
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
        fs::set_permissions(path, permissions).expect("sets");
    }
    let out = dir.path().join("out");
    let rows: [&[&str]; 2] =
        [&["import", secret.to_str().expect("text")], &["export", "-i", "a", out.to_str().expect("text")]];
    for args in rows {
        let output = Command::new(&program).args(args).uid(65534).gid(65534).current_dir("/").output().expect("runs");
        assert_eq!(output.status.code(), Some(7), "{args:?}: {}", text(&output.stderr));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_total_time_is_kept() {
    let served = Served::start();
    let started = Instant::now();
    let done = output(dfcache(&served.socket, &["stat", "-i", "slow", "--timeout", "300ms"])).await;
    assert_eq!(done.status.code(), Some(9));
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signals_interrupt_it() {
    let served = Served::start();
    use rustix::process::Signal;
    for signal in [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT] {
        let mut command = dfcache(&served.socket, &["stat", "-i", "slow", "--json"]);
        let child = command.stdout(Stdio::piped()).spawn().expect("starts");
        tokio::time::sleep(Duration::from_millis(500)).await;
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, signal).expect("signals");
        let done = tokio::task::spawn_blocking(|| child.wait_with_output()).await.expect("runs").expect("ends");
        assert_eq!(done.status.code(), Some(130), "{signal:?}");
        assert_eq!(error(&done)["code"], "interrupted");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_are_on_stdout() {
    let served = Served::start();
    let delete = output(dfcache(&served.socket, &["delete", "-i", "a"])).await;
    assert_eq!((delete.status.code(), text(&delete.stderr).as_str()), (Some(0), ""));
    assert!(text(&delete.stdout).contains("nothing to delete"));
    let delete = output(dfcache(&served.socket, &["delete", "-i", "a", "--json"])).await;
    assert_eq!(text(&delete.stdout), "{\"deleted\":false,\"holders\":0}\n");
    let ls = output(dfcache(&served.socket, &["ls", "--json"])).await;
    assert_eq!(text(&ls.stdout), "{\"entries\":[]}\n");
    let health = output(dfcache(&served.socket, &["health", "--json"])).await;
    assert_eq!((health.status.code(), error(&health)["exit"].as_i64()), (Some(8), Some(8)));
    let usage = output(dfcache(&served.socket, &["stat", "--json"])).await;
    assert_eq!((usage.status.code(), error(&usage)["code"].as_str()), (Some(2), Some("usage")));
    let bytes = output(dfcache(&served.socket, &["export", "-i", "a", "-O", "-", "--json"])).await;
    assert!(bytes.stdout.is_empty(), "stdout is for the bytes");
    assert!(text(&bytes.stderr).contains("\"code\":\"unavailable\""));
}

/// dfcache as a shell starts it with this redirection.
fn redirected(redirection: &str, socket: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("exec \"$0\" \"$@\" {redirection}"));
    command.arg(env!("CARGO_BIN_EXE_dfcache")).arg("--socket").arg(socket).args(args);
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_stdin_or_stdout_is_an_error() {
    let served = Served::start();
    let file = served.dir.path().join("file");
    fs::write(&file, "x").expect("writes");
    let file = file.to_str().expect("text");
    let rows: [(&str, &[&str], &str); 10] = [
        ("<&-", &["import", "-"], "cannot use stdin"),
        ("<&- >&- ", &["import", "-"], "stdout is closed"),
        (">&-", &["import", file], "stdout is closed"),
        (">&-", &["export", "-i", "a", "-O", "-"], "stdout is closed"),
        (">&-", &["ls"], "stdout is closed"),
        (">&-", &["delete", "-i", "a"], "stdout is closed"),
        (">&-", &["completions", "bash"], "stdout is closed"),
        (">&-", &["--version"], "cannot write to stdout"),
        // Open, but not for writing.
        ("1</dev/null", &["ls"], "cannot write to stdout"),
        ("1</dev/null", &["export", "-i", "a", "-O", "-"], "no holder"),
    ];
    for (redirection, args, says) in rows {
        let done = output(redirected(redirection, &served.socket, args)).await;
        assert!(!done.status.success(), "{args:?} {redirection}");
        let stderr = text(&done.stderr);
        assert!(stderr.contains(says) && stderr.contains("hint: "), "{args:?} {redirection}: {stderr}");
        // The daemon's end sees a moment later than we that the client is gone.
        let forgotten = async {
            while !served.descriptors.is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let kept = tokio::time::timeout(Duration::from_secs(10), forgotten).await;
        assert!(kept.is_ok(), "{args:?} {redirection}: a descriptor still waits");
    }
    // What is not needed may be closed.
    let missing = served.dir.path().join("out");
    let export = ["export", "-i", "a", missing.to_str().expect("text")];
    let done = output(redirected(">&- <&-", &served.socket, &export)).await;
    assert_eq!(done.status.code(), Some(8), "{}", text(&done.stderr));
    let health = output(redirected("<&-", &served.socket, &["ls"])).await;
    assert!(health.status.success(), "{}", text(&health.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_goes_to_stderr_when_stdout_fails() {
    let served = Served::start();
    for redirection in [">&-", ">/dev/full", "1</dev/null"] {
        let done = output(redirected(redirection, &served.socket, &["stat", "-i", "not_found", "--json"])).await;
        let object: serde_json::Value = serde_json::from_slice(&done.stderr).expect("one object");
        let exit = object["error"]["exit"].as_i64();
        assert_eq!(exit, done.status.code().map(i64::from), "{redirection}: {object}");
        let expected = if redirection == ">&-" { 1 } else { 3 };
        assert_eq!(exit, Some(expected), "{redirection}: {object}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_gets_bytes_by_force_only() {
    let served = Served::start();
    let on_terminal = |force: &str| {
        let dfcache = env!("CARGO_BIN_EXE_dfcache");
        let line = format!("{dfcache} --socket {} export -i a -O - {force}", served.socket.display());
        let mut command = Command::new("script");
        command.args(["-qec", &line, "/dev/null"]).stdin(Stdio::null());
        command
    };
    let mut probe = Command::new("script");
    if !probe.args(["-qec", "true", "/dev/null"]).stdin(Stdio::null()).status().is_ok_and(|status| status.success()) {
        eprintln!("left out: a terminal needs script(1) of util-linux");
        return;
    }
    let refused = output(on_terminal("")).await;
    let stdout = text(&refused.stdout);
    assert!(refused.status.code() == Some(1) && stdout.contains("stdout is a terminal"), "{stdout}");
    assert!(stdout.contains("--force"), "{stdout}");
    let forced = output(on_terminal("-f")).await;
    assert_eq!(forced.status.code(), Some(8), "{}", text(&forced.stdout));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_reading_ends_it_quietly() {
    let served = Served::start();
    let (read, write) = rustix::pipe::pipe().expect("a pipe");
    drop(read);
    for args in [&["delete", "-i", "a"][..], &["export", "-i", "a", "-O", "-"], &["completions", "bash"]] {
        let mut command = dfcache(&served.socket, args);
        command.stdout(File::from(write.try_clone().expect("clones"))).stderr(Stdio::piped());
        let child = command.spawn().expect("starts");
        let done = tokio::task::spawn_blocking(|| child.wait_with_output()).await.expect("runs").expect("ends");
        assert_eq!((done.status.code(), text(&done.stderr).as_str()), (Some(141), ""), "{args:?}");
    }
}
