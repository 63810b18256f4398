//! Which deletes of hosts are in the audit.

use damselfly_messages::{info::Deletion, record::UnixMillis};
use serde_json::json;

use super::{
    Database, DatabaseError,
    audit::{self, Actor, Change},
};

impl Database {
    /// Notes deletes in the audit, each once, whoever tells of it. Gives how many were news.
    ///
    /// # Errors
    /// [`DatabaseError`]: none is noted.
    pub async fn note_deletions(&self, deletions: &[Deletion], now: UnixMillis) -> Result<u64, DatabaseError> {
        let mut writing = self.write().await?;
        let mut news = 0;
        for deletion in deletions {
            let task = deletion.tombstone.task.to_string();
            let generation = i64::try_from(deletion.tombstone.generation).unwrap_or(i64::MAX);
            let inserted = sqlx::query(
                "INSERT INTO deletions (task, generation, noted) VALUES ($1, $2, $3)
                 ON CONFLICT (task, generation) DO NOTHING",
            )
            .bind(&task)
            .bind(generation)
            .bind(super::column(now))
            .execute(&mut *writing)
            .await?;
            if inserted.rows_affected() == 0 {
                continue;
            }
            news += 1;
            let name = deletion.name.as_ref().map(|name| json!({ "cid": name.cid(), "tag": name.tag() }));
            let change = Change { action: "task.delete", target: &task, before: name, after: None };
            audit::append(&mut writing, deletion.tombstone.deleted, &user_of(deletion), change).await?;
        }
        writing.commit().await?;
        Ok(news)
    }
}

/// A user of a host: no user of the manager has a name with spaces.
fn user_of(deletion: &Deletion) -> Actor {
    let name = match deletion.uid {
        Some(uid) => format!("uid {uid} on {}", deletion.peer),
        None => format!("somebody on {}", deletion.peer),
    };
    Actor { name, address: None }
}
