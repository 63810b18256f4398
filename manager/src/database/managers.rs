//! Which managers use the database, so that hosts know all of them.

use damselfly_messages::record::UnixMillis;

use super::{Database, DatabaseError};

impl Database {
    /// A manager is there now, and hosts join at these addresses. Those not seen since `gone` are forgotten.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn see_manager(
        &self,
        peer_id: &str,
        addresses: &[String],
        (now, gone): (UnixMillis, UnixMillis),
    ) -> Result<(), DatabaseError> {
        let mut writing = self.write().await?;
        sqlx::query(
            "INSERT INTO managers (peer_id, addresses, seen) VALUES ($1, $2, $3)
             ON CONFLICT (peer_id) DO UPDATE SET addresses = excluded.addresses, seen = excluded.seen",
        )
        .bind(peer_id)
        .bind(super::to_json(&addresses))
        .bind(super::column(now))
        .execute(&mut *writing)
        .await?;
        sqlx::query("DELETE FROM managers WHERE seen < $1").bind(super::column(gone)).execute(&mut *writing).await?;
        Ok(writing.commit().await?)
    }

    /// The PeerIds of all managers.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn manager_ids(&self) -> Result<Vec<String>, DatabaseError> {
        Ok(sqlx::query_scalar("SELECT peer_id FROM managers").fetch_all(&self.pool).await?)
    }

    /// The addresses of each manager but one, those seen last first.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn other_managers(&self, but: &str) -> Result<Vec<Vec<String>>, DatabaseError> {
        let rows = sqlx::query("SELECT addresses FROM managers WHERE peer_id <> $1 ORDER BY seen DESC, peer_id");
        let rows = rows.bind(but).fetch_all(&self.pool).await?;
        rows.iter().map(|row| super::json(row, "addresses")).collect()
    }
}
