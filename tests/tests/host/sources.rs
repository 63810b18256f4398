//! Sources whose metadata does not tell the truth, or changes while they are read.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use damselfly_tests::{Node, until};
use damselfly_transport::local::client;

use crate::support::{Host, list, output, random, text};

/// Files that the kernel makes up, and whose bytes stay the same: of length 0, and longer than what they give.
fn made_up() -> Vec<PathBuf> {
    let rows =
        ["/proc/version", "/proc/filesystems", "/sys/kernel/mm/transparent_hugepage/enabled", "/sys/kernel/profiling"];
    rows.into_iter().map(PathBuf::from).filter(|path| fs::read(path).is_ok_and(|bytes| !bytes.is_empty())).collect()
}

#[tokio::test]
async fn what_the_kernel_makes_up_comes_as_cat_gives_it() -> anyhow::Result<()> {
    Host::run(async |host| {
        let paths = made_up();
        ensure!(paths.iter().any(|path| path.starts_with("/proc")), "no procfs here");
        let mut daemon = client::connect(&host.socket()).await?;
        for path in &paths {
            let (expected, name) = (fs::read(path)?, text(path));
            host.import(&name, path).await?.ok()?;
            host.exports(&name, &expected).await?;
            let cid = format!("stdin {name}");
            let mut command = host.command();
            command.args(["import", "-i", &cid, "-"]).stdin(File::open(path)?);
            let done = output(command).await?;
            ensure!(done.status.success(), "{name}: {}", String::from_utf8_lossy(&done.stderr));
            host.exports(&cid, &expected).await?;
            let cid = format!("path {name}");
            let imported = Node::import_by_path(&mut daemon, &cid, path).await?;
            ensure!(imported.is_ok(), "{name}: {imported:?}");
            host.exports(&cid, &expected).await?;
        }
        Ok(())
    })
    .await
}

/// Begins a slow import, has `change` change its source while it is read, and returns how it ended.
async fn changed(
    host: &Host,
    cid: &str,
    path: &Path,
    change: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<std::process::Output> {
    let mut command = host.command();
    command.args(["import", "-i", cid, "--rate-limit", "10MiB/s"]).arg(path);
    let import = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    until("the import has begun", Duration::from_secs(10), async || {
        ensure!(!list(&host.data().join("incoming"))?.is_empty(), "nothing comes in");
        Ok(())
    })
    .await?;
    change()?;
    ensure!(!list(&host.data().join("incoming"))?.is_empty(), "the import was over before the change");
    tokio::time::timeout(Duration::from_secs(60), import.wait_with_output())
        .await
        .context("it hangs")?
        .map_err(Into::into)
}

#[tokio::test]
async fn a_change_that_is_none_of_the_bytes() -> anyhow::Result<()> {
    Host::run(async |host| {
        const BYTES: u64 = 12_000_000;
        let file = host.file("file", BYTES)?;
        let (link, moved) = (host.path("link"), host.path("moved"));
        let changes = || {
            fs::set_permissions(&file, Permissions::from_mode(0o600))?;
            fs::hard_link(&file, &link)?;
            let now = std::time::SystemTime::now();
            File::open(&file)?.set_times(fs::FileTimes::new().set_accessed(now))?;
            std::os::unix::fs::chown(&file, None, None)?;
            fs::rename(&file, &moved).map_err(Into::into)
        };
        let done = changed(host, "c", &file, changes).await?;
        ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        host.exports("c", &random("file", BYTES)).await?;
        // Bytes that change are told, with a command that takes them as they are.
        let write = || OpenOptions::new().append(true).open(&moved)?.write_all(b"more").map_err(Into::into);
        let done = changed(host, "d", &moved, write).await?;
        let stderr = String::from_utf8_lossy(&done.stderr).into_owned();
        ensure!(done.status.code() == Some(1) && stderr.contains("the source changed"), "{stderr}");
        let hint = format!("`cat {} | dfcache import -i d -`", text(&moved));
        ensure!(stderr.contains(&hint), "no {hint}: {stderr}");
        ensure!(host.entry("d").await?.is_none(), "something is kept");
        Ok(())
    })
    .await
}
