//! The parameters of routes, as the documentation has them.

use serde_json::{Value, json};

use crate::database::LIMIT_MAX;

/// A parameter in the query of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parameter {
    Limit,
    /// The `next` of the page before, which is a text.
    Cursor,
    /// The `next` of the page before, which is a number.
    NumberCursor,
    /// The `next` of the page before, which is a task's ID.
    TaskCursor,
    HostRole,
    Cid,
    CidPrefix,
    Tag,
    ContentId,
    Actor,
    Action,
    /// An epoch to compare with.
    From,
    /// An epoch that is compared.
    To,
    AllowEmpty,
}

impl Parameter {
    fn name(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Cursor | Self::NumberCursor | Self::TaskCursor => "cursor",
            Self::HostRole => "role",
            Self::Cid => "cid",
            Self::CidPrefix => "cid_prefix",
            Self::Tag => "tag",
            Self::ContentId => "content_id",
            Self::Actor => "actor",
            Self::Action => "action",
            Self::From => "from",
            Self::To => "to",
            Self::AllowEmpty => "allow_empty",
        }
    }

    fn describe(self) -> (&'static str, Value) {
        // What PostgreSQL cannot compare with anything is refused by the guard.
        let text = json!({ "type": "string", "pattern": "^[^\\u0000]*$" });
        match self {
            Self::Limit => (
                "Items of a page.",
                json!({ "type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": super::page::LIMIT_DEFAULT }),
            ),
            Self::Cursor => ("The `next` of the page before.", text),
            Self::NumberCursor => ("The `next` of the page before.", epoch()),
            Self::TaskCursor => ("The `next` of the page before.", task_id()),
            Self::HostRole => (
                "Hosts with this role only.",
                json!({ "type": "string", "enum": ["manager", "node", "scheduler", "seed"] }),
            ),
            Self::Cid => (
                "The first part of a name: a digest, or any text of at most 1024 bytes of UTF-8.",
                json!({ "type": "string", "minLength": 1, "maxLength": 1024, "pattern": "^[^\\u0000]*$" }),
            ),
            Self::CidPrefix => (
                "The beginning of the first part of a name. Not together with a cid.",
                json!({ "type": "string", "minLength": 1, "maxLength": 1024, "pattern": "^[^\\u0000]*$" }),
            ),
            Self::Tag => (
                "The second part of a name, at most 256 bytes of UTF-8; empty for names without one.",
                json!({ "type": "string", "maxLength": 256, "pattern": "^[^\\u0000]*$" }),
            ),
            Self::ContentId => (
                "The content that a name stands for.",
                json!({
                    "type": "string",
                    "pattern": "^(blake3:[0-9a-f]{64}|bafkr4i[a-h][a-z2-7]{50}[aeimquy4])$",
                }),
            ),
            Self::Actor => ("Changes by this user only.", text),
            Self::Action => ("Changes of this kind only, like `user.create`.", text),
            Self::From => ("The epoch before.", epoch()),
            Self::To => ("The epoch after.", epoch()),
            Self::AllowEmpty => ("Whether the ring may be left without schedulers.", json!({ "type": "boolean" })),
        }
    }

    /// For the document.
    pub(super) fn document(self) -> Value {
        let (description, schema) = self.describe();
        let is_required = matches!(self, Self::From | Self::To);
        json!({
            "name": self.name(), "in": "query", "required": is_required, "description": description, "schema": schema,
        })
    }
}

/// A parameter in the path; what is malformed names nothing, and is not found.
pub(super) fn in_path(path: &str, name: &str) -> Value {
    let schema = match (name, path) {
        ("task_id", _) => task_id(),
        ("name", _) => json!({ "type": "string", "pattern": "^[a-z0-9][a-z0-9._-]{0,63}$" }),
        ("id", "/tokens/{id}") => json!({ "type": "string", "pattern": "^[1-9][0-9]{0,17}$" }),
        ("peer_id", _) => json!({ "type": "string", "pattern": "^[1-9A-HJ-NP-Za-km-z]{8,128}$" }),
        ("id", _) => json!({ "type": "string", "pattern": "^[0-9a-f]{32}$" }),
        _ => json!({ "type": "string" }),
    };
    json!({ "name": name, "in": "path", "required": true, "schema": schema })
}

/// The header of a change that says what it is a change of.
pub(super) fn if_match(is_required: bool) -> Value {
    json!({
        "name": "If-Match", "in": "header", "required": is_required,
        "description": "The ETag of what was read, or `*` for whatever there is.",
        "schema": { "type": "string", "examples": ["\"7\""] },
    })
}

fn epoch() -> Value {
    json!({ "type": "integer", "format": "int64", "minimum": 0, "maximum": u64::MAX })
}

fn task_id() -> Value {
    json!({ "type": "string", "pattern": "^1220[0-9a-f]{64}$" })
}
