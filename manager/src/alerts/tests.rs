//! Each alert with what makes it and what does not.

use std::sync::Arc;

use damselfly_messages::{
    config::{Acceptance, Configuration, Revocation, SchedulerEntry, Settings, Verdict},
    id::ClusterId,
    info::{HostState, HostsAnswer, Share},
    membership::Root,
};
use libp2p::identity::Keypair;

use super::*;
use crate::rates::{Meter, Reported};

const DOCUMENT: &str = include_str!("../../../docs/alerts.md");
const EPOCH: u64 = 3;
const TIME: UnixMillis = UnixMillis(1_000_000_000_000);
const LIFE_MS: u64 = 400_000;

fn peer(seed: u8) -> PeerId {
    Keypair::ed25519_from_bytes([seed; 32]).expect("32 bytes").public().to_peer_id()
}

/// Two schedulers, 1 and 2, and three hosts, 11 to 13; all is well.
struct World {
    cluster_view: ClusterView,
    revoked: Vec<PeerId>,
    ring: Vec<u8>,
    is_publisher: bool,
    credentials: Vec<(PeerId, UnixMillis)>,
}

impl World {
    fn new() -> Self {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let answer = HostsAnswer { epoch: EPOCH, warm: true, version: version.clone(), ..HostsAnswer::default() };
        let host = |seed| {
            let report = HostReport { free_bytes: 10 << 30, stored_bytes: 1 << 30, ..HostReport::default() };
            let state = HostState {
                peer: peer(seed),
                epoch: EPOCH,
                version: version.clone(),
                seed: false,
                suspect: false,
                heard_ago: Duration::ZERO,
                children: 0,
                downloads: 0,
                report,
                reported_ago: Some(Duration::ZERO),
                records: 0,
                tags: Arc::default(),
            };
            let heard = Instant::now();
            let (meter, reported) = (Meter::new(heard, &state.report), Reported::new(heard, &state.report));
            (peer(seed), HostView { meter, state, heard, reported, is_up: true })
        };
        let schedulers = [1, 2].map(|seed| (peer(seed), Some(answer.clone()))).into();
        let cluster_view = ClusterView { schedulers, hosts: [11, 12, 13].map(host).into(), ..ClusterView::default() };
        Self { cluster_view, revoked: Vec::new(), ring: vec![1, 2], is_publisher: true, credentials: Vec::new() }
    }

    fn host(&mut self, seed: u8) -> &mut HostView {
        self.cluster_view.hosts.get_mut(&peer(seed)).expect("a host")
    }

    fn scheduler(&mut self, index: usize) -> &mut Option<HostsAnswer> {
        &mut self.cluster_view.schedulers[index].1
    }

    fn share(&mut self, scheduler: usize, what: &str, used: u64, max: u64) {
        let answer = self.scheduler(scheduler).as_mut().expect("an answer");
        answer.shares.push(Share { what: what.to_owned(), used, max });
    }

    fn accepted(&self) -> Arc<Accepted> {
        let root = Keypair::ed25519_from_bytes([9; 32]).expect("32 bytes");
        let cluster = ClusterId::of_root(&root.public());
        let entry = |seed: &u8| {
            let text = serde_json::json!({ "peer_id": peer(*seed).to_string(), "addresses": ["/ip4/127.0.0.1/tcp/1"] });
            serde_json::from_value::<SchedulerEntry>(text).expect("an entry")
        };
        let schedulers = self.ring.iter().map(entry).collect();
        let settings = Settings { schedulers, credential_ms: LIFE_MS, ..Settings::default() };
        let revoked = self.revoked.iter().map(|peer| Revocation { peer: *peer, at: TIME }).collect();
        let root = Root::founding(root);
        let roots = root.roots().expect("genuine");
        let issuer = root.certify(Keypair::generate_ed25519(), UnixMillis(0), Duration::MAX).expect("certified");
        let configuration = Configuration { cluster, epoch: EPOCH, issued: TIME, settings, revoked, roots };
        let signed = configuration.sign(&issuer).expect("valid");
        match Acceptance::new(cluster).offer(&signed).expect("accepted") {
            Verdict::Newer(accepted) => accepted,
            Verdict::Known => panic!("it is the first"),
        }
    }

    /// Codes and subjects of what is told at `now`.
    fn look(&self, memory: &mut Memory, now: Instant) -> Vec<(&'static str, Severity, Option<String>)> {
        let accepted = self.accepted();
        let facts = Facts {
            cluster_view: &self.cluster_view,
            accepted: &accepted,
            is_publisher: self.is_publisher,
            credentials: &self.credentials,
            time: TIME,
        };
        let alerts = memory.look(&facts, now);
        for Alert { code, severity, message, .. } in &alerts {
            let documented = format!("| `{code}` | {} |", format!("{severity:?}").to_lowercase());
            assert!(!message.is_empty() && DOCUMENT.contains(&documented), "{documented}");
        }
        alerts.into_iter().map(|alert| (alert.code, alert.severity, alert.subject)).collect()
    }
}

#[test]
fn each_state_has_its_alert() {
    use Severity::{Critical, Info, Warning};
    type Change = fn(&mut World);
    type Expected = &'static [(&'static str, Severity, Option<u8>)];
    let table: [(&str, Change, Expected); 23] = [
        ("all is well", |_| (), &[]),
        ("a host is down", |world| world.host(11).is_up = false, &[("host_down", Warning, Some(11))]),
        (
            "a host that was put out is down",
            |world| {
                world.host(11).is_up = false;
                world.revoked.push(peer(11));
            },
            &[],
        ),
        ("a scheduler is down", |world| *world.scheduler(0) = None, &[("scheduler_down", Critical, Some(1))]),
        (
            "a scheduler out of the ring is down",
            |world| {
                *world.scheduler(0) = None;
                world.ring = vec![2];
            },
            &[("scheduler_away", Info, Some(1))],
        ),
        (
            "all are down",
            |world| {
                *world.scheduler(0) = None;
                *world.scheduler(1) = None;
            },
            &[("no_scheduler", Critical, None)],
        ),
        ("the ring is empty", |world| world.ring.clear(), &[("no_scheduler", Critical, None)]),
        (
            "less than a twentieth is free",
            |world| {
                world.host(12).state.report.stored_bytes = 100 << 30;
                world.host(12).state.report.free_bytes = 5 << 30;
            },
            &[("disk_low", Warning, Some(12))],
        ),
        (
            "a twentieth is free",
            |world| {
                world.host(12).state.report.stored_bytes = 95 << 30;
                world.host(12).state.report.free_bytes = 5 << 30;
            },
            &[],
        ),
        ("nothing is free", |world| world.host(12).state.report.free_bytes = 0, &[("disk_full", Critical, Some(12))]),
        ("it has not told anything", |world| world.host(12).state.report = HostReport::default(), &[]),
        (
            "a disk of a host that is down is not what is wrong",
            |world| {
                world.host(12).is_up = false;
                world.host(12).state.report.free_bytes = 0;
            },
            &[("host_down", Warning, Some(12))],
        ),
        (
            "it should have been renewed",
            |world| world.credentials.push((peer(13), UnixMillis(TIME.0 + LIFE_MS / 4 - 1))),
            &[("credential_ends", Warning, Some(13))],
        ),
        ("it is renewed in time", |world| world.credentials.push((peer(13), UnixMillis(TIME.0 + LIFE_MS / 4))), &[]),
        (
            "it has ended",
            |world| world.credentials.push((peer(2), UnixMillis(TIME.0 - 1))),
            &[("credential_ended", Critical, Some(2))],
        ),
        ("it has left", |world| world.credentials.push((peer(77), UnixMillis(TIME.0 - 1))), &[]),
        (
            "a host has another version",
            |world| world.host(11).state.version = "9".into(),
            &[("versions_differ", Info, None)],
        ),
        (
            "a scheduler has as many hosts as it can keep",
            |world| world.share(0, "hosts", 100, 100),
            &[("scheduler_full", Critical, Some(1))],
        ),
        (
            "a scheduler is nearly full",
            |world| world.share(1, "bytes", 90, 100),
            &[("scheduler_full", Warning, Some(2))],
        ),
        (
            "a scheduler forgets old deletes",
            |world| world.share(0, "tombstones", 100, 100),
            &[("scheduler_full", Warning, Some(1))],
        ),
        (
            "there is room",
            |world| {
                world.share(0, "tombstones", 99, 100);
                world.share(0, "bytes", 89, 100);
                world.share(0, "nothing", 0, 0);
            },
            &[],
        ),
        ("another manager publishes", |world| world.is_publisher = false, &[("not_publisher", Info, None)]),
        (
            "the worst comes first",
            |world| {
                world.is_publisher = false;
                world.host(11).is_up = false;
                *world.scheduler(1) = None;
            },
            &[("scheduler_down", Critical, Some(2)), ("host_down", Warning, Some(11)), ("not_publisher", Info, None)],
        ),
    ];
    for (why, change, expected) in table {
        let mut world = World::new();
        change(&mut world);
        let told = world.look(&mut Memory::default(), Instant::now());
        let expected: Vec<_> = expected
            .iter()
            .map(|(code, severity, subject)| (*code, *severity, subject.map(|seed| peer(seed).to_string())))
            .collect();
        assert_eq!(told, expected, "{why}");
    }
}

#[test]
fn many_of_a_kind_are_one_alert() {
    let mut world = World::new();
    let one = world.host(11).clone();
    for seed in 20..30 {
        world.cluster_view.hosts.insert(peer(seed), HostView { is_up: false, ..one.clone() });
    }
    let told = world.look(&mut Memory::default(), Instant::now());
    assert_eq!(told, [("host_down", Severity::Warning, None)]);
}

#[test]
fn what_passes_by_itself_is_told_when_it_does_not() {
    let (mut world, mut memory, begin) = (World::new(), Memory::default(), Instant::now());
    let after = |seconds| begin + Duration::from_secs(seconds);
    let codes = |told: Vec<(&'static str, Severity, Option<String>)>| -> Vec<_> {
        told.into_iter().map(|(code, ..)| code).collect()
    };
    world.host(11).state.epoch = EPOCH - 1;
    world.scheduler(0).as_mut().expect("an answer").warm = false;
    assert_eq!(codes(world.look(&mut memory, after(0))), [""; 0]);
    assert_eq!(codes(world.look(&mut memory, after(10))), [""; 0]);
    assert_eq!(codes(world.look(&mut memory, after(11))), ["roll_out_stuck"]);
    assert_eq!(codes(world.look(&mut memory, after(31))), ["scheduler_cold", "roll_out_stuck"]);
    world.host(11).state.epoch = EPOCH;
    world.scheduler(0).as_mut().expect("an answer").warm = true;
    assert_eq!(codes(world.look(&mut memory, after(32))), [""; 0]);
    world.host(11).state.epoch = EPOCH - 1;
    world.scheduler(0).as_mut().expect("an answer").warm = false;
    assert_eq!(codes(world.look(&mut memory, after(62))), [""; 0], "the time begins anew");
}

#[test]
fn a_host_that_was_down_when_the_manager_started_is_missed() {
    let (mut world, mut memory, begin) = (World::new(), Memory::default(), Instant::now());
    let after = |seconds| begin + Duration::from_secs(seconds);
    world.cluster_view.absent.insert(peer(40));
    assert_eq!(world.look(&mut memory, after(0)), [], "schedulers may not have heard of it yet");
    assert_eq!(world.look(&mut memory, after(30)), []);
    let down = [("host_down", Severity::Warning, Some(peer(40).to_string()))];
    assert_eq!(world.look(&mut memory, after(31)), down);
    for index in [0, 1] {
        world.scheduler(index).as_mut().expect("an answer").warm = false;
    }
    assert_eq!(world.look(&mut memory, after(32)), [], "schedulers that have just started do not know");
    for index in [0, 1] {
        world.scheduler(index).as_mut().expect("an answer").warm = true;
    }
    assert_eq!(world.look(&mut memory, after(40)), [], "the time begins again");
    world.cluster_view.absent.clear();
    assert_eq!(world.look(&mut memory, after(80)), [], "it is back");
}

#[test]
fn failures_count_when_they_rise() {
    let (mut world, mut memory, begin) = (World::new(), Memory::default(), Instant::now());
    let mut look = |failures, seconds| {
        world.host(11).state.report.failures = failures;
        world.look(&mut memory, begin + Duration::from_secs(seconds))
    };
    let rising = [("failures_rising", Severity::Warning, Some(peer(11).to_string()))];
    assert_eq!(look(1_000, 0), [], "what was before nobody knows");
    assert_eq!(look(1_009, 30), [], "a few");
    assert_eq!(look(1_010, 40), rising);
    assert_eq!(look(1_010, 61), rising, "still within the last marks");
    assert_eq!(look(1_010, 122), [], "no more since");
    assert_eq!(look(3, 130), [], "it has started anew");
}
