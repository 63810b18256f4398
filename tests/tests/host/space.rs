//! Full disks: small file systems in memory, which only root can make.

use std::{fs, path::PathBuf, process::Stdio};

use anyhow::{Context as _, ensure};
use tokio::process::Command;

use crate::support::{Host, can, fails, holds, is_root, list, random, run_fails, tells_json, tells_text, text};

/// In a mount namespace of its own a small file system is put over a folder; both go with the process.
const SMALL: &str = r#"mount -t tmpfs -o size=24m,mode=700 tmpfs "$1" && shift && exec "$@""#;
/// Runs the rest there, and tells on the third descriptor what is left in the folder.
const LISTED: &str = r#"mount -t tmpfs -o size=4m,mode=700 tmpfs "$1" && printf old > "$1/old" || exit 99
folder=$1; shift; "$@"; code=$?; ls -A "$folder" > "$0"; cat "$folder/old" >> "$0"; exit $code"#;

fn can_mount(test: &str) -> bool {
    is_root(test) && can(test, &["unshare", "--mount", "sh", "-c", "mount -t tmpfs tmpfs /mnt"])
}

#[tokio::test]
async fn a_quota_is_told_before_anything_is_written() -> anyhow::Result<()> {
    let mut host = Host::new().await?;
    let config = host.path("config.toml");
    fs::write(&config, "store_quota_bytes = 67108864\n")?;
    host.with_arguments(&["--config".as_ref(), config.as_os_str()]);
    host.start().await?;
    let (first, second) = (host.file("first", 40_000_000)?, host.file("second", 40_000_000)?);
    host.import("first", &first).await?.ok()?;
    run_fails(&host, &["import", "-i", "second", &text(&second)], 10, "quota of 67108864 bytes").await?;
    holds(&host.data(), 1)?;
    host.delete("first").await?.ok()?;
    host.import("second", &second).await?.ok()?;
    host.exports("second", &random("second", 40_000_000)).await
}

#[tokio::test]
async fn the_store_is_full() -> anyhow::Result<()> {
    if !can_mount("a full store") {
        return Ok(());
    }
    let mut host = Host::new().await?;
    let config = host.path("config.toml");
    fs::write(&config, "free_space_floor_bytes = 1048576\n")?;
    fs::create_dir(host.data())?;
    host.with_arguments(&["--config".as_ref(), config.as_os_str()]);
    host.with_wrapper(&["unshare", "--mount", "sh", "-c", SMALL, "sh", &text(&host.data())]);
    host.start().await?;
    // As the daemon sees it.
    let data = PathBuf::from(format!("/proc/{}/root", host.pid().context("no daemon")?))
        .join(host.data().strip_prefix("/").context("not an absolute path")?);
    let large = host.file("large", 40_000_000)?;
    run_fails(&host, &["import", "-i", "large", &text(&large)], 10, "no space").await?;
    holds(&data, 0)?;
    // The length of a pipe is not known before.
    for json in [false, true] {
        let mut command = host.command();
        command.args(["import", "-i", "large", "-"]).args(json.then_some("--json"));
        let (mut reader, writer) = std::io::pipe()?;
        let mut bytes = fs::File::open(&large)?;
        let feeding = std::thread::spawn(move || std::io::copy(&mut bytes, &mut { writer }));
        command.stdin(Stdio::from(reader.try_clone()?));
        let ended = crate::support::output(command).await?;
        // The daemon stops reading.
        std::io::copy(&mut reader, &mut std::io::sink())?;
        feeding.join().ok().context("the feeder failed")??;
        if json {
            tells_json(&ended, 10, "no space")?
        } else {
            tells_text(&ended, 10, "no space")?
        }
        holds(&data, 0)?;
    }
    ensure!(host.entries().await?.is_empty());
    // There is still room for something smaller, which fills it up in the end.
    let mut held = Vec::new();
    for number in 0..10 {
        let cid = format!("small {number}");
        let imported = host.import(&cid, &host.file(&cid, 4_000_000)?).await?;
        if imported.exit != 0 {
            imported.exits(10)?;
            break;
        }
        held.push(cid);
    }
    ensure!((3..=6).contains(&held.len()), "{} fit in", held.len());
    holds(&data, held.len())?;
    for cid in &held {
        host.exports(cid, &random(cid, 4_000_000)).await?;
    }
    // Deleting works on a full disk, and makes room.
    host.delete(&held[0]).await?.ok()?;
    host.import("another", &host.file("another", 3_000_000)?).await?.ok()?;
    host.exports("another", &random("another", 3_000_000)).await
}

#[tokio::test]
async fn the_floor_is_kept() -> anyhow::Result<()> {
    if !can_mount("the free-space floor") {
        return Ok(());
    }
    // Without configuration 512 MiB stay free, and this file system is smaller.
    let mut host = Host::new().await?;
    fs::create_dir(host.data())?;
    host.with_wrapper(&["unshare", "--mount", "sh", "-c", SMALL, "sh", &text(&host.data())]);
    host.start().await?;
    let file = host.file("file", 10)?;
    run_fails(&host, &["import", "-i", "x", &text(&file)], 10, "no space").await?;
    ensure!(host.entries().await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn the_output_is_full() -> anyhow::Result<()> {
    if !can_mount("a full output") {
        return Ok(());
    }
    Host::run(async |host| {
        let file = host.file("file", 10_000_000)?;
        host.import("task", &file).await?.ok()?;
        let (folder, left) = (host.path("outputs"), host.path("left"));
        fs::create_dir(&folder)?;
        for (name, force) in [("new", false), ("old", true)] {
            let makes = || {
                let mut command = Command::new("unshare");
                command.args(["--mount", "sh", "-c", LISTED]).arg(&left).arg(&folder);
                command.arg(host.programs().path("dfcache")).arg("--socket").arg(host.socket());
                command.args(["export", "-l", "-i", "task"]).args(force.then_some("-f")).arg(folder.join(name));
                command
            };
            fails(makes, 10, "No space left").await?;
            let left = fs::read_to_string(&left)?;
            ensure!(left == "old\nold", "left: {left:?}");
        }
        // The store is none the worse.
        host.exports("task", &random("file", 10_000_000)).await?;
        ensure!(list(&folder)?.is_empty());
        holds(&host.data(), 1)
    })
    .await
}
