//! Networks on loopback, as programs use them.

use std::time::{Instant, SystemTime};

use damselfly_messages::{
    config,
    id::ClusterId,
    membership::{Role, Root, Roots},
    notify,
    record::UnixMillis,
};
use futures::{AsyncReadExt, AsyncWriteExt, future::join_all};
use libp2p::identity::Keypair;

use super::*;
use crate::protocol::{ConfigProtocol, HAVE, NotifyProtocol, PIECE};
use crate::testing;

const WITHIN: Duration = Duration::from_secs(10);

fn config() -> NetworkConfig {
    config_of(Role::ALL)
}

fn config_of(roles: impl IntoIterator<Item = Role>) -> NetworkConfig {
    let keypair = Keypair::generate_ed25519();
    NetworkConfig {
        admission: testing::member_as(&keypair, roles),
        keypair,
        listen: vec!["/ip4/127.0.0.1/tcp/0".parse().expect("address")],
        serves: Serves { scheduler: false, notify: true, config: true, info: false, piece: true, have: true },
        topic: Some("test".into()),
        limits: ConnectionLimits::default(),
        dial: crate::dialing::DialPolicy::local(),
    }
}

fn started() -> (Network, Inbox) {
    start(config()).expect("started")
}

async fn connect(from: &Network, to: &Network) {
    from.connect(to.peer_id(), to.listeners(), WITHIN).await.expect("connected");
}

async fn pair() -> ((Network, Inbox), (Network, Inbox)) {
    let (left, right) = (started(), started());
    connect(&left.0, &right.0).await;
    (left, right)
}

/// A host that tries to get in, and what it is told.
async fn refused(admission: impl FnOnce(&Keypair) -> Admission, by: &Network) -> String {
    let keypair = Keypair::generate_ed25519();
    let (admission, serves) = (admission(&keypair), Serves::default());
    let (stranger, _inbox) = start(NetworkConfig { admission, keypair, serves, ..config() }).expect("started");
    let error = stranger.connect(by.peer_id(), by.listeners(), WITHIN).await.expect_err("admitted");
    error.to_string()
}

#[tokio::test]
async fn strangers_are_told_why_and_reach_nothing() {
    let (host, _inbox) = started();
    let own = |admission: Admission| admission.own().expect("shown");
    let cluster = || ClusterId::of_root(&testing::root().public());
    let issued = |root: &Keypair, keypair: &Keypair, lifetime| {
        let issuer =
            Root::founding(root.clone()).certify(Keypair::generate_ed25519(), SystemTime::now().into(), lifetime);
        let peer = keypair.public().to_peer_id();
        Admission::issued(&issuer.expect("certified"), peer, Role::ALL, lifetime).expect("issued")
    };
    let day = Duration::from_secs(24 * 3600);
    let by_itself = |keypair: &Keypair| Admission::new(cluster(), own(issued(keypair, keypair, day)));
    // Whether it would admit the host says nothing: the first reason is that of whoever is quicker.
    let reason = refused(|_| Admission::closed(), &host).await;
    assert!(reason.contains("no credential was shown"), "{reason}");
    let reason = refused(by_itself, &host).await;
    assert!(reason.contains("not of ours"), "signed by itself: {reason}");
    let another = own(testing::member(&Keypair::generate_ed25519()));
    let reason = refused(|_| Admission::new(cluster(), another), &host).await;
    assert!(reason.contains("not of who shows it"), "another peer's: {reason}");
    let short = |keypair: &Keypair| {
        let admission = issued(&testing::root(), keypair, Duration::from_millis(1));
        std::thread::sleep(Duration::from_millis(20));
        admission
    };
    let reason = refused(short, &host).await;
    assert!(reason.contains("expired"), "{reason}");
    assert!(host.connected().borrow().is_empty());
    assert_eq!(
        host.admission().refusals().into_iter().filter(|(_, count)| *count > 0).map(|(why, _)| why).collect::<Vec<_>>(),
        ["expired", "missing", "other_cluster", "other_peer"]
    );
}

#[tokio::test]
async fn who_says_nothing_after_its_key_is_dropped_in_time() {
    use libp2p::core::upgrade::OutboundConnectionUpgrade as _;
    use tokio_util::compat::TokioAsyncReadCompatExt as _;
    let (host, _inbox) = started();
    let port = host.listeners()[0].iter().find_map(|part| match part {
        multiaddr::Protocol::Tcp(port) => Some(port),
        _ => None,
    });
    let socket = tokio::net::TcpStream::connect(("127.0.0.1", port.expect("a port"))).await.expect("connected");
    let begun = Instant::now();
    let tls = crate::tls::Tls::new(&Keypair::generate_ed25519()).expect("a key");
    let mut socket = socket.compat();
    // As the negotiation before TLS goes, then TLS, then nothing.
    let hello = b"\x13/multistream/1.0.0\n\x0b/tls/1.0.0\n";
    socket.write_all(hello).await.expect("sent");
    let mut echo = vec![0; hello.len()];
    socket.read_exact(&mut echo).await.expect("agreed");
    let (_, mut stream) = tls.upgrade_outbound(socket, "/tls/1.0.0").await.expect("encrypted");
    let mut rest = Vec::new();
    let ended = timeout(WITHIN, stream.read_to_end(&mut rest)).await;
    assert!(ended.is_ok() && begun.elapsed() < Duration::from_secs(6), "after {:?}", begun.elapsed());
}

#[tokio::test]
async fn half_open_handshakes_keep_no_member_out() {
    let (host, _inbox) = started();
    let port = host.listeners()[0].iter().find_map(|part| match part {
        multiaddr::Protocol::Tcp(port) => Some(port),
        _ => None,
    });
    let to = std::net::SocketAddr::from(([127, 0, 0, 1], port.expect("a port")));
    // Six addresses, and many more handshakes than there is room for. Each says something, but not who it is.
    let half_open = async |last: u8| {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind(std::net::SocketAddr::from(([127, 0, 0, last], 0))).expect("bound");
        let mut stream = socket.connect(to).await.expect("connected");
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"\x13").await.expect("sent");
        stream
    };
    let flood = join_all((0..600).map(|number| half_open(2 + (number % 6) as u8))).await;
    let begun = Instant::now();
    let (member, _member_inbox) = started();
    connect(&member, &host).await;
    assert!(begun.elapsed() < crate::connection::INBOUND_SETUP_TIMEOUT, "it did not wait for them to time out");
    drop(flood);
}

#[tokio::test]
async fn each_protocol_is_for_its_roles() {
    let (host, _inbox) = started();
    let (node, _node_inbox) = start(config_of([Role::Node])).expect("started");
    let (scheduler, _scheduler_inbox) = start(config_of([Role::Scheduler])).expect("started");
    connect(&node, &host).await;
    connect(&scheduler, &host).await;
    let asked = node.request::<NotifyProtocol>(host.peer_id(), &notify::Request::NewEpoch(7), WITHIN).await;
    assert!(
        matches!(&asked, Err(RequestError::Refused { reason }) if reason.contains("is for scheduler")),
        "{asked:?}"
    );
    let mut stream = scheduler.open_stream(host.peer_id(), PIECE, WITHIN).await.expect("negotiated");
    let mut byte = [0];
    let read = timeout(WITHIN, stream.read(&mut byte)).await.expect("at once");
    assert!(!matches!(read, Ok(1..)), "closed");
}

#[tokio::test]
async fn who_is_revoked_is_out_and_stays_out() {
    let ((left, _left_inbox), (right, _right_inbox)) = pair().await;
    let (cluster, settings) = (ClusterId::of_root(&testing::root().public()), Default::default());
    let revoked = vec![config::Revocation { peer: left.peer_id(), at: UnixMillis(0) }];
    let issued = SystemTime::now().into();
    right.admission().follow(&config::Configuration {
        cluster,
        epoch: 2,
        issued,
        settings,
        revoked,
        roots: Roots::of(cluster),
    });
    let mut connected = left.connected();
    timeout(Duration::from_secs(5), connected.wait_for(|peers| peers.is_empty())).await.expect("out").expect("lives");
    let error = left.connect(right.peer_id(), right.listeners(), WITHIN).await.expect_err("back");
    assert!(error.to_string().contains("revoked"), "{error}");
}

#[tokio::test]
async fn an_expired_member_is_out_and_a_renewed_one_stays() {
    let short = |keypair: &Keypair| {
        let (now, lifetime) = (SystemTime::now().into(), Duration::from_secs(2));
        let issuer = Root::founding(testing::root()).certify(Keypair::generate_ed25519(), now, 100 * lifetime);
        Admission::issued(&issuer.expect("certified"), keypair.public().to_peer_id(), [Role::Node], lifetime)
    };
    let (host, _inbox) = started();
    let begin = || {
        let keypair = Keypair::generate_ed25519();
        let admission = short(&keypair).expect("issued");
        let member = start(NetworkConfig { admission, keypair: keypair.clone(), ..config() }).expect("started");
        (keypair, member)
    };
    let ((_, (lapsing, _one)), (keypair, (renewing, _other))) = (begin(), begin());
    connect(&lapsing, &host).await;
    connect(&renewing, &host).await;
    let renewed = testing::member(&keypair).own().expect("shown");
    host.admission().judge(renewing.peer_id(), &renewed).expect("genuine");
    let mut connected = host.connected();
    let gone = connected.wait_for(|peers| !peers.contains_key(&lapsing.peer_id()));
    drop(timeout(WITHIN, gone).await.expect("out").expect("lives"));
    assert!(host.connected().borrow().contains_key(&renewing.peer_id()));
}

#[tokio::test]
async fn ask_and_answer() {
    let ((left, _left_inbox), (right, mut inbox)) = pair().await;
    let asker = left.peer_id();
    let server = tokio::spawn(async move {
        let inbound = inbox.notify.recv().await.expect("asked");
        assert_eq!(inbound.peer(), asker);
        assert_eq!(inbound.decode(), Ok(notify::Request::NewEpoch(7)));
        inbound.respond(notify::Response { held: true });
        inbox.notify.recv().await.expect("asked").busy(Duration::from_secs(1));
        drop(inbox.notify.recv().await.expect("asked"));
        inbox
    });
    let ask = || left.request::<NotifyProtocol>(right.peer_id(), &notify::Request::NewEpoch(7), WITHIN);
    assert_eq!(ask().await, Ok(notify::Response { held: true }));
    assert_eq!(ask().await, Err(RequestError::Busy { retry_after: Duration::from_secs(1) }));
    assert!(matches!(ask().await, Err(RequestError::Refused { .. })));
    drop(server.await.expect("served"));
    assert!(matches!(ask().await, Err(RequestError::Refused { .. })), "a dropped inbox refuses");
}

#[tokio::test]
async fn the_callers_deadline_counts() {
    let ((left, _left_inbox), (right, _inbox)) = pair().await;
    let within = Duration::from_millis(200);
    let asked = Instant::now();
    let answer = left.request::<NotifyProtocol>(right.peer_id(), &notify::Request::NewEpoch(7), within).await;
    assert_eq!(answer, Err(RequestError::Timeout));
    assert!(asked.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn unconnected_and_unserved_fail_at_once() {
    let ((left, _left_inbox), (right, _inbox)) = pair().await;
    let stranger = Keypair::generate_ed25519().public().to_peer_id();
    let answer = left.request::<NotifyProtocol>(stranger, &notify::Request::NewEpoch(7), WITHIN).await;
    assert!(matches!(answer, Err(RequestError::Unreachable { .. })), "{answer:?}");
    assert_eq!(left.open_stream(stranger, PIECE, WITHIN).await.err(), Some(OpenError::NotConnected));
    let unknown = StreamProtocol::new("/damselfly/unknown/1");
    let error = left.open_stream(right.peer_id(), unknown.clone(), WITHIN).await.err();
    assert_eq!(error, Some(OpenError::Unsupported { protocol: unknown }));

    let (mute, _mute_inbox) = start(NetworkConfig { serves: Serves::default(), ..config() }).expect("started");
    connect(&left, &mute).await;
    let answer = left
        .request::<ConfigProtocol>(mute.peer_id(), &config::Request { known_epoch: 0, renewed: None }, WITHIN)
        .await;
    assert!(matches!(answer, Err(RequestError::Protocol { .. })), "not served: {answer:?}");
}

#[tokio::test]
async fn another_peer_at_the_address_is_refused() {
    let ((left, _left_inbox), (right, _inbox)) = (started(), started());
    let expected = Keypair::generate_ed25519().public().to_peer_id();
    let address = right.listeners().remove(0).iter().take(2).collect::<Multiaddr>();
    let error = left.connect(expected, vec![address], WITHIN).await.expect_err("wrong peer");
    assert!(matches!(&error, ConnectError::WrongPeer { obtained, .. } if *obtained == right.peer_id()), "{error:?}");
    assert!(left.connected().borrow().is_empty());
}

#[tokio::test]
async fn a_failed_dial_says_why_in_one_line() {
    let (left, _left_inbox) = started();
    let free = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("bound").local_addr().expect("an address").port();
    let nobody: Multiaddr = format!("/ip4/127.0.0.1/tcp/{free}").parse().expect("an address");
    let error = left.connect(PeerId::random(), vec![nobody], WITHIN).await.expect_err("nobody listens");
    assert_eq!(error.to_string(), "dial failed: Connection refused (os error 111)");
}

#[tokio::test]
async fn the_dial_policy_refuses_loopback_even_by_name() {
    let (right, _inbox) = started();
    let (left, _left_inbox) =
        start(NetworkConfig { dial: crate::dialing::DialPolicy::routable(), ..config() }).expect("started");
    let error = left.connect(right.peer_id(), right.listeners(), WITHIN).await.expect_err("refused");
    assert!(matches!(error, ConnectError::NoAddress { .. }), "{error:?}");
    let listeners = right.listeners();
    let port = listeners[0].iter().nth(1).expect("port");
    let by_name = "/dns4/localhost".parse::<Multiaddr>().expect("address").with(port);
    let error = left.connect(right.peer_id(), vec![by_name.clone()], WITHIN).await.expect_err("refused");
    assert!(matches!(error, ConnectError::Failed { .. }), "{error:?}");
    assert!(left.connect(right.peer_id(), vec![], WITHIN).await.is_err());
    // Names of hosts are not even resolved.
    let (local, _local_inbox) = started();
    let error = local.connect_host(right.peer_id(), vec![by_name.clone()], WITHIN).await.expect_err("refused");
    assert!(matches!(&error, ConnectError::NoAddress { reason } if reason.contains("[dial]")), "{error:?}");
    local.connect(right.peer_id(), vec![by_name], WITHIN).await.expect("of a scheduler it is dialled");
}

#[tokio::test]
async fn concurrent_connects_share_a_dial_and_views_follow() {
    let ((left, mut left_inbox), (right, mut right_inbox)) = (started(), started());
    join_all((0..20).map(|_| connect(&left, &right))).await;
    assert_eq!(left_inbox.peers.recv().await, Some(PeerEvent::Connected(right.peer_id())));
    assert_eq!(right_inbox.peers.recv().await, Some(PeerEvent::Connected(left.peer_id())));
    assert!(left_inbox.peers.try_recv().is_err(), "one connection only");
    let remote = left.remote_address(&right.peer_id()).expect("connected");
    assert_eq!(remote.iter().take(2).collect::<Multiaddr>(), right.listeners()[0].iter().take(2).collect());
    let mut observed = left.observed();
    let observed = tokio::time::timeout(WITHIN, observed.wait_for(Option::is_some)).await.expect("identified");
    assert!(observed.expect("alive").as_ref().expect("some").to_string().starts_with("/ip4/127.0.0.1/"));

    left.disconnect(right.peer_id()).await;
    assert_eq!(left_inbox.peers.recv().await, Some(PeerEvent::Disconnected(right.peer_id())));
    assert_eq!(right_inbox.peers.recv().await, Some(PeerEvent::Disconnected(left.peer_id())));
    assert!(!left.is_connected(&right.peer_id()));
    connect(&left, &right).await;
}

#[tokio::test]
async fn shutdown_ends_both_sides() {
    let ((left, mut left_inbox), (right, mut right_inbox)) = pair().await;
    // The dialler is ready first: without this the other side may never have been connected.
    assert_eq!(right_inbox.peers.recv().await, Some(PeerEvent::Connected(left.peer_id())));
    left.shutdown().await;
    while left_inbox.peers.recv().await.is_some() {}
    let gone = tokio::time::timeout(WITHIN, right_inbox.peers.recv()).await.expect("noticed");
    assert_eq!(gone, Some(PeerEvent::Disconnected(left.peer_id())));
    assert_eq!(left.connect(right.peer_id(), right.listeners(), WITHIN).await, Err(ConnectError::Shutdown));
}

#[tokio::test]
async fn an_address_in_use_is_a_reason() {
    let (left, _inbox) = started();
    let listen = vec![left.listeners()[0].iter().take(2).collect()];
    let error = start(NetworkConfig { listen, ..config() }).expect_err("in use");
    assert!(matches!(error, StartError::Listen { .. }), "{error}");
}

/// Opens `n` streams at once and returns how many are echoed and how many were closed.
async fn burst(from: &Network, to: PeerId, n: usize) -> (Vec<Stream>, usize) {
    let opened = join_all((0..n).map(|_| async {
        let mut stream = from.open_stream(to, PIECE, WITHIN).await.ok()?;
        let mut echo = [0; 5];
        stream.write_all(b"hello").await.ok()?;
        stream.flush().await.ok()?;
        stream.read_exact(&mut echo).await.ok()?;
        Some(stream)
    }));
    let opened = tokio::time::timeout(WITHIN, opened).await.expect("nothing hangs");
    let streams = opened.into_iter().flatten().collect::<Vec<_>>();
    let closed = n - streams.len();
    (streams, closed)
}

fn echo(mut inbox: Inbox) {
    tokio::spawn(async move {
        while let Some((_, mut stream)) = inbox.piece.recv().await {
            tokio::spawn(async move {
                let mut buffer = [0; 5];
                while stream.read_exact(&mut buffer).await.is_ok() {
                    if stream.write_all(&buffer).await.is_err() || stream.flush().await.is_err() {
                        break;
                    }
                }
            });
        }
    });
}

#[tokio::test]
async fn a_burst_of_64_streams_loses_none() {
    let ((left, _left), (right, inbox), (third, _third)) = (started(), started(), started());
    connect(&left, &right).await;
    connect(&third, &right).await;
    echo(inbox);
    let bursts = [burst(&left, right.peer_id(), 32), burst(&third, right.peer_id(), 32)];
    for (streams, closed) in join_all(bursts).await {
        assert_eq!((streams.len(), closed), (32, 0));
    }
}

#[tokio::test]
async fn streams_above_the_cap_are_closed_at_once_and_come_back() {
    let limits = ConnectionLimits { streams_per_peer: 1000, ..ConnectionLimits::default() };
    let (left, _left_inbox) = start(NetworkConfig { limits, ..config() }).expect("started");
    let (right, inbox) = started();
    connect(&left, &right).await;
    echo(inbox);
    let (streams, closed) = burst(&left, right.peer_id(), 64).await;
    assert_eq!((streams.len(), closed), (32, 32));
    drop(streams);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let (streams, closed) = burst(&left, right.peer_id(), 32).await;
    assert_eq!((streams.len(), closed), (32, 0), "dropped streams make room");
}

#[tokio::test]
async fn our_own_cap_is_an_explicit_error() {
    let ((left, _left_inbox), (right, inbox)) = pair().await;
    echo(inbox);
    let (streams, closed) = burst(&left, right.peer_id(), 32).await;
    assert_eq!((streams.len(), closed), (32, 0));
    assert_eq!(left.open_stream(right.peer_id(), HAVE, WITHIN).await.err(), Some(OpenError::Busy));
}

#[tokio::test]
async fn streams_nobody_takes_end() {
    let ((left, _left_inbox), (right, inbox)) = pair().await;
    drop(inbox);
    let (streams, closed) = burst(&left, right.peer_id(), 1).await;
    assert_eq!((streams.len(), closed), (0, 1));
}

#[tokio::test]
async fn a_large_transfer_arrives_as_it_was() {
    const BYTES: usize = 64 << 20;
    let ((left, _left_inbox), (right, mut inbox)) = pair().await;
    let sent = (0..BYTES).map(|n| (n ^ (n >> 9)) as u8).collect::<Arc<[u8]>>();
    let mut stream = left.open_stream(right.peer_id(), PIECE, WITHIN).await.expect("opened");
    let sending = sent.clone();
    let sender = tokio::spawn(async move {
        stream.write_all(&sending).await.expect("written");
        stream.close().await.expect("closed");
    });
    let (peer, mut stream) = inbox.piece.recv().await.expect("opened");
    assert_eq!(peer, left.peer_id());
    let mut got = Vec::new();
    stream.read_to_end(&mut got).await.expect("read");
    assert!(got[..] == sent[..], "{} bytes of {BYTES}", got.len());
    sender.await.expect("sent");
}

#[tokio::test]
async fn gossip_goes_on_only_when_accepted() {
    let ((first, mut first_inbox), (hub, mut hub_inbox), (last, mut last_inbox)) = (started(), started(), started());
    connect(&first, &hub).await;
    connect(&last, &hub).await;
    hub.set_explicit_peers(vec![first.peer_id(), last.peer_id()]).await;
    for side in [&first, &last] {
        side.set_explicit_peers(vec![hub.peer_id()]).await;
    }
    // A neighbour whose subscription has not arrived yet misses messages.
    publish(&hub, b"here").await;
    let heard = async { join_all([first_inbox.gossip.recv(), last_inbox.gossip.recv()]).await };
    tokio::time::timeout(WITHIN, heard).await.expect("both subscribed");

    let author = first.peer_id();
    publish(&first, b"bad").await;
    let gossip = hub_inbox.gossip.recv().await.expect("heard");
    assert_eq!((&gossip.bytes[..], gossip.author, gossip.from), (&b"bad"[..], author, author));
    gossip.reject();

    publish(&first, b"good").await;
    hub_inbox.gossip.recv().await.expect("heard").accept();
    let gossip = tokio::time::timeout(WITHIN, last_inbox.gossip.recv()).await.expect("passed on").expect("heard");
    // Not the rejected one.
    assert_eq!((&gossip.bytes[..], gossip.author, gossip.from), (&b"good"[..], author, hub.peer_id()));

    assert_eq!(first.publish(vec![0; 1 << 20]).await, Err(PublishError::TooLarge));
    let (alone, _inbox) = start(NetworkConfig { topic: None, ..config() }).expect("started");
    assert_eq!(alone.publish(b"x".to_vec()).await, Err(PublishError::NoTopic));
}

#[tokio::test]
async fn who_gossips_what_is_rejected_is_disconnected_and_heard_no_more() {
    let ((hub, mut hub_inbox), (bad, _bad_inbox)) = (started(), started());
    connect(&bad, &hub).await;
    hub.set_explicit_peers(vec![bad.peer_id()]).await;
    bad.set_explicit_peers(vec![hub.peer_id()]).await;
    publish(&bad, b"0").await;
    hub_inbox.gossip.recv().await.expect("heard").reject();
    for number in 1..gossip::REJECTED_MAX {
        bad.publish(vec![number as u8]).await.expect("published");
        hub_inbox.gossip.recv().await.expect("heard").reject();
    }
    let mut connected = hub.connected();
    let gone = timeout(WITHIN, connected.wait_for(|peers| peers.is_empty())).await;
    drop(gone.expect("disconnected").expect("alive"));
    connect(&bad, &hub).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    // It is told of no subscription, so it may have nobody to publish to.
    drop(bad.publish(b"again".to_vec()).await);
    assert!(timeout(Duration::from_secs(1), hub_inbox.gossip.recv()).await.is_err(), "what it says is not looked at");
}

#[tokio::test]
async fn only_managers_author_gossip() {
    let (hub, mut hub_inbox) = started();
    let (node, _node_inbox) = start(config_of([Role::Node])).expect("started");
    let (manager, _manager_inbox) = start(config_of([Role::Manager])).expect("started");
    for side in [&node, &manager] {
        connect(side, &hub).await;
        side.set_explicit_peers(vec![hub.peer_id()]).await;
    }
    hub.set_explicit_peers(vec![node.peer_id(), manager.peer_id()]).await;
    publish(&node, b"forged").await;
    let rejected = || hub.gossip_counts().received.get("rejected").copied();
    let counted = async {
        while rejected() != Some(1) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(WITHIN, counted).await.expect("rejected");
    publish(&manager, b"signed").await;
    let gossip = timeout(WITHIN, hub_inbox.gossip.recv()).await.expect("in time").expect("heard");
    assert_eq!((&gossip.bytes[..], gossip.author), (&b"signed"[..], manager.peer_id()));
}

/// Publishes as soon as the subscriptions of the neighbours have arrived.
async fn publish(network: &Network, bytes: &[u8]) {
    tokio::time::sleep(Duration::from_millis(500)).await;
    for _ in 0..100 {
        match network.publish(bytes.to_vec()).await {
            Err(PublishError::NoPeers) => tokio::time::sleep(Duration::from_millis(50)).await,
            result => return result.expect("published"),
        }
    }
    panic!("nobody subscribed");
}

/// Memory to memory over one stream, for comparison with the table in docs: run with --release, --nocapture.
#[tokio::test(flavor = "current_thread")]
#[ignore = "a measurement"]
async fn throughput() {
    const CHUNK: usize = 1 << 20;
    const CHUNKS: usize = 4096;
    let ((left, _left_inbox), (right, mut inbox)) = pair().await;
    let mut stream = left.open_stream(right.peer_id(), PIECE, WITHIN).await.expect("opened");
    let sender = std::thread::spawn(move || {
        futures::executor::block_on(async move {
            let chunk = vec![7; CHUNK];
            for _ in 0..CHUNKS {
                stream.write_all(&chunk).await.expect("written");
            }
            stream.close().await.expect("closed");
        });
    });
    let (_, mut stream) = inbox.piece.recv().await.expect("opened");
    let mut chunk = vec![0; CHUNK];
    let begin = Instant::now();
    for n in 0..CHUNKS {
        stream.read_exact(&mut chunk).await.expect("read");
        if (n + 1) % (CHUNKS / 8) == 0 {
            let megabytes = ((n + 1) * CHUNK) as f64 / 1e6;
            println!("{megabytes:.0} MB, {:.0} MB/s so far", megabytes / begin.elapsed().as_secs_f64());
        }
    }
    sender.join().expect("sent");
}
