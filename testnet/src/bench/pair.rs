//! Two nodes, and the same with less.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context as _, bail};
use damselfly_transport::program::lifecycle::Signals;
use serde_json::json;
use tempfile::TempDir;

use super::{
    Pair,
    baseline::{self, Channel},
    report::{Report, Series},
    small,
};
use crate::{
    cluster::{Cluster, Options},
    demo::{dfcache, fill},
    layout::NodeEntry,
    links::{proxy_connection, wire::Shape},
    programs::Programs,
    usage,
};

/// The share of raw TCP that raw TLS must reach; below it the machine was busy with something else.
const TLS_SHARE_MIN: f64 = 0.4;
const SMALL_FILES: u32 = 20;
/// What is shown first.
const TRANSFERS: [(&str, &str); 6] = [
    ("tcp_seconds", "(a) raw TCP, BLAKE3, one new file"),
    ("tls_seconds", "(b) raw TLS AES-128-GCM, BLAKE3, one new file"),
    ("tls_twice_seconds", "(c) as (b), two new files"),
    ("export_seconds", "export of what the other node holds"),
    ("import_seconds", "import"),
    ("copy_seconds", "cp and fsync of the same file"),
];

/// Measures, prints, and cleans up.
///
/// # Errors
/// What went wrong, after the logs.
pub(super) async fn run(pair: Pair) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::catch()?;
    let programs = Programs::find()?;
    // Not in the temporary folder, which may be memory.
    let folder = TempDir::with_prefix_in("damselfly-bench-", programs.path("").parent().unwrap_or(Path::new(".")))
        .or_else(|_| TempDir::with_prefix("damselfly-bench-"))?;
    let mut report = Report::of_transfers(pair.size, &TRANSFERS);
    tokio::select! {
        measured = measure(&pair, folder.path(), programs, &mut report) => measured?,
        signal = signals.recv() => {
            crate::cluster::abandon(&folder.path().join("cluster")).await?;
            bail!("interrupted by {signal}");
        }
    }
    Ok(show(&pair, &report))
}

fn show(pair: &Pair, report: &Report) -> ExitCode {
    let share = report.median("tcp_seconds") / report.median("tls_seconds");
    let is_valid = share >= TLS_SHARE_MIN;
    if pair.json {
        let result = json!({
            "valid": is_valid, "tls_share_of_tcp": share, "bytes": pair.size, "runs": pair.runs,
            "rtt_ms": pair.rtt.map(|rtt| rtt.as_secs_f64() * 1e3), "measured": report.json(),
        });
        println!("{result:#}");
    } else {
        println!("{}", report.table());
        println!("raw TLS reaches {share:.2} of raw TCP; at least {TLS_SHARE_MIN} is needed");
    }
    if !is_valid {
        eprintln!("testnet: the run is invalid: the machine was busy with something else");
    }
    if is_valid { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn measure(pair: &Pair, folder: &Path, programs: Programs, report: &mut Report) -> anyhow::Result<()> {
    let options = Options { schedulers: 2, nodes: 2, rtt: pair.rtt, ..Options::default() };
    let cluster = Cluster::start(&folder.join("cluster"), &options, programs).await?;
    let measured = with_cluster(pair, folder, &cluster, report).await;
    if measured.is_err() {
        eprint!("{}", cluster.logs());
    }
    cluster.stop().await;
    measured
}

async fn with_cluster(pair: &Pair, folder: &Path, cluster: &Cluster, report: &mut Report) -> anyhow::Result<()> {
    let [from, to] = &cluster.file().nodes[..] else { bail!("the cluster does not have two nodes") };
    let senders = [Sender::start(Channel::Tcp, pair)?, Sender::start(Channel::Tls, pair)?];
    let bench = Runner { pair, folder, cluster, from, to, senders: &senders };
    bench.run(0, &mut Report::default()).await.context("the first round, which does not count")?;
    for number in 1..=pair.runs {
        eprintln!("testnet: round {number} of {}", pair.runs);
        bench.run(number, report).await?;
    }
    for (node, key, what) in [
        (from, "source_peak_mib", "memory of the source, highest"),
        (to, "target_peak_mib", "memory of the target, highest"),
    ] {
        let (now, peak) = usage::memory_bytes(node.pid)?;
        report.series(key, what, "MiB").push(mib(peak));
        let (key, what) = match key {
            "source_peak_mib" => ("source_resident_mib", "memory of the source, at the end"),
            _ => ("target_resident_mib", "memory of the target, at the end"),
        };
        report.series(key, what, "MiB").push(mib(now));
    }
    bench.latencies(report).await
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The sending side of a baseline, running.
struct Sender {
    channel: Channel,
    child: Child,
    port: u16,
}

impl Sender {
    fn start(channel: Channel, pair: &Pair) -> anyhow::Result<Self> {
        let mut command = crate::process::become_command(false)?;
        command.arg(std::env::current_exe()?).args(["baseline", "send", "--channel", channel.name()]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
        let port = line.trim().parse().context("the sender does not start")?;
        let delayed = |rtt| proxy_connection::open(port, Shape { delay: rtt / 2, ..Shape::default() });
        let port = pair.rtt.map_or(Ok(port), delayed)?;
        Ok(Self { channel, child, port })
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

struct Runner<'a> {
    pair: &'a Pair,
    folder: &'a Path,
    cluster: &'a Cluster,
    from: &'a NodeEntry,
    to: &'a NodeEntry,
    senders: &'a [Sender; 2],
}

impl Runner<'_> {
    /// One round with a content that nobody has seen; the order changes from round to round.
    async fn run(&self, number: u32, report: &mut Report) -> anyhow::Result<()> {
        let file = self.folder.join("original");
        fill(&file, self.pair.size)?;
        let name = format!("bench/{:016x}", rand::random::<u64>());
        let expected = baseline::hash(&file)?;
        if number.is_multiple_of(2) {
            self.copy(&file, report)?;
            self.import(&file, &name, report).await?;
        } else {
            self.import(&file, &name, report).await?;
            self.copy(&file, report)?;
        }
        let [tcp, tls] = self.senders;
        for step in (0..4).map(|step| (step + number) % 4) {
            settle();
            match step {
                0 => self.baseline(tcp, "tcp", 1, &file, &expected, report)?,
                1 => self.baseline(tls, "tls", 1, &file, &expected, report)?,
                2 => self.baseline(tls, "tls_twice", 2, &file, &expected, report)?,
                _ => self.export(&name, &expected, report).await?,
            }
        }
        dfcache(self.cluster, self.from, &["delete", "-i", &name]).await?;
        fs::remove_file(&file)?;
        Ok(())
    }

    fn baseline(
        &self,
        sender: &Sender,
        which: &str,
        copies: usize,
        file: &Path,
        expected: &blake3::Hash,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        let into: Vec<PathBuf> = (0..copies).map(|number| self.folder.join(format!("copy.{number}"))).collect();
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["baseline", "receive", "--channel", sender.channel.name(), "--port", &sender.port.to_string()]);
        let before = usage::cpu_seconds(sender.child.id())?;
        let begun = Instant::now();
        let output = command.arg("--file").arg(file).args(&into).stderr(Stdio::inherit()).output()?;
        let seconds = begun.elapsed().as_secs_f64();
        let text = String::from_utf8_lossy(&output.stdout);
        let (hash, receiver) = text.trim().split_once(' ').context("the receiver failed")?;
        if hash != expected.to_hex().as_str() {
            bail!("the baseline moved something else");
        }
        into.iter().try_for_each(fs::remove_file)?;
        let cpu = usage::cpu_seconds(sender.child.id())? - before + receiver.parse::<f64>()?;
        let (time, cpu_key, what) = match which {
            "tcp" => ("tcp_seconds", "tcp_cpu", "(a), both sides"),
            "tls" => ("tls_seconds", "tls_cpu", "(b), both sides"),
            _ => ("tls_twice_seconds", "tls_twice_cpu", "(c), both sides"),
        };
        report.series(time, "", "s").push(seconds);
        self.per_gib(report, cpu_key, what, cpu);
        Ok(())
    }

    /// Processor time, as if the file had 1 GiB.
    fn per_gib(&self, report: &mut Report, key: &'static str, what: &str, seconds: f64) {
        let gib = self.pair.size as f64 / f64::from(1 << 30);
        report.series(key, &format!("CPU of {what}"), "s/GiB").push(seconds / gib);
    }

    async fn export(&self, name: &str, expected: &blake3::Hash, report: &mut Report) -> anyhow::Result<()> {
        let copy = self.folder.join("export");
        let before = self.cpu()?;
        let begun = Instant::now();
        let told = dfcache(self.cluster, self.to, &["export", "-i", name, "-O", &copy.to_string_lossy()]).await?;
        report.series("export_seconds", "", "s").push(begun.elapsed().as_secs_f64());
        let after = self.cpu()?;
        self.per_gib(report, "source_cpu", "the source daemon", after.0 - before.0);
        self.per_gib(report, "target_cpu", "the target daemon", after.1 - before.1);
        if told["from_peers_bytes"].as_u64() != Some(self.pair.size) {
            bail!("the export did not cross the network: {told}");
        }
        if baseline::hash(&copy)? != *expected {
            bail!("the export is something else");
        }
        fs::remove_file(copy).context("the export is not removed")
    }

    fn cpu(&self) -> anyhow::Result<(f64, f64)> {
        Ok((usage::cpu_seconds(self.from.pid)?, usage::cpu_seconds(self.to.pid)?))
    }

    async fn import(&self, file: &Path, name: &str, report: &mut Report) -> anyhow::Result<()> {
        settle();
        let begun = Instant::now();
        dfcache(self.cluster, self.from, &["import", "-i", name, &file.to_string_lossy()]).await?;
        report.series("import_seconds", "", "s").push(begun.elapsed().as_secs_f64());
        Ok(())
    }

    fn copy(&self, file: &Path, report: &mut Report) -> anyhow::Result<()> {
        settle();
        let copy = self.folder.join("cp");
        let begun = Instant::now();
        fs::copy(file, &copy)?;
        File::open(&copy)?.sync_all()?;
        report.series("copy_seconds", "", "s").push(begun.elapsed().as_secs_f64());
        fs::remove_file(copy).context("the copy is not removed")
    }

    async fn latencies(&self, report: &mut Report) -> anyhow::Result<()> {
        let pair = (self.from, self.to);
        for number in 0..=SMALL_FILES {
            let small = small::small_file(self.cluster, pair, self.folder, false).await?;
            if number > 0 {
                report.series("small_import_ms", "import of 1 KiB", "ms").push(small.import_ms);
                report.series("small_export_ms", "export of it on the other node", "ms").push(small.export_ms);
                let both = small.import_ms + small.export_ms;
                report.series("small_both_ms", "both", "ms").push(both);
            }
        }
        if let Some(syncs) = small::small_file(self.cluster, pair, self.folder, true).await?.syncs {
            report.series("small_syncs", "syncs of both daemons for both", "").push(syncs);
        }
        let file = self.folder.join("stat");
        fill(&file, 1024)?;
        dfcache(self.cluster, self.from, &["import", "-i", "bench/stat", &file.to_string_lossy()]).await?;
        let answered: Series = small::stats(self.to, "bench/stat").await?;
        report.series("stat_p50_ms", "stat by the shard at 1,000/s, p50", "ms").push(answered.quantile(0.5));
        report.series("stat_p99_ms", "stat by the shard at 1,000/s, p99", "ms").push(answered.quantile(0.99));
        Ok(())
    }
}

/// Earlier steps must not leave the disk work for the next one.
fn settle() {
    rustix::fs::sync();
}
