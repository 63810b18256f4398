//! The protocols of a program, as one behaviour.

use std::time::Duration;

use damselfly_messages::membership::Roles;
use libp2p::{PeerId, connection_limits, gossipsub, identify, identity::Keypair, ping, swarm::NetworkBehaviour};

use super::{
    config::{ConnectionLimits, NetworkConfig, Serves, StartError},
    gate,
    inbox::Outlets,
    pending,
};
use crate::{
    admission::Admission,
    handshakes::Handshakes,
    protocol::{self, ConfigProtocol, ControlKind, GOSSIP_BYTES_MAX, InfoProtocol, NotifyProtocol, SchedulerProtocol},
    rpc::{FrameBudget, Outgoing, Rpc},
    streams,
};

/// A silent connection is asked this often whether it lives.
const PING_INTERVAL: Duration = Duration::from_secs(15);

/// A connection that does not answer a ping within this time is closed. As long as a transfer waits for a byte: a program
/// that is paused meanwhile, and a slow line on which a ping is behind pieces, are not lost.
const PING_TIMEOUT: Duration = Duration::from_secs(30);

/// All protocols of a program.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    /// First, because the first error stops the fields after it: what the gate refuses, no other protocol sees.
    gate: gate::Behaviour,
    limits: connection_limits::Behaviour,
    pending: pending::Behaviour,
    ping: ping::Behaviour,
    identify: identify::Behaviour,
    pub(super) gossip: gossipsub::Behaviour,
    scheduler: Rpc<SchedulerProtocol>,
    notify: Rpc<NotifyProtocol>,
    config: Rpc<ConfigProtocol>,
    info: Rpc<InfoProtocol>,
    pub(super) streams: streams::Behaviour,
}

impl Behaviour {
    pub(super) fn new(config: &NetworkConfig, outlets: &Outlets, handshakes: Handshakes) -> Result<Self, StartError> {
        let NetworkConfig { keypair, admission, serves, limits, .. } = config;
        let budget = FrameBudget::default();
        Ok(Self {
            gate: gate::Behaviour::new(admission.clone()),
            limits: connection_limits(limits),
            pending: pending::Behaviour::new(limits, handshakes),
            ping: ping::Behaviour::new(ping::Config::new().with_interval(PING_INTERVAL).with_timeout(PING_TIMEOUT)),
            identify: identify(keypair),
            gossip: gossip(keypair, config.topic.as_deref())?,
            scheduler: Rpc::new(serves.scheduler.then(|| outlets.scheduler.clone()), admission.clone(), budget.clone()),
            notify: Rpc::new(serves.notify.then(|| outlets.notify.clone()), admission.clone(), budget.clone()),
            config: Rpc::new(serves.config.then(|| outlets.config.clone()), admission.clone(), budget.clone()),
            info: Rpc::new(serves.info.then(|| outlets.info.clone()), admission.clone(), budget),
            streams: streams(serves, limits, admission, outlets),
        })
    }

    /// What a peer that is or was just connected was admitted as.
    pub(super) fn roles(&self, peer: &PeerId) -> Roles {
        self.gate.roles(peer)
    }

    pub(super) fn request(&mut self, kind: ControlKind, outgoing: Outgoing) {
        match kind {
            ControlKind::Scheduler => self.scheduler.request(outgoing),
            ControlKind::Notify => self.notify.request(outgoing),
            ControlKind::Config => self.config.request(outgoing),
            ControlKind::Info => self.info.request(outgoing),
        }
    }
}

/// Inbound connections that are being set up are bounded by [`pending`], which ends old ones instead of refusing new ones.
fn connection_limits(limits: &ConnectionLimits) -> connection_limits::Behaviour {
    connection_limits::Behaviour::new(
        connection_limits::ConnectionLimits::default()
            .with_max_pending_outgoing(Some(limits.pending))
            .with_max_established(Some(limits.connections))
            .with_max_established_per_peer(Some(limits.connections_per_peer)),
    )
}

/// Tells peers nothing about addresses and keeps none of theirs: what a container knows of itself is of no use outside.
/// What is left is how a peer sees our address.
fn identify(keypair: &Keypair) -> identify::Behaviour {
    identify::Behaviour::new(
        identify::Config::new(protocol::IDENTIFY.into(), keypair.public())
            .with_agent_version(concat!("damselfly/", env!("CARGO_PKG_VERSION")).into())
            .with_hide_listen_addrs(true)
            .with_push_listen_addr_updates(false)
            .with_cache_size(0),
    )
}

fn gossip(keypair: &Keypair, topic: Option<&str>) -> Result<gossipsub::Behaviour, StartError> {
    let config = gossipsub::ConfigBuilder::default()
        .validation_mode(gossipsub::ValidationMode::Strict)
        .validate_messages()
        .max_transmit_size(GOSSIP_BYTES_MAX)
        .build()
        .map_err(|error| StartError::Gossip(error.to_string()))?;
    let author = gossipsub::MessageAuthenticity::Signed(keypair.clone());
    let mut gossip =
        gossipsub::Behaviour::new(author, config).map_err(|reason| StartError::Gossip(reason.to_owned()))?;
    if let Some(topic) = topic {
        gossip.subscribe(&gossipsub::IdentTopic::new(topic)).map_err(|error| StartError::Gossip(error.to_string()))?;
    }
    Ok(gossip)
}

fn streams(serves: &Serves, limits: &ConnectionLimits, admission: &Admission, outlets: &Outlets) -> streams::Behaviour {
    let mut served = Vec::new();
    if serves.piece {
        served.push((protocol::PIECE, outlets.piece.clone()));
    }
    if serves.have {
        served.push((protocol::HAVE, outlets.have.clone()));
    }
    streams::Behaviour::new(served, limits.streams_per_peer, admission.clone())
}
