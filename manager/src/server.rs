//! The running manager.

use std::{
    fs::{File, TryLockError},
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::middleware;
use damselfly_messages::{
    config::ConfigurationRefused,
    membership::{self, Issuer},
    wire::Invalid,
};
use damselfly_transport::{
    admission::Admission,
    clock::Clock,
    dialing::DialPolicy,
    join::JoinServer,
    network::{self, Inbox, Network, NetworkConfig, Serves, StartError},
    program::{
        follower::{self, Follower, FollowerConfig, Role},
        http::{self, HttpError, HttpServer, Monitoring},
        identity::{self, IdentityError},
        listener, metrics,
    },
};
use libp2p::identity::Keypair;
use tokio::task::{JoinError, JoinHandle, spawn_blocking};

use crate::{
    access::Access,
    cluster_view::Poller,
    config::ManagerConfig,
    database::{Database, OpenError},
    failure_detector::keep_ring,
    history::{Store, StoreError, check_key_not_alone, learn_time},
    http::{App, Watchers},
    keys::ISSUER_LIFETIME,
    maintenance::keep_pruned,
    membership::{Membership, join_addresses},
    metrics::{Counting, Metrics},
    state::State,
};

/// The file in the data directory that a running manager has locked.
const LOCK: &str = "LOCK";
/// A database server that starts together with the manager is there by then; service managers wait longer.
const DATABASE_WITHIN: Duration = Duration::from_secs(60);

/// Why the manager does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The data directory cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another manager uses the data directory.
    #[error("another manager runs with {}", .0.display())]
    Locked(PathBuf),
    /// The data directory cannot be locked.
    #[error("cannot lock {}", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no database.
    #[error(transparent)]
    Database(#[from] OpenError),
    /// The manager's own key cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The admin token or the link for the set-up cannot be read or made.
    #[error("it cannot be known who may do what")]
    Access(#[source] io::Error),
    /// Peers cannot reach it.
    #[error(transparent)]
    Network(#[from] StartError),
    /// The newest stored configuration is not accepted.
    #[error("the stored configuration is not accepted")]
    Configuration(#[from] ConfigurationRefused),
    /// The follower does not start.
    #[error("the configuration cannot be followed")]
    Follower(#[source] io::Error),
    /// The root or this manager's key cannot sign.
    #[error("no certificate for this manager")]
    Certificate(#[from] Invalid),
    /// Hosts cannot join.
    #[error("cannot listen on {address} for hosts that join")]
    JoinListener {
        /// As configured.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// No HTTP.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// A part of the start panicked.
    #[error("the start failed")]
    Panicked(#[from] JoinError),
}

/// A running manager; dropping it ends it at once.
#[derive(Debug)]
pub struct Server {
    state: State,
    network: Network,
    http: HttpServer,
    join: JoinServer,
    tasks: Vec<JoinHandle<()>>,
    /// Held as long as it runs.
    _lock: File,
}

impl Server {
    /// Opens the store, founds the cluster if it is new, listens and publishes.
    ///
    /// # Errors
    /// [`ServerError`]: nothing runs.
    pub async fn start(config: ManagerConfig) -> Result<Self, ServerError> {
        let lock = lock(&config.data_dir)?;
        check_key_not_alone(&config.data_dir, &config.place())?;
        let clock = Clock::open(&config.data_dir);
        let database = Database::open_when_ready(config.place(), DATABASE_WITHIN).await?.with_clock(clock.clone());
        let first = config.settings.clone().unwrap_or_default();
        learn_time(&database).await?;
        let now = database.now();
        let store = Store::open(&config.data_dir, database, first, now).await?;
        let (http_config, data_dir, policy) = (config.http.clone(), config.data_dir.clone(), policy(&config));
        let (join_listen, join_advertise) = (config.join_listen, config.join_advertise.clone());
        let access = Access::open(&config.data_dir, store.database().clone()).await.map_err(ServerError::Access)?;
        let (key, issuer) = (store.keys().own().clone(), store.keys().issuer());
        let own = key.clone();
        let (network, inbox) = spawn_blocking(move || start_network(&config, own, &issuer, clock)).await??;
        let followed =
            FollowerConfig { cluster: store.cluster(), role: Role::Manager, bootstrap: Vec::new(), stored: None };
        let follower =
            Follower::start(followed, network.clone(), inbox.gossip, inbox.config).map_err(ServerError::Follower)?;
        follower.offer(store.newest().as_bytes(), network.peer_id()).await?;
        let state = State::new(store, network.clone(), follower.clone());
        let listener = listener::bind(join_listen);
        let listener = listener.map_err(|source| ServerError::JoinListener { address: join_listen, source })?;
        let port = listener.local_addr().map_or(join_listen.port(), |address| address.port());
        let join_at = match join_advertise.is_empty() {
            true => join_addresses(join_listen.ip(), port, &network.listeners(), &policy),
            false => join_advertise,
        };
        let membership = Membership::new((state.clone(), network.clone()), policy, join_at);
        let join = JoinServer::start(listener, &key, Arc::new(membership.clone()))
            .map_err(|source| ServerError::JoinListener { address: join_listen, source })?;
        let poller = Poller::new(state.clone(), network.clone());
        let counting = Counting { state: &state, access: &access, membership: &membership, poller: &poller };
        let mut tasks = vec![
            tokio::spawn(state.clone().keep_what_members_know()),
            tokio::spawn(state.clone().follow_database()),
            tokio::spawn(state.clone().retire_roots()),
            tokio::spawn(keep_pruned(state.clone())),
            tokio::spawn(membership.clone().keep_certified()),
            tokio::spawn(membership.clone().keep_seen()),
            tokio::spawn(poller.clone().poll()),
            tokio::spawn(keep_ring(state.clone(), poller.clone())),
        ];
        let (monitoring, metrics) = monitored(&network, &follower, &counting);
        tasks.push(tokio::spawn(metrics.clone().look(state.database().clone())));
        let watchers = Watchers::default();
        let app = App { state: state.clone(), access: access.clone(), membership, poller, watchers };
        let routes = http::monitoring(monitoring).merge(crate::http::api(app));
        let routes = routes.layer(middleware::from_fn_with_state(metrics, crate::metrics::count));
        let http = HttpServer::start(&http_config, &data_dir, routes).await?;
        access.announce(&http.url()).map_err(ServerError::Access)?;
        tracing::info!(
            cluster_id = %state.cluster(), peer_id = %network.peer_id(), epoch = follower.epoch(),
            listeners = ?network.listeners(), join = %join.address(), http = %http.url(), "the manager runs"
        );
        Ok(Self { state, network, http, join, tasks, _lock: lock })
    }

    /// What it knows.
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// Where HTTP is served.
    pub const fn http_address(&self) -> std::net::SocketAddr {
        self.http.address()
    }

    /// Where peers reach it.
    pub const fn network(&self) -> &Network {
        &self.network
    }

    /// Where hosts join.
    pub const fn join_address(&self) -> SocketAddr {
        self.join.address()
    }

    /// Answers what is under way, and closes everything.
    pub async fn stop(self) {
        self.http.stop().await;
        drop(self.join);
        self.tasks.iter().for_each(JoinHandle::abort);
        self.network.shutdown().await;
        self.state.database().close().await;
    }
}

/// Makes the data directory this process's own, as long as the file is open.
pub(crate) fn lock(data_dir: &Path) -> Result<File, ServerError> {
    identity::prepare_data_dir(data_dir)?;
    let path = data_dir.join(LOCK);
    let failed = |source| ServerError::Lock { path: path.clone(), source };
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(ServerError::Locked(data_dir.into())),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

fn policy(config: &ManagerConfig) -> DialPolicy {
    DialPolicy::new(config.allow_loopback, &config.dial)
}

/// Starts the network of this manager, whose key is certified.
fn start_network(
    config: &ManagerConfig,
    key: Keypair,
    issuer: &Issuer,
    clock: Clock,
) -> Result<(Network, Inbox), ServerError> {
    let us = key.public().to_peer_id();
    Ok(network::start(NetworkConfig {
        admission: Admission::issued_by(clock, issuer, us, [membership::Role::Manager], ISSUER_LIFETIME)?,
        keypair: key,
        listen: config.listen.clone(),
        serves: Serves { config: true, ..Serves::default() },
        topic: Some(follower::topic(&issuer.cluster())),
        limits: Default::default(),
        dial: policy(config),
    })?)
}

/// The monitoring, and the metrics that others count into.
fn monitored(network: &Network, follower: &Follower, counting: &Counting<'_>) -> (Monitoring, Metrics) {
    let mut registry = metrics::registry();
    metrics::register(&mut registry, network.clone(), follower.clone());
    let counted = Metrics::register(&mut registry, counting);
    let (network, follower, state) = (network.clone(), follower.clone(), counting.state.clone());
    let monitoring = Monitoring::new(registry, move || {
        let missing = [
            (network.listeners().is_empty(), "no listener for peers"),
            (follower.epoch() == 0, "no configuration is in force"),
            (network.admission().is_revoked(&network.peer_id()), "this manager is revoked"),
            (state.unsettled().is_some(), "members are asked whether they know a newer configuration"),
        ];
        let mut reasons: Vec<_> =
            missing.into_iter().filter(|(missing, _)| *missing).map(|(_, reason)| reason.to_owned()).collect();
        // It gives the cluster its time.
        reasons.extend(state.database().clock().problem().map(|problem| problem.to_string()));
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    });
    (monitoring, counted)
}
