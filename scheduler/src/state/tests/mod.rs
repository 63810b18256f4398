//! Dialogues with the state, and a simulation of a cluster.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use damselfly_messages::{
    config::{Accepted, Configuration, SchedulerEntry, SchedulerState, Settings},
    id::{ClusterId, ContentId},
    info::{self, HostReport},
    membership::{Root, Roots},
    name::Name,
    notify,
    record::{Announcement, Binding, BucketDigests, Holding, Record, Tombstone, UnixMillis},
    scheduler::{
        AnnounceHost, AnnounceTask, BucketPart, Candidate, DeleteAnswer, DeleteTask, HostAnswer, Missing, Outcome,
        ParentFault, ParentResult, PeerResult, RegisterAnswer, RegisterPeerTask, ReportPeerResult, ReportPieceResult,
        Request, RequestBody, ResponseBody, StatAnswer,
    },
};
use libp2p::{PeerId, identity::Keypair};

use super::*;

mod blocked;
mod bounds;
mod deletes;
mod downloads;
mod records;
mod ring;
mod senders;
mod simulation;

const MIB: u64 = 1 << 20;
/// Wall-clock time when a test begins.
const START: u64 = 1_700_000_000_000;
const WARM_UP: Duration = Duration::from_secs(15);
const LEASE: Duration = Duration::from_secs(30);
/// No bucket differs.
const NONE: [u8; 0] = [];

fn key(seed: u32) -> Keypair {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&seed.to_be_bytes());
    Keypair::ed25519_from_bytes(bytes).expect("32 bytes")
}

/// Peers 1 to 99 are schedulers, the rest hosts.
fn peer(seed: u32) -> PeerId {
    key(seed).public().to_peer_id()
}

fn name(text: &str) -> Name {
    Name::parse(text, "").expect("a name")
}

fn content(byte: u8) -> ContentId {
    ContentId::from_digest([byte; 32])
}

/// Content of eight pieces.
fn binding(content: ContentId, generation: u64, accepted: Option<u64>) -> Binding {
    Binding {
        content,
        content_bytes: 8 * MIB,
        generation,
        accepted: accepted.map(|at| UnixMillis(START + at)),
        expires: None,
    }
}

fn held(text: &str, binding: Binding, holding: Holding) -> Record {
    Record::Held(Announcement { name: name(text), binding, holding })
}

fn complete(text: &str, binding: Binding) -> Record {
    held(text, binding, Holding::Complete)
}

fn accepted(epoch: u64, schedulers: &[u32], replicas: u32) -> Arc<Accepted> {
    let address = || "/ip4/10.0.0.1/tcp/4600".parse().expect("an address");
    let entry = |seed: &u32| SchedulerEntry::active(peer(*seed), vec![address()]);
    let schedulers = schedulers.iter().map(entry).collect();
    configured(epoch, Settings { schedulers, replicas, ..Settings::default() })
}

fn configured(epoch: u64, settings: Settings) -> Arc<Accepted> {
    let cluster = ClusterId::of_root(&key(0).public());
    let configuration = Configuration {
        cluster,
        epoch,
        issued: UnixMillis(START),
        settings,
        revoked: Vec::new(),
        roots: Roots::of(cluster),
    };
    let issuer = Root::founding(key(0)).certify(key(0), UnixMillis(0), Duration::MAX).expect("certified");
    let signed = configuration.sign(&issuer).expect("signed");
    Arc::new(Accepted { ring: configuration.ring(), configuration, signed })
}

/// A scheduler in a test, with its clock.
struct Bench {
    state: State,
    at: Duration,
    asked: u64,
    /// Notifications and pulls since they were looked at last.
    actions: Vec<Action>,
}

impl Bench {
    /// Scheduler 1, alone in the ring of epoch 1, since just now.
    fn cold() -> Self {
        Self::with(Limits::default(), accepted(1, &[1], 2))
    }

    fn with(limits: Limits, accepted: Arc<Accepted>) -> Self {
        let state = State::new(peer(1), limits, 7);
        let mut bench = Self { state, at: Duration::ZERO, asked: 0, actions: Vec::new() };
        bench.feed(Event::Configured(accepted));
        bench
    }

    fn warm() -> Self {
        let mut bench = Self::cold();
        bench.pass(WARM_UP);
        bench
    }

    fn now(&self) -> Now {
        Now { at: self.at, wall: UnixMillis(START + self.at.as_millis() as u64) }
    }

    fn feed(&mut self, event: Event) {
        self.actions.extend(self.state.handle(event, self.now()));
    }

    /// Lets time pass, with ticks.
    fn pass(&mut self, time: Duration) {
        let until = self.at + time;
        while self.at < until {
            self.at = (self.at + Duration::from_secs(1)).min(until);
            self.feed(Event::Tick);
        }
    }

    /// Lets time pass in which hosts send heartbeats.
    fn pass_alive(&mut self, time: Duration, hosts: &[u32]) {
        let until = self.at + time;
        while self.at < until {
            self.pass(Duration::from_secs(5).min(until - self.at));
            for host in hosts {
                self.heartbeat(*host, None);
            }
        }
    }

    fn reply_to(&mut self, host: u32, request: Request) -> Option<Reply> {
        let ask = AskId(self.asked);
        self.asked += 1;
        self.feed(Event::Asked { ask, peer: peer(host), request });
        self.reply_of(ask)
    }

    fn reply_of(&mut self, wanted: AskId) -> Option<Reply> {
        let is_wanted = |action: &Action| matches!(action, Action::Reply { ask, .. } if *ask == wanted);
        let index = self.actions.iter().position(is_wanted)?;
        match self.actions.remove(index) {
            Action::Reply { reply, .. } => Some(reply),
            _ => None,
        }
    }

    fn ask(&mut self, host: u32, body: RequestBody) -> ResponseBody {
        self.ask_as(host, 1, false, body)
    }

    fn ask_as(&mut self, host: u32, epoch: u64, stand_in: bool, body: RequestBody) -> ResponseBody {
        match self.reply_to(host, Request { stand_in, ..Request::new(epoch, body) }) {
            Some(Reply::Response(response)) => response.body,
            other => panic!("answered with {other:?}"),
        }
    }

    fn announce(&mut self, host: u32, record: Record) -> Outcome {
        self.announce_all(host, vec![record], None).remove(0)
    }

    fn announce_all(&mut self, host: u32, records: Vec<Record>, bucket: Option<BucketPart>) -> Vec<Outcome> {
        match self.ask(host, RequestBody::AnnounceTask(AnnounceTask { records, bucket })) {
            ResponseBody::Announced(outcomes) => outcomes,
            other => panic!("answered with {other:?}"),
        }
    }

    fn heartbeat(&mut self, host: u32, buckets: Option<BucketDigests>) -> HostAnswer {
        self.heartbeat_with(host, buckets, false, &[])
    }

    fn heartbeat_with(
        &mut self,
        host: u32,
        buckets: Option<BucketDigests>,
        seed: bool,
        tags: &[(&str, &str)],
    ) -> HostAnswer {
        let epoch = self.state.ring_history.epoch();
        match self.ask_as(host, epoch, false, RequestBody::AnnounceHost(Box::new(heartbeat(host, buckets, seed, tags))))
        {
            ResponseBody::Host(answer) => answer,
            other => panic!("answered with {other:?}"),
        }
    }

    fn stat(&mut self, text: &str) -> StatAnswer {
        match self.ask(900, RequestBody::StatTask(name(text))) {
            ResponseBody::Stat(answer) => answer,
            other => panic!("answered with {other:?}"),
        }
    }

    /// Candidate contents, complete holders, available; nothing when the task is missing.
    fn found(&mut self, text: &str) -> Option<(Vec<ContentId>, u32, bool)> {
        match self.stat(text) {
            StatAnswer::Found { candidates, holders, available } => {
                Some((candidates.iter().map(|binding| binding.content).collect(), holders, available))
            }
            StatAnswer::Missing(_) => None,
        }
    }

    /// The notifications since the last look: for whom, and what.
    fn told(&mut self) -> Vec<(PeerId, notify::Request)> {
        let told = self.actions.drain(..).filter_map(|action| match action {
            Action::Notify { peer, request, .. } => Some((peer, request)),
            Action::Reply { .. } | Action::Pull { .. } => None,
        });
        told.collect()
    }
}

fn heartbeat(host: u32, buckets: Option<BucketDigests>, seed: bool, tags: &[(&str, &str)]) -> AnnounceHost {
    AnnounceHost {
        report: HostReport { contents: 7, ..HostReport::default() },
        addresses: vec![format!("/ip4/10.1.{}.{}/tcp/4500", host / 256, host % 256).parse().expect("an address")],
        seed,
        tags: tags.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect::<BTreeMap<_, _>>(),
        buckets,
        version: "1".into(),
    }
}
