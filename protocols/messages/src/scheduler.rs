//! `/damselfly/scheduler/1`: what hosts ask the owners of their tasks.

use std::collections::BTreeMap;

use libp2p::{Multiaddr, PeerId};
use prost::Message as _;

use crate::{
    id::{ContentId, TaskId},
    info::HostReport,
    name::Name,
    pb::{self, at_most, each, required},
    record::{Announcement, BUCKETS, Binding, BucketDigests, Holding, Record, Tombstone, UnixMillis},
    trace::TraceContext,
    wire::{Invalid, Wire},
};

/// Most records in one announcement.
pub const RECORDS_MAX: usize = 4096;
/// Most parents given for one content.
pub const PARENTS_MAX: usize = 64;
/// Contents an owner keeps for a name that the manifest cannot prove.
pub const CANDIDATES_MAX: usize = 4;
/// Most hosts that a downloader asks to be spared.
pub const EXCLUDED_MAX: usize = 256;
/// Most tags of a host.
pub const TAGS_MAX: usize = 32;
/// Longest key and value of a host's tag, in bytes.
pub const TAG_TEXT_MAX: usize = 128;

/// A request to a scheduler.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Epoch of the configuration by which the asker chose this scheduler.
    pub epoch: u64,
    /// Asks a scheduler that is no owner to act for owners that cannot be reached.
    pub stand_in: bool,
    /// What is asked.
    pub body: RequestBody,
    /// What it is asked by.
    pub trace: Option<TraceContext>,
}

impl Request {
    /// A request of who goes by the configuration of `epoch`.
    pub const fn new(epoch: u64, body: RequestBody) -> Self {
        Self { epoch, stand_in: false, body, trace: None }
    }
}

/// What is asked of a scheduler.
#[derive(Debug, Clone, PartialEq)]
pub enum RequestBody {
    /// Is there such a task?
    StatTask(Name),
    /// What the host holds or knows to be deleted; answered by [`ResponseBody::Announced`].
    AnnounceTask(AnnounceTask),
    /// The host wants the content and will serve what it gets; answered by [`ResponseBody::Registered`].
    RegisterPeerTask(RegisterPeerTask),
    /// How a download goes.
    ReportPieceResult(ReportPieceResult),
    /// How a download ended.
    ReportPeerResult(ReportPeerResult),
    /// The host holds the task no more, and does not claim that it is deleted.
    LeaveTask(TaskId),
    /// Delete the task in the whole cluster.
    DeleteTask(DeleteTask),
    /// Heartbeat.
    AnnounceHost(Box<AnnounceHost>),
}

/// Records of the sending host.
#[derive(Debug, Clone, PartialEq)]
pub struct AnnounceTask {
    /// At most [`RECORDS_MAX`].
    pub records: Vec<Record>,
    /// Set when the records replace what the owner knows of one of the host's buckets.
    pub bucket: Option<BucketPart>,
}

/// A part of all records of one bucket. What was not sent between the first and the last part is forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BucketPart {
    /// Which bucket.
    pub bucket: u8,
    /// The first part.
    pub first: bool,
    /// The last part.
    pub last: bool,
}

/// A host that wants a content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisterPeerTask {
    /// The task.
    pub name: Name,
    /// Hosts that failed it and should not be given again.
    pub exclude: Vec<PeerId>,
}

/// Progress of a download.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportPieceResult {
    /// The task.
    pub task: TaskId,
    /// The content being fetched.
    pub content: ContentId,
    /// Verified pieces so far.
    pub pieces_held: u32,
    /// What each parent did since the last report.
    pub results: Vec<ParentResult>,
}

/// What one parent did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParentResult {
    /// The parent.
    pub parent: PeerId,
    /// Pieces it gave that verified.
    pub pieces: u32,
    /// Their bytes.
    pub bytes: u64,
    /// Milliseconds during which requests were under way at it.
    pub busy_millis: u64,
    /// What was wrong with it.
    pub fault: Option<ParentFault>,
}

/// Why a host no longer asks a parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParentFault {
    /// It could not be reached or stopped answering.
    Unreachable,
    /// It no longer holds the content.
    NotHeld,
    /// It sent bytes or a manifest that do not verify.
    Lied,
}

/// The end of a download.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReportPeerResult {
    /// The task.
    pub task: TaskId,
    /// The content.
    pub content: ContentId,
    /// How it ended.
    pub result: PeerResult,
}

/// How a download ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerResult {
    /// The content is complete; its announcement follows.
    Done,
    /// It was given up.
    Failed,
    /// The content is complete but not what its sha256 name says.
    FalseCandidate,
}

/// A cluster-wide delete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeleteTask {
    /// The task.
    pub task: TaskId,
    /// When it was asked for, if it had to wait for an owner: what was accepted later stays.
    pub asked: Option<UnixMillis>,
    /// What people call it; the task's own name.
    pub name: Option<Name>,
    /// The user of the asking host who wants that.
    pub uid: Option<u32>,
}

impl DeleteTask {
    /// Of all that is bound to the task, by nobody in particular.
    pub const fn of(task: TaskId) -> Self {
        Self { task, asked: None, name: None, uid: None }
    }
}

/// A host's heartbeat.
#[derive(Debug, Clone, PartialEq)]
pub struct AnnounceHost {
    /// Where it can be dialled.
    pub addresses: Vec<Multiaddr>,
    /// It has the role seed: preferred as a parent.
    pub seed: bool,
    /// Locality: `host`, `rack`, `zone`, `region`, and others.
    pub tags: BTreeMap<String, String>,
    /// Digests of what it announced to this owner; `None` right after an epoch change, when both sides still sort.
    pub buckets: Option<BucketDigests>,
    /// The program's version.
    pub version: String,
    /// What it counts, for people.
    pub report: HostReport,
}

/// A scheduler's answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Response {
    /// Epoch of the scheduler's configuration.
    pub epoch: u64,
    /// The answer.
    pub body: ResponseBody,
}

/// What a scheduler answers.
#[derive(Debug, Clone, PartialEq)]
pub enum ResponseBody {
    /// To [`RequestBody::StatTask`].
    Stat(StatAnswer),
    /// To [`RequestBody::AnnounceTask`]: one outcome per record, in order.
    Announced(Vec<Outcome>),
    /// To [`RequestBody::RegisterPeerTask`].
    Registered(RegisterAnswer),
    /// To reports and [`RequestBody::LeaveTask`].
    Noted,
    /// To [`RequestBody::DeleteTask`], when every reachable holder has dropped the task.
    Deleted(DeleteAnswer),
    /// To [`RequestBody::AnnounceHost`].
    Host(HostAnswer),
    /// The scheduler does not own the task; with its signed configuration when that is newer than the asker's.
    NotOwner(Option<Vec<u8>>),
}

/// What an owner says of a task it does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing {
    /// The owner has been one long enough that its not knowing means something.
    pub warm: bool,
    /// The task was deleted.
    pub deleted: Option<Tombstone>,
}

/// Answer to a stat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StatAnswer {
    /// The task is known.
    Found {
        /// What it is bound to; several only for sha256 names, at most [`CANDIDATES_MAX`].
        candidates: Vec<Binding>,
        /// Hosts that hold it completely, with a live lease.
        holders: u32,
        /// A complete holder, or partial ones that together have every piece.
        available: bool,
    },
    /// The task is not known.
    Missing(Missing),
}

/// What became of one announced record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The host is a holder; this is the binding to keep.
    Accepted(Binding),
    /// The name stands for another content.
    Conflict(Binding),
    /// The task is deleted.
    Buried(Tombstone),
    /// The tombstone is known now.
    Noted,
    /// The owner cannot decide on a new name yet; try another one, or again after so many milliseconds.
    Cold(u64),
    /// Not accepted, and will not be without a change.
    Refused(String),
}

/// Answer to a registration.
#[derive(Debug, Clone, PartialEq)]
pub enum RegisterAnswer {
    /// Contents to try in this order, with their parents, best first.
    Found(Vec<Candidate>),
    /// The task is not known.
    Missing(Missing),
}

/// One content of a task and who has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// The content.
    pub binding: Binding,
    /// At most [`PARENTS_MAX`].
    pub parents: Vec<Parent>,
}

/// A host to fetch from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// Its identity.
    pub peer: PeerId,
    /// Where to dial it.
    pub addresses: Vec<Multiaddr>,
    /// It has every piece.
    pub complete: bool,
    /// It has the role seed.
    pub seed: bool,
}

/// Answer to a delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeleteAnswer {
    /// The delete's record; `None` when there was nothing to delete.
    pub tombstone: Option<Tombstone>,
    /// Holders that dropped it.
    pub dropped: u32,
    /// Holders that will drop it when they come back.
    pub unreachable: u32,
    /// See [`Missing::warm`]; counts when there was nothing.
    pub warm: bool,
}

/// Answer to a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostAnswer {
    /// Buckets to send again.
    pub mismatched: Vec<u8>,
    /// See [`Missing::warm`].
    pub warm: bool,
    /// The scheduler's wall clock, unless it doubts it.
    pub time: Option<UnixMillis>,
}

mod convert;
