//! `/api/v1/events`: what changes, as server-sent events.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Extension, extract,
    http::StatusCode,
    response::sse::{Event, KeepAlive, Sse},
};
use futures::{Stream, StreamExt as _};
use tokio_stream::wrappers::WatchStream;

use super::{Problem, cluster::Overview};
use crate::{access::Caller, cluster_view::Poller, state::State};

/// A stream ends after this time, and a browser begins the next one: who may watch is asked anew.
const ENDS_AFTER: Duration = Duration::from_secs(600);
/// So many streams at a time: each has a connection and makes its own text of every look.
const STREAMS_MAX: usize = 64;
/// Of these, streams of one user; the admin token may have all.
const STREAMS_OF_ONE: usize = 16;
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// Places for those who watch.
#[derive(Debug, Clone, Default)]
pub struct Watchers(Arc<Mutex<Vec<Watcher>>>);

/// The user; `None` with the admin token.
type Watcher = Option<String>;

/// A place of one who watches; given back when it is dropped.
#[derive(Debug)]
struct Subscription(Watchers, Watcher);

impl Watchers {
    fn all(&self) -> MutexGuard<'_, Vec<Watcher>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place, or how many there are.
    fn enter(&self, watcher: Watcher) -> Result<Subscription, String> {
        let mut all = self.all();
        let own = all.iter().filter(|one| **one == watcher).count();
        if all.len() >= STREAMS_MAX {
            return Err(format!("{STREAMS_MAX} watch already"));
        }
        if watcher.is_some() && own >= STREAMS_OF_ONE {
            return Err(format!("you watch {STREAMS_OF_ONE} times already"));
        }
        all.push(watcher.clone());
        Ok(Subscription(self.clone(), watcher))
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut all = self.0.all();
        if let Some(at) = all.iter().position(|one| *one == self.1) {
            all.swap_remove(at);
        }
    }
}

/// The overview now, and whenever the manager has looked.
pub(super) async fn stream(
    extract::State(state): extract::State<State>,
    extract::State(poller): extract::State<Poller>,
    extract::State(watchers): extract::State<Watchers>,
    Extension(caller): Extension<Caller>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let place = watchers.enter(caller.user).map_err(|taken| {
        let detail = format!("{taken}: close one, or read the overview now and then");
        let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_watchers", detail);
        problem.retry_after(ASK_AGAIN_AFTER)
    })?;
    let looks = WatchStream::new(poller.watch());
    let events = looks.map(move |cluster_view| {
        // Given back with the stream.
        let _ = &place;
        let event = Event::default().event("overview");
        // What cannot be shown is left out: the next look is two seconds away.
        Ok(event.json_data(Overview::of(&state, &cluster_view)).unwrap_or_default())
    });
    Ok(Sse::new(events.take_until(tokio::time::sleep(ENDS_AFTER))).keep_alive(KeepAlive::default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_user_takes_every_place() {
        let watchers = Watchers::default();
        let enter = |user: Option<&str>| watchers.enter(user.map(str::to_owned));
        let mut places: Vec<_> = (0..STREAMS_OF_ONE).map(|_| enter(Some("ada")).expect("a place")).collect();
        assert!(enter(Some("ada")).is_err(), "she has enough");
        assert!(enter(Some("bob")).is_ok(), "and he has none");
        places.extend((STREAMS_OF_ONE..STREAMS_MAX).map(|_| enter(None).expect("a place")));
        assert!(enter(Some("bob")).is_err(), "there is none left");
        places.remove(0);
        let again = enter(Some("ada"));
        assert!(again.is_ok(), "one of hers became free");
        drop((places, again));
        assert!(watchers.all().is_empty(), "nobody is remembered");
    }
}
