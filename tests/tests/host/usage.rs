//! What the daemons say when they are started wrongly.

use std::process::Command;

use anyhow::{Context as _, ensure};
use damselfly_tests::Programs;

/// Exit code and standard error of a program with these arguments and nothing of this environment.
fn run(program: &str, arguments: &[&str]) -> anyhow::Result<(Option<i32>, String)> {
    let output = Command::new(Programs::get()?.path(program)).args(arguments).env_clear().output()?;
    Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

#[test]
fn what_cannot_be_used_is_refused_alike() -> anyhow::Result<()> {
    for program in ["dfdaemon", "dfscheduler", "dfmanager"] {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join(program).with_extension("toml");
        std::fs::write(&file, "listens = []")?;
        let file = file.to_str().context("no text")?;
        let mut table: Vec<(&[&str], &str, &str)> = vec![
            (&["--no-such-flag"], "unexpected argument", "clap's own"),
            (&["--config", "/nowhere/file.toml"], "/nowhere/file.toml", "no file"),
            (&["--http-listen", "nowhere"], "--http-listen", "a bad value"),
        ];
        let unknown = ["--config", file];
        table.push((&unknown, "listens", "an unknown key"));
        if program != "dfmanager" {
            table.push((&["--join", "TOKEN"], "does not begin with dfj1_", "no token"));
        }
        if program == "dfscheduler" {
            table.push((&["--data-dir", "/nowhere"], "--join", "it belongs nowhere"));
        }
        for (arguments, expected, why) in table {
            let (code, said) = run(program, arguments)?;
            ensure!(code == Some(2), "{program}, {why}: {code:?} {said}");
            ensure!(said.contains(expected), "{program}, {why}: {said}");
        }
    }
    Ok(())
}
