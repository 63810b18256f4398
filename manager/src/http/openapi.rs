//! `/api/v1/openapi.json`: the table of routes for programs.

use std::collections::BTreeSet;

use axum::{Json, http::Method};
use serde_json::{Map, Value, json};
use utoipa::OpenApi;

use super::{
    PREFIX, audit, cluster, error, fields, history, membership, parameters, ring, roles, roots,
    routes::{self, Needs, Route},
    schedulers, session, tokens, users,
};

/// The schemas of bodies and answers.
#[derive(OpenApi)]
#[openapi(
    info(title = "dfmanager", description = "The manager of a Damselfly cluster."),
    components(schemas(
        audit::AuditList,
        error::Problem,
        fields::FieldList,
        history::Differences,
        history::History,
        history::RollBack,
        cluster::Deleted,
        cluster::Overview,
        cluster::Task,
        cluster::TaskList,
        membership::HostList,
        membership::JoinTokenList,
        membership::NewRevocation,
        membership::NewToken,
        membership::Revocation,
        membership::RevocationList,
        membership::Token,
        ring::RingPicture,
        roles::RoleList,
        roots::RootList,
        roots::Rotation,
        schedulers::Scheduler,
        schedulers::SchedulerChange,
        schedulers::SchedulerList,
        session::LogIn,
        session::Session,
        session::SetUp,
        tokens::MadeToken,
        tokens::NewToken,
        tokens::TokenList,
        users::NewUser,
        users::User,
        users::UserChange,
        users::UserList,
    ))
)]
struct Schemas;

pub(super) async fn show() -> Json<Value> {
    Json(document())
}

/// The document: schemas as derived, paths as in the table.
pub(super) fn document() -> Value {
    let mut document = serde_json::to_value(Schemas::openapi()).unwrap_or_default();
    document["info"]["version"] = env!("CARGO_PKG_VERSION").into();
    document["paths"] = paths();
    for (name, schema) in fields::schemas() {
        document["components"]["schemas"][name] = schema;
    }
    document["components"]["securitySchemes"] = json!({
        "token": { "type": "http", "scheme": "bearer" },
        "session": { "type": "apiKey", "in": "cookie", "name": super::guard::COOKIE },
        "csrf": { "type": "apiKey", "in": "header", "name": super::guard::CSRF },
    });
    document
}

fn paths() -> Value {
    let mut paths = Map::new();
    for route in routes::table() {
        let path = paths.entry(format!("{PREFIX}{}", route.path)).or_insert_with(|| json!({}));
        path[route.method.as_str().to_ascii_lowercase()] = operation(&route);
    }
    paths.into()
}

fn operation(route: &Route) -> Value {
    let (description, security) = match route.needs {
        Needs::Nothing => ("For everybody.".to_owned(), json!([])),
        Needs::Role(role) => (format!("Needs the role {}.", role.name()), either(route)),
        Needs::SelfOr(role) => (format!("Needs the role {}, or is about oneself.", role.name()), either(route)),
    };
    let description = match route.scope {
        Some(scope) => format!("{description} A token that is limited needs the scope `{}`.", scope.name()),
        None => description,
    };
    let mut operation = json!({
        "operationId": operation_id(route),
        "summary": route.summary,
        "description": description,
        "parameters": parameters(route),
        "responses": responses(route),
        "security": security,
    });
    if let Some(schema) = route.takes {
        operation["requestBody"] = json!({ "required": true, "content": content(schema) });
    }
    operation
}

/// Like `get_tasks_task_id`.
fn operation_id(route: &Route) -> String {
    let words = route.path.split(|letter: char| !letter.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.fold(route.method.as_str().to_ascii_lowercase(), |id, word| id + "_" + word)
}

fn responses(route: &Route) -> Value {
    let (status, schema) = route.answers;
    let mut done = json!({ "description": "Done." });
    match (schema, route.path) {
        (Some(schema), _) => done["content"] = content(schema),
        (None, "/events") => done["content"] = json!({ "text/event-stream": { "schema": { "type": "string" } } }),
        (None, _) if status == 200 => {
            done["content"] = json!({ "application/json": { "schema": { "type": "object" } } });
        }
        (None, _) => {}
    }
    if schema == Some("Settings") {
        let etag = json!({ "type": "string", "pattern": "^\"[0-9]+\"$" });
        done["headers"] = json!({ "ETag": { "description": "The epoch.", "required": true, "schema": etag } });
    }
    let mut responses = Map::from_iter([(status.to_string(), done)]);
    for status in problems(route) {
        responses.insert(status.to_string(), problem(status));
    }
    responses.into()
}

/// The statuses of what can go wrong.
fn problems(route: &Route) -> BTreeSet<u16> {
    let changes = route.method != Method::GET;
    let because = [
        (true, &[408, 500][..]),
        // Whatever is asked, a NUL in the query is refused.
        (true, &[400]),
        (route.needs != Needs::Nothing, &[401, 403]),
        (changes, &[403]),
        (route.path.contains('{'), &[404]),
        (route.takes.is_some(), &[413, 415]),
        (route.if_match.is_some(), &[412]),
        (route.if_match == Some(true), &[428]),
        (true, route.problems),
    ];
    because.into_iter().filter(|(is_so, _)| *is_so).flat_map(|(_, statuses)| statuses).copied().collect()
}

fn problem(status: u16) -> Value {
    let description = match status {
        400 => "A parameter or the body is not as described; `detail` says what is allowed.",
        401 => "Nothing shows who asks, or it is not good any more.",
        403 => "Who asks may not do this, or the X-CSRF-Token of the session is missing.",
        404 => "There is no such thing.",
        // Of the server itself, which knows no API.
        408 => return json!({ "description": "It took longer than 30 seconds." }),
        409 => "It does not go with what there is.",
        412 => "If-Match names another epoch than the one in force.",
        413 => "The body is too long.",
        415 => "The body is not `application/json`.",
        422 => "The body names what the manager does not know; `detail` has the list.",
        428 => "If-Match is missing.",
        429 => "Too many tries; Retry-After says when there may be another one.",
        503 => "It cannot be done now; try again, at the time of Retry-After if it is there.",
        _ => "The manager failed.",
    };
    let mut problem = json!({
        "description": description,
        "content": { "application/problem+json": { "schema": reference("Problem") } },
    });
    if status == 429 {
        let seconds = json!({ "type": "integer", "minimum": 1 });
        problem["headers"] = json!({ "Retry-After": { "required": true, "schema": seconds } });
    }
    problem
}

fn parameters(route: &Route) -> Vec<Value> {
    let in_path = route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let in_path = in_path.map(|name| parameters::in_path(route.path, name));
    let in_query = route.query.iter().map(|parameter| parameter.document());
    in_path.chain(in_query).chain(route.if_match.map(parameters::if_match)).collect()
}

/// A token, or the cookie, which needs a second secret for what changes something.
fn either(route: &Route) -> Value {
    match route.method {
        Method::GET => json!([{ "token": [] }, { "session": [] }]),
        _ => json!([{ "token": [] }, { "session": [], "csrf": [] }]),
    }
}

fn content(schema: &str) -> Value {
    json!({ "application/json": { "schema": reference(schema) } })
}

fn reference(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_is_sound() {
        let document = document();
        serde_json::from_value::<utoipa::openapi::OpenApi>(document.clone()).expect("OpenAPI");
        let text = document.to_string();
        let mut references = 0;
        for reference in text.split("\"$ref\":\"#").skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!(document.pointer(reference).is_some(), "{reference} is nowhere");
            references += 1;
        }
        assert!(references > routes::table().len(), "{references}");
        for route in routes::table() {
            let place = format!("{PREFIX}{}", route.path).replace('/', "~1");
            let method = route.method.as_str().to_ascii_lowercase();
            assert!(document.pointer(&format!("/paths/{place}/{method}/responses/500")).is_some(), "{place}");
        }
    }
}
