//! `/api/v1/overview` and `/api/v1/tasks`: what the cluster holds and does.

use axum::{
    Extension, Json,
    extract::{self, Path, Query, rejection::QueryRejection},
    http::StatusCode,
};
use damselfly_messages::{
    id::{ContentId, TaskId},
    info::{self, CandidateState, HostReport, TaskFilter, TaskState},
    name::{CID_BYTES_MAX, Name, TAG_BYTES_MAX},
    piece::PieceLayout,
    wire::Invalid,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Problem, guard::Origin, page, time::rfc3339};
use crate::{
    access::Caller,
    alerts::Alert,
    cluster_view::{ClusterView, Poller, ViewError},
    state::State,
};

/// The cluster at a glance.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Overview {
    cluster_id: String,
    epoch: u64,
    version: &'static str,
    peer_id: String,
    hosts: usize,
    hosts_up: usize,
    seeds_up: usize,
    schedulers: usize,
    schedulers_up: usize,
    tasks: u64,
    downloads: u64,
    contents: u64,
    stored_bytes: u64,
    /// Percent of the hosts and schedulers that are up and run this epoch.
    roll_out_percent: f64,
    rates: Rates,
    /// What should be known, the worst first; each `code` is explained in docs/alerts.md.
    alerts: Vec<Alert>,
}

/// Of all hosts together.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Rates {
    sent_bytes_per_second: u64,
    received_bytes_per_second: u64,
    local_bytes_per_second: u64,
}

pub(super) async fn overview(
    extract::State(state): extract::State<State>,
    extract::State(poller): extract::State<Poller>,
) -> Json<Overview> {
    Json(Overview::of(&state, &poller.cluster_view()))
}

impl Overview {
    /// What a look has shown.
    pub(super) fn of(state: &State, cluster_view: &ClusterView) -> Self {
        let current = state.current();
        let epoch = current.as_ref().map_or(0, |accepted| accepted.configuration.epoch);
        let sum = |of: fn(&HostReport) -> u64| {
            cluster_view.up().map(|host| of(&host.state.report)).fold(0, u64::saturating_add)
        };
        let rates = cluster_view.rates();
        let answered = || cluster_view.schedulers.iter().filter_map(|(_, answer)| answer.as_ref());
        Self {
            cluster_id: state.cluster().to_string(),
            epoch,
            version: env!("CARGO_PKG_VERSION"),
            peer_id: state.peer_id().to_string(),
            hosts: cluster_view.hosts.len() + cluster_view.absent.len(),
            hosts_up: cluster_view.up().count(),
            seeds_up: cluster_view.up().filter(|host| host.state.seed).count(),
            schedulers: cluster_view.schedulers.len(),
            schedulers_up: answered().count(),
            tasks: current.as_ref().map_or(0, |accepted| cluster_view.tasks(&accepted.ring)),
            downloads: cluster_view.up().map(|host| u64::from(host.state.downloads)).sum(),
            contents: sum(|report| report.contents),
            stored_bytes: sum(|report| report.stored_bytes),
            roll_out_percent: cluster_view.roll_out(epoch),
            rates: Rates {
                sent_bytes_per_second: rates.sent as u64,
                received_bytes_per_second: rates.received as u64,
                local_bytes_per_second: rates.local as u64,
            },
            alerts: cluster_view.alerts.clone(),
        }
    }
}

/// Which tasks.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Search {
    limit: Option<u32>,
    cursor: Option<String>,
    cid: Option<String>,
    cid_prefix: Option<String>,
    tag: Option<String>,
    content_id: Option<String>,
}

/// A task. Without a name where the schedulers do not know it: they keep names only as far as they have room.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Task {
    task_id: String,
    cid: Option<String>,
    tag: Option<String>,
    /// Several only for sha256 names, best first.
    candidates: Vec<Candidate>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Candidate {
    content_id: String,
    bytes: u64,
    generation: u64,
    #[schema(format = DateTime)]
    accepted: Option<String>,
    #[schema(format = DateTime)]
    expires: Option<String>,
    state: &'static str,
    holders: u32,
    /// Some of them.
    peers: Vec<String>,
    /// How many pieces it has.
    pieces: u32,
    /// How long each piece is but the last.
    piece_bytes: u32,
    /// Some of the hosts that have a part of it, those with most first. Only in the answer about one task.
    partial: Vec<PartialHolder>,
}

/// A host that has a part of a content.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PartialHolder {
    peer_id: String,
    /// How many pieces it has; schedulers do not know which.
    pieces: u32,
}

impl Task {
    fn new(state: TaskState) -> Self {
        let name = state.name.as_ref();
        Self {
            task_id: state.task.to_string(),
            cid: name.map(|name| name.cid().to_owned()),
            tag: name.map(|name| name.tag().to_owned()),
            candidates: state.candidates.into_iter().map(Candidate::new).collect(),
        }
    }
}

impl Candidate {
    fn new(state: CandidateState) -> Self {
        // A binding of a length that no content can have is none of this version's.
        let layout = PieceLayout::new(state.binding.content_bytes).ok();
        let partial =
            |holder: &info::PartialHolder| PartialHolder { peer_id: holder.peer.to_string(), pieces: holder.pieces };
        Self {
            content_id: state.binding.content.to_string(),
            bytes: state.binding.content_bytes,
            generation: state.binding.generation,
            accepted: state.binding.accepted.map(rfc3339),
            expires: state.binding.expires.map(rfc3339),
            state: if state.available { "available" } else { "unavailable" },
            holders: state.holders,
            peers: state.peers.iter().map(ToString::to_string).collect(),
            pieces: layout.map_or(0, |layout| layout.pieces()),
            piece_bytes: layout.map_or(0, |layout| layout.piece_bytes()),
            partial: state.partial.iter().map(partial).collect(),
        }
    }
}

/// Tasks, in the order of their IDs.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TaskList {
    items: Vec<Task>,
    next: Option<String>,
}

pub(super) async fn tasks(
    extract::State(poller): extract::State<Poller>,
    search: Result<Query<Search>, QueryRejection>,
) -> Result<Json<TaskList>, Problem> {
    let search = page::read(search)?;
    let limit = page::limit(search.limit)? as usize;
    let after = search.cursor.as_deref().map(str::parse::<TaskId>).transpose().map_err(query)?;
    let content = search.content_id.as_deref().map(str::parse::<ContentId>).transpose().map_err(query)?;
    if search.tag.as_ref().is_some_and(|tag| tag.len() > TAG_BYTES_MAX) {
        return Err(wrong(format!("a tag has at most {TAG_BYTES_MAX} bytes")));
    }
    let of = TaskFilter { content, tag: search.tag.clone(), ..TaskFilter::default() };
    let (found, next) = match (&search.cid, search.cid_prefix) {
        (Some(_), Some(_)) => return Err(wrong("give a cid or the beginning of one, not both")),
        (Some(cid), None) => named(&poller, cid, &of, (after, limit)).await?,
        (None, prefix) => {
            let cid_prefix = prefix.map(canonical).transpose()?;
            poller.tasks(after, limit, TaskFilter { cid_prefix, ..of }).await?
        }
    };
    let items = found.into_iter().map(Task::new).collect();
    Ok(Json(TaskList { items, next: next.map(|task| task.to_string()) }))
}

/// The tasks with this cid: the one with the tag that is wanted, or those with any tag.
///
/// That with a tag, or without one, is found by its task ID, also where its name is not known to the schedulers.
async fn named(
    poller: &Poller,
    cid: &str,
    of: &TaskFilter,
    (after, limit): (Option<TaskId>, usize),
) -> Result<(Vec<TaskState>, Option<TaskId>), Problem> {
    let name = Name::parse(cid, of.tag.as_deref().unwrap_or_default()).map_err(query)?;
    let is_wanted = |state: &TaskState| {
        of.content.is_none_or(|wanted| state.candidates.iter().any(|candidate| candidate.binding.content == wanted))
    };
    let mut found = Vec::new();
    if after.is_none() {
        let exact = poller.task(name.task_id()).await?.filter(is_wanted);
        found.extend(exact.map(|state| TaskState { name: Some(name.clone()), ..state }));
    }
    if of.tag.is_some() {
        return Ok((found, None));
    }
    let prefix = TaskFilter { cid_prefix: Some(name.cid().to_owned()), ..of.clone() };
    let (others, next) = poller.tasks(after, limit, prefix).await?;
    let is_other = |other: &Name| other.cid() == name.cid() && *other != name;
    found.extend(others.into_iter().filter(|state| state.name.as_ref().is_some_and(is_other)));
    Ok((found, next))
}

/// The beginning of a cid as schedulers have it: a digest that is complete has one spelling.
fn canonical(prefix: String) -> Result<String, Problem> {
    if prefix.is_empty() || prefix.len() > CID_BYTES_MAX {
        return Err(wrong(format!("the beginning of a cid has 1 to {CID_BYTES_MAX} bytes")));
    }
    Ok(Name::parse(&prefix, "").map_or(prefix, |name| name.cid().to_owned()))
}

fn query(error: Invalid) -> Problem {
    wrong(error.to_string())
}

pub(super) async fn task(
    extract::State(poller): extract::State<Poller>,
    Path(task): Path<String>,
) -> Result<Json<Task>, Problem> {
    let task: TaskId = task.parse().map_err(|_| Problem::not_found())?;
    match poller.task(task).await? {
        Some(state) => Ok(Json(Task::new(state))),
        None => Err(Problem::not_found()),
    }
}

/// What became of a delete.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Deleted {
    deleted: bool,
    /// Holders that dropped it.
    dropped: u32,
    /// Holders that will drop it when they come back.
    unreachable: u32,
}

/// In the whole cluster; what is not there is deleted already.
pub(super) async fn delete(
    extract::State(poller): extract::State<Poller>,
    Extension(caller): Extension<Caller>,
    Extension(Origin(address)): Extension<Origin>,
    Path(task): Path<String>,
) -> Result<Json<Deleted>, Problem> {
    let task: TaskId = task.parse().map_err(|_| Problem::not_found())?;
    let answer = poller.delete(task, &caller.actor(address)).await?;
    let (dropped, unreachable) = (answer.dropped, answer.unreachable);
    tracing::info!(%task, dropped, unreachable, "deleted by way of the API");
    Ok(Json(Deleted { deleted: answer.tombstone.is_some(), dropped, unreachable }))
}

fn wrong(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "invalid_query", detail)
}

impl From<ViewError> for Problem {
    fn from(unseen: ViewError) -> Self {
        match unseen {
            ViewError::Database(error) => error.into(),
            unseen => Self::new(StatusCode::SERVICE_UNAVAILABLE, "no_scheduler", unseen.to_string()),
        }
    }
}
