//! `/api/v1/schedulers`: who is in the ring, and who is kept out of it.

use axum::{
    Extension, Json,
    body::Bytes,
    extract::{
        self, Path, Query,
        rejection::{BytesRejection, QueryRejection},
    },
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use damselfly_messages::{
    config::{SchedulerEntry, SchedulerState},
    info::HostsAnswer,
};
use libp2p::PeerId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Problem, config, guard::Origin, page};
use crate::{
    access::Caller,
    cluster_view::{ClusterView, Poller},
    state::{ChangeError, State},
};

/// A scheduler as it is shown.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Scheduler {
    peer_id: String,
    addresses: Vec<String>,
    weight: u32,
    /// `active`: it is in the ring; `draining`: an operator has taken it out; `dead`: it did not answer.
    state: &'static str,
    /// It answered the last time it was asked.
    up: bool,
    warm: bool,
    epoch: Option<u64>,
    version: Option<String>,
    tasks: Option<u64>,
    hosts: Option<u64>,
    announcements: Option<u64>,
    tombstones: Option<u64>,
}

impl Scheduler {
    fn new(entry: &SchedulerEntry, cluster_view: &ClusterView) -> Self {
        let answer = cluster_view.schedulers.iter().find(|(known, _)| *known == entry.peer_id);
        let answer = answer.and_then(|(_, answer)| answer.as_ref());
        let count = |of: fn(&HostsAnswer) -> u64| answer.map(of);
        Self {
            peer_id: entry.peer_id.to_string(),
            addresses: entry.addresses.iter().map(ToString::to_string).collect(),
            weight: entry.weight,
            state: entry.state.name(),
            up: answer.is_some(),
            warm: answer.is_some_and(|answer| answer.warm),
            epoch: count(|answer| answer.epoch),
            version: answer.map(|answer| answer.version.clone()),
            tasks: count(|answer| answer.tasks),
            hosts: count(|answer| answer.hosts),
            announcements: count(|answer| answer.announcements),
            tombstones: count(|answer| answer.tombstones),
        }
    }
}

/// All schedulers.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SchedulerList {
    items: Vec<Scheduler>,
    next: Option<String>,
}

/// All of them: there are 256 at most.
pub(super) async fn list(
    extract::State(state): extract::State<State>,
    extract::State(poller): extract::State<Poller>,
) -> Result<Json<SchedulerList>, Problem> {
    let current = state.current().ok_or(ChangeError::Nothing)?;
    let cluster_view = poller.cluster_view();
    let schedulers = &current.configuration.settings.schedulers;
    let items = schedulers.iter().map(|entry| Scheduler::new(entry, &cluster_view)).collect();
    Ok(Json(SchedulerList { items, next: None }))
}

/// What is to become of a scheduler.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SchedulerChange {
    state: Wanted,
}

/// That a scheduler is dead is nothing that people decide.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Wanted {
    Active,
    Draining,
}

impl From<Wanted> for SchedulerState {
    fn from(wanted: Wanted) -> Self {
        match wanted {
            Wanted::Active => Self::Active,
            Wanted::Draining => Self::Draining,
        }
    }
}

/// What is wanted says so itself, so If-Match may be left out.
pub(super) async fn change(
    extract::State(state): extract::State<State>,
    extract::State(poller): extract::State<Poller>,
    (Extension(caller), Extension(Origin(address))): (Extension<Caller>, Extension<Origin>),
    Path(peer): Path<String>,
    allowed: Result<Query<config::Allowed>, QueryRejection>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let peer: PeerId = peer.parse().map_err(|_| Problem::not_found())?;
    let empty = page::read(allowed)?.empty_ring();
    let expected = config::Expected::if_given(&headers)?;
    let SchedulerChange { state: wanted } = config::read_body(body)?;
    let actor = caller.actor(address);
    let epoch = state.set_scheduler(peer, wanted.into(), actor, empty, move |epoch| expected.matches(epoch)).await?;
    let current = state.current().ok_or(ChangeError::Nothing)?;
    // It may have been taken off the list just now.
    let entry = current.configuration.settings.scheduler(&peer).ok_or(ChangeError::NoScheduler { peer })?;
    Ok((config::tagged(epoch), Json(Scheduler::new(entry, &poller.cluster_view()))).into_response())
}
