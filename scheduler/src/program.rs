//! Puts a scheduler together from its configuration.

use std::time::Duration;

use anyhow::Context as _;
use damselfly_messages::membership::{self, JoinToken};
use damselfly_transport::{
    clock::Clock,
    dialing::DialPolicy,
    error_chain::chain,
    network::{self, ConnectionLimits, Network, NetworkConfig, Serves},
    program::{
        follower::{self, Follower, FollowerConfig, Role},
        http::{HttpServer, Monitoring, monitoring},
        identity,
        membership::{Joining, Keeper, Membership},
        metrics as program_metrics,
    },
};
use prometheus_client::registry::Registry;
use tokio::{task::JoinSet, time::timeout};

use crate::{
    config::SchedulerConfig,
    metrics::Metrics,
    service::Service,
    state::{Limits, State},
};

/// Why a scheduler does not start that belongs nowhere.
pub const NO_CLUSTER: &str =
    "this scheduler belongs to no cluster: start it once with --join and a token of the manager";

/// Requests that wait for the state; above it the answer is busy.
const INBOX: usize = 1024;

/// How long what is under way may take after the network has ended.
const STOP_WITHIN: Duration = Duration::from_secs(2);

/// A running scheduler.
#[derive(Debug)]
pub struct Scheduler {
    network: Network,
    http: HttpServer,
    service: JoinSet<()>,
}

impl Scheduler {
    /// Starts everything: key, network, configuration follower, service, HTTP.
    ///
    /// # Errors
    /// The reason, for a person; what was started ends.
    pub async fn start(config: SchedulerConfig, token: Option<JoinToken>) -> anyhow::Result<Self> {
        identity::prepare_data_dir(&config.data_dir)?;
        let clock = Clock::open(&config.data_dir);
        clock.require_confirmation();
        let keypair = identity::load_or_create(&config.key_file())?;
        let addresses = if config.advertise.is_empty() { &config.listen } else { &config.advertise };
        let (data_dir, role) = (config.data_dir.as_path(), membership::Role::Scheduler);
        let joining = Joining { data_dir, keypair: &keypair, clock: &clock, token: token.as_ref(), role, addresses };
        let membership = Membership::enter(&joining).await?.context(NO_CLUSTER)?;
        let cluster = membership.cluster;
        let limits = ConnectionLimits { connections: config.connections, inbox: INBOX, ..ConnectionLimits::default() };
        let policy = DialPolicy::new(config.allow_loopback, &config.dial);
        membership.warn_of_loopback(&policy);
        let (network, inbox) = network::start(NetworkConfig {
            admission: membership.admission(clock)?,
            keypair: keypair.clone(),
            listen: config.listen.clone(),
            serves: Serves { scheduler: true, config: true, info: true, ..Serves::default() },
            topic: Some(follower::topic(&cluster)),
            limits,
            dial: policy.clone(),
        })?;
        let follower_config = FollowerConfig {
            cluster,
            role: Role::Scheduler,
            stored: Some(config.stored_configuration()),
            bootstrap: Vec::new(),
        };
        let follower = Follower::start(follower_config, network.clone(), inbox.gossip, inbox.config)
            .context("the stored configuration cannot be used")?;
        let mut registry = program_metrics::registry();
        program_metrics::register(&mut registry, network.clone(), follower.clone());
        let metrics = Metrics::register(&mut registry);
        let http =
            HttpServer::start(&config.http, &config.data_dir, monitoring(ready(registry, &network, &follower))).await?;
        let state = State::new(network.peer_id(), Limits::default(), rand::random());
        let service = Service::new(state, network.clone(), follower.clone(), policy, metrics);
        let mut running = JoinSet::new();
        running.spawn(service.run(inbox.scheduler, inbox.info, inbox.peers));
        let (addresses, network_of_keeper) = (addresses.clone(), network.clone());
        let data_dir = config.data_dir.clone();
        let keeper = Keeper { membership, data_dir, keypair, addresses, network: network_of_keeper, follower };
        running.spawn(async move {
            let ended = keeper.run().await;
            tracing::error!(reason = chain(&ended), "the scheduler ends");
        });
        tracing::info!(peer = %network.peer_id(), listen = ?network.listeners(), http = %http.address(), "scheduler started");
        Ok(Self { network, http, service: running })
    }

    /// Where it listens and who it is.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Where its metrics are.
    pub fn http_address(&self) -> std::net::SocketAddr {
        self.http.address()
    }

    /// Returns when the service or the membership has ended by itself, which is a failure.
    pub async fn ended(&mut self) {
        if let Some(Err(error)) = self.service.join_next().await {
            tracing::error!(%error, "the service has failed");
        }
    }

    /// Closes everything.
    pub async fn stop(mut self) {
        self.network.shutdown().await;
        drop(timeout(STOP_WITHIN, self.service.shutdown()).await);
        self.http.stop().await;
    }
}

fn ready(registry: Registry, network: &Network, follower: &Follower) -> Monitoring {
    let (network, configuration) = (network.clone(), follower.watch());
    Monitoring::new(registry, move || {
        let mut missing = Vec::new();
        if network.listeners().is_empty() {
            missing.push("not listening".to_owned());
        }
        if let Err(refused) = network.admission().own_standing() {
            missing.push(format!("this scheduler's credential is not valid now, and others refuse it: {refused}"));
        }
        if configuration.borrow().is_none() {
            missing.push("no configuration of the cluster yet: no member has answered with one".to_owned());
        }
        if missing.is_empty() { Ok(()) } else { Err(missing) }
    })
}
