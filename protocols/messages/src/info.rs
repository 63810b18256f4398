//! `/damselfly/info/1`: what the manager asks schedulers, so that an operator sees the cluster.

use std::{sync::Arc, time::Duration};

use libp2p::PeerId;
use prost::Message as _;

use crate::{
    id::{ContentId, TaskId},
    membership::Tags,
    name::{CID_BYTES_MAX, Name, TAG_BYTES_MAX},
    pb::{self, at_most, each, required},
    record::Binding,
    scheduler::{CANDIDATES_MAX, TAG_TEXT_MAX},
    wire::{Invalid, Wire},
};

mod deletions;

pub use deletions::{DELETIONS_MAX, Deletion, DeletionsAnswer};

/// Most hosts in one answer.
pub const HOSTS_MAX: usize = 2_000;
/// Most bytes of a host's tags in an answer, so that [`HOSTS_MAX`] hosts fit into one.
pub const HOST_TAGS_BYTES_MAX: usize = 192;
/// Bytes of a tag in a message beside its texts.
const TAG_OVERHEAD_BYTES: usize = 6;
/// Most tasks in one answer.
pub const TASKS_MAX: usize = 200;
/// Most parts of a scheduler's memory that are told of.
pub const SHARES_MAX: usize = 32;
/// Most holders named of one content.
pub const HOLDERS_MAX: usize = 64;

/// What a host counts since its start, and what it has now. Told with every heartbeat.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HostReport {
    /// Complete contents in its store.
    pub contents: u64,
    /// Their bytes.
    pub stored_bytes: u64,
    /// Bytes free on the store's file system.
    pub free_bytes: u64,
    /// Bytes sent to peers since it started.
    pub sent_bytes: u64,
    /// Verified bytes from peers since it started.
    pub received_bytes: u64,
    /// Bytes exported from the local store since it started.
    pub local_bytes: u64,
    /// Imports acknowledged since it started.
    pub imports: u64,
    /// Exports completed since it started.
    pub exports: u64,
    /// Imports and exports that failed since it started.
    pub failures: u64,
    /// Milliseconds since its start, by its own monotonic clock; 0: unknown.
    pub running_millis: u64,
}

/// A question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// The hosts after this one, in the order of their PeerIds' bytes, and what the scheduler counts.
    Hosts {
        /// From the first.
        after: Option<PeerId>,
    },
    /// Tasks after this one, in the order of their digests.
    Tasks {
        /// From the first.
        after: Option<TaskId>,
        /// At most [`TASKS_MAX`].
        limit: usize,
        /// Which.
        of: TaskFilter,
    },
    /// Deletes after this one, in the order in which they came.
    Deletions {
        /// 0: from the first.
        after: u64,
    },
}

/// Which tasks are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaskFilter {
    /// Only this one.
    pub task: Option<TaskId>,
    /// Only those bound to it.
    pub content: Option<ContentId>,
    /// Only those whose cid begins with it. A scheduler of an earlier version takes no notice of this and of the tag.
    pub cid_prefix: Option<String>,
    /// Only those with this tag; empty: those without one.
    pub tag: Option<String>,
}

impl TaskFilter {
    /// Whether a name is one of those wanted; an unknown name is not, where one is wanted.
    pub fn fits_name(&self, name: Option<(&str, &str)>) -> bool {
        match name {
            Some((cid, tag)) => {
                self.cid_prefix.as_ref().is_none_or(|prefix| cid.starts_with(prefix.as_str()))
                    && self.tag.as_ref().is_none_or(|wanted| wanted == tag)
            }
            None => self.cid_prefix.is_none() && self.tag.is_none(),
        }
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    /// To [`Request::Hosts`].
    Hosts(HostsAnswer),
    /// To [`Request::Tasks`].
    Tasks(TasksAnswer),
    /// To [`Request::Deletions`].
    Deletions(DeletionsAnswer),
}

/// What a scheduler counts, and some of its hosts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostsAnswer {
    /// The epoch it runs.
    pub epoch: u64,
    /// Tasks bound to a content.
    pub tasks: u64,
    /// Records told by hosts.
    pub announcements: u64,
    /// Tombstones.
    pub tombstones: u64,
    /// Downloads under way.
    pub downloads: u64,
    /// Hosts with a live lease.
    pub hosts: u64,
    /// Its not knowing a task means something.
    pub warm: bool,
    /// The version of its program.
    pub version: String,
    /// At most [`HOSTS_MAX`].
    pub items: Vec<HostState>,
    /// There are more after the last one.
    pub more: bool,
    /// What it may keep, at most [`SHARES_MAX`]; none of an earlier version.
    pub shares: Vec<Share>,
}

/// A part of a scheduler's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// Which: `announcements`, `hosts`, and so on.
    pub what: String,
    /// How much of it is used.
    pub used: u64,
    /// How much of it there is.
    pub max: u64,
}

/// A host as a scheduler knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostState {
    /// Which.
    pub peer: PeerId,
    /// The epoch it runs.
    pub epoch: u64,
    /// The version of its program.
    pub version: String,
    /// It is preferred as a parent.
    pub seed: bool,
    /// Its connection dropped and it has not spoken since.
    pub suspect: bool,
    /// When it spoke last.
    pub heard_ago: Duration,
    /// Downloads that fetch from it.
    pub children: u32,
    /// Downloads of its own.
    pub downloads: u32,
    /// What it counts.
    pub report: HostReport,
    /// The age of the report: a host speaks more often than it reports. `None` of a scheduler of an earlier version.
    pub reported_ago: Option<Duration>,
    /// Contents and deletes that it has announced to this scheduler.
    pub records: u64,
    /// Its tags, those of its credential and its own: the first ones, of at most [`HOST_TAGS_BYTES_MAX`] together.
    pub tags: Arc<Tags>,
}

/// The first tags of at most [`HOST_TAGS_BYTES_MAX`] together.
pub fn shown_tags(tags: &Tags) -> Tags {
    let mut left = HOST_TAGS_BYTES_MAX;
    let fits = |(key, value): &(&String, &String)| {
        let rest = left.checked_sub(key.len() + value.len() + TAG_OVERHEAD_BYTES);
        left = rest.unwrap_or_default();
        rest.is_some()
    };
    tags.iter().take_while(fits).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Some tasks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TasksAnswer {
    /// At most [`TASKS_MAX`].
    pub items: Vec<TaskState>,
    /// The last task that was looked at, when there are more after it.
    pub more_after: Option<TaskId>,
}

/// A task as a scheduler knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskState {
    /// Which.
    pub task: TaskId,
    /// What it is bound to, best first.
    pub candidates: Vec<CandidateState>,
    /// What it is called, where the scheduler knows.
    pub name: Option<Name>,
}

/// A content of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CandidateState {
    /// The content.
    pub binding: Binding,
    /// Hosts that hold all of it, with a live lease.
    pub holders: u32,
    /// It can be fetched.
    pub available: bool,
    /// Some of the holders, at most [`HOLDERS_MAX`].
    pub peers: Vec<PeerId>,
    /// Hosts that have or fetch a part of it, those with most first, at most [`HOLDERS_MAX`]. Only told of a task that was
    /// asked for by its ID.
    pub partial: Vec<PartialHolder>,
}

/// A host that has a part of a content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartialHolder {
    /// Which.
    pub peer: PeerId,
    /// How many pieces it has; schedulers do not know which.
    pub pieces: u32,
}

impl From<&HostReport> for pb::HostReport {
    fn from(report: &HostReport) -> Self {
        let HostReport {
            contents,
            stored_bytes,
            free_bytes,
            sent_bytes,
            received_bytes,
            local_bytes,
            imports,
            exports,
            failures,
            running_millis,
        } = *report;
        Self {
            contents,
            stored_bytes,
            free_bytes,
            sent_bytes,
            received_bytes,
            local_bytes,
            imports,
            exports,
            failures,
            running_millis,
        }
    }
}

impl From<pb::HostReport> for HostReport {
    fn from(report: pb::HostReport) -> Self {
        let pb::HostReport {
            contents,
            stored_bytes,
            free_bytes,
            sent_bytes,
            received_bytes,
            local_bytes,
            imports,
            exports,
            failures,
            running_millis,
        } = report;
        Self {
            contents,
            stored_bytes,
            free_bytes,
            sent_bytes,
            received_bytes,
            local_bytes,
            imports,
            exports,
            failures,
            running_millis,
        }
    }
}

/// Nothing for no bytes.
fn optional<T>(bytes: &[u8], read: impl FnOnce(&[u8]) -> Result<T, Invalid>) -> Result<Option<T>, Invalid> {
    if bytes.is_empty() { Ok(None) } else { read(bytes).map(Some) }
}

fn short(what: &'static str, text: Option<String>, max: usize) -> Result<Option<String>, Invalid> {
    match text {
        Some(text) if text.len() > max => Err(Invalid::new(what, format!("it is longer than {max} bytes"))),
        text => Ok(text),
    }
}

fn peer(bytes: &[u8]) -> Result<PeerId, Invalid> {
    PeerId::from_bytes(bytes).map_err(|error| Invalid::new("peer id", error.to_string()))
}

impl Wire for Request {
    fn to_bytes(&self) -> Vec<u8> {
        let body = match self {
            Self::Hosts { after } => {
                let after = after.map(PeerId::to_bytes).unwrap_or_default();
                pb::info_request::Body::Hosts(pb::HostsRequest { after })
            }
            Self::Tasks { after, limit, of } => {
                let digest = |task: &Option<TaskId>| task.map(|task| task.digest().to_vec()).unwrap_or_default();
                pb::info_request::Body::Tasks(pb::TasksRequest {
                    after: digest(after),
                    limit: u32::try_from(*limit).unwrap_or(u32::MAX),
                    task: digest(&of.task),
                    content: of.content.map(|content| content.digest().to_vec()).unwrap_or_default(),
                    cid_prefix: of.cid_prefix.clone(),
                    tag: of.tag.clone(),
                })
            }
            Self::Deletions { after } => pb::info_request::Body::Deletions(pb::DeletionsRequest { after: *after }),
        };
        pb::InfoRequest { body: Some(body) }.encode_to_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, Invalid> {
        let request: pb::InfoRequest = pb::decode("information request", bytes)?;
        match required("information request", request.body)? {
            pb::info_request::Body::Hosts(hosts) => Ok(Self::Hosts { after: optional(&hosts.after, peer)? }),
            pb::info_request::Body::Tasks(tasks) => {
                let limit = tasks.limit as usize;
                if !(1..=TASKS_MAX).contains(&limit) {
                    return Err(Invalid::new("limit", format!("{limit} is not within 1–{TASKS_MAX}")));
                }
                let task = optional(&tasks.task, TaskId::from_bytes)?;
                let content = optional(&tasks.content, ContentId::from_bytes)?;
                let after = optional(&tasks.after, TaskId::from_bytes)?;
                let cid_prefix = short("cid prefix", tasks.cid_prefix, CID_BYTES_MAX)?;
                let tag = short("tag", tasks.tag, TAG_BYTES_MAX)?;
                Ok(Self::Tasks { after, limit, of: TaskFilter { task, content, cid_prefix, tag } })
            }
            pb::info_request::Body::Deletions(deletions) => Ok(Self::Deletions { after: deletions.after }),
        }
    }
}

impl From<&HostState> for pb::HostState {
    fn from(host: &HostState) -> Self {
        Self {
            peer: host.peer.to_bytes(),
            epoch: host.epoch,
            version: host.version.clone(),
            seed: host.seed,
            suspect: host.suspect,
            heard_millis_ago: host.heard_ago.as_millis() as u64,
            children: host.children,
            downloads: host.downloads,
            report: Some((&host.report).into()),
            reported_millis_ago: host.reported_ago.map(|ago| ago.as_millis() as u64),
            records: host.records,
            tags: host.tags.as_ref().clone().into_iter().collect(),
        }
    }
}

impl TryFrom<pb::HostState> for HostState {
    type Error = Invalid;

    fn try_from(host: pb::HostState) -> Result<Self, Invalid> {
        if host.version.len() > TAG_TEXT_MAX {
            return Err(Invalid::new("version", "it is too long"));
        }
        let tags: Tags = host.tags.into_iter().collect();
        if shown_tags(&tags).len() != tags.len() {
            return Err(Invalid::new("host tags", "too many or too long"));
        }
        Ok(Self {
            peer: peer(&host.peer)?,
            epoch: host.epoch,
            version: host.version,
            seed: host.seed,
            suspect: host.suspect,
            heard_ago: Duration::from_millis(host.heard_millis_ago),
            children: host.children,
            downloads: host.downloads,
            report: host.report.unwrap_or_default().into(),
            reported_ago: host.reported_millis_ago.map(Duration::from_millis),
            records: host.records,
            tags: Arc::new(tags),
        })
    }
}

impl From<&Share> for pb::Share {
    fn from(share: &Share) -> Self {
        Self { what: share.what.clone(), used: share.used, max: share.max }
    }
}

impl TryFrom<pb::Share> for Share {
    type Error = Invalid;

    fn try_from(share: pb::Share) -> Result<Self, Invalid> {
        if share.what.len() > TAG_TEXT_MAX {
            return Err(Invalid::new("share", "its name is too long"));
        }
        Ok(Self { what: share.what, used: share.used, max: share.max })
    }
}

impl From<&PartialHolder> for pb::PartialHolder {
    fn from(holder: &PartialHolder) -> Self {
        Self { peer: holder.peer.to_bytes(), pieces: holder.pieces }
    }
}

impl TryFrom<pb::PartialHolder> for PartialHolder {
    type Error = Invalid;

    fn try_from(holder: pb::PartialHolder) -> Result<Self, Invalid> {
        Ok(Self { peer: peer(&holder.peer)?, pieces: holder.pieces })
    }
}

impl From<&CandidateState> for pb::CandidateState {
    fn from(candidate: &CandidateState) -> Self {
        Self {
            binding: Some((&candidate.binding).into()),
            holders: candidate.holders,
            available: candidate.available,
            peers: candidate.peers.iter().map(|peer| peer.to_bytes()).collect(),
            partial: candidate.partial.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::CandidateState> for CandidateState {
    type Error = Invalid;

    fn try_from(candidate: pb::CandidateState) -> Result<Self, Invalid> {
        let peers = at_most("holders", candidate.peers, HOLDERS_MAX)?;
        Ok(Self {
            binding: required("binding", candidate.binding)?.try_into()?,
            holders: candidate.holders,
            available: candidate.available,
            peers: peers.iter().map(|bytes| peer(bytes)).collect::<Result<_, _>>()?,
            partial: each("partial holders", candidate.partial, HOLDERS_MAX)?,
        })
    }
}

impl TryFrom<pb::TaskState> for TaskState {
    type Error = Invalid;

    fn try_from(state: pb::TaskState) -> Result<Self, Invalid> {
        let task = TaskId::from_bytes(&state.task)?;
        let name = state.name.map(Name::try_from).transpose()?;
        if name.as_ref().is_some_and(|name| name.task_id() != task) {
            return Err(Invalid::new("name", "it is another task's"));
        }
        Ok(Self { task, candidates: each("candidates", state.candidates, CANDIDATES_MAX)?, name })
    }
}

impl Wire for Response {
    fn to_bytes(&self) -> Vec<u8> {
        let body = match self {
            Self::Hosts(hosts) => pb::info_response::Body::Hosts(pb::HostsAnswer {
                epoch: hosts.epoch,
                tasks: hosts.tasks,
                announcements: hosts.announcements,
                tombstones: hosts.tombstones,
                downloads: hosts.downloads,
                hosts: hosts.hosts,
                warm: hosts.warm,
                version: hosts.version.clone(),
                items: hosts.items.iter().map(Into::into).collect(),
                more: hosts.more,
                shares: hosts.shares.iter().map(Into::into).collect(),
            }),
            Self::Tasks(tasks) => {
                let state = |state: &TaskState| pb::TaskState {
                    task: state.task.digest().to_vec(),
                    candidates: state.candidates.iter().map(Into::into).collect(),
                    name: state.name.as_ref().map(Into::into),
                };
                pb::info_response::Body::Tasks(pb::TasksAnswer {
                    items: tasks.items.iter().map(state).collect(),
                    last: tasks.more_after.map(|task| task.digest().to_vec()).unwrap_or_default(),
                })
            }
            Self::Deletions(deletions) => pb::info_response::Body::Deletions(deletions.into()),
        };
        pb::InfoResponse { body: Some(body) }.encode_to_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, Invalid> {
        let response: pb::InfoResponse = pb::decode("information", bytes)?;
        match required("information", response.body)? {
            pb::info_response::Body::Hosts(hosts) => {
                if hosts.version.len() > TAG_TEXT_MAX {
                    return Err(Invalid::new("version", "it is too long"));
                }
                Ok(Self::Hosts(HostsAnswer {
                    epoch: hosts.epoch,
                    tasks: hosts.tasks,
                    announcements: hosts.announcements,
                    tombstones: hosts.tombstones,
                    downloads: hosts.downloads,
                    hosts: hosts.hosts,
                    warm: hosts.warm,
                    version: hosts.version,
                    items: each("hosts", hosts.items, HOSTS_MAX)?,
                    more: hosts.more,
                    shares: each("shares", hosts.shares, SHARES_MAX)?,
                }))
            }
            pb::info_response::Body::Tasks(tasks) => Ok(Self::Tasks(TasksAnswer {
                items: each("tasks", tasks.items, TASKS_MAX)?,
                more_after: optional(&tasks.last, TaskId::from_bytes)?,
            })),
            pb::info_response::Body::Deletions(deletions) => Ok(Self::Deletions(deletions.try_into()?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        name::Name,
        record::{Tombstone, UnixMillis},
    };

    #[test]
    fn what_is_said_is_understood() {
        let (task, content) = (TaskId::from_bytes(&[1; 32]).expect("32"), ContentId::from_digest([2; 32]));
        let requests = [
            Request::Hosts { after: Some(PeerId::random()) },
            Request::Hosts { after: None },
            Request::Deletions { after: 8 },
            Request::Tasks {
                after: Some(task),
                limit: 7,
                of: TaskFilter { content: Some(content), ..TaskFilter::default() },
            },
            Request::Tasks {
                after: None,
                limit: 7,
                of: TaskFilter { cid_prefix: Some("a".into()), tag: Some(String::new()), ..TaskFilter::default() },
            },
        ];
        for request in requests {
            assert_eq!(Request::from_bytes(&request.to_bytes()), Ok(request));
        }
        let none = Request::Tasks { after: None, limit: 0, of: TaskFilter::default() };
        assert!(Request::from_bytes(&none.to_bytes()).is_err(), "a limit of nothing");
        let host = HostState {
            peer: PeerId::random(),
            epoch: 3,
            version: "1".into(),
            seed: true,
            suspect: false,
            heard_ago: Duration::from_millis(5),
            children: 1,
            downloads: 2,
            report: HostReport { contents: 4, failures: 9, running_millis: 8, ..HostReport::default() },
            reported_ago: Some(Duration::from_millis(7)),
            records: 6,
            tags: Arc::new([("zone".to_owned(), "a".to_owned())].into()),
        };
        let shares = vec![Share { what: "tombstones".into(), used: 1, max: 2 }];
        let hosts =
            HostsAnswer { epoch: 3, items: vec![host], more: true, warm: true, shares, ..HostsAnswer::default() };
        let accepted = Some(UnixMillis(1));
        let binding = Binding { content, content_bytes: 1, generation: 1, accepted, expires: None };
        let partial = vec![PartialHolder { peer: PeerId::random(), pieces: 3 }];
        let peers = vec![PeerId::random()];
        let candidates = vec![CandidateState { binding, holders: 1, available: true, peers, partial }];
        let name = Name::parse("a", "b").expect("sound");
        let state = TaskState { task, candidates, name: None };
        let named = TaskState { task: name.task_id(), candidates: Vec::new(), name: Some(name.clone()) };
        let misnamed = TaskState { name: Some(name.clone()), ..state.clone() };
        let misnamed = Response::Tasks(TasksAnswer { items: vec![misnamed], more_after: None });
        assert!(Response::from_bytes(&misnamed.to_bytes()).is_err(), "a name of another task");
        let tasks = TasksAnswer { items: vec![state, named], more_after: Some(task) };
        let tombstone = Tombstone { task: name.task_id(), generation: 2, deleted: UnixMillis(5) };
        let deletion =
            |number| Deletion { number, peer: PeerId::random(), uid: Some(1000), name: Some(name.clone()), tombstone };
        let deletions = DeletionsAnswer { items: vec![deletion(7), deletion(9)] };
        for response in [Response::Hosts(hosts), Response::Tasks(tasks), Response::Deletions(deletions)] {
            assert_eq!(Response::from_bytes(&response.to_bytes()), Ok(response));
        }
        let other = Deletion { name: Name::parse("a", "c").ok(), ..deletion(7) };
        for items in [vec![deletion(9), deletion(7)], vec![other]] {
            let false_one = Response::Deletions(DeletionsAnswer { items });
            assert!(Response::from_bytes(&false_one.to_bytes()).is_err(), "{false_one:?}");
        }
    }
}
