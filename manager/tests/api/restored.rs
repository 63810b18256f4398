//! A manager that comes back from a backup.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::{Duration, SystemTime},
};

use damselfly_manager::{database::audit::Actor, state::EmptyRing};
use damselfly_messages::{
    config::{SchedulerEntry, Settings},
    id::ClusterId,
    membership::{self, Root},
};
use damselfly_transport::{
    admission::Admission,
    network::{self, Network, NetworkConfig, Serves},
    program::{
        follower::{Follower, FollowerConfig, Role, topic},
        identity,
    },
};
use libp2p::{Multiaddr, identity::Keypair};

use crate::common::{admin, ask, start};

/// A scheduler as the manager sees it: it keeps a configuration and tells it who asks.
fn scheduler(key: &Keypair, listen: Multiaddr, root: &Keypair, stored: &Path) -> (Network, Follower) {
    let (cluster, day) = (ClusterId::of_root(&root.public()), Duration::from_secs(24 * 3600));
    let issuer = Root::founding(root.clone())
        .certify(Keypair::generate_ed25519(), SystemTime::now().into(), day)
        .expect("certified");
    let admission = Admission::issued(&issuer, key.public().to_peer_id(), [membership::Role::Scheduler], day);
    let (network, inbox) = network::start(NetworkConfig {
        admission: admission.expect("issued"),
        keypair: key.clone(),
        listen: vec![listen],
        serves: Serves { config: true, ..Serves::default() },
        topic: Some(topic(&cluster)),
        limits: Default::default(),
        dial: damselfly_transport::dialing::DialPolicy::local(),
    })
    .expect("started");
    let config =
        FollowerConfig { cluster, role: Role::Scheduler, bootstrap: Vec::new(), stored: Some(stored.to_owned()) };
    let follower = Follower::start(config, network.clone(), inbox.gossip, inbox.config).expect("started");
    (network, follower)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("made");
    for entry in fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).expect("copied");
        }
    }
    fs::set_permissions(to, fs::Permissions::from_mode(0o700)).expect("set");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_manager_goes_on_above_what_members_know() {
    let folder = tempfile::tempdir().expect("a folder");
    let (data, backup, stored) =
        (folder.path().join("data"), folder.path().join("backup"), folder.path().join("stored"));
    let server = start(&data).await;
    let root = identity::load(&data.join("root.key")).expect("readable").expect("there");
    let key = Keypair::generate_ed25519();
    let (member, follower) = scheduler(&key, "/ip4/127.0.0.1/tcp/0".parse().expect("an address"), &root, &stored);
    let listen = member.listeners()[0].clone();
    let entry = SchedulerEntry::active(member.peer_id(), vec![listen.clone()]);
    let settings = Settings { schedulers: vec![entry], ..Settings::default() };
    assert_eq!(
        server
            .state()
            .change(settings.clone(), Actor::manager(), EmptyRing::Refused, |_| true)
            .await
            .expect("a new cluster need not wait"),
        2
    );
    copy(&data, &backup);
    let changed = Settings { candidate_parents: 3, ..settings.clone() };
    assert_eq!(
        server.state().change(changed, Actor::manager(), EmptyRing::Refused, |_| true).await.expect("changed"),
        3
    );
    let newest = server.state().current().expect("in force");
    follower.offer(newest.signed.as_bytes(), member.peer_id()).await.expect("taken over");
    server.stop().await;
    member.shutdown().await;
    drop(follower);

    fs::remove_dir_all(&data).expect("lost");
    copy(&backup, &data);
    let server = start(&data).await;
    let token = admin(&data);
    let body = serde_json::to_string(&settings).expect("JSON");
    let headers = [token.as_str(), "if-match: *"];
    let put = || ask(server.http_address(), "PUT /api/v1/config", &headers, &body);
    let answer = put().await;
    for part in ["HTTP/1.1 503", "application/problem+json", "\"code\":\"starting\"", "retry-after: "] {
        assert!(answer.contains(part), "{part:?} is not in {answer}");
    }
    assert!(ask(server.http_address(), "GET /readyz", &[], "").await.starts_with("HTTP/1.1 503"));

    // The only one who knows comes back; its port without the peer ID.
    let listen: Multiaddr = listen.iter().filter(|part| !matches!(part, libp2p::multiaddr::Protocol::P2p(_))).collect();
    let (_member, follower) = scheduler(&key, listen, &root, &stored);
    assert_eq!(follower.epoch(), 3, "as it was stored");
    let answer = loop {
        let answer = put().await;
        if !answer.starts_with("HTTP/1.1 503") {
            break answer;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(answer.contains("etag: \"4\""), "epoch 3 was used: {answer}");
    let history = server.state().history(u64::MAX, 10).await.expect("read");
    assert!(
        history.iter().any(|past| past.epoch == 3 && past.configuration.is_ok()),
        "what members knew is in it: {history:?}"
    );
    let newest = server.state().current().expect("in force");
    follower.offer(newest.signed.as_bytes(), server.network().peer_id()).await.expect("the member goes along");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_that_nobody_answers_waits_no_longer_than_a_few_seconds() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    start(&data).await.stop().await;
    let server = start(&data).await;
    let left = server.state().unsettled().expect("it may have been restored");
    tokio::time::sleep(left).await;
    assert_eq!(
        server
            .state()
            .change(Settings::default(), Actor::manager(), EmptyRing::Refused, |_| true)
            .await
            .expect("changed"),
        2
    );
}
