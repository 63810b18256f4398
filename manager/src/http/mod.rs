//! The manager over HTTP: `/api/v1/…`.

use axum::{
    Router,
    extract::FromRef,
    middleware,
    routing::{delete, get, post},
};

mod auth;
mod cluster;
mod config;
mod error;
mod history;
mod membership;
mod page;

pub use auth::AdminToken;
pub use error::Problem;

use crate::{membership::Membership, picture::Eyes, state::State};

/// What the routes need.
#[derive(Clone, FromRef)]
pub struct Api {
    /// The configuration.
    pub state: State,
    /// Who belongs to the cluster.
    pub membership: Membership,
    /// What the cluster does.
    pub eyes: Eyes,
}

/// Every route of the API; each needs the token.
pub fn api(api: Api, token: AdminToken) -> Router {
    let routes = Router::new()
        .route("/overview", get(cluster::overview))
        .route("/schedulers", get(cluster::schedulers))
        .route("/tasks", get(cluster::tasks))
        .route("/tasks/{task_id}", get(cluster::task).delete(cluster::delete))
        .route("/config", get(config::show).put(config::change))
        .route("/config/history", get(history::show))
        .route("/config/rollback", post(history::roll_back))
        .route("/join-tokens", get(membership::tokens).post(membership::make_token))
        .route("/join-tokens/{id}", delete(membership::withdraw))
        .route("/revocations", get(membership::revocations).post(membership::revoke))
        .route("/hosts", get(membership::hosts))
        .fallback(async || Problem::not_found())
        .method_not_allowed_fallback(async || Problem::method_not_allowed())
        .with_state(api)
        .layer(middleware::from_fn_with_state(token, auth::require));
    Router::new().nest("/api/v1", routes).fallback(async || Problem::not_found())
}
