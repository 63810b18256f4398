//! A member that lies: nobody gets wrong bytes, no export fails, and it is named.
//!
//! Each lie has a host and a name of its own. Nodes 1 and 2 hold what is true, the liar says that it is the third holder,
//! nodes 3 and 4 export.

use std::{
    env, fmt, fs,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use damselfly_messages::{id::ContentId, membership::Tags};
use damselfly_transport::program::identity::{self, KEY_FILE};
use futures::future::try_join_all;
use libp2p::PeerId;
use serde_json::{Map, json};
use sha2::{Digest as _, Sha256};
use tokio::time::sleep;

use super::{
    harness::Harness,
    scenarios::{Figures, figures},
};
use crate::{
    byzantine::{
        Config,
        behavior::{Behavior, Naming, Verdict},
    },
    cluster::change,
    config::{self, address},
    http,
    layout::Layout,
    ports,
    process::{self, tail},
};

/// Nodes 1 and 2, from 0.
const HOLDERS: [usize; 2] = [0, 1];
/// Nodes 3 and 4, from 0.
const EXPORTERS: [usize; 2] = [2, 3];
/// An export that takes longer hangs.
const EXPORT_WITHIN: Duration = Duration::from_secs(30);
/// Everybody has heard of a liar by then.
const TOLD_WITHIN: Duration = Duration::from_secs(30);
/// Logs and metrics name a liar by then.
const NAMED_WITHIN: Duration = Duration::from_secs(10);
/// Liars that run, and are exported from, at a time; each has its contents in memory.
const AT_ONCE: usize = 6;
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Lengths of contents. None ends with a piece of a few bytes: a false length is one less with as many pieces, and bytes
/// that drip take long.
const SHORT: &[usize] = &[(8 << 20) + 77];
const LONG: &[usize] = &[(8 << 20) + 77, (24 << 20) - 5, 300_000, 1 << 20, (1 << 20) + 300];

pub(super) async fn run(harness: &mut Harness, is_short: bool) -> anyhow::Result<Figures> {
    let (mut named, mut longest) = (0, Map::new());
    let lengths = if is_short { SHORT } else { LONG };
    let mut slowest = Duration::ZERO;
    let rounds = lengths.iter().flat_map(|bytes| Behavior::ALL.chunks(AT_ONCE).map(move |lies| (*bytes, lies)));
    for (bytes, lies) in rounds {
        let mut liars = Vec::new();
        for lie in lies {
            liars.push(Liar::start(harness, *lie, bytes).await.with_context(|| format!("{lie:?}"))?);
        }
        let played = try_join_all(liars.iter().map(|liar| liar.play(harness))).await?;
        for (liar, took) in liars.iter().zip(played) {
            let lie = liar.lie;
            liar.is_free(harness).await.with_context(|| liar.to_string())?;
            named += usize::from(liar.is_found_out());
            slowest = slowest.max(took);
            let known = longest.get(lie.name()).and_then(serde_json::Value::as_f64).unwrap_or(0.0);
            longest.insert(lie.name().to_owned(), json!(known.max(took.as_secs_f64())));
        }
        for liar in liars {
            liar.end()?;
        }
    }
    Ok(figures([
        ("lies", json!(lengths.len() * Behavior::ALL.len())),
        ("named", json!(named)),
        ("longest_export_seconds", json!(slowest.as_secs_f64())),
        ("longest_export_seconds_by_lie", json!(longest)),
        ("most_memory_bytes", json!(memory(harness).await?)),
    ]))
}

/// A liar that runs.
struct Liar {
    lie: Behavior,
    peer: PeerId,
    name: String,
    content: Vec<u8>,
    config: Config,
    layout: Layout,
    folder: String,
    process: Child,
}

impl Liar {
    /// Gives nodes 1 and 2 what is true, and starts the liar; returns when all owners have heard the lie.
    async fn start(harness: &mut Harness, lie: Behavior, bytes: usize) -> anyhow::Result<Self> {
        let (name, content) = harness.file(bytes);
        let name = match lie.naming() {
            Naming::Plain => name,
            Naming::Sha256 => format!("sha256:{:x}", Sha256::digest(&content)),
            Naming::Blake3 => ContentId::of(&content).to_string(),
        };
        harness.users.import(HOLDERS[0], &name, &content).await?;
        harness.users.export(HOLDERS[1], &name).await?;
        let (layout, file) = harness.layout()?;
        let folder = format!("liar-{}-{bytes}", lie.name());
        layout.program(&folder)?;
        let (data_dir, truth) = (layout.data(&folder), layout.dir().join(&folder).join("content"));
        fs::write(&truth, &content)?;
        identity::prepare_data_dir(&data_dir)?;
        let peer = identity::load_or_create(&data_dir.join(KEY_FILE))?.public().to_peer_id();
        let config = Config {
            lie,
            cid: name.clone(),
            content: truth,
            told: layout.dir().join(&folder).join("told.json"),
            data_dir,
            listen: address(ports::free(1)?[0]).parse()?,
            token: change::join_token(&file.manager, &["node", "seed"], 1, &Tags::new()).await?,
        };
        config::write(&layout.config(&folder), &config)?;
        let log = fs::File::create(layout.log(&folder))?;
        let mut command = process::become_command(false)?;
        command.arg(env::current_exe()?).args(["liar", "--config"]).arg(layout.config(&folder));
        let command = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let process = command.spawn().context("cannot start a liar")?;
        Ok(Self { lie, peer, name, content, config, layout, folder, process })
    }

    /// What the owners say of the lie.
    async fn verdicts(&self) -> anyhow::Result<Vec<Verdict>> {
        let begun = Instant::now();
        loop {
            if let Ok(told) = fs::read(&self.config.told) {
                return serde_json::from_slice(&told).context("what the liar was told");
            }
            ensure!(begun.elapsed() < TOLD_WITHIN, "not heard by all:\n{}", tail(&self.layout.log(&self.folder)));
            sleep(LOOK_EVERY).await;
        }
    }

    /// Exports what it lies about; gives how long the longer export took.
    async fn play(&self, harness: &Harness) -> anyhow::Result<Duration> {
        self.try_play(harness).await.with_context(|| self.to_string())
    }

    async fn try_play(&self, harness: &Harness) -> anyhow::Result<Duration> {
        let verdicts = self.verdicts().await?;
        let expected = self.lie.verdict();
        ensure!(verdicts.iter().all(|verdict| *verdict == expected), "the owners say {verdicts:?}");
        if self.lie == Behavior::Deleted {
            harness.users.was_deleted(&self.name);
        } else {
            self.is_a_holder(harness).await?;
        }
        let took = match self.lie {
            Behavior::Deleted => Duration::ZERO,
            _ => self.export(harness).await?,
        };
        if self.is_found_out() {
            self.is_named(harness).await?;
        }
        Ok(took)
    }

    /// Whether exporters have to name it. Of a content of few pieces nobody asks one that has a part only.
    fn is_found_out(&self) -> bool {
        self.lie.is_found_out() && (self.lie != Behavior::FalseHave || self.content.len() > SHORT[0] / 2)
    }

    /// It counts as the third holder, unless schedulers know better or it is another content that it holds.
    async fn is_a_holder(&self, harness: &Harness) -> anyhow::Result<()> {
        let is_one = self.lie.verdict() == Verdict::Accepted && self.lie != Behavior::FalseHave;
        let expected = if is_one { 3 } else { 2 };
        for node in EXPORTERS {
            let holders = harness.users.holders(node, &self.name).await?;
            ensure!(holders == expected, "node {} finds {holders} holders and not {expected}", node + 1);
        }
        Ok(())
    }

    /// Exports on both nodes at once; the bytes are compared with what was imported.
    async fn export(&self, harness: &Harness) -> anyhow::Result<Duration> {
        let export = async |node| {
            let begun = Instant::now();
            let exported = harness.users.export(node, &self.name).await?;
            let took = begun.elapsed();
            ensure!(exported["from_peers_bytes"] == self.content.len(), "not from peers: {exported}");
            ensure!(took < EXPORT_WITHIN, "node {} took {took:?}", node + 1);
            anyhow::Ok(took)
        };
        let [one, other] = EXPORTERS;
        let (one, other) = tokio::try_join!(export(one), export(other))?;
        Ok(one.max(other))
    }

    /// Both exporters name it in log and metrics, and schedulers too where there is a proof.
    async fn is_named(&self, harness: &Harness) -> anyhow::Result<()> {
        let (layout, file) = harness.layout()?;
        let peer = self.peer.to_string();
        let is_in_log = |name: &str| fs::read_to_string(layout.log(name)).is_ok_and(|log| log.contains(&peer));
        let label = format!("damselfly_node_excluded_parents{{parent=\"{peer}\"");
        let begun = Instant::now();
        loop {
            let mut missing = Vec::new();
            for node in EXPORTERS.map(|node| &file.nodes[node]) {
                if !is_in_log(&node.name) {
                    missing.push(format!("the log of {}", node.name));
                }
                if !http::get(&node.metrics).await?.body.contains(&label) {
                    missing.push(format!("the metrics of {}", node.name));
                }
            }
            let accused = format!("parent=Some(PeerId(\"{peer}\"))");
            let is_accused = |name: &str| fs::read_to_string(layout.log(name)).is_ok_and(|log| log.contains(&accused));
            if self.lie.is_proved() && !file.schedulers.iter().any(|scheduler| is_accused(&scheduler.name)) {
                missing.push("the logs of schedulers".to_owned());
            }
            if missing.is_empty() {
                return Ok(());
            }
            ensure!(begun.elapsed() < NAMED_WITHIN, "it is not named in {}", missing.join(", "));
            sleep(LOOK_EVERY).await;
        }
    }

    /// Once it is deleted, the name can be bound to other bytes.
    async fn is_free(&self, harness: &mut Harness) -> anyhow::Result<()> {
        if !matches!(self.lie, Behavior::Deleted | Behavior::UsedUpName) {
            return Ok(());
        }
        let (_, content) = harness.file(self.content.len());
        if self.lie != Behavior::Deleted {
            harness.users.delete(EXPORTERS[0], &self.name).await?;
        }
        for node in HOLDERS.into_iter().chain(EXPORTERS) {
            let found = harness.users.holders(node, &self.name).await;
            ensure!(found.is_err(), "it was deleted, and node {} finds it", node + 1);
        }
        harness.users.import(HOLDERS[0], &self.name, &content).await?;
        for node in EXPORTERS {
            harness.users.export(node, &self.name).await?;
        }
        Ok(())
    }

    fn end(mut self) -> anyhow::Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }
}

impl fmt::Display for Liar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} about {} bytes, by {}", self.lie.name(), self.content.len(), self.peer)
    }
}

/// Of the exporter that has most.
async fn memory(harness: &Harness) -> anyhow::Result<u64> {
    let (_, file) = harness.layout()?;
    let mut most = 0;
    for node in EXPORTERS.map(|node| &file.nodes[node]) {
        let metrics = http::get(&node.metrics).await?.body;
        let line = metrics.lines().find_map(|line| line.strip_prefix("process_resident_memory_bytes "));
        most = most.max(line.context("no memory in the metrics")?.parse()?);
    }
    Ok(most)
}
