//! The local entries, in batches.

use damselfly_transport::local::{MAX_ENTRIES, proto};
use tonic::Status;

use super::task;
use crate::{
    store::{ContentState, TaskState},
    tasks::Entry,
};

/// Names may be long: a batch stays well below the limit of a message.
const BATCH: usize = if MAX_ENTRIES < 200 { MAX_ENTRIES } else { 200 };

/// The messages that list `entries`, made as the client takes them.
pub(super) fn responses(entries: Vec<Entry>) -> impl Iterator<Item = Result<proto::ListTasksResponse, Status>> + Send {
    let mut entries = entries.into_iter();
    std::iter::from_fn(move || {
        let batch: Vec<_> = entries.by_ref().take(BATCH).collect();
        if batch.is_empty() {
            return None;
        }
        let converted: Result<_, Status> = batch.iter().map(entry).collect();
        Some(converted.map(|entries| proto::ListTasksResponse { entries }))
    })
}

fn entry(entry: &Entry) -> Result<proto::Entry, Status> {
    let record = &entry.record;
    Ok(proto::Entry {
        task: Some(task(&record.name, &record.binding)?),
        last_used_unix_ms: record.last_used.0,
        pinned: record.pinned,
        expires_unix_ms: record.binding.expires.map_or(0, |at| at.0),
        state: state(entry).into(),
        bytes_held: held(entry),
    })
}

fn state(entry: &Entry) -> proto::EntryState {
    match (&entry.record.state, &entry.content) {
        (TaskState::Conflict { .. }, _) => proto::EntryState::Conflict,
        (_, Some(ContentState::Damaged { .. }) | None) => proto::EntryState::Damaged,
        (_, Some(ContentState::Partial { .. })) => proto::EntryState::Partial,
        (TaskState::Queued | TaskState::Acknowledged, _) if entry.is_unnamed => proto::EntryState::Unnamed,
        (TaskState::Stale, _) => proto::EntryState::Stale,
        (TaskState::Queued, _) => proto::EntryState::Queued,
        (TaskState::Acknowledged, _) => proto::EntryState::Ok,
    }
}

fn held(entry: &Entry) -> u64 {
    match entry.content {
        Some(ContentState::Complete { bytes }) => bytes,
        Some(ContentState::Partial { bytes, held, pieces, .. }) if pieces > 0 => {
            bytes * u64::from(held) / u64::from(pieces)
        }
        Some(ContentState::Partial { .. } | ContentState::Damaged { .. }) | None => 0,
    }
}
