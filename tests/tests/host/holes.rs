//! Sparse files: holes stay holes, in the store, at the target, and on the host that receives them.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use anyhow::ensure;
use damselfly_tests::{Cluster, Options};
use tokio::process::Command;

use crate::support::{Host, can, is_root, list, same_files, text};

const MIB: u64 = 1 << 20;
/// Length of the sparse file, and how much of it is data.
const BYTES: u64 = 192 * MIB;
const DATA: u64 = MIB;

/// A file that is all holes but for some bytes in its middle and at its end.
fn sparse(path: &Path) -> anyhow::Result<()> {
    let file = File::create(path)?;
    file.set_len(BYTES)?;
    file.write_all_at(&vec![7; (DATA / 2) as usize], 64 * MIB + 12345)?;
    file.write_all_at(&vec![8; (DATA / 2) as usize], BYTES - DATA / 2)?;
    Ok(())
}

fn is_sparse(path: &Path) -> anyhow::Result<()> {
    let metadata = fs::metadata(path)?;
    ensure!(metadata.len() == BYTES, "{} has {} bytes", path.display(), metadata.len());
    let taken = metadata.blocks() * 512;
    ensure!(taken < 4 * DATA, "{} takes {taken} bytes", path.display());
    Ok(())
}

fn only_file(folder: &Path) -> anyhow::Result<PathBuf> {
    let names = list(folder)?;
    ensure!(names.len() == 1, "not one: {names:?}");
    Ok(folder.join(&names[0]))
}

#[tokio::test]
async fn holes_stay_holes_on_one_host() -> anyhow::Result<()> {
    Host::run(async |host| {
        let (file, copy, limited) = (host.path("file"), host.path("copy"), host.path("limited"));
        sparse(&file)?;
        host.import("c", &file).await?.ok()?;
        is_sparse(&only_file(&host.store())?)?;
        host.export("c", &copy).await?.ok()?;
        host.run(&["export", "-l", "-i", "c", "--rate-limit", "1GiB/s", &text(&limited)]).await?.ok()?;
        for output in [&copy, &limited] {
            is_sparse(output)?;
            same_files(&file, output)?;
        }
        // Bytes without holes in their source get them as well: a pipe shows none.
        host.delete("c").await?.ok()?;
        let mut command = host.command();
        let (reader, writer) = std::io::pipe()?;
        let source = file.clone();
        let feeding = std::thread::spawn(move || std::io::copy(&mut File::open(source)?, &mut { writer }));
        command.args(["import", "-i", "d", "-"]).stdin(reader);
        let done = command.output().await?;
        ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        ensure!(feeding.join().is_ok_and(|fed| fed.is_ok()), "the feeder failed");
        is_sparse(&only_file(&host.store())?)?;
        host.export("d", &copy).await?.ok()?;
        same_files(&file, &copy)
    })
    .await
}

#[tokio::test]
async fn holes_stay_holes_on_the_receiving_host() -> anyhow::Result<()> {
    let options = Options { schedulers: 1, nodes: 2, ..Options::default() };
    Cluster::run(options, async |cluster| {
        let (file, output) = (cluster.path("file"), cluster.path("output"));
        sparse(&file)?;
        cluster.node(0).import("c", &file).await?.ok()?;
        cluster.node(1).export("c", &output).await?.ok()?;
        is_sparse(&output)?;
        same_files(&file, &output)?;
        is_sparse(&only_file(cluster.node(1).store())?)
    })
    .await
}

/// In a mount namespace of its own a small file system is put over a folder; both go with the process.
const SMALL: &str = r#"mount -t tmpfs -o size=24m,mode=700 tmpfs "$1" && shift && exec "$@""#;

#[tokio::test]
async fn only_data_needs_room() -> anyhow::Result<()> {
    let test = "a sparse file on a small disk";
    if !is_root(test) || !can(test, &["unshare", "--mount", "sh", "-c", "mount -t tmpfs tmpfs /mnt"]) {
        return Ok(());
    }
    let mut host = Host::new().await?;
    let config = host.path("config.toml");
    fs::write(&config, "free_space_floor_bytes = 1048576\n")?;
    fs::create_dir(host.data())?;
    host.with_arguments(&["--config".as_ref(), config.as_os_str()]);
    host.with_wrapper(&["unshare", "--mount", "sh", "-c", SMALL, "sh", &text(&host.data())]);
    host.start().await?;
    let (file, outputs) = (host.path("file"), host.path("outputs"));
    sparse(&file)?;
    // The file is longer than the whole disk of the store, and than that of the output.
    host.import("c", &file).await?.ok()?;
    fs::create_dir(&outputs)?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", SMALL, "sh"]).arg(&outputs);
    command.args(["sh", "-c", r#""$0" --socket "$1" export -l -i c "$2" && cmp "$2" "$3""#]);
    command.arg(host.programs().path("dfcache")).arg(host.socket()).arg(outputs.join("output")).arg(&file);
    let done = command.output().await?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}
