//! Asking the owners of a task.
//!
//! Of a question's answers the first *found* counts, *not found* needs an answer of every owner that can be reached, at
//! least one of them warm. Who wants to fetch something asks all owners at once. Who only looks it up asks the first one,
//! and the others when that does not know it or takes long, which halves what schedulers are asked. For a while after a
//! ring change the old owners are asked too. With no owner reachable the next schedulers clockwise stand in.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use damselfly_messages::{
    config::{Accepted, SchedulerState},
    id::{ContentId, TaskId},
    name::Name,
    record::{Tombstone, UnixMillis},
    scheduler::{
        Candidate, DeleteAnswer, DeleteTask, Missing, PeerResult, RegisterAnswer, RegisterPeerTask, ReportPeerResult,
        Request, RequestBody, ResponseBody, StatAnswer,
    },
};
use damselfly_transport::{
    error_chain::tally, network::Network, program::follower::Follower, protocol::SchedulerProtocol, rpc::RequestError,
    span, trace,
};
use futures::{StreamExt as _, stream::FuturesUnordered};
use libp2p::PeerId;
use tokio::sync::Semaphore;

mod announce;
mod recent;
pub use announce::Announced;
pub use recent::RecentHolders;

/// How long a scheduler may take to be connected to.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// How long a scheduler may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(4);
/// An owner that has not answered a look-up by then is not waited for alone.
const ALONE_WITHIN: Duration = Duration::from_millis(50);
/// A delete waits for the holders.
const DELETE_WITHIN: Duration = Duration::from_secs(15);
/// Deletes under way at once: one holder that does not answer makes each of them slow, and what they occupy at the
/// schedulers is not there for others.
const DELETES_MAX: usize = 4;
/// A delete that has waited so long for others to end is queued.
const DELETE_TURN_WITHIN: Duration = Duration::from_secs(60);
/// How long a question waits for an owner to become warm; they are after 15 s at most.
const WARM_WITHIN: Duration = Duration::from_secs(20);
/// How often owners that are not warm are asked again.
const ASK_AGAIN: Duration = Duration::from_millis(250);
/// For so long after a ring change the old owners are asked too.
const OLD_OWNERS: Duration = Duration::from_secs(15);
/// How many schedulers stand in when no owner can be reached.
const STAND_INS: usize = 3;

/// A handle for asking schedulers; cheap to clone.
#[derive(Clone)]
pub struct Schedulers {
    network: Network,
    follower: Option<Follower>,
    rings: Arc<Mutex<Rings>>,
    recent: Arc<RecentHolders>,
    deletes: Arc<Semaphore>,
}

/// The ring in force and the one before.
#[derive(Default)]
struct Rings {
    current: Option<Arc<Accepted>>,
    previous: Option<(Arc<Accepted>, Instant)>,
}

/// Nobody could answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Unanswered {
    /// The host belongs to no cluster, so there is nobody to ask.
    #[error("this host is not a member of a cluster")]
    NoCluster,
    /// No scheduler could be reached, for this reason.
    #[error("no scheduler is reachable: {0}")]
    NoScheduler(String),
    /// The schedulers that could be reached have just started and know too little.
    #[error("the schedulers that are reachable have just started and cannot say yet")]
    Cold,
    /// This host has too many deletes under way.
    #[error("too many deletes are under way")]
    Busy,
}

/// The answer to a question.
#[derive(Debug)]
pub enum Answer<T> {
    /// An owner knows the task.
    Found(T),
    /// The owners do not know it; perhaps because it was deleted.
    Missing(Option<Tombstone>),
}

/// Whom a question goes to at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    One,
    All,
}

/// What one scheduler's answer says about the question.
enum Said<T> {
    Found(T),
    Missing(Missing),
    /// It is no owner in its configuration; with the newer one, ask again.
    NotOwner,
    Unexpected,
}

/// Whom to ask, in order: owners, then stand-ins.
struct Targets {
    /// Those of now, then those of before the last ring change.
    owners: Vec<PeerId>,
    /// How many of them are owners now: only these take announcements.
    current: usize,
    stand_ins: Vec<PeerId>,
}

impl Targets {
    fn current(&self) -> &[PeerId] {
        &self.owners[..self.current]
    }
}

impl Schedulers {
    /// Asks over `network`, by the ring of the configuration that `follower` follows; without one nobody is asked.
    pub fn new(network: Network, follower: Option<Follower>) -> Self {
        let deletes = Arc::new(Semaphore::new(DELETES_MAX));
        Self { network, follower, rings: Arc::default(), recent: Arc::default(), deletes }
    }

    /// The configuration in force.
    pub fn accepted(&self) -> Option<Arc<Accepted>> {
        self.follower.as_ref()?.current()
    }

    /// Holders learned lately.
    pub fn recent(&self) -> &RecentHolders {
        &self.recent
    }

    /// Looks a task up.
    ///
    /// # Errors
    /// [`Unanswered`]: it is not known whether there is such a task.
    pub async fn stat(&self, name: &Name) -> Result<Answer<StatAnswer>, Unanswered> {
        let judge = |body| match body {
            ResponseBody::Stat(StatAnswer::Missing(missing)) => Said::Missing(missing),
            ResponseBody::Stat(found) => Said::Found(found),
            ResponseBody::NotOwner(_) => Said::NotOwner,
            _ => Said::Unexpected,
        };
        self.question(name.task_id(), RequestBody::StatTask(name.clone()), First::One, judge).await
    }

    /// Says that this host wants a task's content, and learns whom to fetch it from.
    ///
    /// With no scheduler reachable, holders learned in the last ten minutes are the answer.
    ///
    /// # Errors
    /// [`Unanswered`], when none are known either.
    pub async fn register(&self, name: &Name, exclude: Vec<PeerId>) -> Result<Answer<Vec<Candidate>>, Unanswered> {
        let task = name.task_id();
        let judge = |body| match body {
            ResponseBody::Registered(RegisterAnswer::Found(candidates)) => Said::Found(candidates),
            ResponseBody::Registered(RegisterAnswer::Missing(missing)) => Said::Missing(missing),
            ResponseBody::NotOwner(_) => Said::NotOwner,
            _ => Said::Unexpected,
        };
        let register = RegisterPeerTask { name: name.clone(), exclude };
        match self.question(task, RequestBody::RegisterPeerTask(register), First::All, judge).await {
            Ok(Answer::Found(candidates)) => {
                self.recent.learn(task, &candidates);
                Ok(Answer::Found(candidates))
            }
            Ok(missing) => Ok(missing),
            Err(unanswered) => self.recent.of(&task).map(Answer::Found).ok_or(unanswered),
        }
    }

    /// Deletes a task in the whole cluster; returns when every reachable holder has dropped it.
    ///
    /// `asked` is set when the delete had to wait for a scheduler; `uid` is who wants it, for the cluster's audit.
    ///
    /// # Errors
    /// [`Unanswered`]: nothing was deleted.
    pub async fn delete(
        &self,
        name: &Name,
        asked: Option<UnixMillis>,
        uid: Option<u32>,
    ) -> Result<DeleteAnswer, Unanswered> {
        let task = name.task_id();
        self.recent.forget(&task);
        let body = RequestBody::DeleteTask(DeleteTask { task, asked, name: Some(name.clone()), uid });
        let deadline = Instant::now() + WARM_WITHIN;
        loop {
            let turn = tokio::time::timeout(DELETE_TURN_WITHIN, self.deletes.acquire()).await;
            let Ok(Ok(turn)) = turn else { return Err(Unanswered::Busy) };
            let targets = self.targets(&task)?;
            let mut answers = self.ask_each(&targets.owners, &body, false, DELETE_WITHIN).await;
            if !answers.iter().any(Result::is_ok) {
                // What a stand-in does not know says nothing: the delete has to wait for an owner then.
                let knows = |answer: &Result<ResponseBody, String>| match answer {
                    Ok(ResponseBody::Deleted(answer)) => answer.tombstone.is_some(),
                    _ => true,
                };
                let told = self.ask_each(&targets.stand_ins, &body, true, DELETE_WITHIN).await;
                answers.extend(told.into_iter().filter(knows));
            }
            drop(turn);
            let deleted = answers.iter().filter_map(|answer| match answer {
                Ok(ResponseBody::Deleted(answer)) => Some(*answer),
                _ => None,
            });
            match deleted.reduce(combine) {
                Some(answer) if answer.tombstone.is_some() || answer.warm => return Ok(answer),
                Some(_) if Instant::now() >= deadline => return Err(Unanswered::Cold),
                None if !asked_wrong_ring(&answers) || Instant::now() >= deadline => {
                    return Err(no_scheduler(answers.into_iter().filter_map(Result::err).collect()));
                }
                Some(_) | None => tokio::time::sleep(ASK_AGAIN).await,
            }
        }
    }

    /// Tells every owner that can be reached.
    pub async fn report_all(&self, task: TaskId, body: RequestBody) {
        if let Ok(targets) = self.targets(&task) {
            self.ask_each(&targets.owners, &body, false, ANSWER_WITHIN).await;
        }
    }

    /// Tells the owners that a content is not what its sha256 name says.
    pub async fn report_false(&self, name: &Name, content: ContentId) {
        let task = name.task_id();
        let report = ReportPeerResult { task, content, result: PeerResult::FalseCandidate };
        self.report_all(task, RequestBody::ReportPeerResult(report)).await;
    }

    /// Asks one scheduler, whatever it owns.
    ///
    /// # Errors
    /// The reason why there is no answer, for people.
    pub async fn ask(&self, scheduler: PeerId, body: &RequestBody, stand_in: bool) -> Result<ResponseBody, String> {
        self.ask_one(scheduler, body, stand_in, ANSWER_WITHIN).await
    }

    async fn question<T>(
        &self,
        task: TaskId,
        body: RequestBody,
        first: First,
        judge: impl Fn(ResponseBody) -> Said<T>,
    ) -> Result<Answer<T>, Unanswered> {
        let deadline = Instant::now() + WARM_WITHIN;
        loop {
            let targets = self.targets(&task)?;
            let (owners, again) = self.poll_owners(&targets.owners, (&body, false), first, &judge).await;
            match owners {
                Polled::Answered(answer) => return Ok(answer),
                Polled::Cold if Instant::now() >= deadline => return Err(Unanswered::Cold),
                Polled::Nobody(mut reasons) if !again || Instant::now() >= deadline => {
                    // A stand-in is told less than an owner: what it knows counts, what it does not know says nothing.
                    return match self.poll_owners(&targets.stand_ins, (&body, true), First::All, &judge).await.0 {
                        Polled::Answered(Answer::Found(found)) => Ok(Answer::Found(found)),
                        Polled::Nobody(more) => {
                            reasons.extend(more);
                            Err(no_scheduler(reasons))
                        }
                        Polled::Answered(Answer::Missing(_)) | Polled::Cold => Err(no_scheduler(reasons)),
                    };
                }
                Polled::Cold | Polled::Nobody(_) => tokio::time::sleep(ASK_AGAIN).await,
            }
        }
    }

    /// Asks `schedulers`, as a stand-in if it says so; also says whether one of them judges by another ring.
    async fn poll_owners<T>(
        &self,
        schedulers: &[PeerId],
        (body, stand_in): (&RequestBody, bool),
        first: First,
        judge: impl Fn(ResponseBody) -> Said<T>,
    ) -> (Polled<T>, bool) {
        let mut order = schedulers.to_vec();
        if first == First::One {
            order.sort_by_key(|peer| !self.network.is_connected(peer));
        }
        let at_once = if first == First::One { 1 } else { order.len() };
        let mut waiting = order.into_iter().map(|peer| self.ask_one(peer, body, stand_in, ANSWER_WITHIN));
        let mut asked: FuturesUnordered<_> = waiting.by_ref().take(at_once).collect();
        let (mut heard, mut warm, mut deleted, mut again) = (false, false, None, false);
        let mut reasons = Vec::new();
        loop {
            let answer = tokio::select! {
                Some(answer) = asked.next() => answer,
                () = tokio::time::sleep(ALONE_WITHIN), if waiting.len() > 0 => {
                    asked.extend(waiting.next());
                    continue;
                }
                else => break,
            };
            match answer.map(&judge) {
                Ok(Said::Found(found)) => return (Polled::Answered(Answer::Found(found)), again),
                Ok(Said::Missing(missing)) => {
                    heard = true;
                    warm |= missing.warm;
                    deleted = deleted.or(missing.deleted);
                }
                Ok(Said::NotOwner) => {
                    again = true;
                    reasons.push(OTHER_RING.to_owned());
                }
                Ok(Said::Unexpected) => reasons.push(UNEXPECTED.to_owned()),
                Err(reason) => reasons.push(reason),
            }
            asked.extend(waiting.next());
        }
        let polled = match (heard, warm) {
            (true, true) => Polled::Answered(Answer::Missing(deleted)),
            (true, false) => Polled::Cold,
            (false, _) => Polled::Nobody(reasons),
        };
        (polled, again)
    }

    async fn ask_each(
        &self,
        schedulers: &[PeerId],
        body: &RequestBody,
        stand_in: bool,
        within: Duration,
    ) -> Vec<Result<ResponseBody, String>> {
        let ask = |peer: &PeerId| self.ask_one(*peer, body, stand_in, within);
        futures::future::join_all(schedulers.iter().map(ask)).await
    }

    async fn ask_one(
        &self,
        peer: PeerId,
        body: &RequestBody,
        stand_in: bool,
        within: Duration,
    ) -> Result<ResponseBody, String> {
        let span = trace::when_traced(|| span!("client", "ask a scheduler", scheduler = %peer, stand_in));
        trace::traced(span, self.try_ask_one(peer, body, stand_in, within)).await
    }

    async fn try_ask_one(
        &self,
        peer: PeerId,
        body: &RequestBody,
        stand_in: bool,
        within: Duration,
    ) -> Result<ResponseBody, String> {
        let accepted = self.accepted().ok_or("no configuration")?;
        let settings = &accepted.configuration.settings;
        let addresses = settings.scheduler(&peer).map(|entry| entry.addresses.clone()).unwrap_or_default();
        let trace = trace::current();
        let request = Request { epoch: accepted.configuration.epoch, stand_in, body: body.clone(), trace };
        let (begun, mut again) = (Instant::now(), true);
        let deadline = begun + within;
        loop {
            let connected = self.network.connect(peer, addresses.clone(), CONNECT_WITHIN).await;
            connected.map_err(|error| error.to_string())?;
            match self.network.request::<SchedulerProtocol>(peer, &request, within).await {
                Ok(response) => {
                    self.look_at_epoch(peer, &accepted, response.epoch, &response.body).await;
                    return Ok(response.body);
                }
                Err(RequestError::Busy { retry_after }) if Instant::now() + retry_after < deadline => {
                    tokio::time::sleep(retry_after).await;
                }
                // That its connection has ended says nothing of the scheduler; to be told twice does it no harm.
                Err(RequestError::Unreachable { reason }) if again && begun.elapsed() < CONNECT_WITHIN => {
                    tracing::debug!(%peer, reason, "a scheduler is asked once more");
                    again = false;
                }
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    /// A scheduler with a newer configuration hands it over or is asked for it.
    async fn look_at_epoch(&self, peer: PeerId, ours: &Accepted, epoch: u64, body: &ResponseBody) {
        let Some(follower) = &self.follower else { return };
        match body {
            ResponseBody::NotOwner(Some(signed)) => {
                if let Err(error) = follower.offer(signed, peer).await {
                    tracing::debug!(%peer, %error, "a scheduler's configuration is not taken over");
                }
            }
            _ if epoch > ours.configuration.epoch => follower.hint(peer, epoch),
            _ => {}
        }
    }

    fn targets(&self, task: &TaskId) -> Result<Targets, Unanswered> {
        let Some(follower) = &self.follower else { return Err(Unanswered::NoCluster) };
        let unknown = || Unanswered::NoScheduler("no configuration of the cluster is known yet".into());
        let current = follower.current().ok_or_else(unknown)?;
        let mut owners: Vec<_> = current.ring.owners(task).collect();
        let stand_ins = current.ring.walk(task).skip(owners.len()).take(STAND_INS).collect();
        if owners.is_empty() {
            return Err(Unanswered::NoScheduler("the configuration lists none".into()));
        }
        let now = owners.len();
        if let Some(previous) = self.previous(&current) {
            let lives = |peer: &PeerId| {
                let entry = current.configuration.settings.scheduler(peer);
                entry.is_some_and(|entry| entry.state != SchedulerState::Dead)
            };
            let old: Vec<_> = previous.ring.owners(task).filter(|peer| lives(peer) && !owners.contains(peer)).collect();
            owners.extend(old);
        }
        Ok(Targets { owners, current: now, stand_ins })
    }

    /// The ring before `current`, while its owners are still asked.
    fn previous(&self, current: &Arc<Accepted>) -> Option<Arc<Accepted>> {
        let mut rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        if rings.current.as_ref().is_none_or(|known| !Arc::ptr_eq(known, current)) {
            let replaced = rings.current.replace(Arc::clone(current));
            rings.previous = replaced.map(|ring| (ring, Instant::now()));
        }
        let (previous, since) = rings.previous.as_ref()?;
        (since.elapsed() < OLD_OWNERS).then(|| Arc::clone(previous))
    }
}

/// What a round of questions came to.
enum Polled<T> {
    Answered(Answer<T>),
    /// Those that answered do not know, and none of them is warm.
    Cold,
    /// Nobody answered, for these reasons.
    Nobody(Vec<String>),
}

/// Why a scheduler's answer is none: it goes by another configuration.
const OTHER_RING: &str = "it follows another configuration";
/// Why a scheduler's answer is none: only a defect gets there.
const UNEXPECTED: &str = "it answered something else";

fn asked_wrong_ring(answers: &[Result<ResponseBody, String>]) -> bool {
    answers.iter().any(|answer| matches!(answer, Ok(ResponseBody::NotOwner(_))))
}

/// Nobody answered, for `reasons`; without one those that were asked go by another configuration.
fn no_scheduler(reasons: Vec<String>) -> Unanswered {
    if reasons.is_empty() {
        return Unanswered::NoScheduler(OTHER_RING.into());
    }
    Unanswered::NoScheduler(tally(reasons, "scheduler", "schedulers"))
}

/// Two owners' answers to one delete: what either of them knows.
fn combine(one: DeleteAnswer, other: DeleteAnswer) -> DeleteAnswer {
    let generation = |answer: &DeleteAnswer| answer.tombstone.map(|tombstone| tombstone.generation);
    DeleteAnswer {
        tombstone: if generation(&one) >= generation(&other) { one.tombstone } else { other.tombstone },
        dropped: one.dropped.max(other.dropped),
        unreachable: one.unreachable.max(other.unreachable),
        warm: one.warm || other.warm,
    }
}
