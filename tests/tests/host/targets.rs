//! What may stand where an export goes: one rule for dfcache and for paths that the daemon opens itself.

use std::{fs, os::unix::fs::symlink, path::PathBuf};

use anyhow::ensure;
use damselfly_tests::Node;
use damselfly_transport::local::client;
use rustix::fs::{CWD, Mode, mkfifoat};

use crate::support::{Host, list, random, run_fails, same_bytes, text};

/// Targets that are never replaced, whether or not it is forced, and what the error says.
fn refused(host: &Host) -> anyhow::Result<Vec<(PathBuf, &'static str)>> {
    let targets = host.path("targets");
    fs::create_dir(&targets)?;
    mkfifoat(CWD, targets.join("fifo"), Mode::RUSR | Mode::WUSR)?;
    fs::create_dir(targets.join("folder"))?;
    let mut rows = vec![(targets.join("fifo"), "is a fifo"), (targets.join("folder"), "is a directory")];
    let links = [
        ("to-fifo", "fifo", "is a fifo"),
        ("to-folder", "folder", "is a directory"),
        ("to-device", "/dev/null", "is a device"),
        ("stdout", "/proc/self/fd/1", "leads to an open descriptor"),
        ("to-stdout", "stdout", "leads to an open descriptor"),
    ];
    for (name, to, says) in links {
        symlink(to, targets.join(name))?;
        rows.push((targets.join(name), says));
    }
    rows.push((PathBuf::from("/proc/self/comm"), "is a file of the kernel"));
    Ok(rows)
}

#[tokio::test]
async fn what_is_no_regular_file_is_never_replaced() -> anyhow::Result<()> {
    Host::run(async |host| {
        let file = host.file("file", 3000)?;
        host.import("c", &file).await?.ok()?;
        let rows = refused(host)?;
        let before = list(&host.path("targets"))?;
        let mut daemon = client::connect(&host.socket()).await?;
        for (target, says) in &rows {
            let path = text(target);
            run_fails(host, &["export", "-i", "c", "-O", &path], 1, says).await?;
            run_fails(host, &["export", "-i", "c", "-f", "-O", &path], 1, says).await?;
            match Node::export_to_path(&mut daemon, "c", target).await? {
                Ok(_) => anyhow::bail!("the daemon replaced {path}"),
                Err(failure) => ensure!(failure.message.contains(says), "{path}: {failure:?}"),
            }
        }
        ensure!(list(&host.path("targets"))? == before, "something came or went");
        for (target, _) in rows.iter().filter(|(_, says)| !says.contains("fifo") && !says.contains("folder")) {
            let kept = target.starts_with("/proc") || target.is_dir() || target.is_symlink();
            ensure!(kept, "{} was replaced", target.display());
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_regular_file_and_a_link_to_one_are_replaced_by_force() -> anyhow::Result<()> {
    Host::run(async |host| {
        let content = random("file", 3000);
        host.import("c", &host.file("file", 3000)?).await?.ok()?;
        let mut daemon = client::connect(&host.socket()).await?;
        for by_path in [false, true] {
            let (old, link) = (host.path("old"), host.path("link"));
            fs::write(&old, "old")?;
            let _ = fs::remove_file(&link);
            symlink(&old, &link)?;
            if by_path {
                let exported = Node::export_to_path(&mut daemon, "c", &link).await?;
                ensure!(exported.is_ok(), "{exported:?}");
            } else {
                run_fails(host, &["export", "-i", "c", "-O", &text(&link)], 1, "exists already").await?;
                host.run(&["export", "-i", "c", "-f", "-O", &text(&link)]).await?.ok()?;
            }
            ensure!(!link.is_symlink(), "the link itself is replaced");
            same_bytes(&fs::read(&link)?, &content)?;
            ensure!(fs::read(&old)? == b"old", "what it leads to stays");
        }
        let parts: Vec<_> = list(&host.path(""))?.into_iter().filter(|name| name.ends_with(".part")).collect();
        ensure!(parts.is_empty(), "left: {parts:?}");
        Ok(())
    })
    .await
}
