//! The manager over HTTP: `/api/v1/…`.
//!
//! `routes` is the one table of what there is and who may use it; `guard` stands before each route.

use axum::{Router, extract::FromRef, middleware};

mod audit;
mod cluster;
mod config;
mod docs;
mod error;
mod events;
mod fields;
mod guard;
mod headers;
mod history;
mod membership;
mod openapi;
mod page;
mod parameters;
mod ring;
mod roles;
mod roots;
mod routes;
mod schedulers;
mod session;
mod time;
mod tokens;
mod users;

pub use error::Problem;
pub use events::Watchers;

use crate::{access::Access, cluster_view::Poller, console, membership::Membership, state::State};

/// Where the routes begin.
const PREFIX: &str = "/api/v1";

/// What routes work with.
#[derive(Debug, Clone, FromRef)]
pub struct App {
    /// The configuration.
    pub state: State,
    /// Who may do what.
    pub access: Access,
    /// Who belongs to the cluster.
    pub membership: Membership,
    /// What the cluster holds and does.
    pub poller: Poller,
    /// Who watches it.
    pub watchers: Watchers,
}

/// Every route of the API, each behind its guard.
pub fn api(app: App) -> Router {
    let mut router = Router::new();
    for route in routes::table() {
        let rules = guard::Rules { needs: route.needs, scope: route.scope, takes_json: route.takes.is_some() };
        let guard = middleware::from_fn_with_state((app.access.clone(), rules), guard::admit);
        router = router.route(route.path, route.handler.route_layer(guard));
    }
    let router =
        router.fallback(guard::not_found).method_not_allowed_fallback(guard::method_not_allowed).with_state(app);
    Router::new()
        .nest(PREFIX, router)
        .merge(console::routes())
        .merge(docs::routes())
        .fallback(async || Problem::not_found())
        .layer(middleware::map_response(headers::secure))
}
