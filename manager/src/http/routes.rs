//! The one table of routes: what there is, what each needs, and what the documentation says of it.
//!
//! The router is made from it, so there is no route without an entry.

use axum::{
    http::Method,
    routing::{MethodRouter, delete, get, patch, post},
};

use super::{
    App, audit, cluster, config, events, fields, history, membership, openapi, parameters::Parameter, ring, roles,
    roots, schedulers, session, tokens, users,
};
use crate::access::{Role, Scope};

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    /// Anybody, also who has not shown who it is.
    Nothing,
    /// Who has this role or a higher one.
    Role(Role),
    /// Who has this role, and the user whose name ends the path.
    SelfOr(Role),
}

/// A route.
pub(super) struct Route {
    pub(super) method: Method,
    /// Below `/api/v1`.
    pub(super) path: &'static str,
    pub(super) needs: Needs,
    /// What a token that is limited needs; `None` is for every token.
    pub(super) scope: Option<Scope>,
    pub(super) summary: &'static str,
    /// The schema of the body.
    pub(super) takes: Option<&'static str>,
    /// The parameters in the query.
    pub(super) query: &'static [Parameter],
    /// Whether If-Match is needed; `None` when it is not looked at.
    pub(super) if_match: Option<bool>,
    /// The statuses of problems beside those that follow from the rest.
    pub(super) problems: &'static [u16],
    /// The status of success, and the schema of the answer.
    pub(super) answers: (u16, Option<&'static str>),
    pub(super) handler: MethodRouter<App>,
}

impl Route {
    fn new(
        method: Method,
        path: &'static str,
        needs: Needs,
        summary: &'static str,
        handler: MethodRouter<App>,
    ) -> Self {
        let scope = scope_of(&method, path);
        Self {
            method,
            path,
            needs,
            scope,
            summary,
            takes: None,
            query: &[],
            if_match: None,
            problems: &[],
            answers: (200, None),
            handler,
        }
    }

    fn takes(self, schema: &'static str) -> Self {
        Self { takes: Some(schema), ..self }
    }

    fn query(self, query: &'static [Parameter]) -> Self {
        Self { query, ..self }
    }

    fn if_match(self, is_required: bool) -> Self {
        Self { if_match: Some(is_required), ..self }
    }

    fn problems(self, problems: &'static [u16]) -> Self {
        Self { problems, ..self }
    }

    fn answers(self, status: u16, schema: impl Into<Option<&'static str>>) -> Self {
        Self { answers: (status, schema.into()), ..self }
    }
}

/// The scope of a route.
fn scope_of(method: &Method, path: &str) -> Option<Scope> {
    let reads = *method == Method::GET;
    match path.split('/').nth(1).unwrap_or_default() {
        "tasks" if reads => Some(Scope::TasksRead),
        "tasks" => Some(Scope::TasksDelete),
        "config" if reads => Some(Scope::ConfigRead),
        "config" => Some(Scope::ConfigWrite),
        // Draining and weights of the ring are part of the configuration.
        "schedulers" if !reads => Some(Scope::ConfigWrite),
        "revocations" if !reads => Some(Scope::HostsRevoke),
        // Whoever exchanges the root can put everybody out.
        "roots" if !reads => Some(Scope::Users),
        "overview" | "events" | "schedulers" | "ring" | "roots" | "hosts" | "revocations" => Some(Scope::HostsRead),
        "join-tokens" => Some(Scope::JoinTokens),
        "users" | "tokens" => Some(Scope::Users),
        "audit" => Some(Scope::AuditRead),
        // Who one is, and what there is; the rest is for who has shown nothing.
        "session" | "setup" | "roles" | "openapi.json" => None,
        // Nobody has set a scope for it: the one that fewest tokens have.
        _ => Some(Scope::Users),
    }
}

/// Every route.
pub(super) fn table() -> Vec<Route> {
    use Needs::{Nothing, SelfOr};
    const VIEWER: Needs = Needs::Role(Role::Viewer);
    const OPERATOR: Needs = Needs::Role(Role::Operator);
    const ADMIN: Needs = Needs::Role(Role::Admin);
    use Parameter::{
        Action, Actor, AllowEmpty, Cid, CidPrefix, ContentId, Cursor, From, HostRole, Limit, NumberCursor, Tag,
        TaskCursor, To,
    };
    const PAGE: &[Parameter] = &[Limit, Cursor];
    const NUMBERED: &[Parameter] = &[Limit, NumberCursor];
    let route = Route::new;
    vec![
        route(Method::GET, "/overview", VIEWER, "The cluster at a glance.", get(cluster::overview))
            .answers(200, "Overview"),
        route(Method::GET, "/schedulers", VIEWER, "All schedulers, in the ring or not.", get(schedulers::list))
            .answers(200, "SchedulerList"),
        route(
            Method::PATCH,
            "/schedulers/{peer_id}",
            OPERATOR,
            "Takes a scheduler out of the ring, or puts it back. If-Match may be left out.",
            patch(schedulers::change),
        )
        .takes("SchedulerChange")
        .query(&[AllowEmpty])
        .if_match(false)
        .answers(200, "Scheduler")
        .problems(&[409, 503]),
        route(Method::GET, "/hosts", VIEWER, "Members, and what each said last.", get(membership::hosts))
            .query(&[Limit, Cursor, HostRole])
            .answers(200, "HostList"),
        route(Method::GET, "/tasks", VIEWER, "Tasks, by name, content, or one after the other.", get(cluster::tasks))
            .query(&[Limit, TaskCursor, Cid, CidPrefix, Tag, ContentId])
            .answers(200, "TaskList")
            .problems(&[503]),
        route(Method::GET, "/tasks/{task_id}", VIEWER, "A task and its holders.", get(cluster::task))
            .answers(200, "Task")
            .problems(&[503]),
        route(
            Method::DELETE,
            "/tasks/{task_id}",
            OPERATOR,
            "Deletes a task in the whole cluster.",
            delete(cluster::delete),
        )
        .answers(200, "Deleted")
        .problems(&[503]),
        route(Method::GET, "/join-tokens", ADMIN, "Join tokens, newest first.", get(membership::tokens))
            .query(NUMBERED)
            .answers(200, "JoinTokenList"),
        route(
            Method::POST,
            "/join-tokens",
            ADMIN,
            "Makes a join token; its secret is shown once.",
            post(membership::make_token),
        )
        .takes("NewJoinToken")
        .answers(201, "JoinToken"),
        route(Method::DELETE, "/join-tokens/{id}", ADMIN, "Takes a join token back.", delete(membership::withdraw))
            .answers(204, None),
        route(Method::GET, "/revocations", VIEWER, "Hosts that were put out.", get(membership::revocations))
            .query(PAGE)
            .answers(200, "RevocationList"),
        route(Method::POST, "/revocations", ADMIN, "Puts a host out, for good.", post(membership::revoke))
            .takes("NewRevocation")
            .answers(201, "Revocation")
            .problems(&[503]),
        route(Method::GET, "/config", VIEWER, "The settings in force; their epoch is the ETag.", get(config::show))
            .answers(200, "Settings"),
        route(
            Method::PUT,
            "/config",
            OPERATOR,
            "Replaces all settings: what the body leaves out gets its default. Needs If-Match.",
            axum::routing::put(config::change),
        )
        .takes("Settings")
        .query(&[AllowEmpty])
        .if_match(true)
        .answers(200, "Settings")
        .problems(&[409, 503]),
        route(
            Method::PATCH,
            "/config",
            OPERATOR,
            "Changes the settings that the body names, as JSON Merge Patch (RFC 7396): null stands for the default, lists are \
             replaced. If-Match may be left out.",
            patch(config::patch),
        )
        .takes("SettingsPatch")
        .query(&[AllowEmpty])
        .if_match(false)
        .answers(200, "Settings")
        .problems(&[409, 503]),
        route(Method::GET, "/config/fields", VIEWER, "What each setting means and may be.", get(fields::list))
            .answers(200, "FieldList"),
        route(
            Method::GET,
            "/config/diff",
            VIEWER,
            "Which settings differ between the epochs `from` and `to`.",
            get(history::compare),
        )
        .query(&[From, To])
        .answers(200, "Differences")
        .problems(&[404]),
        route(Method::GET, "/config/history", VIEWER, "What was in force, newest first.", get(history::show))
            .query(NUMBERED)
            .answers(200, "History"),
        route(
            Method::POST,
            "/config/rollback",
            OPERATOR,
            "Brings the settings of an epoch back.",
            post(history::roll_back),
        )
        .takes("RollBack")
        .query(&[AllowEmpty])
        .if_match(false)
        .answers(200, "Settings")
        .problems(&[404, 409, 503]),
        route(Method::GET, "/roots", VIEWER, "The root keys of the cluster, oldest first.", get(roots::list))
            .answers(200, "RootList"),
        route(
            Method::POST,
            "/roots/rotate",
            ADMIN,
            "Exchanges the root key; older ones count until the overlap ends.",
            post(roots::rotate),
        )
        .takes("Rotation")
        .answers(200, "RootList")
        .problems(&[409, 503]),
        route(Method::POST, "/setup", Nothing, "Makes the first admin, once.", post(session::set_up))
            .takes("SetUp")
            .answers(201, "User")
            .problems(&[409, 503]),
        route(Method::POST, "/session", Nothing, "Logs in.", post(session::log_in))
            .takes("LogIn")
            .answers(200, "Session")
            .problems(&[401, 429, 503]),
        route(Method::GET, "/session", VIEWER, "Who asks, and what it may do.", get(session::show))
            .answers(200, "Session"),
        route(Method::DELETE, "/session", VIEWER, "Logs out.", delete(session::log_out))
            .answers(204, None)
            .problems(&[409]),
        route(Method::GET, "/roles", VIEWER, "What each role may do.", get(roles::list)).answers(200, "RoleList"),
        route(Method::GET, "/users", ADMIN, "All users by name.", get(users::list))
            .query(PAGE)
            .answers(200, "UserList"),
        route(Method::POST, "/users", ADMIN, "Makes a user.", post(users::create))
            .takes("NewUser")
            .answers(201, "User")
            .problems(&[409, 503]),
        route(
            Method::PATCH,
            "/users/{name}",
            SelfOr(Role::Admin),
            "Changes a user, or one's own password.",
            patch(users::change),
        )
        .takes("UserChange")
        .answers(200, "User")
        .problems(&[409, 429, 503]),
        route(Method::DELETE, "/users/{name}", ADMIN, "Deletes a user.", delete(users::remove))
            .answers(204, None)
            .problems(&[409]),
        route(Method::GET, "/tokens", VIEWER, "One's own tokens; everybody's for an admin.", get(tokens::list))
            .query(NUMBERED)
            .answers(200, "TokenList"),
        route(Method::POST, "/tokens", VIEWER, "Makes a token; it is shown once.", post(tokens::create))
            .takes("NewToken")
            .answers(201, "MadeToken")
            .problems(&[409, 422]),
        route(Method::DELETE, "/tokens/{id}", VIEWER, "Revokes a token.", delete(tokens::revoke)).answers(204, None),
        route(Method::GET, "/audit", OPERATOR, "Who changed what, newest first.", get(audit::list))
            .query(&[Limit, NumberCursor, Actor, Action])
            .answers(200, "AuditList"),
        route(
            Method::GET,
            "/events",
            VIEWER,
            "The overview whenever it changes, as server-sent events.",
            get(events::stream),
        )
        .problems(&[503]),
        route(
            Method::GET,
            "/ring",
            VIEWER,
            "Which scheduler answers first for which part of the ring.",
            get(ring::show),
        )
        .answers(200, "RingPicture"),
        route(Method::GET, "/openapi.json", VIEWER, "This document.", get(openapi::show)),
    ]
}
