//! `/api/v1/events`: what changes, as server-sent events.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract,
    http::StatusCode,
    response::sse::{Event, KeepAlive, Sse},
};
use futures::{Stream, StreamExt as _};
use tokio::sync::Semaphore;
use tokio_stream::wrappers::WatchStream;

use super::{Problem, cluster::Overview};
use crate::{picture::Eyes, state::State};

/// A stream ends after this time, and a browser begins the next one: who may watch is asked anew.
const ENDS_AFTER: Duration = Duration::from_secs(600);
/// So many streams at a time: each has a connection and makes its own text of every look.
const STREAMS_MAX: usize = 64;
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// Places for those who watch.
#[derive(Debug, Clone)]
pub struct Watchers(Arc<Semaphore>);

impl Default for Watchers {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(STREAMS_MAX)))
    }
}

/// The overview now, and whenever the manager has looked.
pub(super) async fn stream(
    extract::State(state): extract::State<State>,
    extract::State(eyes): extract::State<Eyes>,
    extract::State(watchers): extract::State<Watchers>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let Ok(place) = watchers.0.try_acquire_owned() else {
        let detail = format!("{STREAMS_MAX} watch already: close one, or read the overview now and then");
        let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_watchers", detail);
        return Err(problem.retry_after(ASK_AGAIN_AFTER));
    };
    let looks = WatchStream::new(eyes.watch());
    let events = looks.map(move |picture| {
        // Given back with the stream.
        let _ = &place;
        let event = Event::default().event("overview");
        // What cannot be shown is left out: the next look is two seconds away.
        Ok(event.json_data(Overview::of(&state, &picture)).unwrap_or_default())
    });
    Ok(Sse::new(events.take_until(tokio::time::sleep(ENDS_AFTER))).keep_alive(KeepAlive::default()))
}
