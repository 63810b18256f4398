//! What the schedulers tell of the cluster, for people: nothing of it decides anything.
//!
//! Hosts tell schedulers with their heartbeats, and the manager asks the schedulers, so it has no connection to hosts.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use damselfly_messages::{
    config::Accepted,
    id::TaskId,
    info::{HostState, HostsAnswer, Request, Response, TASKS_MAX, TaskFilter, TaskState, TasksAnswer},
    ring::Ring,
    scheduler::{self, DeleteAnswer, DeleteTask, RequestBody, ResponseBody},
};
use damselfly_transport::{
    network::Network,
    program::metrics::Labelled,
    protocol::{InfoProtocol, Protocol as _, SchedulerProtocol},
    rpc::RequestError,
};
use futures::future::join_all;
use libp2p::PeerId;
use serde_json::json;
use tokio::sync::watch;

use crate::{
    alerts::{Alert, Watch},
    database::{
        DatabaseError,
        audit::{self, Actor, Change},
    },
    rates::{Meter, Rates, Reported},
    state::State,
};

mod deletions;

use deletions::Deletions;

/// How often the schedulers are asked.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A scheduler is asked for at most so many parts of its hosts.
const PARTS_MAX: usize = 16;
/// So many times schedulers are asked for one page of tasks: a scheduler then looks at a million tasks.
const SEARCHES_MAX: usize = 20;
/// Hosts that are remembered: as many as two schedulers keep. A scheduler that invents some shows no more.
const HOSTS_MAX: usize = 40_000;
/// A host that was not heard of for so long is not shown any more.
const HOSTS_SHOWN: Duration = Duration::from_secs(24 * 3600);

/// The cluster as it was seen last.
#[derive(Debug, Clone, Default)]
pub struct ClusterView {
    /// All schedulers, in the ring or not: what each answered, unless it did not.
    pub schedulers: Vec<(PeerId, Option<HostsAnswer>)>,
    /// Those that gave a sign of life: an answer, or that they are busy.
    pub reached: HashSet<PeerId>,
    /// Every host that a scheduler has heard of, as it was heard of last.
    pub hosts: BTreeMap<PeerId, HostView>,
    /// Hosts that were members lately, of which no scheduler has heard since the manager's start.
    pub absent: BTreeSet<PeerId>,
    /// What should be known to who runs the cluster, the worst first.
    pub alerts: Vec<Alert>,
}

/// A host as it was heard of last.
#[derive(Debug, Clone)]
pub struct HostView {
    /// What it said.
    pub state: HostState,
    /// When it spoke last.
    pub heard: Instant,
    /// When it made the report.
    pub reported: Reported,
    /// A scheduler has a live lease of it, and a connection.
    pub is_up: bool,
    /// What it moves.
    pub meter: Meter,
}

impl HostView {
    /// Forgets what schedulers know only of the present.
    fn begin_poll(&mut self) {
        self.is_up = false;
        (self.state.downloads, self.state.children, self.state.records) = (0, 0, 0);
    }

    /// Takes in what one more scheduler knows. The newest report counts, whoever told it; of what schedulers count
    /// themselves the highest number, because each knows only its share of the tasks.
    fn take(&mut self, state: HostState, heard: Instant, reported: Reported) {
        self.is_up |= !state.suspect;
        self.heard = self.heard.max(heard);
        let downloads = self.state.downloads.max(state.downloads);
        let children = self.state.children.max(state.children);
        let records = self.state.records.max(state.records);
        if reported.since(&self.reported).is_some() {
            (self.state, self.reported) = (state, reported);
        }
        (self.state.downloads, self.state.children, self.state.records) = (downloads, children, records);
    }
}

impl ClusterView {
    /// Hosts that are up.
    pub fn up(&self) -> impl Iterator<Item = &HostView> {
        self.hosts.values().filter(|host| host.is_up)
    }

    /// What all hosts together move.
    pub fn rates(&self) -> Rates {
        Rates::sum(self.up().map(|host| host.meter.rates()))
    }

    /// Tasks in the cluster: each is known to as many schedulers of the ring as it has owners.
    pub fn tasks(&self, ring: &Ring) -> u64 {
        let members = self.schedulers.iter().filter(|(peer, _)| ring.members().contains(peer));
        let told: Vec<_> = members.filter_map(|(_, answer)| Some(answer.as_ref()?.tasks)).collect();
        let owners = ring.replicas().min(told.len()).max(1) as u64;
        told.iter().sum::<u64>().div_ceil(owners)
    }

    /// Which part of hosts and schedulers that are up run `epoch` or a later one, in percent; nobody: all.
    pub fn roll_out(&self, epoch: u64) -> f64 {
        let schedulers = self.schedulers.iter().filter_map(|(_, answer)| Some(answer.as_ref()?.epoch));
        let epochs: Vec<_> = self.up().map(|host| host.state.epoch).chain(schedulers).collect();
        let there = epochs.iter().filter(|known| **known >= epoch).count();
        if epochs.is_empty() { 100.0 } else { 100.0 * there as f64 / epochs.len() as f64 }
    }
}

/// Asks the schedulers; cheap to clone.
#[derive(Debug, Clone)]
pub struct Poller {
    state: State,
    network: Network,
    cluster_view: watch::Sender<Arc<ClusterView>>,
    polls: Labelled,
}

/// Why something cannot be seen or done.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// No scheduler is there.
    #[error("no scheduler can be reached")]
    NoScheduler,
    /// None that should know has answered.
    #[error("no owner of the task answers: {0}")]
    NoOwner(String),
    /// It was done, but cannot be noted.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl Poller {
    /// Sees nothing yet.
    pub fn new(state: State, network: Network) -> Self {
        let polls = Labelled::new("result", &["failed", "ok"]);
        Self { state, network, cluster_view: watch::Sender::default(), polls }
    }

    /// What was seen last.
    pub fn cluster_view(&self) -> Arc<ClusterView> {
        self.cluster_view.borrow().clone()
    }

    /// Counts questions to schedulers.
    pub fn polls(&self) -> &Labelled {
        &self.polls
    }

    /// What is seen, and every change of it.
    pub fn watch(&self) -> watch::Receiver<Arc<ClusterView>> {
        self.cluster_view.subscribe()
    }

    /// Looks every two seconds, until the program ends.
    pub async fn poll(self) {
        let (mut watch, mut deletions) = (Watch::default(), Deletions::default());
        loop {
            let mut cluster_view = ClusterView::clone(&self.cluster_view());
            self.poll_once(&mut cluster_view).await;
            cluster_view.absent = watch.absent(&self.state, &cluster_view).await;
            cluster_view.alerts = watch.alerts(&self.state, &cluster_view).await;
            let cluster_view = Arc::new(cluster_view);
            self.cluster_view.send_replace(Arc::clone(&cluster_view));
            deletions.note(&self, &cluster_view).await;
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn poll_once(&self, cluster_view: &mut ClusterView) {
        let Some(accepted) = self.state.current() else { return };
        let members: Vec<_> = accepted.configuration.settings.schedulers.iter().map(|entry| entry.peer_id).collect();
        let answers = join_all(members.iter().map(|scheduler| self.hosts_of(*scheduler))).await;
        cluster_view.hosts.values_mut().for_each(HostView::begin_poll);
        cluster_view.hosts.retain(|_, host| host.heard.elapsed() < HOSTS_SHOWN);
        (cluster_view.schedulers, cluster_view.reached) = Default::default();
        for (scheduler, answer) in members.into_iter().zip(answers) {
            if matches!(answer, Ok(_) | Err(RequestError::Busy { .. })) {
                cluster_view.reached.insert(scheduler);
            }
            let mut answer = answer.ok();
            let items = answer.as_mut().map(|answer| std::mem::take(&mut answer.items));
            items.into_iter().flatten().for_each(|state| see(&mut cluster_view.hosts, state));
            cluster_view.schedulers.push((scheduler, answer));
        }
        // Schedulers have a lease of it for a while.
        accepted.configuration.revoked.iter().for_each(|revoked| drop(cluster_view.hosts.remove(&revoked.peer)));
        self.tell_those_behind(&accepted, &cluster_view.schedulers);
    }

    /// Gossip may be lost: schedulers that run an older epoch are told, and hosts hear of it with their heartbeats.
    fn tell_those_behind(&self, current: &Accepted, schedulers: &[(PeerId, Option<HostsAnswer>)]) {
        for (scheduler, answer) in schedulers {
            if answer.as_ref().is_some_and(|answer| answer.epoch < current.configuration.epoch) {
                let (follower, scheduler) = (self.state.follower().clone(), *scheduler);
                tokio::spawn(async move { follower.tell(scheduler).await });
            }
        }
    }

    /// Everything that a scheduler has of hosts.
    async fn hosts_of(&self, scheduler: PeerId) -> Result<HostsAnswer, RequestError> {
        let mut all: Option<HostsAnswer> = None;
        for _ in 0..PARTS_MAX {
            let after = all.as_ref().and_then(|all| all.items.last()).map(|host| host.peer);
            let mut part = match self.ask(scheduler, &Request::Hosts { after }).await {
                Ok(Response::Hosts(part)) => part,
                Ok(Response::Tasks(_) | Response::Deletions(_)) => break,
                // What it has told already counts.
                Err(_) if all.is_some() => break,
                Err(error) => return Err(error),
            };
            let items = std::mem::take(&mut part.items);
            let (more, moves) = (part.more, !items.is_empty());
            let known = all.get_or_insert(part);
            known.items.extend(items);
            if !more || !moves {
                break;
            }
        }
        Ok(all.unwrap_or_default())
    }

    async fn ask(&self, scheduler: PeerId, request: &Request) -> Result<Response, RequestError> {
        let answer = self.network.request::<InfoProtocol>(scheduler, request, InfoProtocol::TIMEOUT).await;
        self.polls.of(if answer.is_ok() { "ok" } else { "failed" }).inc();
        answer
    }

    /// A task, as its first owner that answers knows it.
    ///
    /// # Errors
    /// [`ViewError`]
    pub async fn task(&self, task: TaskId) -> Result<Option<TaskState>, ViewError> {
        let accepted = self.state.current().ok_or(ViewError::NoScheduler)?;
        let (mut answered, mut last) = (false, String::new());
        for owner in accepted.ring.owners(&task) {
            let of = TaskFilter { task: Some(task), ..TaskFilter::default() };
            match self.ask(owner, &Request::Tasks { after: None, limit: 1, of }).await {
                Ok(Response::Tasks(TasksAnswer { mut items, .. })) => match items.pop() {
                    Some(found) => return Ok(Some(found)),
                    None => answered = true,
                },
                Ok(Response::Hosts(_) | Response::Deletions(_)) => last = "it answers something else".into(),
                Err(error) => last = error.to_string(),
            }
        }
        if answered { Ok(None) } else { Err(ViewError::NoOwner(last)) }
    }

    /// Tasks after `after`, in the order of their IDs, of all schedulers that answer, and after which to go on.
    ///
    /// A scheduler looks at a part of its tasks for each question, so it takes several until some are found that are rare.
    ///
    /// # Errors
    /// [`ViewError::NoScheduler`]
    pub async fn tasks(
        &self,
        after: Option<TaskId>,
        limit: usize,
        of: TaskFilter,
    ) -> Result<(Vec<TaskState>, Option<TaskId>), ViewError> {
        let (mut found, mut next) = self.part_of_tasks(after, limit, &of).await?;
        for _ in 1..SEARCHES_MAX {
            if found.len() >= limit || next.is_none() {
                break;
            }
            let (more, after_it) = self.part_of_tasks(next, limit - found.len(), &of).await?;
            found.extend(more);
            next = after_it;
        }
        Ok((found, next))
    }

    async fn part_of_tasks(
        &self,
        after: Option<TaskId>,
        limit: usize,
        of: &TaskFilter,
    ) -> Result<(Vec<TaskState>, Option<TaskId>), ViewError> {
        let accepted = self.state.current().ok_or(ViewError::NoScheduler)?;
        let request = Request::Tasks { after, limit: limit.min(TASKS_MAX), of: of.clone() };
        let members: Vec<_> = accepted.ring.members().to_vec();
        let answers = join_all(members.into_iter().map(|scheduler| self.ask(scheduler, &request))).await;
        let answers: Vec<_> = answers
            .into_iter()
            .filter_map(|answer| match answer {
                Ok(Response::Tasks(tasks)) => Some(fitting(tasks, of)),
                Ok(Response::Hosts(_) | Response::Deletions(_)) | Err(_) => None,
            })
            .collect();
        if answers.is_empty() { Err(ViewError::NoScheduler) } else { Ok(merged(answers, limit)) }
    }

    /// Deletes a task in the whole cluster, as its owners do, and notes that in the audit.
    ///
    /// # Errors
    /// [`ViewError`]: it is as before.
    pub async fn delete(&self, task: TaskId, actor: &Actor) -> Result<DeleteAnswer, ViewError> {
        // For the audit, which is read by people; without it the delete is as good.
        let name = self.task(task).await.ok().flatten().and_then(|state| state.name);
        let answer = self.delete_everywhere(task).await?;
        if answer.tombstone.is_some() {
            let after = json!({ "dropped": answer.dropped, "unreachable": answer.unreachable });
            let target = task.to_string();
            let name = name.map(|name| json!({ "cid": name.cid(), "tag": name.tag() }));
            let change = Change { action: "task.delete", target: &target, before: name, after: Some(after) };
            let database = self.state.database();
            let mut writing = database.write().await?;
            audit::append(&mut writing, database.now(), actor, change).await?;
            writing.commit().await.map_err(DatabaseError::from)?;
        }
        Ok(answer)
    }

    /// At every owner, so that none says any more that the task is there. What the first says counts that had it.
    async fn delete_everywhere(&self, task: TaskId) -> Result<DeleteAnswer, ViewError> {
        let accepted = self.state.current().ok_or(ViewError::NoScheduler)?;
        let (mut last, mut done, mut nothing) = (String::new(), None, None);
        for owner in accepted.ring.owners(&task) {
            match self.delete_at(owner, task, &accepted).await {
                Ok(answer) if answer.tombstone.is_some() => done = done.or(Some(answer)),
                Ok(answer) => nothing = Some(answer),
                Err(reason) => last = reason,
            }
        }
        done.or(nothing).ok_or(ViewError::NoOwner(last))
    }

    async fn delete_at(&self, owner: PeerId, task: TaskId, accepted: &Accepted) -> Result<DeleteAnswer, String> {
        let body = RequestBody::DeleteTask(DeleteTask::of(task));
        let request = scheduler::Request::new(accepted.configuration.epoch, body);
        match self.network.request::<SchedulerProtocol>(owner, &request, SchedulerProtocol::TIMEOUT).await {
            Ok(scheduler::Response { body: ResponseBody::Deleted(answer), .. }) => Ok(answer),
            Ok(_) => Err("it has another configuration".into()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Of two schedulers that know a host, the one counts that heard of it last.
fn see(hosts: &mut BTreeMap<PeerId, HostView>, state: HostState) {
    let Some(heard) = Instant::now().checked_sub(state.heard_ago) else { return };
    let made = state.reported_ago.map_or(Some(heard), |ago| Instant::now().checked_sub(ago)).unwrap_or(heard);
    let reported = Reported::new(made, &state.report);
    let is_full = hosts.len() >= HOSTS_MAX;
    match hosts.get_mut(&state.peer) {
        Some(known) => {
            known.meter.hear(made, &state.report);
            known.take(state, heard, reported);
        }
        None if is_full => {}
        None => {
            let (meter, is_up) = (Meter::new(made, &state.report), !state.suspect);
            hosts.insert(state.peer, HostView { state, heard, reported, is_up, meter });
        }
    }
}

/// A scheduler of an earlier version tells of every task, whatever its name is.
fn fitting(mut answer: TasksAnswer, of: &TaskFilter) -> TasksAnswer {
    answer.items.retain(|state| of.fits_name(state.name.as_ref().map(|name| (name.cid(), name.tag()))));
    answer
}

/// All owners of a task know it, and each tells only a part.
fn merged(answers: Vec<TasksAnswer>, limit: usize) -> (Vec<TaskState>, Option<TaskId>) {
    // Beyond where the first scheduler stopped, others may have told what it did not.
    let end = answers.iter().filter_map(|answer| answer.more_after).min_by_key(|task| *task.digest());
    let mut tasks: BTreeMap<[u8; 32], TaskState> = BTreeMap::new();
    for mut state in answers.into_iter().flat_map(|answer| answer.items) {
        if end.is_some_and(|end| state.task.digest() > end.digest()) {
            continue;
        }
        let holders = |state: &TaskState| state.candidates.iter().map(|candidate| candidate.holders).sum::<u32>();
        match tasks.get_mut(state.task.digest()) {
            Some(known) => {
                // One of them may have had no room for the name.
                let name = known.name.take().or(state.name.take());
                if holders(known) < holders(&state) {
                    *known = state;
                }
                known.name = name;
            }
            None => drop(tasks.insert(*state.task.digest(), state)),
        }
    }
    let is_cut = tasks.len() > limit;
    let shown: Vec<_> = tasks.into_values().take(limit).collect();
    let next = if is_cut { shown.last().map(|state| state.task) } else { end };
    (shown, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(byte: u8) -> TaskId {
        TaskId::from_bytes(&[byte; 32]).expect("32")
    }

    fn answer(tasks: &[u8], more: bool) -> TasksAnswer {
        let items: Vec<_> =
            tasks.iter().map(|byte| TaskState { task: task(*byte), candidates: Vec::new(), name: None }).collect();
        let more_after = items.last().filter(|_| more).map(|state| state.task);
        TasksAnswer { items, more_after }
    }

    #[test]
    fn pages_of_several_schedulers_are_one() {
        // (what each tells and whether it has more, limit, what is shown, after which it goes on, why)
        type Row<'a> = (&'a [(&'a [u8], bool)], usize, &'a [u8], Option<u8>, &'a str);
        let table: [Row<'_>; 4] = [
            (&[(&[1, 3], false), (&[2, 3], false)], 9, &[1, 2, 3], None, "each once"),
            (&[(&[1, 2], true), (&[5, 6], true)], 2, &[1, 2], Some(2), "5 is shown when 3 and 4 were"),
            (&[(&[1, 4], true), (&[2, 3], false)], 2, &[1, 2], Some(2), "cut"),
            (&[(&[], false), (&[], false)], 2, &[], None, "nothing"),
        ];
        for (told, limit, shown, next, why) in table {
            let answers = told.iter().map(|(tasks, more)| answer(tasks, *more)).collect();
            let (tasks, after) = merged(answers, limit);
            let tasks: Vec<_> = tasks.into_iter().map(|state| state.task).collect();
            assert_eq!((tasks, after), (shown.iter().copied().map(task).collect(), next.map(task)), "{why}");
        }
    }

    fn host(epoch: u64, sent_bytes: u64, suspect: bool) -> HostState {
        let report = damselfly_messages::info::HostReport { sent_bytes, ..Default::default() };
        let heard_ago = Duration::ZERO;
        HostState {
            peer: PeerId::random(),
            epoch,
            version: String::new(),
            seed: false,
            suspect,
            heard_ago,
            children: 0,
            downloads: 0,
            report,
            reported_ago: None,
            records: 0,
            tags: Arc::default(),
        }
    }

    #[test]
    fn invented_hosts_fill_no_memory() {
        let mut hosts = BTreeMap::new();
        let known = host(1, 0, false);
        see(&mut hosts, known.clone());
        for _ in 0..HOSTS_MAX {
            see(&mut hosts, host(1, 0, false));
        }
        see(&mut hosts, HostState { epoch: 2, ..known.clone() });
        assert_eq!((hosts.len(), hosts[&known.peer].state.epoch), (HOSTS_MAX, 2), "who is known is heard");
    }

    #[test]
    fn the_newest_report_counts_whoever_told_it() {
        let mut hosts = BTreeMap::new();
        let told = |received_bytes: u64, heard: u64, reported: u64, downloads: u32, of: &HostState| {
            let report = damselfly_messages::info::HostReport { received_bytes, ..Default::default() };
            let heard_ago = Duration::from_millis(heard);
            HostState {
                report,
                heard_ago,
                reported_ago: Some(Duration::from_millis(reported)),
                downloads,
                ..of.clone()
            }
        };
        let of = host(1, 0, false);
        see(&mut hosts, told(100, 10, 10, 1, &of));
        // The host reports how a download goes each second, so this scheduler has just heard of it.
        see(&mut hosts, told(50, 0, 4_000, 2, &of));
        let view = &hosts[&of.peer];
        assert_eq!((view.state.report.received_bytes, view.state.downloads), (100, 2), "no counter goes back");
        hosts.values_mut().for_each(HostView::begin_poll);
        see(&mut hosts, told(100, 10, 2_010, 0, &of));
        assert_eq!((hosts[&of.peer].state.downloads, hosts[&of.peer].is_up), (0, true), "what has ended is over");
    }

    #[test]
    fn a_roll_out_counts_who_is_up() {
        let mut cluster_view = ClusterView::default();
        assert_eq!(cluster_view.roll_out(5), 100.0, "nobody is behind");
        for state in [host(5, 0, false), host(4, 0, false), host(1, 0, true)] {
            see(&mut cluster_view.hosts, state);
        }
        let scheduler = |epoch| HostsAnswer { epoch, tasks: 7, ..HostsAnswer::default() };
        cluster_view.schedulers =
            [Some(scheduler(5)), Some(scheduler(6)), None].map(|one| (PeerId::random(), one)).into();
        assert_eq!(cluster_view.roll_out(5), 75.0, "two hosts are up, and two schedulers");
        let members: Vec<_> = cluster_view.schedulers.iter().map(|(peer, _)| (*peer, 1)).collect();
        let tasks = |members: &[_], replicas| cluster_view.tasks(&Ring::new(members.iter().copied(), replicas));
        assert_eq!((tasks(&members, 2), tasks(&members, 1)), (7, 14), "each task has two owners, or one");
        assert_eq!(tasks(&members[1..], 1), 7, "who is not in the ring owns none");
    }
}
