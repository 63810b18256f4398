//! `/api/v1/events`: what changes, as server-sent events.

use std::{convert::Infallible, time::Duration};

use axum::{
    extract,
    response::sse::{Event, KeepAlive, Sse},
};
use futures::{Stream, StreamExt as _};
use tokio_stream::wrappers::WatchStream;

use super::cluster::Overview;
use crate::{picture::Eyes, state::State};

/// A stream ends after this time, and a browser begins the next one: who may watch is asked anew.
const ENDS_AFTER: Duration = Duration::from_secs(600);

/// The overview now, and whenever the manager has looked.
pub(super) async fn stream(
    extract::State(state): extract::State<State>,
    extract::State(eyes): extract::State<Eyes>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let looks = WatchStream::new(eyes.watch());
    let events = looks.map(move |picture| {
        let event = Event::default().event("overview");
        // What cannot be shown is left out: the next look is two seconds away.
        Ok(event.json_data(Overview::of(&state, &picture)).unwrap_or_default())
    });
    Sse::new(events.take_until(tokio::time::sleep(ENDS_AFTER))).keep_alive(KeepAlive::default())
}
