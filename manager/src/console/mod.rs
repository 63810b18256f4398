//! The console: one page, its style and its script, in the binary.
//!
//! It uses the API as any other client does, so there is one way to do a thing and one table of permissions, and it takes
//! nothing from elsewhere. What comes from the API is put into the page as text, never as markup.

use axum::{
    Router,
    http::header,
    response::{IntoResponse, Response},
    routing::get,
};

const PAGE: &str = include_str!("index.html");
const STYLE: &str = include_str!("console.css");
const SCRIPT: &str = include_str!("console.js");

/// The page at `/` and at `/setup`, and what it needs.
pub fn routes() -> Router {
    let page = get(async || answer("text/html; charset=utf-8", PAGE));
    Router::new()
        .route("/", page.clone())
        .route("/setup", page)
        .route("/console.css", get(async || answer("text/css; charset=utf-8", STYLE)))
        .route("/console.js", get(async || answer("text/javascript; charset=utf-8", SCRIPT)))
}

fn answer(kind: &'static str, body: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind)], body).into_response()
}
