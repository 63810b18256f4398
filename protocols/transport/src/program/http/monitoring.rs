//! What operators and their machines look at.

use std::{fmt, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{encoding::text::encode, registry::Registry};

/// The metrics of a program, and whether it is ready.
#[derive(Clone)]
pub struct Monitoring {
    metrics: Arc<Registry>,
    ready: Arc<dyn Fn() -> Result<(), Vec<String>> + Send + Sync>,
}

impl Monitoring {
    /// `ready` is asked at each request and must not wait; its error lists what is missing.
    pub fn new(
        metrics: impl Into<Arc<Registry>>,
        ready: impl Fn() -> Result<(), Vec<String>> + Send + Sync + 'static,
    ) -> Self {
        Self { metrics: metrics.into(), ready: Arc::new(ready) }
    }
}

impl fmt::Debug for Monitoring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitoring").finish_non_exhaustive()
    }
}

/// `/metrics` for Prometheus, `/healthz` (the process is alive), `/readyz` (200, or 503 with a reason per line).
pub fn monitoring(monitoring: Monitoring) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(monitoring)
}

async fn metrics(State(monitoring): State<Monitoring>) -> Response {
    let mut text = String::new();
    match encode(&mut text, &monitoring.metrics) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "metrics cannot be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn ready(State(monitoring): State<Monitoring>) -> Response {
    match (monitoring.ready)() {
        Ok(()) => "ready\n".into_response(),
        Err(reasons) => (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n").into_response(),
    }
}
