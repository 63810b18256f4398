//! `/api/v1/roots`: the keys that everything in the cluster comes from.

use std::time::Duration;

use axum::{
    Extension, Json,
    body::Bytes,
    extract::{self, rejection::BytesRejection},
    http::HeaderMap,
};
use damselfly_messages::{membership::Fingerprint, units, wire::Invalid};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Problem, config, guard::Origin, time::rfc3339};
use crate::{
    access::Caller,
    state::{ChangeError, State},
};

/// A year: no root is exchanged over a longer time.
const OVERLAP_SECONDS_MAX: u64 = 365 * 24 * 3600;

/// The roots of the cluster, oldest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RootList {
    items: Vec<Root>,
    /// When only the newest one counts; null when that is so already.
    overlap_ends: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Root {
    /// SHA-256 of its public key, in hex; of the first one that is the cluster's ID.
    fingerprint: String,
    /// Whether what it has certified counts.
    accepted: bool,
}

pub(super) async fn list(extract::State(state): extract::State<State>) -> Result<Json<RootList>, Problem> {
    let current = state.current().ok_or(ChangeError::Nothing)?;
    let root = |(fingerprint, accepted): (Fingerprint, bool)| Root { fingerprint: fingerprint.to_string(), accepted };
    let items = current.configuration.roots.iter().map(root).collect();
    Ok(Json(RootList { items, overlap_ends: state.retirement().await?.map(rfc3339) }))
}

/// How the root is exchanged.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Rotation {
    /// For so long the roots before it count too: a number of seconds, or a duration such as `21d`; 0 to a year. Without
    /// it: the longest time for which a credential of theirs can hold, with the grace.
    #[serde(default, deserialize_with = "units::optional_seconds")]
    #[schema(maximum = 31_536_000)]
    overlap_seconds: Option<u64>,
}

pub(super) async fn rotate(
    extract::State(state): extract::State<State>,
    Extension(caller): Extension<Caller>,
    Extension(Origin(address)): Extension<Origin>,
    body: Result<Bytes, BytesRejection>,
) -> Result<(HeaderMap, Json<RootList>), Problem> {
    let Rotation { overlap_seconds } = config::read_body(body)?;
    if let Some(seconds) = overlap_seconds.filter(|seconds| *seconds > OVERLAP_SECONDS_MAX) {
        let reason = format!("{seconds} is not within 0–{OVERLAP_SECONDS_MAX}");
        return Err(Invalid::new("overlap_seconds", reason).into());
    }
    let epoch = state.rotate_root(overlap_seconds.map(Duration::from_secs), caller.actor(address)).await?;
    Ok((config::tagged(epoch), list(extract::State(state)).await?))
}
