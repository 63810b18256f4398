//! What operators and their machines look at.

use std::{fmt, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::registry::Registry;

use super::exposition::expose;

/// The first line of `/readyz` of a program that is ready.
pub(super) const READY: &str = "ready";

/// The metrics of a program, and whether it is ready.
#[derive(Clone)]
pub struct Monitoring {
    metrics: Arc<Registry>,
    ready: Arc<dyn Fn() -> Result<(), Vec<String>> + Send + Sync>,
    obstacles: Arc<dyn Fn() -> Vec<String> + Send + Sync>,
}

impl Monitoring {
    /// `ready` is asked at each request and must not wait; its error lists what is missing.
    pub fn new(
        metrics: impl Into<Arc<Registry>>,
        ready: impl Fn() -> Result<(), Vec<String>> + Send + Sync + 'static,
    ) -> Self {
        Self { metrics: metrics.into(), ready: Arc::new(ready), obstacles: Arc::new(Vec::new) }
    }

    /// What keeps a program from its work that is ready by itself, such as schedulers that cannot be reached: `/readyz`
    /// lists it below its 200, and `--check-ready` fails.
    pub fn with_obstacles(self, obstacles: impl Fn() -> Vec<String> + Send + Sync + 'static) -> Self {
        Self { obstacles: Arc::new(obstacles), ..self }
    }
}

impl fmt::Debug for Monitoring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitoring").finish_non_exhaustive()
    }
}

/// The routes of [`monitoring`].
pub(super) const PATHS: [&str; 3] = ["/metrics", "/healthz", "/readyz"];

/// `/metrics` for Prometheus, `/healthz` (the process is alive), `/readyz` (200, or 503 with a reason per line).
pub fn monitoring(monitoring: Monitoring) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(monitoring)
}

async fn metrics(State(monitoring): State<Monitoring>, asked: HeaderMap) -> Response {
    match expose(&monitoring.metrics, &asked) {
        Ok((kind, text)) => {
            let vary = header::HeaderValue::from_static("accept");
            ([(header::CONTENT_TYPE, kind), (header::VARY, vary)], text).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "metrics cannot be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn ready(State(monitoring): State<Monitoring>) -> Response {
    match (monitoring.ready)() {
        Ok(()) => {
            let mut lines = (monitoring.obstacles)();
            lines.insert(0, READY.to_owned());
            (lines.join("\n") + "\n").into_response()
        }
        Err(reasons) => (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n").into_response(),
    }
}
