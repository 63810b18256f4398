//! The scheduler as a program, asked by a host over loopback.

use std::{
    net::SocketAddr,
    path::Path,
    time::{Duration, SystemTime},
};

use damselfly_messages::{
    config::{Configuration, SchedulerEntry, Settings},
    id::{ClusterId, ContentId, TaskId},
    info::{self, HostReport},
    membership::{self, Issuer},
    name::Name,
    notify,
    record::{Announcement, Binding, Holding, Record, Tombstone},
    scheduler::{
        AnnounceHost, AnnounceTask, BucketPart, DeleteTask, Outcome, RECORDS_MAX, RegisterAnswer, RegisterPeerTask,
        Request, RequestBody, ResponseBody, StatAnswer,
    },
};
use damselfly_scheduler::{config::SchedulerConfig, program::Scheduler};
use damselfly_transport::{
    admission::Admission,
    network::{Inbox, Network, NetworkConfig, Serves, start},
    program::{follower::topic, http::HttpConfig, identity, membership::Membership},
    protocol::{InfoProtocol, SchedulerProtocol},
};
use libp2p::{Multiaddr, identity::Keypair};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{sleep, timeout},
};

const SOON: Duration = Duration::from_secs(10);

fn root() -> Keypair {
    Keypair::ed25519_from_bytes([9; 32]).expect("32 bytes")
}

fn loopback() -> Multiaddr {
    "/ip4/127.0.0.1/tcp/0".parse().expect("an address")
}

const DAY: Duration = Duration::from_secs(24 * 3600);

fn issuer() -> Issuer {
    membership::Root::founding(root())
        .certify(Keypair::generate_ed25519(), SystemTime::now().into(), DAY)
        .expect("certified")
}

fn member(serves: Serves) -> (Network, Inbox) {
    let keypair = Keypair::generate_ed25519();
    start(NetworkConfig {
        admission: Admission::issued(&issuer(), keypair.public().to_peer_id(), membership::Role::ALL, DAY)
            .expect("issued"),
        keypair,
        listen: vec![loopback()],
        serves,
        topic: Some(topic(&ClusterId::of_root(&root().public()))),
        limits: Default::default(),
        dial: damselfly_transport::dialing::DialPolicy::local(),
    })
    .expect("started")
}

/// Asks until the answer is what the test waits for: the scheduler has to learn its configuration, and to warm up.
async fn ask(
    host: &Network,
    scheduler: &Network,
    body: RequestBody,
    done: impl Fn(&ResponseBody) -> bool,
) -> ResponseBody {
    let request = Request::new(1, body);
    let asking = async {
        loop {
            let answer = host.request::<SchedulerProtocol>(scheduler.peer_id(), &request, SOON).await;
            match answer {
                Ok(response) if done(&response.body) => return response.body,
                Ok(_) | Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    };
    timeout(SOON, asking).await.expect("answered in time")
}

fn name() -> Name {
    Name::parse("model", "v1").expect("a name")
}

fn held(content: ContentId) -> RequestBody {
    let binding = Binding { content, content_bytes: 5, generation: 1, accepted: None, expires: None };
    let announcement = Announcement { name: name(), binding, holding: Holding::Complete };
    RequestBody::AnnounceTask(AnnounceTask { records: vec![Record::Held(announcement)], bucket: None })
}

async fn metrics(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answered");
    answer
}

/// A scheduler that is alone in its ring.
async fn scheduler(folder: &Path) -> Scheduler {
    let cluster = ClusterId::of_root(&root().public());
    let config = SchedulerConfig {
        listen: vec![loopback()],
        data_dir: folder.join("data"),
        allow_loopback: true,
        dial: damselfly_transport::dialing::DialConfig::default(),
        http: HttpConfig::loopback(0),
        ..SchedulerConfig::default()
    };
    identity::prepare_data_dir(&config.data_dir).expect("made");
    let key = identity::load_or_create(&config.key_file()).expect("made");
    let entry = SchedulerEntry::active(key.public().to_peer_id(), vec![loopback()]);
    let settings = Settings { schedulers: vec![entry], heartbeat_ms: 100, lease_ms: 5_000, ..Settings::default() };
    let configuration = Configuration {
        cluster,
        epoch: 1,
        issued: SystemTime::now().into(),
        settings,
        revoked: Vec::new(),
        roots: membership::Roots::of(cluster),
    };
    let signed = configuration.sign(&issuer()).expect("signed");
    let granted = (membership::Roles::just(membership::Role::Scheduler), &membership::Tags::new());
    let issued = issuer().issue(key.public().to_peer_id(), granted, 1, (SystemTime::now().into(), DAY));
    Membership::remember(&config.data_dir, (cluster, &[]), &issued.expect("issued").0, &signed).expect("remembered");

    Scheduler::start(config, None).await.expect("started")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_announces_another_finds_and_deletes() {
    let folder = tempfile::tempdir().expect("a folder");
    let scheduler = scheduler(folder.path()).await;
    let network = scheduler.network();
    let (holder, mut heard) = member(Serves { notify: true, ..Serves::default() });
    let (asker, _inbox) = member(Serves::default());
    for host in [&holder, &asker] {
        host.connect(network.peer_id(), network.listeners(), SOON).await.expect("connected");
    }

    let beat = AnnounceHost {
        report: HostReport { contents: 3, ..HostReport::default() },
        addresses: vec!["/ip4/0.0.0.0/tcp/4511".parse().expect("an address")],
        seed: false,
        tags: Default::default(),
        buckets: None,
        version: "1".into(),
    };
    let beat = RequestBody::AnnounceHost(Box::new(beat));
    ask(&holder, network, beat, |body| matches!(body, ResponseBody::Host(answer) if answer.warm)).await;
    let content = ContentId::of(b"bytes");
    let accepted =
        |body: &ResponseBody| matches!(body, ResponseBody::Announced(all) if matches!(all[..], [Outcome::Accepted(_)]));
    ask(&holder, network, held(content), accepted).await;

    let stat = RequestBody::StatTask(name());
    let found =
        |body: &ResponseBody| matches!(body, ResponseBody::Stat(StatAnswer::Found { holders: 1, available: true, .. }));
    ask(&asker, network, stat.clone(), found).await;
    let register = RequestBody::RegisterPeerTask(RegisterPeerTask { name: name(), exclude: Vec::new() });
    let answer = ask(&asker, network, register, |body| matches!(body, ResponseBody::Registered(_))).await;
    let ResponseBody::Registered(RegisterAnswer::Found(candidates)) = answer else { panic!("{answer:?}") };
    let parent = &candidates[0].parents[0];
    assert_eq!((parent.peer, parent.complete), (holder.peer_id(), true));
    assert_eq!(parent.addresses[0].to_string(), "/ip4/127.0.0.1/tcp/4511", "where the scheduler sees it");

    let drops = tokio::spawn(async move {
        while let Some(inbound) = heard.notify.recv().await {
            if matches!(inbound.decode(), Ok(notify::Request::DropTask(_))) {
                inbound.respond(notify::Response { held: true });
            }
        }
    });
    let delete = RequestBody::DeleteTask(DeleteTask::of(name().task_id()));
    let answer = ask(&asker, network, delete, |body| matches!(body, ResponseBody::Deleted(_))).await;
    let ResponseBody::Deleted(deleted) = answer else { panic!("{answer:?}") };
    assert_eq!((deleted.dropped, deleted.unreachable), (1, 0));
    let gone = |body: &ResponseBody| matches!(body, ResponseBody::Stat(StatAnswer::Missing(missing)) if missing.deleted == deleted.tombstone);
    ask(&asker, network, stat, gone).await;
    drops.abort();

    let question = info::Request::Hosts { after: None };
    let told = asker.request::<InfoProtocol>(network.peer_id(), &question, SOON).await.expect("a manager may ask");
    let info::Response::Hosts(told) = told else { panic!("{told:?}") };
    assert!(told.items.iter().any(|host| host.peer == holder.peer_id() && host.report.contents == 3), "{told:?}");

    let metrics = metrics(scheduler.http_address()).await;
    for name in ["damselfly_build_info", "damselfly_connected_peers 2", "damselfly_configuration_epoch 1"] {
        assert!(metrics.contains(name), "{name}, which every program has, is not in {metrics}");
    }

    timeout(Duration::from_secs(5), scheduler.stop()).await.expect("it ends in time");
    assert!(folder.path().join("data/configuration.signed").exists(), "it restarts without the manager");
}

/// One member reports deletes of names that nobody has, takes them back, and reports others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_deletes_leaves_room_for_names() {
    const ROUNDS: u32 = 6;
    let folder = tempfile::tempdir().expect("a folder");
    let scheduler = scheduler(folder.path()).await;
    let network = scheduler.network();
    let (attacker, _attackers) = member(Serves::default());
    let (honest, _honests) = member(Serves::default());
    for host in [&attacker, &honest] {
        host.connect(network.peer_id(), network.listeners(), SOON).await.expect("connected");
    }
    let announced = |body: &ResponseBody| matches!(body, ResponseBody::Announced(_));
    for round in 0..ROUNDS {
        let tombstone = |number: u32| {
            let mut digest = [0; 32];
            digest[..8].copy_from_slice(&(u64::from(round) << 32 | u64::from(number)).to_le_bytes());
            let task = TaskId::from_bytes(&digest).expect("32 bytes");
            Record::Deleted(Tombstone { task, generation: 1, deleted: SystemTime::now().into() })
        };
        let records = (0..RECORDS_MAX as u32).map(tombstone).collect();
        let flood = RequestBody::AnnounceTask(AnnounceTask { records, bucket: None });
        ask(&attacker, network, flood, announced).await;
        for bucket in 0..=u8::MAX {
            let part = Some(BucketPart { bucket, first: true, last: true });
            let nothing = RequestBody::AnnounceTask(AnnounceTask { records: Vec::new(), bucket: part });
            ask(&attacker, network, nothing, announced).await;
        }
    }
    let question = info::Request::Hosts { after: None };
    let told = honest.request::<InfoProtocol>(network.peer_id(), &question, SOON).await.expect("a manager may ask");
    let info::Response::Hosts(told) = told else { panic!("{told:?}") };
    assert_eq!(told.tombstones, 0, "nothing is kept of {} false deletes", ROUNDS as usize * RECORDS_MAX);
    let share = told.shares.iter().find(|share| share.what == "tombstones");
    assert_eq!(share.map(|share| (share.used, share.max)), Some((0, 250_000)));
    let accepted =
        |body: &ResponseBody| matches!(body, ResponseBody::Announced(all) if matches!(all[..], [Outcome::Accepted(_)]));
    ask(&honest, network, held(ContentId::of(b"bytes")), accepted).await;
    timeout(Duration::from_secs(5), scheduler.stop()).await.expect("it ends in time");
}
