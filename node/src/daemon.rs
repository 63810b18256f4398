//! Puts the daemon together: the store, the network, what runs on them, and the local RPC.

use std::sync::Arc;

use anyhow::Context as _;
use damselfly_messages::{
    config::Settings,
    membership::{JoinToken, host_tags, overruled_tags},
};
use damselfly_transport::{
    admission::Admission,
    clock::Clock,
    dialing::DialPolicy,
    local::{self, LocalServer},
    network::{self, ConnectionLimits, NetworkConfig, Serves},
    program::{
        follower::{self, Follower, FollowerConfig},
        http::{HttpServer, Monitoring, monitoring},
        identity::{self, KEY_FILE},
        membership::{CONFIGURATION_FILE, Ended, Joining, Keeper, Membership},
        metrics as program_metrics,
    },
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    announcer::Announcer,
    blocking::blocking,
    config::{NodeConfig, Role},
    download::Downloads,
    export::Exporter,
    health::health,
    host::Host,
    import::Importer,
    limits::{self, Limits, OwnLimits, follow_quota},
    metrics::{Metrics, Watch},
    notifications::Notified,
    permits::Permits,
    rpc::Rpc,
    schedulers::Schedulers,
    settings::HostSettings,
    store::{Opened, Options, Store},
    tasks::Tasks,
    upload::Uploads,
};

/// Calls at a time on one connection; more wait on the client's side. Clients begin with 100 before they are told.
const CALLS_PER_CONNECTION: u32 = 128;
/// How often the store's size is looked at.
const USAGE_EVERY: std::time::Duration = std::time::Duration::from_secs(10);

/// A running daemon.
pub struct Daemon {
    http: HttpServer,
    network: network::Network,
    stop: CancellationToken,
    store: Store,
    rpc: tokio::task::JoinSet<Result<(), tonic::transport::Error>>,
    tasks: tokio::task::JoinSet<()>,
    keeper: tokio::task::JoinSet<Ended>,
    own: watch::Sender<OwnLimits>,
}

/// Says which tags this host has, and which of its configuration do not count.
fn report_tags(network: &network::Network, config: &NodeConfig) {
    let granted = network.admission().own_tags();
    let overruled = overruled_tags(&granted, &config.tags);
    if !overruled.is_empty() {
        tracing::warn!(
            tags = ?overruled, ?granted,
            "tags of the configuration do not count: this host's join token says otherwise"
        );
    }
    let tags = host_tags(&granted, &config.tags);
    if !tags.is_empty() {
        tracing::info!(?tags, "tags of this host");
    }
}

fn policy(config: &NodeConfig) -> DialPolicy {
    DialPolicy::new(config.allow_loopback, &config.dial)
}

const fn own_limits(config: &NodeConfig) -> OwnLimits {
    OwnLimits {
        upload: config.upload_rate_limit,
        download: config.download_rate_limit,
        quota_bytes: config.store_quota_bytes,
    }
}

impl Daemon {
    /// Starts everything; when it returns, the socket answers.
    ///
    /// # Errors
    /// What a person has to put right first.
    pub async fn start(config: NodeConfig, token: Option<JoinToken>) -> anyhow::Result<Self> {
        identity::prepare_data_dir(&config.data_dir)?;
        let clock = Clock::open(&config.data_dir);
        let keypair = identity::load_or_create(&config.data_dir.join(KEY_FILE))?;
        let store = open_store(&config).await?;
        let local = LocalServer::bind(&config.socket)?;
        let metrics = Metrics::default();
        let mut registry = program_metrics::registry();
        metrics.register(&mut registry);

        let addresses = if config.advertise.is_empty() { &config.listen } else { &config.advertise };
        let joining = Joining {
            data_dir: &config.data_dir,
            keypair: &keypair,
            clock: &clock,
            token: token.as_ref(),
            role: config.role.into(),
            addresses,
        };
        let membership = Membership::enter(&joining).await?;
        match &membership {
            Some(membership) => membership.warn_of_loopback(&policy(&config)),
            None => tracing::warn!(
                "this host belongs to no cluster: only local import and export work. To join one, start it once with a token \
                 of the manager: dfdaemon --join TOKEN"
            ),
        }
        let member = membership.is_some();
        let admission = match &membership {
            Some(membership) => {
                clock.require_confirmation();
                membership.admission(clock)?
            }
            None => Admission::closed_by(clock),
        };
        let (network, inbox) = network::start(NetworkConfig {
            admission,
            keypair: keypair.clone(),
            listen: if member { config.listen.clone() } else { Vec::new() },
            serves: Serves {
                scheduler: false,
                notify: member,
                config: member,
                info: false,
                piece: member,
                have: member,
            },
            topic: membership.as_ref().map(|membership| follower::topic(&membership.cluster)),
            limits: ConnectionLimits::default(),
            dial: policy(&config),
        })
        .context("cannot start the network")?;
        let follower = match &membership {
            Some(membership) => {
                let follow = FollowerConfig {
                    cluster: membership.cluster,
                    role: follower::Role::Node,
                    bootstrap: Vec::new(),
                    stored: Some(config.data_dir.join(CONFIGURATION_FILE)),
                };
                let follower = Follower::start(follow, network.clone(), inbox.gossip, inbox.config)?;
                program_metrics::register(&mut registry, network.clone(), follower.clone());
                Some(follower)
            }
            None => None,
        };

        report_tags(&network, &config);
        let schedulers = Schedulers::new(network.clone(), follower.clone());
        let host = Host {
            advertise: config.advertise.clone(),
            allow_loopback: config.allow_loopback,
            seed: config.role == Role::Seed,
            tags: config.tags.clone(),
        };
        let announcer = {
            let (store, schedulers) = (store.clone(), schedulers.clone());
            let (network, metrics) = (network.clone(), metrics.clone());
            blocking(move || Announcer::new(store, schedulers, network, host, metrics)).await?
        };
        let settings =
            follower.as_ref().map(|follower| HostSettings::new(follower, network.admission(), config.tags.clone()));
        let settings = settings.unwrap_or_default();
        let own = watch::Sender::new(own_limits(&config));
        let limits = Limits::new(own.subscribe(), &settings);
        let downloads = Downloads::new(
            store.clone(),
            network.clone(),
            schedulers.clone(),
            announcer.clone(),
            (limits.download.clone(), settings.clone()),
            metrics.clone(),
        );
        let serving = (limits.upload.clone(), limits.uploads.clone());
        let uploads = Uploads::new(store.clone(), downloads.clone(), serving, metrics.clone());

        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(uploads.run(inbox.piece, inbox.have));
        tasks.spawn(announcer.clone().run_expiry());
        tasks.spawn(watch_usage(store.clone(), metrics.clone()));
        tasks.spawn(limits.follow(settings.watch()));
        tasks.spawn(follow_quota(settings.watch(), own.subscribe(), store.clone()));
        if let Some(follower) = &follower {
            tasks.spawn(settings.clone().follow(follower.clone(), network.admission().clone()));
            tasks.spawn(announcer.clone().run(follower.watch(), inbox.peers));
            tasks.spawn(announcer.clone().run_outbox());
            let notified = Notified {
                announcer: announcer.clone(),
                downloads: downloads.clone(),
                schedulers: schedulers.clone(),
                follower: follower.clone(),
                metrics: metrics.clone(),
            };
            tasks.spawn(notified.run(inbox.notify));
        }

        let mut keeper = tokio::task::JoinSet::new();
        if let (Some(membership), Some(follower)) = (membership, &follower) {
            let (data_dir, addresses) = (config.data_dir.clone(), addresses.clone());
            let (network, follower) = (network.clone(), follower.clone());
            keeper.spawn(Keeper { membership, data_dir, keypair, addresses, network, follower }.run());
        }
        let (imports, exports) = (Permits::new("imports"), Permits::new("exports"));
        let watch = Watch {
            store: store.clone(),
            downloads: downloads.clone(),
            announcer: announcer.clone(),
            imports: imports.clone(),
            exports: exports.clone(),
        };
        watch.register(&mut registry);
        let http = start_http(&config, registry, follower.clone(), announcer.clone(), store.clone()).await?;
        let rpc = Rpc {
            descriptors: local.descriptors(),
            imports,
            exports,
            importer: Importer {
                store: store.clone(),
                announcer: announcer.clone(),
                settings: settings.clone(),
                metrics: metrics.clone(),
            },
            exporter: Exporter {
                store: store.clone(),
                schedulers: schedulers.clone(),
                downloads: downloads.clone(),
                announcer: announcer.clone(),
                settings,
                metrics: metrics.clone(),
            },
            tasks: Tasks { store: store.clone(), schedulers, downloads, announcer: announcer.clone(), metrics },
            announcer,
            follower,
            peer: network.peer_id(),
        };
        let stop = CancellationToken::new();
        let mut serving_rpc = tokio::task::JoinSet::new();
        serving_rpc.spawn(serve_rpc(local, rpc, stop.clone()));
        tracing::info!(peer_id = %network.peer_id(), socket = %config.socket.display(), http = %http.address(), "dfdaemon is up");
        Ok(Self { http, network, stop, store, rpc: serving_rpc, tasks, keeper, own })
    }

    /// Takes over what may change while it runs (`NodeConfig::RELOADED`).
    pub fn reload(&self, config: &NodeConfig) {
        self.own.send_replace(own_limits(config));
    }

    /// Returns when the daemon is of no use any more: the host is no member of its cluster, or a part of it has failed,
    /// which is a defect. Who supervises it starts it again then.
    pub async fn ended(&mut self) -> anyhow::Error {
        loop {
            tokio::select! {
                Some(ended) = self.keeper.join_next() => match ended {
                    Ok(ended) => return ended.into(),
                    Err(error) => tracing::error!(%error, "the membership is not kept"),
                },
                // Without it no command reaches the daemon, however well it serves peers.
                Some(ended) = self.rpc.join_next() => return match ended {
                    Ok(Ok(())) => anyhow::anyhow!("the local RPC has ended: its socket accepts no connection any more"),
                    Ok(Err(error)) => anyhow::Error::new(error).context("the local RPC has ended"),
                    Err(error) => anyhow::Error::new(error).context("the local RPC has failed"),
                },
                Some(ended) = self.tasks.join_next() => return match ended {
                    // In no cluster there is nobody to serve.
                    Ok(()) if self.keeper.is_empty() => continue,
                    Ok(()) => anyhow::anyhow!("a part of the daemon has ended"),
                    Err(error) => anyhow::Error::new(error).context("a part of the daemon has failed"),
                },
                else => std::future::pending().await,
            }
        }
    }

    /// Ends everything; returns when it has ended.
    pub async fn stop(mut self) {
        self.stop.cancel();
        drop(tokio::time::timeout(std::time::Duration::from_secs(2), self.rpc.join_next()).await);
        self.tasks.shutdown().await;
        let store = self.store.clone();
        if let Err(error) = blocking(move || store.keep_last_used()).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "moments of last use are lost");
        }
        self.http.stop().await;
        self.network.shutdown().await;
    }
}

async fn open_store(config: &NodeConfig) -> anyhow::Result<Store> {
    let directory = config.data_dir.clone();
    let options = Options { free_space_floor: config.free_space_floor_bytes, ..Options::default() };
    let (store, opened) = blocking(move || Store::open(&directory, options)).await.context("cannot open the store")?;
    log_opened(&opened);
    store.set_quota(limits::quota(config.store_quota_bytes, &Settings::default()));
    if !opened.adoptable.is_empty() {
        let adopting = store.clone();
        tokio::task::spawn_blocking(move || {
            for id in opened.adoptable {
                if let Err(error) = adopting.adopt(id) {
                    tracing::error!(content = %id, error = &error as &dyn std::error::Error, "cannot adopt a content");
                }
            }
        });
    }
    Ok(store)
}

fn log_opened(opened: &Opened) {
    tracing::info!(contents = opened.contents, tasks = opened.tasks, "the store is open");
    if let Some(reason) = &opened.index_lost {
        tracing::error!(
            reason,
            tasks = opened.tasks,
            "the index was damaged; a new one has every sound record of it, the old one is kept beside it"
        );
    }
    if opened.index_mended {
        tracing::warn!("the last commit to the index was torn or damaged; what is sound of it was kept");
    }
    for content in &opened.adopted {
        tracing::warn!(%content, "taken in again: the index had lost its record");
    }
    for content in &opened.damaged {
        tracing::warn!(%content, "a content is damaged and set aside");
    }
    for what in &opened.set_aside {
        tracing::warn!(what, "set aside: nothing explains it");
    }
    for reason in &opened.unreadable {
        tracing::warn!(reason, "a record cannot be read");
    }
}

async fn start_http(
    config: &NodeConfig,
    registry: prometheus_client::registry::Registry,
    follower: Option<Follower>,
    announcer: Announcer,
    store: Store,
) -> anyhow::Result<HttpServer> {
    let standing = announcer.clone();
    let look = move || health(follower.as_ref(), &announcer, &store);
    let look_again = look.clone();
    let ready = move || {
        let health = look();
        match health.member && standing.standing().is_ok() {
            true => Ok(()),
            false => Err(health.problems.into_iter().map(|problem| problem.message).collect()),
        }
    };
    let monitored = Monitoring::new(Arc::new(registry), ready).with_obstacles(move || look_again().obstacles());
    let routes = monitoring(monitored);
    Ok(HttpServer::start(&config.http, &config.data_dir, routes).await?)
}

async fn serve_rpc(local: LocalServer, rpc: Rpc, stop: CancellationToken) -> Result<(), tonic::transport::Error> {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("", tonic_health::ServingStatus::Serving).await;
    reporter.set_service_status("damselfly.v1.Daemon", tonic_health::ServingStatus::Serving).await;
    tonic::transport::Server::builder()
        .max_concurrent_streams(CALLS_PER_CONNECTION)
        .layer(local::CallsLayer)
        .add_service(health)
        .add_service(local::service(rpc))
        .serve_with_incoming_shutdown(local.incoming(), stop.cancelled_owned())
        .await
}

async fn watch_usage(store: Store, metrics: Metrics) {
    loop {
        let looked = store.clone();
        match blocking(move || looked.usage()).await {
            Ok(usage) => {
                metrics.contents.set(usage.contents as i64);
                metrics.unfinished_contents.set(usage.unfinished as i64);
                metrics.queued_announcements.set(usage.queued_tasks as i64);
                metrics.queued_deletes.set(usage.queued_deletes as i64);
                metrics.unnamed_contents.set(usage.unnamed as i64);
                metrics.stored_bytes.set(usage.bytes as i64);
                metrics.free_bytes.set(usage.free_bytes as i64);
            }
            Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "cannot look at the store's size"),
        }
        tokio::time::sleep(USAGE_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_daemon_without_its_rpc_ends_with_the_reason() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = NodeConfig {
            data_dir: folder.path().join("data"),
            socket: folder.path().join("socket"),
            http: damselfly_transport::program::http::HttpConfig::loopback(0),
            ..NodeConfig::default()
        };
        let mut daemon = Daemon::start(config, None).await.expect("started");
        daemon.rpc.abort_all();
        let ended = tokio::time::timeout(std::time::Duration::from_secs(10), daemon.ended()).await;
        let reason = format!("{:#}", ended.expect("it is noticed"));
        assert!(reason.contains("local RPC"), "{reason}");
        daemon.stop().await;
    }
}
