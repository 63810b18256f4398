//! Starts the worker on a thread of its own.

use std::{
    collections::HashMap,
    fs, io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    thread,
    time::Duration,
};

use futures::StreamExt;
use libp2p::{
    Multiaddr, Swarm, multiaddr,
    swarm::{Config, SwarmEvent},
};
use rustix::net::sockopt::set_ipv6_v6only;
use tokio::{
    net::TcpSocket,
    runtime,
    sync::{mpsc, watch},
};

use super::{
    Network, Peers,
    behaviour::Behaviour,
    command::{self, Command},
    config::{IDLE_TIMEOUT, NetworkConfig, StartError},
    gossip::GossipCounters,
    inbox::{self, Inbox, Outlets},
    worker::{Views, Worker},
};
use crate::{
    connection::{READ_BYTES, READ_BYTES_OF_HUBS, transport},
    dialing::{DialPolicy, is_without_ipv6},
    handshakes::Handshakes,
    muxer::GrowthBudget,
};

/// The listeners must be up by then.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long connections may take to say goodbye.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Starts the network and returns when its listeners are bound.
///
/// The swarm and all its connections run on one thread: with two workers a transfer is a quarter slower, because
/// connection and stream change processors with each frame. Blocks for a few milliseconds, ten seconds at most.
///
/// # Errors
/// [`StartError`]: nothing is left behind.
pub fn start(config: NetworkConfig) -> Result<(Network, Inbox), StartError> {
    let (outlets, inbox) = inbox::channels(&config.limits);
    let (commands, receiver) = mpsc::channel(command::BACKLOG);
    let (peers, peers_view) = watch::channel(Arc::<Peers>::default());
    let (listeners, listeners_view) = watch::channel(Vec::new());
    let (observed, observed_view) = watch::channel(None);
    let gossip = Arc::<GossipCounters>::default();
    let network = Network {
        dial: config.dial.clone(),
        peer: config.keypair.public().to_peer_id(),
        admission: config.admission.clone(),
        commands,
        peers: peers_view,
        listeners: listeners_view,
        observed: observed_view,
        gossip: Arc::clone(&gossip),
    };
    let (started, result) = std::sync::mpsc::sync_channel(1);
    let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::Thread)?;
    let body = move || {
        let views = Views { peers, listeners, observed, gossip };
        let reply = runtime.block_on(async {
            let worker = match listening_worker(&config, &outlets, receiver, views).await {
                Ok(worker) => worker,
                Err(error) => {
                    drop(started.send(Err(error)));
                    return None;
                }
            };
            drop(started.send(Ok(())));
            // The worker has its own: a program must see its inbox end with the worker.
            drop(outlets);
            worker.run().await
        });
        // Closes what is left of the connections before the caller is told.
        runtime.shutdown_timeout(CLOSE_TIMEOUT);
        if let Some(reply) = reply {
            // The caller stopped waiting.
            let _ = reply.send(());
        }
    };
    thread::Builder::new().name("network".into()).spawn(body).map_err(StartError::Thread)?;
    match result.recv_timeout(LISTEN_TIMEOUT + Duration::from_secs(1)) {
        Ok(result) => result.map(|()| (network, inbox)),
        Err(_) => Err(StartError::Timeout(LISTEN_TIMEOUT)),
    }
}

async fn listening_worker(
    config: &NetworkConfig,
    outlets: &Outlets,
    commands: mpsc::Receiver<Command>,
    views: Views,
) -> Result<Worker, StartError> {
    let policy = config.dial.clone();
    let programs = (outlets.peers.clone(), outlets.gossip.clone());
    let growth = GrowthBudget::default();
    let swarm = swarm(config, outlets, policy.clone(), growth.clone())?;
    let mut worker = Worker::new(swarm, commands, policy, growth, config.topic.as_deref(), views, programs);
    let listening = listen(&mut worker, &config.listen);
    tokio::time::timeout(LISTEN_TIMEOUT, listening).await.map_err(|_| StartError::Timeout(LISTEN_TIMEOUT))??;
    Ok(worker)
}

fn swarm(
    config: &NetworkConfig,
    outlets: &Outlets,
    policy: DialPolicy,
    growth: GrowthBudget,
) -> Result<Swarm<Behaviour>, StartError> {
    let read_bytes = if config.serves.piece { READ_BYTES } else { READ_BYTES_OF_HUBS };
    let transport = transport(&config.keypair, config.admission.clone(), policy, growth, read_bytes)?;
    let handshakes = Handshakes::default();
    let transport = handshakes.watch(transport);
    let behaviour = Behaviour::new(config, outlets, handshakes)?;
    let peer = config.keypair.public().to_peer_id();
    let swarm_config = Config::with_tokio_executor().with_idle_connection_timeout(IDLE_TIMEOUT);
    Ok(Swarm::new(transport, behaviour, peer, swarm_config))
}

/// Binds all `addresses` and waits until each has at least one real address, unless this system has none of its kind.
async fn listen(worker: &mut Worker, addresses: &[Multiaddr]) -> Result<(), StartError> {
    let mut waiting = HashMap::new();
    for address in addresses {
        if let Err(error) = probe(address) {
            if addresses.len() > 1 && is_any_ipv6(address) && is_without_ipv6(&error) {
                tracing::info!(%address, %error, "this system has no IPv6: peers are listened for over IPv4");
                continue;
            }
            return Err(failed(address, &error));
        }
        let id = worker.swarm.listen_on(address.clone()).map_err(|error| failed(address, &error))?;
        waiting.insert(id, address);
    }
    if addresses.len() > 1 {
        // Their interfaces may get addresses later.
        waiting.retain(|_, address| !has_no_address(address));
    }
    while !waiting.is_empty() {
        let event = worker.swarm.select_next_some().await;
        match &event {
            SwarmEvent::NewListenAddr { listener_id, .. } => drop(waiting.remove(listener_id)),
            SwarmEvent::ListenerClosed { listener_id, reason: Err(error), .. } => {
                if let Some(address) = waiting.get(listener_id) {
                    return Err(failed(address, error));
                }
            }
            _ => {}
        }
        // A peer may connect before the last listener is up.
        worker.on_event(event);
    }
    Ok(())
}

/// Fails when another program listens there: libp2p binds with `SO_REUSEPORT`, by which two would share the port and each
/// get some of the connections.
fn probe(address: &Multiaddr) -> io::Result<()> {
    let mut parts = address.iter();
    let ip = match parts.next() {
        Some(multiaddr::Protocol::Ip4(ip)) => IpAddr::from(ip),
        Some(multiaddr::Protocol::Ip6(ip)) => IpAddr::from(ip),
        _ => return Ok(()),
    };
    let Some(multiaddr::Protocol::Tcp(port)) = parts.next() else { return Ok(()) };
    let socket = if ip.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
    if ip.is_ipv6() {
        // As libp2p does, so that there may be another listener for IPv4 at the same port.
        set_ipv6_v6only(&socket, true)?;
    }
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::new(ip, port))?;
    socket.listen(1).map(drop)
}

fn is_any_ipv6(address: &Multiaddr) -> bool {
    matches!(address.iter().next(), Some(multiaddr::Protocol::Ip6(ip)) if ip.is_unspecified())
}

/// Whether `address` stands for all of this host's of one kind, and there is none now.
fn has_no_address(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(multiaddr::Protocol::Ip4(ip)) if ip.is_unspecified() => {
            fs::read_to_string("/proc/net/fib_trie").is_ok_and(|routes| !routes.contains("host LOCAL"))
        }
        Some(multiaddr::Protocol::Ip6(ip)) if ip.is_unspecified() => {
            fs::read_to_string("/proc/net/if_inet6").map_or(true, |all| all.trim().is_empty())
        }
        _ => false,
    }
}

fn failed(address: &Multiaddr, error: &dyn std::error::Error) -> StartError {
    StartError::Listen { address: address.clone(), reason: error.to_string() }
}
