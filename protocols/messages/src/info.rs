//! `/damselfly/info/1`: what the manager asks schedulers, so that an operator sees the cluster.

use std::time::Duration;

use libp2p::PeerId;
use prost::Message as _;

use crate::{
    id::{ContentId, TaskId},
    pb::{self, at_most, each, required},
    record::Binding,
    scheduler::{CANDIDATES_MAX, TAG_TEXT_MAX},
    wire::{Invalid, Wire},
};

mod deletions;

pub use deletions::{DELETIONS_MAX, Deletion, DeletionsAnswer};

/// Most hosts in one answer.
pub const HOSTS_MAX: usize = 2_000;
/// Most tasks in one answer.
pub const TASKS_MAX: usize = 200;
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TaskFilter {
    /// Only this one.
    pub task: Option<TaskId>,
    /// Only those bound to it.
    pub content: Option<ContentId>,
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
        } = *report;
        Self { contents, stored_bytes, free_bytes, sent_bytes, received_bytes, local_bytes, imports, exports, failures }
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
        } = report;
        Self { contents, stored_bytes, free_bytes, sent_bytes, received_bytes, local_bytes, imports, exports, failures }
    }
}

/// Nothing for no bytes.
fn optional<T>(bytes: &[u8], read: impl FnOnce(&[u8]) -> Result<T, Invalid>) -> Result<Option<T>, Invalid> {
    if bytes.is_empty() { Ok(None) } else { read(bytes).map(Some) }
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
                Ok(Self::Tasks { after, limit, of: TaskFilter { task, content } })
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
        }
    }
}

impl TryFrom<pb::HostState> for HostState {
    type Error = Invalid;

    fn try_from(host: pb::HostState) -> Result<Self, Invalid> {
        if host.version.len() > TAG_TEXT_MAX {
            return Err(Invalid::new("version", "it is too long"));
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
        })
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
        Ok(Self { task, candidates: each("candidates", state.candidates, CANDIDATES_MAX)? })
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
            }),
            Self::Tasks(tasks) => {
                let state = |state: &TaskState| pb::TaskState {
                    task: state.task.digest().to_vec(),
                    candidates: state.candidates.iter().map(Into::into).collect(),
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
            Request::Tasks { after: Some(task), limit: 7, of: TaskFilter { task: None, content: Some(content) } },
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
            report: HostReport { contents: 4, failures: 9, ..HostReport::default() },
        };
        let hosts = HostsAnswer { epoch: 3, items: vec![host], more: true, warm: true, ..HostsAnswer::default() };
        let accepted = Some(UnixMillis(1));
        let binding = Binding { content, content_bytes: 1, generation: 1, accepted, expires: None };
        let partial = vec![PartialHolder { peer: PeerId::random(), pieces: 3 }];
        let peers = vec![PeerId::random()];
        let candidates = vec![CandidateState { binding, holders: 1, available: true, peers, partial }];
        let tasks = TasksAnswer { items: vec![TaskState { task, candidates }], more_after: Some(task) };
        let name = Name::parse("a", "b").expect("sound");
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
