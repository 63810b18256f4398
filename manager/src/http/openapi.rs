//! `/api/v1/openapi.json`: the table of routes for programs.

use axum::Json;
use serde_json::{Map, Value, json};
use utoipa::OpenApi;

use super::{
    PREFIX, audit, cluster, error, fields, history, membership, ring, roots,
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
    let problem = json!({
        "description": "It was not done.",
        "content": { "application/problem+json": { "schema": reference("Problem") } },
    });
    let (status, schema) = route.answers;
    let mut done = json!({ "description": "Done." });
    if let Some(schema) = schema {
        done["content"] = content(schema);
    }
    let (description, security) = match route.needs {
        Needs::Nothing => ("For everybody.".to_owned(), json!([])),
        Needs::Role(role) => (format!("Needs the role {}.", role.name()), either()),
        Needs::SelfOr(role) => (format!("Needs the role {}, or is about oneself.", role.name()), either()),
    };
    let mut operation = json!({
        "summary": route.summary,
        "description": description,
        "parameters": parameters(route),
        "responses": { status.to_string(): done, "default": problem },
        "security": security,
    });
    if let Some(schema) = route.takes {
        operation["requestBody"] = json!({ "required": true, "content": content(schema) });
    }
    operation
}

fn parameters(route: &Route) -> Vec<Value> {
    let text = json!({ "type": "string" });
    let in_path = route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let in_path = in_path.map(|name| json!({ "name": name, "in": "path", "required": true, "schema": text }));
    let in_query =
        route.query.iter().map(|name| json!({ "name": name, "in": "query", "required": false, "schema": text }));
    in_path.chain(in_query).collect()
}

/// A token or the cookie.
fn either() -> Value {
    json!([{ "token": [] }, { "session": [] }])
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
            assert!(document.pointer(&format!("/paths/{place}/{method}/responses/default")).is_some(), "{place}");
        }
    }
}
