//! How fast what the manager decides is in force on many hosts.

use std::{
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use damselfly_messages::membership::{JoinToken, Role, Tags};
use damselfly_transport::{
    clock::Clock,
    network::{self, Network, NetworkConfig, Serves},
    program::{
        follower::{self, Follower, FollowerConfig},
        identity::{self, KEY_FILE},
        lifecycle::Signals,
        membership::{Joining, Membership},
    },
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use libp2p::Multiaddr;
use serde_json::json;
use tempfile::TempDir;
use tokio::{task::spawn_blocking, time::timeout};

use super::{Rollout, report::Report};
use crate::{
    cluster::{Cluster, Options, change},
    programs::Programs,
};

/// Hosts that join at once: the manager serves so many of one address.
const JOIN_AT_ONCE: usize = 6;
/// Everything takes less, or something is wrong.
const WITHIN: Duration = Duration::from_secs(60);

/// Measures, prints, and cleans up.
///
/// # Errors
/// What went wrong, after the logs.
pub(super) async fn run(rollout: Rollout) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::catch()?;
    let folder = TempDir::with_prefix("damselfly-bench-")?;
    let mut report = Report::default();
    tokio::select! {
        measured = measure(&rollout, folder.path(), &mut report) => measured?,
        signal = signals.recv() => {
            crate::cluster::abandon(&folder.path().join("cluster")).await?;
            bail!("interrupted by {signal}");
        }
    }
    match rollout.json {
        true => println!("{:#}", json!({ "hosts": rollout.hosts, "runs": rollout.runs, "measured": report.json() })),
        false => println!("{}", report.table()),
    }
    Ok(ExitCode::SUCCESS)
}

async fn measure(rollout: &Rollout, folder: &Path, report: &mut Report) -> anyhow::Result<()> {
    let options = Options { schedulers: 2, nodes: 0, ..Options::default() };
    let cluster = Cluster::start(&folder.join("cluster"), &options, Programs::find()?).await?;
    let measured = with_cluster(rollout, folder, &cluster, report).await;
    if measured.is_err() {
        eprint!("{}", cluster.logs());
    }
    cluster.stop().await;
    measured
}

async fn with_cluster(rollout: &Rollout, folder: &Path, cluster: &Cluster, report: &mut Report) -> anyhow::Result<()> {
    let manager = &cluster.file().manager;
    let uses = rollout.hosts as usize;
    let token: JoinToken = change::join_token(manager, &["node"], uses, &Tags::new()).await?.parse()?;
    let begun = Instant::now();
    let joining =
        stream::iter(0..rollout.hosts).map(|number| Host::join(folder.join(format!("host-{number}")), &token));
    let mut hosts: Vec<Host> = joining.buffer_unordered(JOIN_AT_ONCE).try_collect().await?;
    for host in &hosts {
        host.connected(|count| count >= 2).await.context("a host does not reach two schedulers")?;
    }
    eprintln!("testnet: {} hosts have joined in {:.1} s", hosts.len(), begun.elapsed().as_secs_f64());
    for number in 0..rollout.runs {
        let begun = Instant::now();
        let epoch = change::set(manager, "candidate_parents", json!(2 + number % 2)).await?;
        let reached = hosts.iter().map(|host| host.reaches(epoch, begun));
        for seconds in futures::future::try_join_all(reached).await? {
            report.series("host_ms", "a change in force, each host", "ms").push(seconds * 1e3);
        }
    }
    let figures: Vec<_> = [0.5, 0.99].map(|share| report.quantile("host_ms", share)).into();
    report.series("host_p50_ms", "the same, p50", "ms").push(figures[0]);
    report.series("host_p99_ms", "the same, p99", "ms").push(figures[1]);
    for _ in 0..rollout.runs.min(rollout.hosts / 2) {
        let Some(host) = hosts.pop() else { break };
        let begun = Instant::now();
        change::revoke(manager, host.network.peer_id()).await?;
        host.connected(|count| count == 0).await.context("a host that is put out keeps connections")?;
        report.series("revoked_ms", "put out of all connections", "ms").push(begun.elapsed().as_secs_f64() * 1e3);
        host.network.shutdown().await;
    }
    futures::future::join_all(hosts.iter().map(|host| host.network.shutdown())).await;
    Ok(())
}

/// A member without a store.
struct Host {
    network: Network,
    follower: Follower,
}

impl Host {
    async fn join(data_dir: std::path::PathBuf, token: &JoinToken) -> anyhow::Result<Self> {
        identity::prepare_data_dir(&data_dir)?;
        let keypair = identity::load_or_create(&data_dir.join(KEY_FILE))?;
        let listen: Vec<Multiaddr> = vec!["/ip4/127.0.0.1/tcp/0".parse()?];
        let clock = Clock::system();
        let joining = Joining {
            clock: &clock,
            data_dir: &data_dir,
            keypair: &keypair,
            token: Some(token),
            role: Role::Node,
            addresses: &listen,
        };
        let membership = Membership::enter(&joining).await?.context("no membership")?;
        let config = NetworkConfig {
            admission: membership.admission(clock)?,
            keypair,
            listen,
            serves: Serves { config: true, ..Serves::default() },
            topic: Some(follower::topic(&membership.cluster)),
            limits: Default::default(),
            dial: damselfly_transport::dialing::DialPolicy::local(),
        };
        let (network, inbox) = spawn_blocking(move || network::start(config)).await??;
        let follow = FollowerConfig {
            cluster: membership.cluster,
            role: follower::Role::Node,
            bootstrap: Vec::new(),
            stored: Some(data_dir.join(damselfly_transport::program::membership::CONFIGURATION_FILE)),
        };
        let follower = Follower::start(follow, network.clone(), inbox.gossip, inbox.config)?;
        Ok(Self { network, follower })
    }

    async fn connected(&self, is_so: impl Fn(usize) -> bool) -> anyhow::Result<()> {
        let mut connected = self.network.connected();
        timeout(WITHIN, connected.wait_for(|peers| is_so(peers.len()))).await.context("not in time")??;
        Ok(())
    }

    /// Seconds since `begun` until the configuration of `epoch` is in force here.
    async fn reaches(&self, epoch: u64, begun: Instant) -> anyhow::Result<f64> {
        let mut current = self.follower.watch();
        let reached = current.wait_for(|now| now.as_ref().is_some_and(|now| now.configuration.epoch >= epoch));
        let reached = timeout(WITHIN, reached).await.context("a host does not get the change")??;
        ensure!(reached.is_some(), "no configuration");
        Ok(begun.elapsed().as_secs_f64())
    }
}
