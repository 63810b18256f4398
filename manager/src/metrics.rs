//! The manager's numbers, for Prometheus.

use std::time::{Duration, Instant};

use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::Response,
};
use damselfly_messages::record::UnixMillis;
use damselfly_transport::program::metrics::{Watched, own};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use tokio::time::sleep;

use crate::{
    access::{Access, SESSION_IDLE, SESSION_TOTAL},
    cluster_view::Poller,
    database::{Database, DatabaseError},
    membership::Membership,
    state,
};

/// How often the database is asked how much it has.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// The route of what is none.
const NO_ROUTE: &str = "none";

/// A route, and how requests for it were answered. All of it is from the table of routes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    method: &'static str,
    route: String,
    status: u16,
}

/// What is counted here; others count for themselves. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    requests: Family<Answered, Counter>,
    seconds: Histogram,
    members: Gauge,
    revoked: Gauge,
    sessions: Gauge,
}

/// Who counts for themselves.
#[derive(Debug)]
pub struct Counting<'a> {
    /// Changes of the configuration.
    pub state: &'a state::State,
    /// Logins.
    pub access: &'a Access,
    /// Hosts that join and renew.
    pub membership: &'a Membership,
    /// Questions to schedulers.
    pub poller: &'a Poller,
}

impl Metrics {
    /// Registers everything.
    pub fn register(registry: &mut Registry, counting: &Counting<'_>) -> Self {
        let metrics = Self {
            requests: Family::default(),
            seconds: Histogram::new([0.001, 0.01, 0.1, 1.0, 10.0]),
            members: Gauge::default(),
            revoked: Gauge::default(),
            sessions: Gauge::default(),
        };
        let registry = own(registry).sub_registry_with_prefix("manager");
        registry.register("http_requests", "HTTP requests by route and status", metrics.requests.clone());
        let help = "Time until the head of an answer to an HTTP request";
        registry.register_with_unit("http_request", help, Unit::Seconds, metrics.seconds.clone());
        registry.register("members", "Hosts that joined and are not revoked", metrics.members.clone());
        registry.register("revoked_members", "Hosts that were put out", metrics.revoked.clone());
        registry.register("sessions", "Sessions of users that have not ended", metrics.sessions.clone());
        counting.register(registry);
        metrics
    }

    /// Asks the database every ten seconds, until the program ends.
    pub async fn look(self, database: Database) {
        loop {
            if let Err(error) = self.look_once(&database).await {
                let error = damselfly_transport::error_chain::chain(&error);
                tracing::warn!(error, "members and sessions cannot be counted");
            }
            sleep(LOOK_EVERY).await;
        }
    }

    async fn look_once(&self, database: &Database) -> Result<(), DatabaseError> {
        let before = |time: Duration| UnixMillis(database.now().0.saturating_sub(time.as_millis() as u64));
        let counts = database.counts(before(SESSION_IDLE), before(SESSION_TOTAL)).await?;
        self.members.set(counts.members);
        self.revoked.set(counts.revoked);
        self.sessions.set(counts.sessions);
        Ok(())
    }
}

impl Counting<'_> {
    fn register(&self, registry: &mut Registry) {
        let publisher = self.state.is_publisher();
        let help = "Whether this manager publishes: of several with one database one does";
        registry.register("is_leader", help, Watched::new(move || u64::from(*publisher.borrow())));
        let help = "Changes of the configuration that this manager has signed";
        registry.register("configuration_changes", help, self.state.changes().clone());
        registry.register("logins", "Logins of users, by result", self.access.logins().clone());
        registry.register("joins", "Hosts that asked to join or to renew, by result", self.membership.asked().clone());
        registry.register("scheduler_polls", "Questions to schedulers, by result", self.poller.polls().clone());
        let poller = self.poller.clone();
        let up = Watched::new(move || poller.cluster_view().up().count() as u64);
        registry.register("hosts_up", "Hosts that a scheduler has a live lease of", up);
    }
}

/// Counts a request by its route, never by what a client has written.
pub async fn count(State(metrics): State<Metrics>, request: Request, next: Next) -> Response {
    let method = match request.method().as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        _ => "other",
    };
    let route = request.extensions().get::<MatchedPath>().map_or(NO_ROUTE, MatchedPath::as_str).to_owned();
    let began = Instant::now();
    let response = next.run(request).await;
    metrics.seconds.observe(began.elapsed().as_secs_f64());
    let status = response.status().as_u16();
    metrics.requests.get_or_create(&Answered { method, route, status }).inc();
    response
}
