//! `/api/v1/roles`: what users may do.

use axum::Json;
use serde::Serialize;
use utoipa::ToSchema;

use super::routes::{self, Needs};
use crate::access::Role;

/// Every role; each may do what those before it may.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RoleList {
    items: Vec<RoleView>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RoleView {
    role: Role,
    /// What it may do and those before it may not.
    adds: Vec<Permission>,
}

/// A route, and the scope that a token needs for it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Permission {
    method: String,
    path: &'static str,
    summary: &'static str,
    scope: Option<crate::access::Scope>,
}

pub(super) async fn list() -> Json<RoleList> {
    let items = Role::ALL.map(|role| RoleView { role, adds: permissions(role) });
    Json(RoleList { items: items.into() })
}

fn permissions(role: Role) -> Vec<Permission> {
    let is_its = |needs| matches!(needs, Needs::Role(least) | Needs::SelfOr(least) if least == role);
    let routes = routes::table().into_iter().filter(|route| is_its(route.needs));
    let permission = |route: routes::Route| Permission {
        method: route.method.to_string(),
        path: route.path,
        summary: route.summary,
        scope: route.scope,
    };
    routes.map(permission).collect()
}
