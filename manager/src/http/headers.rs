//! Headers of every answer.

use axum::{
    http::{HeaderValue, header},
    response::Response,
};

/// Nothing from elsewhere, no script in a page, and no page in another one.
const POLICY: &str = "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' data:; object-src 'none'; \
                      base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/// The same but for styles, which the document's page makes by script.
pub(super) const POLICY_OF_DOCS: &str = "default-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
                                         img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; \
                                         frame-ancestors 'none'";

/// Adds those that a route has not set itself.
pub(super) async fn secure(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}
