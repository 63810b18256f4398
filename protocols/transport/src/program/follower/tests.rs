use damselfly_messages::{
    config::{self, Configuration, SchedulerEntry, Settings},
    membership::{Issuer, Root, Roots},
    record::UnixMillis,
};
use libp2p::{Multiaddr, identity::Keypair};
use tokio::time::timeout;

use super::*;
use crate::network::{Inbox, NetworkConfig, Serves, start};
use crate::testing::{self, root};

const SOON: Duration = Duration::from_secs(10);

fn cluster() -> ClusterId {
    ClusterId::of_root(&root().public())
}

fn issuer(root: Keypair) -> Issuer {
    Root::founding(root.clone()).certify(root, UnixMillis(0), Duration::MAX).expect("certified")
}

fn signed(epoch: u64, schedulers: Vec<SchedulerEntry>) -> SignedConfiguration {
    let settings = Settings { schedulers, ..Settings::default() };
    let configuration = Configuration {
        cluster: cluster(),
        epoch,
        issued: UnixMillis(epoch),
        settings,
        revoked: Vec::new(),
        roots: Roots::of(cluster()),
    };
    configuration.sign(&issuer(root())).expect("signed")
}

fn network() -> (Network, Inbox) {
    let listen: Multiaddr = "/ip4/127.0.0.1/tcp/0".parse().expect("an address");
    let keypair = Keypair::generate_ed25519();
    start(NetworkConfig {
        admission: testing::member(&keypair),
        keypair,
        listen: vec![listen],
        serves: Serves { config: true, ..Serves::default() },
        topic: Some(topic(&cluster())),
        limits: Default::default(),
        dial: crate::dialing::DialPolicy::local(),
    })
    .expect("started")
}

fn follow(role: Role, bootstrap: &[&Network], stored: Option<PathBuf>) -> (Network, Follower) {
    let (network, inbox) = network();
    let bootstrap = bootstrap.iter().map(|network| address(network)).collect();
    let config = FollowerConfig { cluster: cluster(), role, bootstrap, stored };
    let follower = Follower::start(config, network.clone(), inbox.gossip, inbox.config).expect("started");
    (network, follower)
}

fn address(network: &Network) -> PeerAddress {
    PeerAddress::new(network.peer_id(), network.listeners()[0].clone()).expect("an address")
}

fn entry(network: &Network) -> SchedulerEntry {
    SchedulerEntry::active(network.peer_id(), vec![address(network).address().clone()])
}

async fn reaches(follower: &Follower, epoch: u64) {
    let mut watch = follower.watch();
    let reached = watch.wait_for(|now| now.as_ref().is_some_and(|now| now.configuration.epoch == epoch));
    timeout(SOON, reached).await.unwrap_or_else(|_| panic!("epoch {epoch} is not reached")).expect("it follows");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_spreads_from_the_manager_by_way_of_a_scheduler_to_a_node() {
    let (manager, managers) = follow(Role::Manager, &[], None);
    let (scheduler, schedulers) = follow(Role::Scheduler, &[&manager], None);
    // The node knows the scheduler only, and the scheduler has nothing yet.
    let (node, nodes) = follow(Role::Node, &[&scheduler], None);
    let first = signed(1, vec![entry(&scheduler)]);
    managers.offer(first.as_bytes(), manager.peer_id()).await.expect("accepted");
    reaches(&schedulers, 1).await;
    reaches(&nodes, 1).await;
    assert!(!node.is_connected(&manager.peer_id()), "a node needs no connection to the manager");

    let second = signed(2, vec![entry(&scheduler)]);
    managers.offer(second.as_bytes(), manager.peer_id()).await.expect("accepted");
    let message = config::Gossip::of(&second).to_bytes();
    // The mesh may not be there yet; nobody polls for a minute, so only gossip can bring it.
    let published = async {
        while manager.publish(message.clone()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(SOON, published).await.expect("published");
    reaches(&schedulers, 2).await;
    reaches(&nodes, 2).await;

    let third = signed(3, vec![entry(&scheduler)]);
    managers.offer(third.as_bytes(), manager.peer_id()).await.expect("accepted");
    schedulers.hint(manager.peer_id(), 3);
    reaches(&schedulers, 3).await;

    // Without gossip: the manager sees that a scheduler is behind.
    let fourth = signed(4, vec![entry(&scheduler)]);
    managers.offer(fourth.as_bytes(), manager.peer_id()).await.expect("accepted");
    managers.tell(scheduler.peer_id()).await;
    reaches(&schedulers, 4).await;
    schedulers.tell(manager.peer_id()).await;
    assert_eq!(managers.epoch(), 4, "what is no news is not asked for");
}

#[tokio::test]
async fn what_was_accepted_survives_a_restart_and_never_goes_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("configuration.signed");
    let (network, follower) = follow(Role::Node, &[], Some(path.clone()));
    follower.offer(signed(5, vec![]).as_bytes(), network.peer_id()).await.expect("accepted");
    drop(follower);
    let (network, follower) = follow(Role::Node, &[], Some(path.clone()));
    assert_eq!(follower.epoch(), 5);
    let older = follower.offer(signed(4, vec![]).as_bytes(), network.peer_id()).await;
    assert!(matches!(older, Err(ConfigurationRefused::Older { .. })));
    let forger = issuer(Keypair::generate_ed25519());
    let settings = Settings::default();
    let (cluster, issued, revoked) = (cluster(), UnixMillis(0), Vec::new());
    let forged =
        Configuration { cluster, epoch: 9, issued, settings, revoked, roots: Roots::of(cluster) }.sign(&forger);
    let refused = follower.offer(forged.expect("signed").as_bytes(), network.peer_id()).await;
    assert!(matches!(refused, Err(ConfigurationRefused::OtherSigner(_))), "{refused:?}");
    assert_eq!(follower.epoch(), 5);

    std::fs::write(&path, b"torn").expect("written");
    let (_, follower) = follow(Role::Node, &[], Some(path.clone()));
    assert_eq!(follower.epoch(), 0);
    assert!(path.with_extension("refused").exists() && !path.exists());
}

#[tokio::test]
async fn the_task_ends_with_the_last_handle() {
    let (network, inbox) = network();
    let gossip = inbox.gossip;
    let (feed, requests) = mpsc::channel(1);
    let config = FollowerConfig { cluster: cluster(), role: Role::Node, bootstrap: vec![], stored: None };
    let follower = Follower::start(config, network, gossip, requests).expect("started");
    let other = follower.clone();
    drop(follower);
    tokio::task::yield_now().await;
    assert!(!feed.is_closed());
    drop(other);
    timeout(SOON, feed.closed()).await.expect("the task has ended");
}
