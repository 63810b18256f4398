//! Users of the manager.

use damselfly_messages::record::UnixMillis;
use serde_json::{Value, json};
use sqlx::{Row as _, any::AnyRow};

use super::{
    Database, DatabaseError, Page, Paged, Writing,
    audit::{self, Actor, Change},
};
use crate::access::Role;

/// Users that there may be.
pub const USERS_MAX: i64 = 1000;

/// A user. The hash of the password is not in what is shown of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Unique.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// It may do nothing at present.
    pub is_disabled: bool,
    /// When it was made.
    pub created: UnixMillis,
}

/// A user to be made.
#[derive(Debug, Clone, Copy)]
pub struct NewUser<'a> {
    /// Unique.
    pub name: &'a str,
    /// What it may do.
    pub role: Role,
    /// The hash of its password.
    pub password: &'a str,
}

/// What is to be other of a user; `None` stays.
#[derive(Debug, Clone, Default)]
pub struct UserChange {
    /// What it may do.
    pub role: Option<Role>,
    /// Whether it may do nothing.
    pub is_disabled: Option<bool>,
    /// The hash of a new password.
    pub password: Option<String>,
}

/// Why a user is not what was wanted.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// There is one of this name.
    #[error("there is a user of this name")]
    Exists,
    /// There is none of this name.
    #[error("there is no such user")]
    Unknown,
    /// Nobody could manage users any more.
    #[error("this is the last admin who can log in: make another one first")]
    LastAdmin,
    /// There are users, so the first one is not to be made.
    #[error("the manager is set up already")]
    SetUp,
    /// There are as many as there may be.
    #[error("there are {USERS_MAX} users; there cannot be more")]
    TooMany,
    /// It is not known.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl From<sqlx::Error> for UserError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error.into())
    }
}

impl Database {
    /// Makes a user.
    ///
    /// # Errors
    /// [`UserError::Exists`], [`UserError::TooMany`].
    pub async fn create_user(&self, user: NewUser<'_>, actor: &Actor, now: UnixMillis) -> Result<User, UserError> {
        let mut writing = self.write().await?;
        if count(&mut writing).await? >= USERS_MAX {
            return Err(UserError::TooMany);
        }
        let made = insert(&mut writing, user, actor, now).await?;
        writing.commit().await?;
        Ok(made)
    }

    /// Makes the first user.
    ///
    /// # Errors
    /// [`UserError::SetUp`] when there is one.
    pub async fn create_first_user(
        &self,
        user: NewUser<'_>,
        actor: &Actor,
        now: UnixMillis,
    ) -> Result<User, UserError> {
        let mut writing = self.write().await?;
        if count(&mut writing).await? > 0 {
            return Err(UserError::SetUp);
        }
        let made = insert(&mut writing, user, actor, now).await?;
        writing.commit().await?;
        Ok(made)
    }

    /// Whether there is no user yet.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn has_no_users(&self) -> Result<bool, DatabaseError> {
        let count: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM users").fetch_one(&self.pool).await?;
        Ok(count == 0)
    }

    /// All users by name.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn users(&self, page: &Page) -> Result<Paged<User>, DatabaseError> {
        let rows = sqlx::query("SELECT * FROM users WHERE name > $1 ORDER BY name LIMIT $2")
            .bind(page.after().unwrap_or_default())
            .bind(page.fetch())
            .fetch_all(&self.pool)
            .await?;
        page.cut(rows, read, |row| Ok(row.try_get("name")?))
    }

    /// The user of this name and the hash of the password.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn user(&self, name: &str) -> Result<Option<(User, String)>, DatabaseError> {
        let row = sqlx::query("SELECT * FROM users WHERE name = $1").bind(name).fetch_optional(&self.pool).await?;
        row.map(|row| Ok((read(&row)?, row.try_get("password")?))).transpose()
    }

    /// Changes a user. A new password and a lock end its sessions; a lock stops its tokens as long as it lasts.
    ///
    /// # Errors
    /// [`UserError::Unknown`], [`UserError::LastAdmin`].
    pub async fn change_user(
        &self,
        name: &str,
        change: UserChange,
        actor: &Actor,
        now: UnixMillis,
    ) -> Result<User, UserError> {
        let mut writing = self.write().await?;
        let before = get(&mut writing, name).await?.ok_or(UserError::Unknown)?;
        let after = User {
            role: change.role.unwrap_or(before.role),
            is_disabled: change.is_disabled.unwrap_or(before.is_disabled),
            ..before.clone()
        };
        if is_acting_admin(&before) && !is_acting_admin(&after) {
            keep_an_admin(&mut writing, name).await?;
        }
        sqlx::query("UPDATE users SET role = $2, disabled = $3, password = COALESCE($4, password) WHERE name = $1")
            .bind(name)
            .bind(after.role.name())
            .bind(i64::from(after.is_disabled))
            .bind(&change.password)
            .execute(&mut *writing)
            .await?;
        if change.password.is_some() || after.is_disabled {
            let ended = sqlx::query("DELETE FROM sessions WHERE user_name = $1").bind(name);
            ended.execute(&mut *writing).await?;
        }
        let mut shown = summary(&after);
        if change.password.is_some() {
            shown["password"] = Value::from("changed");
        }
        let entry = Change { action: "user.change", target: name, before: Some(summary(&before)), after: Some(shown) };
        audit::append(&mut writing, now, actor, entry).await?;
        writing.commit().await?;
        Ok(after)
    }

    /// Deletes a user with its sessions and tokens.
    ///
    /// # Errors
    /// [`UserError::Unknown`], [`UserError::LastAdmin`].
    pub async fn delete_user(&self, name: &str, actor: &Actor, now: UnixMillis) -> Result<(), UserError> {
        let mut writing = self.write().await?;
        let before = get(&mut writing, name).await?.ok_or(UserError::Unknown)?;
        if is_acting_admin(&before) {
            keep_an_admin(&mut writing, name).await?;
        }
        sqlx::query("DELETE FROM users WHERE name = $1").bind(name).execute(&mut *writing).await?;
        let entry = Change { action: "user.delete", target: name, before: Some(summary(&before)), after: None };
        audit::append(&mut writing, now, actor, entry).await?;
        writing.commit().await?;
        Ok(())
    }
}

async fn count(writing: &mut Writing) -> Result<i64, DatabaseError> {
    Ok(sqlx::query_scalar("SELECT COUNT(*) FROM users").fetch_one(&mut **writing).await?)
}

async fn insert(writing: &mut Writing, user: NewUser<'_>, actor: &Actor, now: UnixMillis) -> Result<User, UserError> {
    let done = sqlx::query(
        "INSERT INTO users (name, role, password, disabled, created) VALUES ($1, $2, $3, 0, $4)
         ON CONFLICT (name) DO NOTHING",
    )
    .bind(user.name)
    .bind(user.role.name())
    .bind(user.password)
    .bind(super::column(now))
    .execute(&mut **writing)
    .await?;
    if done.rows_affected() == 0 {
        return Err(UserError::Exists);
    }
    let made = User { name: user.name.to_owned(), role: user.role, is_disabled: false, created: now };
    let entry = Change { action: "user.create", target: user.name, before: None, after: Some(summary(&made)) };
    audit::append(writing, now, actor, entry).await?;
    Ok(made)
}

async fn get(writing: &mut Writing, name: &str) -> Result<Option<User>, DatabaseError> {
    let query = sqlx::query("SELECT * FROM users WHERE name = $1").bind(name);
    query.fetch_optional(&mut **writing).await?.as_ref().map(read).transpose()
}

/// Somebody but `name` can manage users.
async fn keep_an_admin(writing: &mut Writing, name: &str) -> Result<(), UserError> {
    let others: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM users WHERE role = $1 AND disabled = 0 AND name <> $2")
        .bind(Role::Admin.name())
        .bind(name)
        .fetch_one(&mut **writing)
        .await?;
    if others == 0 { Err(UserError::LastAdmin) } else { Ok(()) }
}

fn is_acting_admin(user: &User) -> bool {
    user.role == Role::Admin && !user.is_disabled
}

fn summary(user: &User) -> Value {
    json!({ "role": user.role.name(), "disabled": user.is_disabled })
}

fn read(row: &AnyRow) -> Result<User, DatabaseError> {
    let role: String = row.try_get("role")?;
    Ok(User {
        name: row.try_get("name")?,
        role: Role::from_name(&role).ok_or(DatabaseError::Damaged { what: "role" })?,
        is_disabled: row.try_get::<i64, _>("disabled")? != 0,
        created: super::time(row, "created")?,
    })
}
