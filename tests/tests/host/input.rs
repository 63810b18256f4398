//! What users do wrong: each its exit code, one clear line and a hint, and nothing left behind.

use std::{
    ffi::OsStr,
    fs::{self, Permissions},
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
};

use anyhow::{Context as _, ensure};
use damselfly_tests::Dfcache;
use tokio::process::Command;

use crate::support::{AS_NOBODY, Host, can, fails, holds, list, programs_for_all, random, run_fails, text};

#[tokio::test]
async fn a_source_that_is_none() -> anyhow::Result<()> {
    Host::run(async |host| {
        let folder = host.path("folder");
        fs::create_dir(&folder)?;
        let fifo = host.path("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?;
        let file = text(&host.file("file", 10)?);
        let below_a_file = format!("{file}/x");
        let rows = [
            (text(&host.path("missing")), "No such file"),
            (text(&folder), "is a directory"),
            (text(&fifo), "is a fifo"),
            ("/dev/null".to_owned(), "is a device"),
            (below_a_file, "Not a directory"),
        ];
        for (path, says) in rows {
            run_fails(host, &["import", "-i", "x", &path], 1, says).await.context(path)?;
        }
        host.is_empty().await
    })
    .await
}

#[tokio::test]
async fn an_output_that_cannot_be() -> anyhow::Result<()> {
    Host::run(async |host| {
        let file = host.file("file", 3_000_000)?;
        host.import("task", &file).await?.ok()?;
        let folder = host.path("outputs");
        fs::create_dir(&folder)?;
        fs::write(folder.join("old"), "old")?;
        let rows = [
            (folder.join("missing/output"), "does not exist"),
            (folder.join("old"), "exists already"),
            (folder.clone(), "is a directory"),
            (folder.join("old/output"), "old"),
        ];
        for (path, says) in rows {
            run_fails(host, &["export", "-i", "task", &text(&path)], 1, says).await?;
            run_fails(host, &["export", "-l", "-i", "task", "-O", &text(&path)], 1, says).await?;
        }
        // What is there stays also when a forced export fails.
        run_fails(host, &["export", "-f", "-l", "-i", "none", &text(&folder.join("old"))], 3, "").await?;
        run_fails(host, &["export", "-l", "-i", "none", &text(&folder.join("new"))], 3, "").await?;
        ensure!(list(&folder)? == ["old"] && fs::read_to_string(folder.join("old"))? == "old");
        host.run(&["export", "-l", "-f", "-i", "task", &text(&folder.join("old"))]).await?.ok()?;
        ensure!(list(&folder)? == ["old"] && fs::read(folder.join("old"))? == random("file", 3_000_000));
        Ok(())
    })
    .await
}

#[tokio::test]
async fn arguments_that_make_no_sense() -> anyhow::Result<()> {
    Host::run(async |host| {
        let file = text(&host.file("file", 10)?);
        let long = "x".repeat(100_000);
        let rows: &[(&[&str], &str)] = &[
            (&["import", "--replicas", "3", &file], "--replicas"),
            (&["import", "--replicas", "0", &file], "--replicas"),
            (&["import", "--unknown", &file], "--unknown"),
            (&["import", "--ttl", "soon", &file], "--ttl"),
            (&["import", "--rate-limit", "fast", &file], "--rate-limit"),
            (&["import", "-i", &long, &file], "1 to 1024 bytes"),
            (&["import"], "required"),
            (&["stat"], "required"),
            (&["export", "-i", "x"], "required"),
            (&["export", "-i", "x", "one", "-O", "other"], "cannot be used with"),
            (&["move"], "move"),
            (&["import", ""], "a value is required"),
            (&[], "subcommand"),
        ];
        for (arguments, says) in rows {
            run_fails(host, arguments, 2, says).await.with_context(|| format!("{:.3?}", arguments.first()))?;
        }
        host.is_empty().await
    })
    .await
}

#[tokio::test]
async fn what_is_not_there() -> anyhow::Result<()> {
    Host::run(async |host| {
        run_fails(host, &["stat", "-l", "-i", "none"], 3, "").await?;
        run_fails(host, &["export", "-l", "-i", "none", &text(&host.path("output"))], 3, "").await?;
        // On a host without a cluster nobody can be asked, which is worth saying.
        run_fails(host, &["stat", "-i", "none"], 3, "not a member").await?;
        run_fails(host, &["export", "-i", "none", &text(&host.path("output"))], 3, "not a member").await?;
        let nothing = host.delete("none").await?.ok()?;
        ensure!(nothing["deleted"] == false, "{nothing}");
        ensure!(!host.path("output").exists());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn no_daemon_to_speak_with() -> anyhow::Result<()> {
    Host::run(async |host| {
        let file = text(&host.file("file", 10)?);
        let output = text(&host.path("output"));
        let no_socket = host.path("no-socket");
        fs::write(&no_socket, "a file")?;
        let deaf = host.path("deaf");
        drop(UnixListener::bind(&deaf)?);
        let wrong = [host.path("nobody"), host.path("no/folder"), no_socket, deaf];
        let commands: [&[&str]; 6] = [
            &["import", "-i", "x", &file],
            &["export", "-i", "x", &output],
            &["stat", "-i", "x"],
            &["delete", "-i", "x"],
            &["ls"],
            &["health"],
        ];
        for socket in &wrong {
            let dfcache = Dfcache::new(host.programs(), socket);
            for arguments in commands {
                run_fails(&dfcache, arguments, 4, &text(socket)).await.with_context(|| arguments.join(" "))?;
            }
        }
        // The same when the right one is not running, killed or ended.
        host.kill().await?;
        ensure!(host.socket().exists(), "a killed daemon leaves its socket");
        for arguments in commands {
            run_fails(host, arguments, 4, "no daemon listens").await?;
        }
        ensure!(!host.path("output").exists());
        host.start().await?;
        host.run(&["ls"]).await?.ok().map(drop)
    })
    .await
}

#[tokio::test]
async fn no_permission() -> anyhow::Result<()> {
    Host::run(async |host| {
        let folder = host.path("outputs");
        fs::create_dir(&folder)?;
        let (closed, open) = (host.file("closed", 10)?, host.file("open", 10)?);
        fs::set_permissions(&closed, Permissions::from_mode(0o000))?;
        fs::set_permissions(&open, Permissions::from_mode(0o644))?;
        fs::set_permissions(&folder, Permissions::from_mode(0o555))?;
        let root = rustix::process::geteuid().is_root();
        if root && !can("no permission", &[&AS_NOBODY[..], &["true"]].concat()) {
            return Ok(());
        }
        let programs = programs_for_all(host.programs(), &host.path(""))?;
        let makes = |arguments: &[&str]| {
            let own: &[&str] = if root { &AS_NOBODY } else { &["env"] };
            let mut command = Command::new(own[0]);
            command.args(&own[1..]).arg(programs.join("dfcache"));
            command.arg("--socket").arg(host.socket()).args(arguments).current_dir("/");
            command
        };
        if root {
            fails(|| makes(&["ls"]), 7, "not permitted to connect").await?;
            // Now its group may speak with the daemon, and that gives nobody the daemon's rights.
            fs::set_permissions(host.socket(), Permissions::from_mode(0o666))?;
        }
        fails(|| makes(&["import", "-i", "closed", &text(&closed)]), 7, "Permission denied").await?;
        host.is_empty().await?;
        let done = makes(&["import", "-i", "open", &text(&open)]).output().await?;
        ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        fails(|| makes(&["export", "-i", "open", &text(&folder.join("x"))]), 7, "Permission denied").await?;
        ensure!(list(&folder)?.is_empty());
        // Where the user may write it works, and the file is the user's.
        fs::set_permissions(&folder, Permissions::from_mode(0o777))?;
        let output = folder.join("output");
        let done = makes(&["export", "-i", "open", &text(&output)]).output().await?;
        ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        ensure!(fs::read(&output)? == random("open", 10));
        let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(&output)?);
        ensure!(!root || owner.to_string() == crate::support::NOBODY, "the output belongs to {owner}");
        holds(&host.data(), 1)
    })
    .await
}

#[tokio::test]
async fn the_same_name_for_other_bytes() -> anyhow::Result<()> {
    Host::run(async |host| {
        let (one, other) = (host.file("one", 2_000_000)?, host.file("other", 2_000_000)?);
        host.import("task", &one).await?.ok()?;
        let again: [&OsStr; 4] = ["import".as_ref(), "-i".as_ref(), "task".as_ref(), other.as_ref()];
        run_fails(host, &again, 6, "bound to other bytes").await?;
        holds(&host.data(), 1)?;
        host.exports("task", &random("one", 2_000_000)).await
    })
    .await
}
