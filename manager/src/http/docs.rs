//! `/docs`: the document of the API for people, from the binary.

use std::sync::Arc;

use axum::{
    Router,
    extract::Path,
    http::header,
    response::{IntoResponse, Redirect, Response},
    routing::get,
};
use utoipa_swagger_ui::Config;

use super::{Problem, headers::POLICY_OF_DOCS};

/// The page and its assets, which say nothing that the document does not; that one asks for a session or a token.
pub(super) fn routes() -> Router {
    Router::new()
        .route("/docs", get(async || Redirect::permanent("/docs/")))
        .route("/docs/", get(async || answer("index.html")))
        .route("/docs/{*file}", get(async |Path(file): Path<String>| answer(&file)))
}

fn answer(file: &str) -> Response {
    let config = Config::from(format!("{}/openapi.json", super::PREFIX)).validator_url("none");
    match utoipa_swagger_ui::serve(file, Arc::new(config)) {
        Ok(Some(found)) => {
            let policy = (header::CONTENT_SECURITY_POLICY, POLICY_OF_DOCS.to_owned());
            ([(header::CONTENT_TYPE, found.content_type), policy], found.bytes).into_response()
        }
        Ok(None) => Problem::not_found().into_response(),
        Err(error) => Problem::internal(&*error).into_response(),
    }
}
