//! What dfdaemon says when it is started wrongly.

use std::process::Command;

/// Exit code and standard error of dfdaemon with these arguments and nothing of this environment.
fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_dfdaemon")).args(arguments).env_clear().output().expect("started");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn what_cannot_be_used_is_refused_alike() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("dfdaemon.toml");
    std::fs::write(&file, "listens = []").expect("written");
    let file = file.to_str().expect("text");
    let table: &[(&[&str], &str, &str)] = &[
        (&["--no-such-flag"], "unexpected argument", "clap's own"),
        (&["--config", file], "listens", "an unknown key"),
        (&["--config", "/nowhere/dfdaemon.toml"], "/nowhere/dfdaemon.toml", "no file"),
        (&["--http-listen", "nowhere"], "--http-listen", "a bad value"),
        (&["--join", "TOKEN"], "joining by token is not built yet", "named, not unknown"),
    ];
    for (arguments, expected, why) in table {
        let (code, said) = run(arguments);
        assert_eq!(code, Some(2), "{why}: {said}");
        assert!(said.contains(expected), "{why}: {said}");
    }
}
