//! `/api/v1/overview`

use axum::{Json, extract};
use libp2p::PeerId;
use serde::Serialize;
use utoipa::ToSchema;

use crate::state::State;

/// The cluster at a glance.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Overview {
    cluster_id: String,
    epoch: u64,
    version: &'static str,
    #[schema(value_type = String)]
    peer_id: PeerId,
}

pub(super) async fn show(extract::State(state): extract::State<State>) -> Json<Overview> {
    Json(Overview {
        cluster_id: state.cluster().to_string(),
        epoch: state.current().map_or(0, |accepted| accepted.configuration.epoch),
        version: env!("CARGO_PKG_VERSION"),
        peer_id: state.peer_id(),
    })
}
