//! `testnet liar`: a host with a valid credential that speaks the protocols and lies.
//!
//! `lie` is what it tells and answers, `tell` tells schedulers, `serve` answers other hosts.

mod announce;
pub(crate) mod behavior;
mod serve;

use std::{fs, path::PathBuf, sync::Arc};

use anyhow::Context as _;
use damselfly_messages::{
    membership::{JoinToken, Role},
    name::Name,
};
use damselfly_transport::{
    clock::Clock,
    network::{self, ConnectionLimits, Inbox, Network, NetworkConfig, Serves},
    program::{
        follower::{self, Follower, FollowerConfig},
        identity::{self, KEY_FILE},
        logging::{self, LogFormat},
        membership::{CONFIGURATION_FILE, Joining, Membership},
    },
    protocol::NotifyProtocol,
    rpc::Inbound,
    streams::Stream,
};
use libp2p::{Multiaddr, PeerId};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use behavior::{Behavior, Content};

/// What `testnet liar` is told.
#[derive(Debug, clap::Args)]
pub struct Liar {
    /// What it is to do.
    #[arg(long)]
    config: PathBuf,
}

/// What a liar does.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// How it lies.
    pub(crate) lie: Behavior,
    /// About which name.
    pub(crate) cid: String,
    /// The bytes that others have bound to it.
    pub(crate) content: PathBuf,
    /// Where it writes what schedulers said of what it told.
    pub(crate) told: PathBuf,
    /// Where its key and its membership lie.
    pub(crate) data_dir: PathBuf,
    /// Where it listens, on loopback.
    pub(crate) listen: Multiaddr,
    /// A join token for seeds.
    pub(crate) token: String,
}

impl Liar {
    /// Joins the cluster and lies until it is ended.
    ///
    /// # Errors
    /// Why it is no member.
    pub async fn run(self) -> anyhow::Result<()> {
        logging::init(LogFormat::Text, std::env::var("RUST_LOG").ok().as_deref(), None);
        let config = fs::read_to_string(&self.config).context("no configuration")?;
        let config: Config = toml::from_str(&config).context("the configuration")?;
        let content = Arc::new(Content::of(fs::read(&config.content).context("no content")?));
        let name = Name::parse(&config.cid, "")?;
        let Joined { network, follower, notify, piece, have } = join(&config).await?;
        eprintln!("liar: {} lies about {}: {:?}", network.peer_id(), config.cid, config.lie);
        let teller = announce::Announcer {
            lie: config.lie,
            name,
            content: Arc::clone(&content),
            listen: config.listen,
            network,
            follower,
        };
        tokio::join!(
            teller.run(&config.told),
            announce::hear(notify),
            serve::pieces(config.lie, Arc::clone(&content), piece),
            serve::haves(config.lie, content, have),
        );
        Ok(())
    }
}

/// A member, and what arrives.
struct Joined {
    network: Network,
    follower: Follower,
    notify: mpsc::Receiver<Inbound<NotifyProtocol>>,
    piece: mpsc::Receiver<(PeerId, Stream)>,
    have: mpsc::Receiver<(PeerId, Stream)>,
}

/// Becomes a seed, which is asked before other holders, by the way that every host goes.
async fn join(config: &Config) -> anyhow::Result<Joined> {
    let data_dir = &config.data_dir;
    identity::prepare_data_dir(data_dir)?;
    let keypair = identity::load_or_create(&data_dir.join(KEY_FILE))?;
    let token: JoinToken = config.token.parse()?;
    let addresses = [config.listen.clone()];
    let clock = Clock::system();
    let joining = Joining {
        data_dir,
        clock: &clock,
        keypair: &keypair,
        token: Some(&token),
        role: Role::Seed,
        addresses: &addresses,
    };
    let membership = Membership::enter(&joining).await?.context("no member")?;
    let (network, inbox) = network::start(NetworkConfig {
        admission: membership.admission(clock)?,
        keypair,
        listen: addresses.into(),
        serves: Serves { scheduler: false, notify: true, config: true, info: false, piece: true, have: true },
        topic: Some(follower::topic(&membership.cluster)),
        limits: ConnectionLimits::default(),
        dial: damselfly_transport::dialing::DialPolicy::local(),
    })?;
    let Inbox { gossip, config: requests, notify, piece, have, .. } = inbox;
    let following = FollowerConfig {
        cluster: membership.cluster,
        role: follower::Role::Node,
        bootstrap: Vec::new(),
        stored: Some(data_dir.join(CONFIGURATION_FILE)),
    };
    let follower = Follower::start(following, network.clone(), gossip, requests)?;
    Ok(Joined { network, follower, notify, piece, have })
}
