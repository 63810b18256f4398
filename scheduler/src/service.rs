//! The shell around the state: requests in, replies and notifications out.
//!
//! One task owns the state; decoding runs in another one before it, notifications in tasks of their own behind it.

use std::{
    collections::{HashMap, HashSet},
    time::Instant,
};

use damselfly_messages::{
    membership::{Role, host_tags},
    scheduler::{Request, RequestBody, ResponseBody},
};
use damselfly_transport::{
    addresses::reachable,
    dialing::DialPolicy,
    network::{Network, PeerEvent},
    program::follower::Follower,
    protocol::{InfoProtocol, SchedulerProtocol},
    rpc::Inbound,
    span, trace,
};
use libp2p::PeerId;
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};
use tracing::Span;

use crate::{
    metrics::{self, Metrics},
    notifier::Notifier,
    state::{Action, AskId, Event, Now, Reply, State, TICK},
};

/// Decoded requests that wait for the state; above it the network's inbox fills, and then the answer is *busy*.
const DECODED: usize = 64;
/// Hosts without an address to dial that are warned of.
const UNREACHABLE_MAX: usize = 10_000;

/// A request that waits for its reply.
#[derive(Debug)]
struct Waiting {
    inbound: Inbound<SchedulerProtocol>,
    kind: &'static str,
    /// Ends with the reply.
    span: Span,
}

/// A request, decoded.
type Decoded = (Inbound<SchedulerProtocol>, Request);

/// The scheduler at work.
#[derive(Debug)]
pub(crate) struct Service {
    state: State,
    network: Network,
    follower: Follower,
    policy: DialPolicy,
    metrics: Metrics,
    notifier: Notifier,
    waiting: HashMap<AskId, Waiting>,
    asked: u64,
    started: Instant,
    /// Hosts that have been warned of because they have no address that others may dial.
    unreachable: HashSet<PeerId>,
}

impl Service {
    pub(crate) fn new(
        state: State,
        network: Network,
        follower: Follower,
        policy: DialPolicy,
        metrics: Metrics,
    ) -> Self {
        let notifier = Notifier::new(network.clone());
        Self {
            state,
            network,
            follower,
            policy,
            metrics,
            notifier,
            waiting: HashMap::new(),
            asked: 0,
            started: Instant::now(),
            unreachable: HashSet::new(),
        }
    }

    /// Serves until the network ends.
    pub(crate) async fn run(
        mut self,
        requests: mpsc::Receiver<Inbound<SchedulerProtocol>>,
        mut questions: mpsc::Receiver<Inbound<InfoProtocol>>,
        mut peers: mpsc::Receiver<PeerEvent>,
    ) {
        let (decoded, mut requests) = decode(requests);
        let _decoding = decoded;
        let mut configurations = self.follower.watch();
        configurations.mark_changed();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                request = requests.recv() => match request {
                    Some(Ok(request)) => self.on_request(request),
                    Some(Err(())) => self.metrics.on_invalid(),
                    None => return,
                },
                Ok(()) = configurations.changed() => {
                    let accepted = configurations.borrow_and_update().clone();
                    accepted.into_iter().for_each(|accepted| self.feed(Event::Configured(accepted)));
                }
                Some(question) = questions.recv() => self.on_question(question),
                Some(outcome) = self.notifier.next() => self.feed(Event::Notified {
                    delete: outcome.delete,
                    peer: outcome.peer,
                    answered: outcome.answered,
                }),
                Some(event) = peers.recv() => match event {
                    PeerEvent::Connected(_) => {}
                    PeerEvent::Disconnected(peer) => self.feed(Event::Disconnected(peer)),
                },
                _ = ticks.tick() => self.on_tick(),
            }
        }
    }

    fn on_tick(&mut self) {
        self.feed(Event::Tick);
        self.metrics.update(&self.state);
        self.metrics.on_queues(self.waiting.len(), self.notifier.queued());
    }

    fn on_question(&self, question: Inbound<InfoProtocol>) {
        match question.decode() {
            Ok(request) => question.respond(self.state.status_of(&request, self.now())),
            Err(invalid) => question.refuse(invalid.to_string()),
        }
    }

    fn now(&self) -> Now {
        Now { at: self.started.elapsed(), wall: self.network.admission().clock().now() }
    }

    fn on_request(&mut self, (inbound, mut request): Decoded) {
        // An asker that has given up asks again; a delete it no longer waits for is better asked for anew.
        if !inbound.is_waiting() {
            return;
        }
        let peer = inbound.peer();
        self.check_heartbeat(peer, &mut request.body);
        let kind = metrics::kind(&request.body);
        // Only what is a part of something: hosts ask for much that nobody waits for.
        let span = match request.trace {
            Some(asker) => trace::asked_by(span!("server", "schedule", request = kind, child = %peer), Some(asker)),
            None => Span::none(),
        };
        let ask = AskId(self.asked);
        self.asked += 1;
        self.waiting.insert(ask, Waiting { inbound, kind, span });
        let began = Instant::now();
        self.feed(Event::Asked { ask, peer, request });
        self.metrics.on_handled(kind, began.elapsed());
    }

    /// Puts in where the host is seen, and takes out what its credential does not say.
    fn check_heartbeat(&mut self, peer: PeerId, body: &mut RequestBody) {
        if let RequestBody::AnnounceHost(host) = body {
            let observed = self.network.remote_address(&peer);
            let announced = std::mem::take(&mut host.addresses);
            host.addresses = reachable(announced, observed.as_ref(), &self.policy);
            let reachable = host.addresses.len();
            host.addresses.retain(|address| self.policy.allows_of_member(address));
            if host.addresses.is_empty() && reachable > 0 && self.unreachable.len() < UNREACHABLE_MAX {
                let is_news = self.unreachable.insert(peer);
                if is_news {
                    tracing::warn!(
                        %peer,
                        "the host is no parent for others: it announces names only, which [dial] member_names allows"
                    );
                }
            }
            host.seed &= self.network.admission().roles(&peer).contains(Role::Seed);
            host.tags = host_tags(&self.network.admission().tags(&peer), &host.tags);
        }
    }

    fn feed(&mut self, event: Event) {
        let now = self.now();
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for action in self.state.handle(event, now) {
                events.extend(self.perform(action));
            }
        }
    }

    /// Does one thing; returns what the state should know of it at once.
    fn perform(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Reply { ask, reply } => self.reply(ask, reply),
            Action::Pull { from, epoch } => self.follower.hint(from, epoch),
            Action::Notify { peer, addresses, request, delete } => {
                if !self.notifier.send(peer, addresses, request, delete) {
                    self.metrics.on_dropped_notification();
                    return delete.map(|delete| Event::Notified { delete, peer, answered: false });
                }
            }
        }
        None
    }

    fn reply(&mut self, ask: AskId, mut reply: Reply) {
        let Some(Waiting { inbound, kind, span }) = self.waiting.remove(&ask) else { return };
        self.metrics.on_answer(kind, &reply);
        match &mut reply {
            Reply::Response(response) => {
                if let ResponseBody::Host(answer) = &mut response.body {
                    answer.time = self.network.admission().clock().vouched();
                }
            }
            Reply::Busy(_) => trace::fail(&span, &"busy"),
            Reply::Refused(reason) => trace::fail(&span, reason),
        }
        match reply {
            Reply::Response(response) => inbound.respond(response),
            Reply::Busy(retry_after) => inbound.busy(retry_after),
            Reply::Refused(reason) => inbound.refuse(reason),
        }
    }
}

/// Decodes in a task of its own, in order; what is no request is refused there.
fn decode(
    mut requests: mpsc::Receiver<Inbound<SchedulerProtocol>>,
) -> (tokio_util::task::AbortOnDropHandle<()>, mpsc::Receiver<Result<Decoded, ()>>) {
    let (sender, receiver) = mpsc::channel(DECODED);
    let task = tokio::spawn(async move {
        while let Some(inbound) = requests.recv().await {
            let decoded = match inbound.decode() {
                Ok(request) => Ok((inbound, request)),
                Err(invalid) => {
                    tracing::debug!(peer = %inbound.peer(), %invalid, "not a request");
                    inbound.refuse(invalid.to_string());
                    Err(())
                }
            };
            if sender.send(decoded).await.is_err() {
                return;
            }
        }
    });
    (tokio_util::task::AbortOnDropHandle::new(task), receiver)
}
