//! Stands before each route: who asks, and may it?

use std::net::SocketAddr;

use axum::{
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    middleware::Next,
    response::Response,
};
use subtle::ConstantTimeEq as _;

use super::{Problem, routes::Needs};
use crate::access::{Access, AccessError, Caller, Scope, Secret};

/// The cookie of a session.
pub(super) const COOKIE: &str = "dfmanager_session";
/// The header that goes with it.
pub(super) const CSRF: &str = "x-csrf-token";
/// What a browser says about who made a request.
const SITE: &str = "sec-fetch-site";

/// Where a request came from, if the server tells.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin(pub(super) Option<SocketAddr>);

/// What a route asks of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    pub(super) needs: Needs,
    pub(super) scope: Option<Scope>,
    pub(super) takes_json: bool,
}

/// Lets a request through that may be made, and tells the route who makes it.
pub(super) async fn admit(
    State((access, rules)): State<(Access, Rules)>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    if changes {
        same_site(request.headers())?;
    }
    if rules.needs != Needs::Nothing {
        let caller = caller(&access, request.headers()).await?.ok_or_else(Problem::unauthorized)?;
        allow(rules.needs, &caller, request.uri().path())?;
        within(rules.scope, &caller)?;
        if changes {
            check_csrf(&caller, request.headers())?;
        }
        request.extensions_mut().insert(caller);
    }
    well_formed(&request, rules)?;
    let from = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0);
    request.extensions_mut().insert(Origin(from));
    Ok(next.run(request).await)
}

pub(super) async fn not_found(State(access): State<Access>, headers: HeaderMap) -> Problem {
    known_to(&access, &headers, Problem::not_found()).await
}

pub(super) async fn method_not_allowed(State(access): State<Access>, headers: HeaderMap) -> Problem {
    known_to(&access, &headers, Problem::method_not_allowed()).await
}

/// What there is not is told to those only who have shown who they are.
async fn known_to(access: &Access, headers: &HeaderMap, problem: Problem) -> Problem {
    match caller(access, headers).await {
        Ok(Some(_)) => problem,
        Ok(None) => Problem::unauthorized(),
        Err(error) => error.into(),
    }
}

/// Who asks; `None` when it has not shown anything. A token that is there counts alone, also when it is wrong.
async fn caller(access: &Access, headers: &HeaderMap) -> Result<Option<Caller>, AccessError> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let token = value.to_str().ok().and_then(|value| value.split_once(' '));
        let token = token.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        let (_, token) = token.ok_or(AccessError::Unauthorized)?;
        return access.of_token(token.trim()).await.map(Some);
    }
    match cookie(headers) {
        Some(secret) => access.of_session(secret).await.map(Some),
        None => Ok(None),
    }
}

fn cookie(headers: &HeaderMap) -> Option<Secret> {
    let values = headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    let mut cookies = values.flat_map(|value| value.split(';')).filter_map(|cookie| cookie.trim().split_once('='));
    cookies.find(|(name, _)| *name == COOKIE).map(|(_, secret)| Secret::from(secret.to_owned()))
}

fn allow(needs: Needs, caller: &Caller, path: &str) -> Result<(), Problem> {
    let role = match needs {
        Needs::Nothing => return Ok(()),
        Needs::Role(role) => role,
        // Names need no escaping, so one that is escaped is nobody's.
        Needs::SelfOr(_) if path.rsplit('/').next().is_some_and(|name| caller.is(name)) => return Ok(()),
        Needs::SelfOr(role) => role,
    };
    if caller.role >= role {
        return Ok(());
    }
    let detail = format!("this needs the role {}, and you have {}", role.name(), caller.role.name());
    Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", detail))
}

/// A token may do what its role and its scopes both allow.
fn within(scope: Option<Scope>, caller: &Caller) -> Result<(), Problem> {
    match (scope, &caller.scopes) {
        (Some(scope), Some(scopes)) if !scopes.contains(&scope) => {
            let detail = format!("this needs a token with the scope {}", scope.name());
            Err(Problem::new(StatusCode::FORBIDDEN, "scope", detail))
        }
        _ => Ok(()),
    }
}

/// A browser sends the cookie with whatever any page asks for, but only our own page knows the token.
fn check_csrf(caller: &Caller, headers: &HeaderMap) -> Result<(), Problem> {
    let Some(expected) = caller.credential.csrf_token() else { return Ok(()) };
    let given = headers.get(CSRF).map(|value| value.as_bytes()).unwrap_or_default();
    if given.ct_eq(expected.as_bytes()).into() {
        return Ok(());
    }
    let detail = "send the csrf_token of the session in X-CSRF-Token";
    Err(Problem::new(StatusCode::FORBIDDEN, "csrf", detail))
}

/// What no route could make sense of is refused here, for all of them.
fn well_formed(request: &Request, rules: Rules) -> Result<(), Problem> {
    // IDs and names need no escaping, so what is escaped names nothing.
    if request.uri().path().contains('%') {
        return Err(Problem::not_found());
    }
    // PostgreSQL knows no text with it.
    if request.uri().query().is_some_and(|query| query.contains("%00") || query.contains('\0')) {
        return Err(Problem::new(StatusCode::BAD_REQUEST, "invalid_query", "the query has a NUL character"));
    }
    let kind = request.headers().get(header::CONTENT_TYPE).map(|kind| kind.to_str().unwrap_or_default());
    let kind = kind.map(|kind| kind.split(';').next().unwrap_or_default().trim());
    match kind {
        Some(kind) if rules.takes_json && !is_json(kind) => {
            let detail = "the body is JSON: send Content-Type: application/json";
            Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not_json", detail))
        }
        _ => Ok(()),
    }
}

/// JSON, or the patch of it that PATCH takes (RFC 7396).
fn is_json(kind: &str) -> bool {
    ["application/json", "application/merge-patch+json"].iter().any(|json| kind.eq_ignore_ascii_case(json))
}

/// Other sites' pages do not even log in.
fn same_site(headers: &HeaderMap) -> Result<(), Problem> {
    match headers.get(SITE).map(|value| value.as_bytes()) {
        None | Some(b"same-origin" | b"none") => Ok(()),
        Some(_) => Err(Problem::new(StatusCode::FORBIDDEN, "cross_site", "another site's page asks for this")),
    }
}
