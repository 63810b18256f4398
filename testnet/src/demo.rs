//! A file imported on one node, exported on another, and compared.

use std::{
    fs::File,
    io::{self, BufWriter, Write as _},
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context as _, bail};
use damselfly_transport::program::lifecycle::Signals;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::process::Command;

use crate::{
    cluster::{Cluster, Options},
    layout::NodeEntry,
    programs::Programs,
};

const FILE_BYTES: u64 = 64 << 20;

/// Runs the demonstration; everything it makes is removed.
///
/// # Errors
/// What went wrong, after the logs.
pub async fn run(dir: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let mut signals = Signals::catch()?;
    let programs = Programs::find()?;
    let folder = match dir {
        Some(dir) => {
            std::fs::create_dir_all(&dir)?;
            TempDir::with_prefix_in("demo-", dir)?
        }
        None => TempDir::with_prefix("damselfly-demo-")?,
    };
    let built = begun.elapsed();
    println!("a cluster of 2 schedulers and 3 nodes, each a process of its own, in {}", folder.path().display());
    let demonstrated = tokio::select! {
        done = demonstrate(folder.path(), programs) => done,
        signal = signals.recv() => {
            crate::cluster::abandon(&folder.path().join("cluster")).await?;
            bail!("interrupted by {signal}");
        }
    };
    demonstrated?;
    println!("done in {:.2} s", (begun.elapsed() - built).as_secs_f64());
    Ok(ExitCode::SUCCESS)
}

async fn demonstrate(folder: &Path, programs: Programs) -> anyhow::Result<()> {
    let step = Step::begin("start the cluster and wait until it is ready");
    let cluster = Cluster::start(&folder.join("cluster"), &Options::default(), programs).await?;
    step.end(&format!("epoch 1, cluster {}…", &cluster.file().cluster_id[..16]));
    let transferred = transfer(folder, &cluster).await;
    if transferred.is_err() {
        eprint!("{}", cluster.logs());
    }
    cluster.stop().await;
    transferred
}

async fn transfer(folder: &Path, cluster: &Cluster) -> anyhow::Result<()> {
    let (original, copy) = (folder.join("original"), folder.join("copy"));
    let step = Step::begin("make a file of 64 MiB of random bytes");
    fill(&original, FILE_BYTES)?;
    step.end("");

    let (first, last) = match &cluster.file().nodes[..] {
        [first, .., last] => (first, last),
        _ => bail!("the cluster has no two nodes"),
    };
    let step = Step::begin(&format!("dfcache import -i demo/file -t v1    on {}", first.name));
    dfcache(cluster, first, &["import", "-i", "demo/file", "-t", "v1", &path(&original)]).await?;
    step.end("durable there, and announced to the owners");

    let step = Step::begin(&format!("dfcache stat -i demo/file -t v1      on {}", last.name));
    let found = dfcache(cluster, last, &["stat", "-i", "demo/file", "-t", "v1"]).await?;
    step.end(&format!("{} holder, {}", found["holders"], found["state"]));

    let step = Step::begin(&format!("dfcache export -i demo/file -t v1    on {}", last.name));
    let exported = dfcache(cluster, last, &["export", "-i", "demo/file", "-t", "v1", "-O", &path(&copy)]).await?;
    step.end(&format!("{} bytes from {} peer", exported["from_peers_bytes"], exported["peers"]));

    let step = Step::begin("compare");
    let digests = (sha256(&original)?, sha256(&copy)?);
    step.end("");
    println!("    sha256 {}  imported on {}", digests.0, first.name);
    println!("    sha256 {}  exported on {}", digests.1, last.name);
    if digests.0 != digests.1 {
        bail!("the files differ");
    }
    Ok(())
}

/// Runs `dfcache --json` at a node.
pub(crate) async fn dfcache(
    cluster: &Cluster,
    node: &NodeEntry,
    arguments: &[&str],
) -> anyhow::Result<serde_json::Value> {
    let mut command = Command::new(cluster.programs().path("dfcache"));
    command.arg("--socket").arg(&node.socket).args(["--json", "--quiet"]).args(arguments);
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.context("cannot run dfcache")?;
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        bail!("dfcache {} on {}: {}: {}", arguments.join(" "), node.name, output.status, told.trim());
    }
    serde_json::from_slice(&output.stdout).context("dfcache gives no JSON")
}

fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Fills a new file with random bytes that no other file has.
pub(crate) fn fill(path: &Path, bytes: u64) -> anyhow::Result<()> {
    let seed: [u8; 32] = rand::random();
    let mut stream = blake3::Hasher::new().update(&seed).finalize_xof();
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let mut buffer = vec![0; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        let part = &mut buffer[..left.min(1 << 20) as usize];
        stream.fill(part);
        file.write_all(part)?;
        left -= part.len() as u64;
    }
    file.flush().with_context(|| format!("cannot write {}", path.display()))
}

fn sha256(path: &Path) -> anyhow::Result<String> {
    let mut hasher = Sha256::new();
    io::copy(&mut File::open(path)?, &mut hasher).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

struct Step {
    name: String,
    begun: Instant,
}

impl Step {
    fn begin(name: &str) -> Self {
        Self { name: name.to_owned(), begun: Instant::now() }
    }

    fn end(self, result: &str) {
        println!("{:7.3} s  {:48} {result}", self.begun.elapsed().as_secs_f64(), self.name);
    }
}
