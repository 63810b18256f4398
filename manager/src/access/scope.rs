//! What a token may be limited to, beside its role.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A part of what there is to do. Without the role that a thing needs, its scope is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub enum Scope {
    /// Looks at tasks.
    #[serde(rename = "tasks:read")]
    TasksRead,
    /// Deletes tasks.
    #[serde(rename = "tasks:delete")]
    TasksDelete,
    /// Looks at the configuration and its history.
    #[serde(rename = "config:read")]
    ConfigRead,
    /// Changes the configuration.
    #[serde(rename = "config:write")]
    ConfigWrite,
    /// Looks at hosts, the ring, the overview, and who was put out.
    #[serde(rename = "hosts:read")]
    HostsRead,
    /// Puts hosts out.
    #[serde(rename = "hosts:revoke")]
    HostsRevoke,
    /// Looks at join tokens, makes them and takes them back.
    #[serde(rename = "join-tokens")]
    JoinTokens,
    /// Looks at users and their tokens, and changes them.
    #[serde(rename = "users")]
    Users,
    /// Looks at the audit.
    #[serde(rename = "audit:read")]
    AuditRead,
}

/// What a token is limited to; `None` is not limited.
pub type Scopes = Option<BTreeSet<Scope>>;

impl Scope {
    /// Each of them.
    pub const ALL: [Self; 9] = [
        Self::TasksRead,
        Self::TasksDelete,
        Self::ConfigRead,
        Self::ConfigWrite,
        Self::HostsRead,
        Self::HostsRevoke,
        Self::JoinTokens,
        Self::Users,
        Self::AuditRead,
    ];

    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TasksRead => "tasks:read",
            Self::TasksDelete => "tasks:delete",
            Self::ConfigRead => "config:read",
            Self::ConfigWrite => "config:write",
            Self::HostsRead => "hosts:read",
            Self::HostsRevoke => "hosts:revoke",
            Self::JoinTokens => "join-tokens",
            Self::Users => "users",
            Self::AuditRead => "audit:read",
        }
    }

    /// The reverse of [`Scope::name`].
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.name() == name)
    }
}

/// Scopes by their names.
///
/// # Errors
/// The name that is none's.
pub fn scopes<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<BTreeSet<Scope>, &'a str> {
    names.into_iter().map(|name| Scope::from_name(name).ok_or(name)).collect()
}
