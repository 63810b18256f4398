//! A cluster of real processes.

use std::{
    fs::{self, File},
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use damselfly_messages::config::{SchedulerEntry, Settings};
use damselfly_testnet::{
    http,
    layout::{ClusterFile, Layout},
    process,
};
use rand::{RngCore as _, SeedableRng as _, rngs::SmallRng};
use serde_json::Value;
use tempfile::TempDir;

use crate::{Dfcache, Node, Program, Programs, program::with_parent, spawner, until};

/// How large a cluster is.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many schedulers.
    pub schedulers: u32,
    /// How many nodes.
    pub nodes: u32,
    /// How many seeds beside them.
    pub seeds: u32,
    /// Each node serves others at most this fast, such as `20MiB/s`.
    pub upload_rate_limit: Option<&'static str>,
    /// Variables of the environment of every program.
    pub environment: Vec<(&'static str, String)>,
}

impl Default for Options {
    fn default() -> Self {
        Self { schedulers: 2, nodes: 3, seeds: 0, upload_rate_limit: None, environment: Vec::new() }
    }
}

/// A running cluster; dropped, every process of it is killed and its folder removed.
#[derive(Debug)]
pub struct Cluster {
    folder: TempDir,
    programs: Programs,
    testnet: Child,
    file: ClusterFile,
    manager: Program,
    schedulers: Vec<Program>,
    nodes: Vec<Node>,
}

impl Cluster {
    /// Starts a cluster and tests it. When the test fails, the ends of all logs are shown.
    ///
    /// # Errors
    /// Those of the test, or what did not get ready.
    pub async fn run<T>(options: Options, test: impl AsyncFnOnce(&mut Self) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let mut cluster = Self::start(&options).await?;
        let result = test(&mut cluster).await;
        if result.is_err() {
            eprintln!("{}", cluster.logs());
        }
        result
    }

    /// Starts a cluster and returns when it is ready: every scheduler is warm, and every node reaches two of them.
    ///
    /// # Errors
    /// What did not get ready.
    pub async fn start(options: &Options) -> anyhow::Result<Self> {
        let programs = tokio::task::spawn_blocking(Programs::get).await??;
        let folder = TempDir::with_prefix("dft-")?;
        let log = File::create(folder.path().join("testnet.log"))?;
        let mut up = with_parent(&programs);
        up.arg(programs.path("testnet")).arg("up").arg("--dir").arg(folder.path().join("cluster"));
        up.arg("--schedulers").arg(options.schedulers.to_string());
        up.arg("--nodes").arg(options.nodes.to_string()).arg("--seeds").arg(options.seeds.to_string());
        if let Some(limit) = options.upload_rate_limit {
            up.arg("--upload-rate-limit").arg(limit);
        }
        up.envs(options.environment.iter().cloned());
        up.env_remove("CARGO").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let testnet = spawner::spawn(up)?;
        let mut starting = Starting { folder: Some(folder), testnet: Some(testnet) };
        starting.ready().await?;
        let (Some(folder), Some(testnet)) = (starting.folder.take(), starting.testnet.take()) else {
            bail!("a cluster is started once");
        };
        let (_, file) = Layout::open(&folder.path().join("cluster"))?;
        let entry = &file.manager;
        let known = [entry.peer_id.as_str(), &entry.listen, &entry.metrics];
        let manager = Program::new(&programs, "dfmanager", "manager", known, &entry.config);
        let mut cluster = Self { folder, programs, testnet, manager, file, schedulers: vec![], nodes: vec![] };
        cluster.learn_members();
        Ok(cluster)
    }

    fn learn_members(&mut self) {
        let programs = &self.programs;
        let scheduler = |entry: &damselfly_testnet::layout::SchedulerEntry| {
            let known = [entry.peer_id.as_str(), &entry.listen, &entry.metrics];
            Program::new(programs, "dfscheduler", &entry.name, known, &entry.config)
        };
        let node = |entry: &damselfly_testnet::layout::NodeEntry| {
            let known = [entry.peer_id.as_str(), &entry.listen, &entry.metrics];
            let program = Program::new(programs, "dfdaemon", &entry.name, known, &entry.config);
            let dfcache = Dfcache::new(programs, &entry.socket);
            Node::new(program, dfcache, entry.socket.clone(), entry.store.clone())
        };
        self.schedulers = self.file.schedulers.iter().map(scheduler).collect();
        self.nodes = self.file.nodes.iter().map(node).collect();
    }

    /// What `cluster.json` says.
    pub fn file_of_cluster(&self) -> &ClusterFile {
        &self.file
    }

    /// The programs that it runs.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// The manager.
    pub fn manager(&self) -> &Program {
        &self.manager
    }

    /// A scheduler, counted from 0.
    pub fn scheduler(&self, index: usize) -> &Program {
        &self.schedulers[index]
    }

    /// All schedulers.
    pub fn schedulers(&self) -> &[Program] {
        &self.schedulers
    }

    /// A node, counted from 0.
    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index]
    }

    /// All nodes; seeds come after the others.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A path in a temporary folder that belongs to the test.
    pub fn path(&self, name: &str) -> PathBuf {
        let files = self.folder.path().join("files");
        // Made already, or the first use of the path says what is wrong.
        let _ = fs::create_dir_all(&files);
        files.join(name)
    }

    /// Makes a file of so many random bytes. The same name and length give the same bytes.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn file(&self, name: &str, bytes: u64) -> anyhow::Result<PathBuf> {
        let path = self.path(name);
        let seed = name.bytes().fold(bytes, |seed, byte| seed.wrapping_mul(0x100_0000_01b3) ^ u64::from(byte));
        let mut random = SmallRng::seed_from_u64(seed);
        let mut file = BufWriter::new(File::create(&path)?);
        let mut block = vec![0; 64 << 10];
        let mut left = bytes;
        while left > 0 {
            let length = left.min(block.len() as u64) as usize;
            random.fill_bytes(&mut block[..length]);
            file.write_all(&block[..length])?;
            left -= length as u64;
        }
        file.flush()?;
        Ok(path)
    }

    /// The settings that the manager has published, with their epoch.
    ///
    /// # Errors
    /// When the manager does not answer.
    pub async fn settings(&self) -> anyhow::Result<(u64, Settings)> {
        let answer = self.api("GET", "config", &[], String::new()).await?;
        ensure!(answer.status == 200, "the manager answers {}: {}", answer.status, answer.body);
        Ok((epoch(&answer)?, serde_json::from_str(&answer.body)?))
    }

    /// Changes the settings by `PUT /api/v1/config`. Returns the new epoch.
    ///
    /// # Errors
    /// When the manager refuses.
    pub async fn change_settings(&self, change: impl FnOnce(&mut Settings)) -> anyhow::Result<u64> {
        let (before, mut settings) = self.settings().await?;
        change(&mut settings);
        let tag = format!("\"{before}\"");
        let answer = self.api("PUT", "config", &[("if-match", &tag)], serde_json::to_string(&settings)?).await?;
        ensure!(answer.status == 200, "the manager answers {}: {}", answer.status, answer.body);
        epoch(&answer)
    }

    /// Takes a scheduler off the ring; it still runs. Returns the new epoch.
    ///
    /// # Errors
    /// When the manager refuses.
    pub async fn leave_ring(&self, index: usize) -> anyhow::Result<u64> {
        let gone = self.schedulers[index].peer_id();
        self.change_settings(|settings| settings.schedulers.retain(|one| one.peer_id.to_string() != gone)).await
    }

    /// Puts a scheduler on the ring again. Returns the new epoch.
    ///
    /// # Errors
    /// When the manager refuses.
    pub async fn join_ring(&self, index: usize) -> anyhow::Result<u64> {
        let scheduler = &self.schedulers[index];
        let (address, _) = scheduler.listen().split_once("/p2p/").context("an address without its peer")?;
        let entry = SchedulerEntry::active(scheduler.peer_id().parse()?, vec![address.parse()?]);
        self.change_settings(|settings| settings.schedulers.push(entry)).await
    }

    /// Asks the manager's API with the admin token, with a JSON body if it has one.
    ///
    /// # Errors
    /// When the manager does not answer.
    pub async fn manage(&self, method: &str, resource: &str, body: Option<&Value>) -> anyhow::Result<http::Answer> {
        self.api(method, resource, &[], body.map(Value::to_string).unwrap_or_default()).await
    }

    /// Makes a join token.
    ///
    /// # Errors
    /// When the manager refuses.
    pub async fn join_token(&self, roles: &[&str], uses: u32, ttl_seconds: u64) -> anyhow::Result<Value> {
        let body = serde_json::json!({ "roles": roles, "uses": uses, "ttl_seconds": ttl_seconds });
        let answer = self.manage("POST", "join-tokens", Some(&body)).await?;
        ensure!(answer.status == 201, "the manager answers {}: {}", answer.status, answer.body);
        Ok(serde_json::from_str(&answer.body)?)
    }

    async fn api(
        &self,
        method: &str,
        resource: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> anyhow::Result<http::Answer> {
        let token = fs::read_to_string(&self.file.manager.admin_token_file).context("no admin token")?;
        let authorization = format!("Bearer {}", token.trim());
        let headers = [headers, &[("authorization", &authorization), ("content-type", "application/json")]].concat();
        http::ask(method, &format!("{}/api/v1/{resource}", self.file.manager.http), &headers, body).await
    }

    /// Starts another scheduler and adds it to the ring; returns when it is warm.
    ///
    /// # Errors
    /// What did not get ready.
    pub async fn add_scheduler(&mut self) -> anyhow::Result<Program> {
        self.testnet(&["add-scheduler"]).await?;
        self.schedulers.last().cloned().context("no scheduler")
    }

    /// Starts another node; returns when it is ready.
    ///
    /// # Errors
    /// What did not get ready.
    pub async fn add_node(&mut self, arguments: &[&str]) -> anyhow::Result<Node> {
        self.testnet(&[&["add-node"], arguments].concat()).await?;
        self.nodes.last().cloned().context("no node")
    }

    /// Runs `testnet` on this cluster; gives what it prints.
    ///
    /// # Errors
    /// What it says when it fails.
    pub async fn testnet(&mut self, arguments: &[&str]) -> anyhow::Result<String> {
        let dir = self.folder.path().join("cluster");
        let mut command = tokio::process::Command::new(self.programs.path("testnet"));
        command.args(arguments).arg("--dir").arg(&dir).env_remove("CARGO").stdin(Stdio::null());
        let output = command.output().await?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (_, self.file) = Layout::open(&dir)?;
        self.learn_members();
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Waits until every running node has the configuration of `epoch`, reaches `schedulers` or more of those that it
    /// keeps in touch with, and they are all warm.
    ///
    /// # Errors
    /// What is missing.
    pub async fn settled(&self, epoch: u64, schedulers: usize) -> anyhow::Result<()> {
        let running = self.nodes.iter().filter(|node| node.program().is_running());
        futures::future::try_join_all(running.map(|node| settled(node, epoch, schedulers))).await.map(drop)
    }

    /// The ends of all logs.
    pub fn logs(&self) -> String {
        let nodes = self.nodes.iter().map(Node::program);
        let programs = [&self.manager].into_iter().chain(&self.schedulers).chain(nodes);
        programs.map(|one| format!("--- {}\n{}", one.name(), process::tail(&one.folder().join("log")))).collect()
    }
}

async fn settled(node: &Node, epoch: u64, schedulers: usize) -> anyhow::Result<()> {
    until(&format!("{} is in touch", node.program().name()), Duration::from_secs(30), async || {
        let health = node.run(&["health"]).await?.json;
        ensure!(health["epoch"].as_u64() >= Some(epoch), "it has another epoch: {health}");
        let known = health["schedulers"].as_array().context("no schedulers")?;
        let reached: Vec<_> = known.iter().filter(|one| one["reachable"] == true).collect();
        ensure!(reached.len() >= schedulers, "it reaches too few: {health}");
        ensure!(reached.iter().all(|one| one["warm"] == true), "one is not warm: {health}");
        Ok(())
    })
    .await
}

fn epoch(answer: &http::Answer) -> anyhow::Result<u64> {
    let tag = answer.etag.as_deref().context("the manager gives no ETag")?;
    Ok(tag.trim_matches('"').parse()?)
}

/// A cluster that may never get ready.
struct Starting {
    folder: Option<TempDir>,
    testnet: Option<Child>,
}

impl Starting {
    async fn ready(&mut self) -> anyhow::Result<()> {
        let (Some(folder), Some(testnet)) = (&self.folder, &mut self.testnet) else { return Ok(()) };
        let log = folder.path().join("testnet.log");
        until("the cluster is ready", Duration::from_secs(90), async || {
            let text = fs::read_to_string(&log)?;
            if let Some(status) = testnet.try_wait()? {
                return Ok(Err(anyhow::anyhow!("testnet ended with {status}: {text}")));
            }
            ensure!(text.contains("testnet: ready"), "{text}");
            Ok(Ok(()))
        })
        .await?
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let (Some(folder), Some(testnet)) = (&self.folder, &mut self.testnet) {
            end(folder.path(), testnet);
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        end(self.folder.path(), &mut self.testnet);
    }
}

/// Kills everything whose configuration lies in the folder.
fn end(folder: &Path, testnet: &mut Child) {
    // It has ended, or it is killed; there is nothing else to do about it here.
    let _ = testnet.kill();
    let _ = testnet.wait();
    let entries = fs::read_dir(folder.join("cluster")).into_iter().flatten().flatten();
    let configs: Vec<_> = entries.map(|entry| entry.path().join("config.toml")).collect();
    loop {
        if configs.iter().all(|config| process::running(config).is_empty()) {
            return;
        }
        configs.iter().for_each(|config| process::signal(config, rustix::process::Signal::KILL));
        std::thread::sleep(Duration::from_millis(5));
    }
}
