//! A file imported on one node, exported on another, and compared.

use std::{
    fs::File,
    io::{self, BufWriter, Write as _},
    path::{Path, PathBuf},
    process::{ExitCode, Output, Stdio},
    time::Instant,
};

use anyhow::{Context as _, anyhow, bail};
use damselfly_transport::program::lifecycle::Signals;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::process::Command;

use crate::{
    cluster::{Cluster, Options},
    docker::{self, Fleet, fleet::Size, members::Member},
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
    let transferred = match &cluster.file().nodes[..] {
        [first, .., last] => transfer(folder, &Local(&cluster, first), &Local(&cluster, last)).await,
        _ => Err(anyhow!("the cluster has no two nodes")),
    };
    if transferred.is_err() {
        eprint!("{}", cluster.logs());
    }
    cluster.stop().await;
    transferred
}

/// Runs the demonstration in containers: in the cluster of `dir` if one runs there, else in one of its own.
///
/// # Errors
/// What went wrong, after the logs.
pub async fn run_in_containers(dir: &Path) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let mut signals = Signals::catch()?;
    let fleet = Fleet::at(dir).await?;
    let is_own = fleet.members().await?.is_empty();
    let demonstrated = tokio::select! {
        done = demonstrate_in_containers(dir, &fleet, is_own) => done,
        signal = signals.recv() => Err(anyhow!("interrupted by {signal}")),
    };
    if is_own {
        let step = Step::begin("remove its containers, networks and volumes");
        fleet.end().await?;
        step.end("");
    }
    demonstrated?;
    println!("done in {:.2} s", begun.elapsed().as_secs_f64());
    Ok(ExitCode::SUCCESS)
}

async fn demonstrate_in_containers(dir: &Path, fleet: &Fleet, is_own: bool) -> anyhow::Result<()> {
    if is_own {
        let step = Step::begin("bring the image up to date");
        step.end(docker::ensure_image().await?);
        let step = Step::begin("start the cluster and wait until it is ready");
        Fleet::start(dir, &Size::default()).await?;
        step.end("");
    }
    let members = fleet.members().await?;
    println!("a cluster of {} programs, each in a container of its own", members.len());
    let nodes: Vec<_> = members.iter().filter(|member| member.kind.is_node() && member.is_running()).collect();
    let [first, .., last] = nodes[..] else { bail!("no two nodes run in {}", dir.display()) };
    let folder = TempDir::with_prefix("damselfly-demo-")?;
    let transferred = transfer(folder.path(), &Contained(fleet, first), &Contained(fleet, last)).await;
    if transferred.is_err() {
        eprint!("{}", fleet.logs().await);
    }
    transferred
}

/// A node of either kind of cluster.
trait Site {
    fn name(&self) -> &str;
    /// `dfcache import` of a file with these arguments.
    async fn import(&self, arguments: &[&str], file: &Path) -> anyhow::Result<()>;
    /// `dfcache stat`; gives its JSON.
    async fn stat(&self, arguments: &[&str]) -> anyhow::Result<Value>;
    /// `dfcache export` into a file; gives what it says of it.
    async fn export(&self, arguments: &[&str], file: &Path) -> anyhow::Result<String>;
}

struct Local<'a>(&'a Cluster, &'a NodeEntry);

impl Site for Local<'_> {
    fn name(&self) -> &str {
        &self.1.name
    }

    async fn import(&self, arguments: &[&str], file: &Path) -> anyhow::Result<()> {
        dfcache(self.0, self.1, &[&["import"], arguments, &[&path(file)]].concat()).await.map(drop)
    }

    async fn stat(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        dfcache(self.0, self.1, &[&["stat"], arguments].concat()).await
    }

    async fn export(&self, arguments: &[&str], file: &Path) -> anyhow::Result<String> {
        let said = dfcache(self.0, self.1, &[&["export"], arguments, &["-O", &path(file)]].concat()).await?;
        Ok(format!("{} bytes from {} peer", said["from_peers_bytes"], said["peers"]))
    }
}

/// Through standard input and output: a container does not see this host's files.
struct Contained<'a>(&'a Fleet, &'a Member);

impl Contained<'_> {
    async fn dfcache(&self, arguments: &[&str], input: Option<File>, output: Option<File>) -> anyhow::Result<Output> {
        let done = self.0.dfcache(self.1, arguments, input, output).await?;
        if !done.status.success() {
            let told = docker::engine::told(&done);
            bail!("dfcache {} on {}: {}: {told}", arguments.join(" "), self.1.name, done.status);
        }
        Ok(done)
    }
}

impl Site for Contained<'_> {
    fn name(&self) -> &str {
        &self.1.name
    }

    async fn import(&self, arguments: &[&str], file: &Path) -> anyhow::Result<()> {
        let arguments = [&["--json", "import"], arguments, &["-"]].concat();
        self.dfcache(&arguments, Some(File::open(file)?), None).await.map(drop)
    }

    async fn stat(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let done = self.dfcache(&[&["--json", "stat"], arguments].concat(), None, None).await?;
        serde_json::from_slice(&done.stdout).context("dfcache gives no JSON")
    }

    async fn export(&self, arguments: &[&str], file: &Path) -> anyhow::Result<String> {
        let arguments = [&["--no-progress", "export"], arguments, &["-O", "-"]].concat();
        let done = self.dfcache(&arguments, None, Some(File::create(file)?)).await?;
        Ok(String::from_utf8_lossy(&done.stderr).trim().to_owned())
    }
}

async fn transfer(folder: &Path, first: &impl Site, last: &impl Site) -> anyhow::Result<()> {
    let (original, copy) = (folder.join("original"), folder.join("copy"));
    let step = Step::begin("make a file of 64 MiB of random bytes");
    fill(&original, FILE_BYTES)?;
    step.end("");

    // Another name each time: in a cluster that goes on, the last one is taken.
    let tag = format!("{:08x}", rand::random::<u32>());
    let name = ["-i", "demo/file", "-t", &tag];
    let step = Step::begin(&format!("dfcache import {} on {}", name.join(" "), first.name()));
    first.import(&name, &original).await?;
    step.end("durable there, and announced to the owners");

    let step = Step::begin(&format!("dfcache stat {} on {}", name.join(" "), last.name()));
    let found = last.stat(&name).await?;
    step.end(&format!("{} holder, {}", found["holders"], found["state"]));

    let step = Step::begin(&format!("dfcache export {} on {}", name.join(" "), last.name()));
    let said = last.export(&name, &copy).await?;
    step.end(&said);

    let step = Step::begin("compare");
    let digests = (sha256(&original)?, sha256(&copy)?);
    step.end("");
    println!("    sha256 {}  imported on {}", digests.0, first.name());
    println!("    sha256 {}  exported on {}", digests.1, last.name());
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
