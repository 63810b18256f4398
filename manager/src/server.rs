//! The running manager.

use std::{io, net::SocketAddr, path::Path, sync::Arc, time::SystemTime};

use damselfly_messages::{
    config::ConfigurationRefused,
    membership::{self, Issuer},
    record::UnixMillis,
    wire::Invalid,
};
use damselfly_transport::{
    admission::Admission,
    dialing::DialPolicy,
    join::JoinServer,
    network::{self, Inbox, Network, NetworkConfig, Serves, StartError},
    program::{
        follower::{self, Follower, FollowerConfig, Role},
        http::{HttpError, HttpServer, Monitoring, monitoring},
        identity::{self, IdentityError, KEY_FILE},
        metrics,
    },
};
use libp2p::identity::Keypair;
use tokio::{
    net::TcpListener,
    task::{JoinError, JoinSet, spawn_blocking},
};

use crate::{
    config::ManagerConfig,
    http::{self, AdminToken, Api},
    membership::{ISSUER_LIFETIME, Membership, certify, join_addresses},
    picture::Eyes,
    registry::Registry,
    state::State,
    store::{Store, StoreError},
};

/// Why the manager does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The data directory cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The manager's own key cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The admin token cannot be read or made.
    #[error("no admin token")]
    Token(#[source] io::Error),
    /// Peers cannot reach it.
    #[error(transparent)]
    Network(#[from] StartError),
    /// The newest stored configuration is not accepted.
    #[error("the stored configuration is not accepted")]
    Configuration(#[from] ConfigurationRefused),
    /// The follower does not start.
    #[error("the configuration cannot be followed")]
    Follower(#[source] io::Error),
    /// The registry cannot be read.
    #[error("the registry of tokens and members cannot be read")]
    Registry(#[source] io::Error),
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
    keepers: JoinSet<()>,
}

impl Server {
    /// Opens the store, founds the cluster if it is new, listens and publishes.
    ///
    /// # Errors
    /// [`ServerError`]: nothing runs.
    pub async fn start(config: ManagerConfig) -> Result<Self, ServerError> {
        let (http_config, policy) = (config.http.clone(), policy(&config));
        let (join_listen, join_advertise) = (config.join_listen, config.join_advertise.clone());
        let Opened { store, registry, token, key, issuer, network, inbox } =
            spawn_blocking(move || Opened::new(&config)).await??;
        let followed =
            FollowerConfig { cluster: store.cluster(), role: Role::Manager, bootstrap: Vec::new(), stored: None };
        let follower =
            Follower::start(followed, network.clone(), inbox.gossip, inbox.config).map_err(ServerError::Follower)?;
        follower.offer(store.newest().as_bytes(), network.peer_id()).await?;
        let listener = TcpListener::bind(join_listen).await;
        let listener = listener.map_err(|source| ServerError::JoinListener { address: join_listen, source })?;
        let port = listener.local_addr().map_or(join_listen.port(), |address| address.port());
        let join_at = match join_advertise.is_empty() {
            true => join_addresses(join_listen.ip(), port, &network.listeners(), policy),
            false => join_advertise,
        };
        let root = (store.root().clone(), key.clone(), issuer);
        let state = State::new(store, network.clone(), follower.clone());
        let membership = Membership::new(root, registry, (state.clone(), network.clone()), policy, join_at);
        let join = JoinServer::start(listener, &key, Arc::new(membership.clone()))
            .map_err(|source| ServerError::JoinListener { address: join_listen, source })?;
        let mut keepers = JoinSet::new();
        keepers.spawn(state.clone().keep_what_members_know());
        keepers.spawn(membership.clone().keep_certified());
        let eyes = Eyes::new(state.clone(), network.clone());
        keepers.spawn(eyes.clone().look());
        let api = Api { state: state.clone(), membership, eyes };
        let routes = monitoring(monitored(&network, &follower, &state)).merge(http::api(api, token));
        let http = HttpServer::start(&http_config, routes).await?;
        tracing::info!(
            cluster_id = %state.cluster(), peer_id = %network.peer_id(), epoch = follower.epoch(),
            listeners = ?network.listeners(), join = %join.address(), http = %http.address(), "the manager runs"
        );
        Ok(Self { state, network, http, join, keepers })
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
    pub async fn stop(mut self) {
        self.http.stop().await;
        drop(self.join);
        self.keepers.shutdown().await;
        self.network.shutdown().await;
    }
}

const fn policy(config: &ManagerConfig) -> DialPolicy {
    if config.allow_loopback { DialPolicy::Local } else { DialPolicy::Routable }
}

/// What a start opens.
struct Opened {
    store: Store,
    registry: Registry,
    token: AdminToken,
    key: Keypair,
    issuer: Issuer,
    network: Network,
    inbox: Inbox,
}

impl Opened {
    fn new(config: &ManagerConfig) -> Result<Self, ServerError> {
        let first = config.settings.clone().unwrap_or_default();
        let store = Store::open(&config.data_dir, first, UnixMillis::from(SystemTime::now()))?;
        let registry = Registry::open(&config.data_dir).map_err(ServerError::Registry)?;
        let token = AdminToken::load_or_create(&config.data_dir).map_err(ServerError::Token)?;
        let key = identity::load_or_create(&Path::new(&config.data_dir).join(KEY_FILE))?;
        let issuer = certify(store.root(), &key)?;
        let us = key.public().to_peer_id();
        let (network, inbox) = network::start(NetworkConfig {
            admission: Admission::issued(&issuer, us, [membership::Role::Manager], ISSUER_LIFETIME)?,
            keypair: key.clone(),
            listen: config.listen.clone(),
            serves: Serves { config: true, ..Serves::default() },
            topic: Some(follower::topic(&store.cluster())),
            limits: Default::default(),
            dial_loopback: config.allow_loopback,
        })?;
        Ok(Self { store, registry, token, key, issuer, network, inbox })
    }
}

fn monitored(network: &Network, follower: &Follower, state: &State) -> Monitoring {
    let mut registry = metrics::registry();
    metrics::register(&mut registry, network.clone(), follower.clone());
    let (network, follower, state) = (network.clone(), follower.clone(), state.clone());
    Monitoring::new(registry, move || {
        let missing = [
            (network.listeners().is_empty(), "no listener for peers"),
            (follower.epoch() == 0, "no configuration is in force"),
            (state.unsettled().is_some(), "members are asked whether they know a newer configuration"),
        ];
        let reasons: Vec<_> =
            missing.into_iter().filter(|(missing, _)| *missing).map(|(_, reason)| reason.to_owned()).collect();
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    })
}
