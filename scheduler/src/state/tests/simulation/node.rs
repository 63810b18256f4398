//! A small model of a node's announcer: what it must do for the scheduler's promises to hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use damselfly_messages::{
    config::Accepted,
    id::{ContentId, TaskId},
    name::Name,
    notify,
    record::{Announcement, Binding, BucketDigests, Holding, Record, Tombstone, UnixMillis},
    scheduler::{AnnounceTask, BucketPart, DeleteAnswer, DeleteTask, Outcome, Request, RequestBody, ResponseBody},
};
use libp2p::PeerId;

use super::super::{START, content, heartbeat, name};

/// For so long after a change the owners by the previous ring are asked too.
const BOTH_RINGS_MS: u64 = 15_000;

pub(super) fn task_name(number: usize) -> Name {
    name(&format!("name {number}"))
}

#[derive(Debug)]
pub(super) enum Out {
    Ask { to: PeerId, request: Box<Request>, purpose: Purpose },
    Wake(u64),
}

/// What a request was for.
#[derive(Debug, Clone)]
pub(super) enum Purpose {
    Heartbeat,
    /// The records sent, with their digests, and whether they were a whole bucket.
    Tell(Vec<(TaskId, u64)>, Option<u8>),
    /// The first word of an import.
    Import(TaskId),
    Delete(TaskId),
    Leave,
}

#[derive(Debug)]
pub(super) enum Answer {
    Body(ResponseBody),
    Unreachable,
    Lost,
}

#[derive(Debug)]
pub(super) struct Entry {
    name: Name,
    pub(super) binding: Binding,
    /// What it lost its name to.
    pub(super) lost_to: Option<Binding>,
}

#[derive(Debug)]
struct Import {
    tries: usize,
    /// Once accepted: owners that have yet to hear of it.
    untold: Option<BTreeSet<PeerId>>,
    told: usize,
    next_ms: u64,
}

#[derive(Debug)]
struct Delete {
    name: Name,
    asked: UnixMillis,
    unasked: BTreeSet<PeerId>,
    waiting: BTreeSet<PeerId>,
    answers: Vec<DeleteAnswer>,
    next_ms: u64,
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) peer: PeerId,
    pub(super) online: bool,
    pub(super) config: Arc<Accepted>,
    previous: Option<(Arc<Accepted>, u64)>,
    number: usize,
    pub(super) entries: BTreeMap<TaskId, Entry>,
    pub(super) tombstones: BTreeMap<TaskId, Tombstone>,
    told: BTreeMap<PeerId, BTreeMap<TaskId, u64>>,
    imports: BTreeMap<TaskId, Import>,
    deletes: BTreeMap<TaskId, Delete>,
    /// What users were told.
    pub(super) imported: Vec<(TaskId, Binding)>,
    pub(super) deleted: Vec<Tombstone>,
}

impl Node {
    pub(super) fn new(number: usize, peer: PeerId, config: Arc<Accepted>) -> Self {
        Self {
            peer,
            online: true,
            config,
            previous: None,
            number,
            entries: BTreeMap::new(),
            tombstones: BTreeMap::new(),
            told: BTreeMap::new(),
            imports: BTreeMap::new(),
            deletes: BTreeMap::new(),
            imported: Vec::new(),
            deleted: Vec::new(),
        }
    }

    pub(super) fn held(&self, number: usize) -> Option<Binding> {
        let entry = self.entries.get(&task_name(number).task_id())?;
        (entry.lost_to.is_none() && entry.binding.accepted.is_some()).then_some(entry.binding)
    }

    pub(super) fn adopt(&mut self, newer: &Arc<Accepted>, now_ms: u64) {
        if newer.configuration.epoch > self.config.configuration.epoch {
            let before = std::mem::replace(&mut self.config, Arc::clone(newer));
            self.previous = Some((before, now_ms + BOTH_RINGS_MS));
        }
    }

    /// A user imports: content 1 is the same for all hosts, others are this host's own.
    pub(super) fn import(&mut self, number: usize, kind: u8, now_ms: u64) -> Vec<Out> {
        let name = task_name(number);
        let task = name.task_id();
        if self.entries.contains_key(&task) || self.deletes.contains_key(&task) {
            return Vec::new();
        }
        let content = match kind {
            1 => content(1),
            kind => ContentId::of(&[&[kind][..], &self.number.to_be_bytes()].concat()),
        };
        let generation = self.tombstones.get(&task).map_or(1, |tombstone| tombstone.generation + 1);
        let binding = Binding { content, content_bytes: 1, generation, accepted: None, expires: None };
        self.entries.insert(task, Entry { name, binding, lost_to: None });
        self.imports.insert(task, Import { tries: 0, untold: None, told: 0, next_ms: now_ms });
        self.go_on(now_ms)
    }

    pub(super) fn delete(&mut self, number: usize, now_ms: u64) -> Vec<Out> {
        let name = task_name(number);
        let task = name.task_id();
        if self.imports.contains_key(&task) || self.deletes.contains_key(&task) {
            return Vec::new();
        }
        let unasked = self.owners(&task, now_ms);
        let (waiting, answers, asked) = (BTreeSet::new(), Vec::new(), UnixMillis(START + now_ms));
        self.deletes.insert(task, Delete { name, asked, unasked, waiting, answers, next_ms: now_ms });
        self.go_on(now_ms)
    }

    pub(super) fn exported(&mut self, number: usize, binding: Binding) -> Vec<Out> {
        let name = task_name(number);
        let task = name.task_id();
        let buried = self.tombstones.get(&task).is_some_and(|tombstone| tombstone.buries(&binding));
        if !buried {
            self.entries.entry(task).or_insert(Entry { name, binding, lost_to: None });
        }
        Vec::new()
    }

    /// Drops what is not decided yet.
    pub(super) fn give_up(&mut self) {
        self.entries.retain(|_, entry| entry.binding.accepted.is_some());
        self.imports.clear();
        self.deletes.clear();
    }

    fn owners(&self, task: &TaskId, now_ms: u64) -> BTreeSet<PeerId> {
        let previous = self.previous.iter().filter(|(_, until)| now_ms < *until).map(|(config, _)| config);
        let rings = previous.chain([&self.config]).map(|config| &config.ring);
        rings.flat_map(|ring| ring.owners(task)).collect()
    }

    fn ask(&self, to: PeerId, body: RequestBody, purpose: Purpose) -> Out {
        let request = Box::new(Request::new(self.config.configuration.epoch, body));
        Out::Ask { to, request, purpose }
    }

    fn record(&self, task: &TaskId) -> Option<Record> {
        if let Some(entry) = self.entries.get(task)
            && entry.lost_to.is_none()
            && (entry.binding.accepted.is_some() || self.imports.contains_key(task))
        {
            let (name, binding) = (entry.name.clone(), entry.binding);
            return Some(Record::Held(Announcement { name, binding, holding: Holding::Complete }));
        }
        self.tombstones.get(task).copied().map(Record::Deleted)
    }

    /// All decided records of tasks that `owner` owns.
    fn records(&self, owner: &PeerId) -> BTreeMap<TaskId, Record> {
        let tasks: BTreeSet<_> = self.entries.keys().chain(self.tombstones.keys()).copied().collect();
        let undecided = |task: &TaskId| self.imports.get(task).is_some_and(|import| import.untold.is_none());
        let owned = tasks.into_iter().filter(|task| !undecided(task) && self.config.ring.owns(owner, task));
        owned.filter_map(|task| Some((task, self.record(&task)?))).collect()
    }

    pub(super) fn digests(&self, owner: &PeerId) -> BucketDigests {
        let mut digests = BucketDigests::default();
        for (task, digest) in self.told.get(owner).into_iter().flatten() {
            if self.config.ring.owns(owner, task) {
                digests.toggle(task, *digest);
            }
        }
        digests
    }

    pub(super) fn heartbeat(&mut self, _now_ms: u64) -> Vec<Out> {
        let members = self.config.ring.members().iter();
        let beat = |owner: &PeerId| {
            let beat = heartbeat(self.number as u32, Some(self.digests(owner)), false, &[]);
            self.ask(*owner, RequestBody::AnnounceHost(Box::new(beat)), Purpose::Heartbeat)
        };
        members.map(beat).collect()
    }

    fn tell(&self, to: PeerId, records: Vec<Record>, bucket: Option<u8>) -> Out {
        let sent = records.iter().map(|record| (record.task(), record.digest())).collect();
        let part = bucket.map(|bucket| BucketPart { bucket, first: true, last: true });
        let body = RequestBody::AnnounceTask(AnnounceTask { records, bucket: part });
        self.ask(to, body, Purpose::Tell(sent, bucket))
    }

    /// After a heartbeat: the buckets that differ, and what changed since it was told.
    fn tell_what_differs(&mut self, owner: PeerId, mismatched: &[u8]) -> Vec<Out> {
        let records = self.records(&owner);
        let told = self.told.entry(owner).or_default();
        let left: Vec<_> = told.keys().filter(|task| !records.contains_key(task)).copied().collect();
        for task in &left {
            told.remove(task);
        }
        let changed = |(task, record): &(&TaskId, &Record)| {
            !mismatched.contains(&task.bucket()) && told.get(task) != Some(&record.digest())
        };
        let changed: Vec<_> = records.iter().filter(changed).map(|(_, record)| record.clone()).collect();
        let leave = |task: TaskId| self.ask(owner, RequestBody::LeaveTask(task), Purpose::Leave);
        let mut outs: Vec<_> = left.into_iter().map(leave).collect();
        outs.extend((!changed.is_empty()).then(|| self.tell(owner, changed, None)));
        for bucket in mismatched {
            let records = records.values().filter(|record| record.task().bucket() == *bucket);
            outs.push(self.tell(owner, records.cloned().collect(), Some(*bucket)));
        }
        outs
    }

    /// Goes on with imports and deletes that are due.
    pub(super) fn go_on(&mut self, now_ms: u64) -> Vec<Out> {
        let mut outs = Vec::new();
        let due = |import: &Import| import.next_ms <= now_ms;
        let imports: Vec<_> = self.imports.iter().filter(|(_, import)| due(import)).map(|(task, _)| *task).collect();
        for task in imports {
            self.go_on_importing(task, now_ms, &mut outs);
        }
        let deletes: Vec<_> = self.deletes.keys().copied().collect();
        for task in deletes {
            self.go_on_deleting(task, now_ms, &mut outs);
        }
        outs
    }

    fn go_on_importing(&mut self, task: TaskId, now_ms: u64, outs: &mut Vec<Out>) {
        let Some(record) = self.record(&task) else { return drop(self.imports.remove(&task)) };
        let owners: Vec<_> = self.config.ring.owners(&task).collect();
        let Some(import) = self.imports.get_mut(&task) else { return };
        import.next_ms = now_ms + 3_000;
        let purpose = Purpose::Import(task);
        let body = RequestBody::AnnounceTask(AnnounceTask { records: vec![record], bucket: None });
        match &import.untold {
            None => {
                let owner = owners[import.tries % owners.len()];
                outs.push(self.ask(owner, body, purpose));
            }
            Some(untold) if untold.is_empty() && import.told > 0 => {
                self.imports.remove(&task);
                self.imported.push((task, self.entries[&task].binding));
            }
            Some(untold) if untold.is_empty() => import.untold = Some(owners.into_iter().collect()),
            Some(untold) => {
                let untold: Vec<_> = untold.iter().copied().collect();
                outs.extend(untold.into_iter().map(|owner| self.ask(owner, body.clone(), purpose.clone())));
            }
        }
        outs.push(Out::Wake(3_001));
    }

    fn go_on_deleting(&mut self, task: TaskId, now_ms: u64, outs: &mut Vec<Out>) {
        let owners = self.owners(&task, now_ms);
        let Some(delete) = self.deletes.get_mut(&task) else { return };
        if delete.next_ms > now_ms {
            return;
        }
        if delete.unasked.is_empty() && delete.waiting.is_empty() {
            let tombstone =
                delete.answers.iter().filter_map(|answer| answer.tombstone).max_by_key(|one| one.generation);
            if let Some(tombstone) = tombstone {
                self.deletes.remove(&task);
                self.apply_tombstone(tombstone);
                self.deleted.push(tombstone);
                return;
            }
            if delete.answers.iter().any(|answer| answer.warm) {
                self.deletes.remove(&task);
                return;
            }
            (delete.unasked, delete.next_ms) = (owners, now_ms + 3_000);
            delete.answers.clear();
            return outs.push(Out::Wake(3_000));
        }
        let unasked = std::mem::take(&mut delete.unasked);
        delete.waiting.extend(&unasked);
        let ask = DeleteTask { asked: Some(delete.asked), ..DeleteTask::of(delete.name.task_id()) };
        for owner in unasked {
            outs.push(self.ask(owner, RequestBody::DeleteTask(ask.clone()), Purpose::Delete(task)));
        }
    }

    pub(super) fn apply_tombstone(&mut self, tombstone: Tombstone) {
        let task = tombstone.task;
        if self.entries.get(&task).is_some_and(|entry| tombstone.buries(&entry.binding)) {
            self.entries.remove(&task);
            self.imports.remove(&task);
        }
        let known = self.tombstones.entry(task).or_insert(tombstone);
        if tombstone.generation > known.generation {
            *known = tombstone;
        }
    }

    fn lose(&mut self, task: TaskId, winner: Binding) {
        if let Some(entry) = self.entries.get_mut(&task)
            && entry.binding.content != winner.content
            && winner.precedence(&entry.binding).is_gt()
        {
            entry.lost_to = Some(winner);
            self.imports.remove(&task);
        }
    }

    pub(super) fn on_notify(&mut self, request: &notify::Request) {
        match request {
            notify::Request::DropTask(tombstone) => self.apply_tombstone(*tombstone),
            notify::Request::ConflictLost { task, winner } => self.lose(*task, *winner),
            notify::Request::NewParents { .. } | notify::Request::NewEpoch(_) => {}
        }
    }

    pub(super) fn on_answer(&mut self, from: PeerId, purpose: Purpose, answer: Answer, now_ms: u64) -> Vec<Out> {
        match (purpose, answer) {
            (Purpose::Heartbeat, Answer::Body(ResponseBody::Host(host))) => {
                let mut outs = self.go_on(now_ms);
                outs.extend(self.tell_what_differs(from, &host.mismatched));
                outs
            }
            (Purpose::Tell(sent, bucket), Answer::Body(ResponseBody::Announced(outcomes))) => {
                self.on_told(from, sent, bucket, outcomes);
                Vec::new()
            }
            (Purpose::Import(task), answer) => {
                self.on_import_answer(from, task, answer, now_ms);
                self.soon(now_ms)
            }
            (Purpose::Delete(task), answer) => {
                self.on_delete_answer(from, task, answer, now_ms);
                self.soon(now_ms)
            }
            _ => Vec::new(),
        }
    }

    fn soon(&mut self, now_ms: u64) -> Vec<Out> {
        let mut outs = self.go_on(now_ms);
        outs.push(Out::Wake(501));
        outs
    }

    fn on_told(&mut self, owner: PeerId, sent: Vec<(TaskId, u64)>, bucket: Option<u8>, outcomes: Vec<Outcome>) {
        if let Some(bucket) = bucket {
            self.told.entry(owner).or_default().retain(|task, _| task.bucket() != bucket);
        }
        for ((task, digest), outcome) in sent.into_iter().zip(outcomes) {
            let heard = matches!(outcome, Outcome::Accepted(_) | Outcome::Noted);
            let told = self.told.entry(owner).or_default();
            told.remove(&task);
            told.extend(heard.then_some((task, digest)));
            self.on_outcome(task, &outcome);
        }
    }

    fn on_outcome(&mut self, task: TaskId, outcome: &Outcome) {
        match outcome {
            Outcome::Accepted(binding) => {
                if let Some(entry) = self.entries.get_mut(&task)
                    && entry.binding.content == binding.content
                {
                    entry.binding.merge(binding);
                }
            }
            Outcome::Conflict(winner) => self.lose(task, *winner),
            Outcome::Buried(tombstone) => self.apply_tombstone(*tombstone),
            Outcome::Noted | Outcome::Cold(_) | Outcome::Refused(_) => {}
        }
    }

    fn on_import_answer(&mut self, from: PeerId, task: TaskId, answer: Answer, now_ms: u64) {
        let Some(entry) = self.entries.get(&task) else { return };
        let (name, queued) = (entry.name.clone(), entry.binding);
        let owners: BTreeSet<_> = self.config.ring.owners(&task).collect();
        let Some(import) = self.imports.get_mut(&task) else { return };
        let deciding = import.untold.is_none();
        import.next_ms = now_ms + 500;
        match answer {
            Answer::Body(ResponseBody::Announced(outcomes)) => match &outcomes[..] {
                [outcome @ Outcome::Accepted(_)] => {
                    match &mut import.untold {
                        None => import.untold = Some(owners),
                        Some(untold) => import.told += usize::from(untold.remove(&from)),
                    }
                    import.next_ms = now_ms;
                    self.on_outcome(task, outcome);
                }
                [Outcome::Buried(tombstone)] => {
                    let tombstone = *tombstone;
                    self.apply_tombstone(tombstone);
                    // Only a new import goes on in the next generation; a decided one was deleted.
                    if deciding {
                        let binding = Binding { generation: tombstone.generation + 1, ..queued };
                        self.entries.insert(task, Entry { name, binding, lost_to: None });
                        self.imports.insert(task, Import { tries: 0, untold: None, told: 0, next_ms: now_ms });
                    }
                }
                [Outcome::Conflict(_)] if deciding => {
                    self.imports.remove(&task);
                    self.entries.remove(&task);
                }
                [outcome @ Outcome::Conflict(_)] => self.on_outcome(task, &outcome.clone()),
                _ => import.tries += 1,
            },
            Answer::Unreachable => {
                import.tries += 1;
                if let Some(untold) = &mut import.untold {
                    untold.remove(&from);
                }
            }
            Answer::Body(_) => {
                if let Some(untold) = &mut import.untold {
                    *untold = owners;
                }
            }
            // Perhaps it was heard: asking the other owner now is what makes two contents be accepted at times.
            Answer::Lost => import.tries += 1,
        }
    }

    fn on_delete_answer(&mut self, from: PeerId, task: TaskId, answer: Answer, now_ms: u64) {
        let owners = self.owners(&task, now_ms);
        let Some(delete) = self.deletes.get_mut(&task) else { return };
        delete.waiting.remove(&from);
        match answer {
            Answer::Body(ResponseBody::Deleted(answer)) => delete.answers.push(answer),
            Answer::Unreachable => {}
            Answer::Lost => drop(delete.unasked.insert(from)),
            Answer::Body(_) => {
                delete.unasked.extend(owners);
                delete.next_ms = now_ms + 500;
            }
        }
    }
}
