//! Who changed what, in the same transaction as the change.

use damselfly_messages::record::UnixMillis;
use serde_json::Value;
use sqlx::{Row as _, any::AnyRow};

use super::{Database, DatabaseError, Page, Paged, Writing};

/// Who changes something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// A user, or a part of the manager in parentheses, which no user's name has.
    pub name: String,
    /// Where the request came from.
    pub address: Option<String>,
}

impl Actor {
    /// The manager itself.
    pub fn manager() -> Self {
        Self { name: "(manager)".to_owned(), address: None }
    }
}

/// A change.
#[derive(Debug, Clone, Default)]
pub struct Change<'a> {
    /// What was done, like `user.create`.
    pub action: &'a str,
    /// To what.
    pub target: &'a str,
    /// What was there; never a secret.
    pub before: Option<Value>,
    /// What is there now; never a secret.
    pub after: Option<Value>,
}

/// A change that was made.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Grows with time.
    pub id: u64,
    /// When.
    pub at: UnixMillis,
    /// Who.
    pub actor: String,
    /// What was done.
    pub action: String,
    /// To what.
    pub target: String,
    /// Where the request came from.
    pub from_address: Option<String>,
    /// What was there.
    pub before: Option<Value>,
    /// What was there afterwards.
    pub after: Option<Value>,
}

/// Which entries; what is `None` may be anything.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Of this actor.
    pub actor: Option<String>,
    /// Of this action.
    pub action: Option<String>,
}

/// Notes `change`, if `writing` commits.
///
/// # Errors
/// [`DatabaseError`]: the change must not commit then.
pub async fn append(
    writing: &mut Writing,
    now: UnixMillis,
    actor: &Actor,
    change: Change<'_>,
) -> Result<(), DatabaseError> {
    let id = super::next_number(writing, "SELECT MAX(id) FROM audit").await?;
    sqlx::query(
        "INSERT INTO audit (id, at, actor, action, target, from_address, before_json, after_json)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(id)
    .bind(super::column(now))
    .bind(&actor.name)
    .bind(change.action)
    .bind(change.target)
    .bind(&actor.address)
    .bind(change.before.map(|value| value.to_string()))
    .bind(change.after.map(|value| value.to_string()))
    .execute(&mut **writing)
    .await?;
    Ok(())
}

impl Database {
    /// The entries that `filter` lets through, newest first.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn audit(&self, page: &Page, filter: &Filter) -> Result<Paged<Entry>, DatabaseError> {
        let rows = sqlx::query(
            "SELECT * FROM audit WHERE id < $1 AND ($2 IS NULL OR actor = $2) AND ($3 IS NULL OR action = $3)
             ORDER BY id DESC LIMIT $4",
        )
        .bind(page.below())
        .bind(&filter.actor)
        .bind(&filter.action)
        .bind(page.fetch())
        .fetch_all(&self.pool)
        .await?;
        page.cut(rows, read, |row| Ok(super::number(row, "id")?.to_string()))
    }
}

fn read(row: &AnyRow) -> Result<Entry, DatabaseError> {
    let value = |name: &'static str| {
        let text: Option<String> = row.try_get(name)?;
        text.map(|text| serde_json::from_str(&text).map_err(|_| DatabaseError::Damaged { what: name })).transpose()
    };
    Ok(Entry {
        id: super::number(row, "id")?,
        at: super::time(row, "at")?,
        actor: row.try_get("actor")?,
        action: row.try_get("action")?,
        target: row.try_get("target")?,
        from_address: row.try_get("from_address")?,
        before: value("before_json")?,
        after: value("after_json")?,
    })
}
