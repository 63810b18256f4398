//! The manager over HTTP: `/api/v1/…`.

use axum::{
    Router, middleware,
    routing::{delete, get, post},
};

mod auth;
mod config;
mod error;
mod history;
mod membership;
mod overview;

pub use auth::AdminToken;
pub use error::Problem;

use crate::{membership::Membership, state::State};

/// Every route of the API; each needs the token.
pub fn api(state: State, members: Membership, token: AdminToken) -> Router {
    let members = Router::new()
        .route("/join-tokens", get(membership::tokens).post(membership::make_token))
        .route("/join-tokens/{id}", delete(membership::withdraw))
        .route("/revocations", get(membership::revocations).post(membership::revoke))
        .route("/hosts", get(membership::hosts))
        .with_state(members);
    let routes = Router::new()
        .route("/overview", get(overview::show))
        .route("/config", get(config::show).put(config::change))
        .route("/config/history", get(history::show))
        .route("/config/rollback", post(history::roll_back))
        .fallback(async || Problem::not_found())
        .method_not_allowed_fallback(async || Problem::method_not_allowed())
        .with_state(state)
        .merge(members)
        .layer(middleware::from_fn_with_state(token, auth::require));
    Router::new().nest("/api/v1", routes).fallback(async || Problem::not_found())
}
