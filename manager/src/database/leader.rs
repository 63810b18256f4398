//! Which of several managers publishes.
//!
//! With SQLite there is one manager, because it has locked its data directory. With PostgreSQL it is the one whose
//! connection holds an advisory lock; the server lets go of it when that connection ends, or stays silent.

use std::time::Duration;

use sqlx::{AnyConnection, Connection as _, Executor as _};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{Database, DatabaseError, Location};

/// How often the lock is asked for, and the connection that holds it is tried.
const INTERVAL: Duration = Duration::from_secs(2);
/// A connection that does not answer by then holds nothing any more.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// The advisory lock of who publishes.
const PUBLISHER_LOCK: i64 = 0x6466_6d67_7201;
/// The server ends the connection of a host that is gone within eight seconds, so the next one takes over within ten.
const KEEPALIVE: [&str; 4] = [
    "SET tcp_keepalives_idle = 2",
    "SET tcp_keepalives_interval = 2",
    "SET tcp_keepalives_count = 3",
    "SET tcp_user_timeout = 8000",
];

/// Takes part in the choice of who publishes; dropping it gives the lock up.
#[derive(Debug)]
pub struct Leader {
    is_publisher: watch::Receiver<bool>,
    task: Option<JoinHandle<()>>,
}

impl Leader {
    /// Takes part for the database's managers. With SQLite the caller holds the data directory's lock.
    pub fn start(database: &Database) -> Self {
        match database.place() {
            Location::Sqlite(_) => Self { is_publisher: watch::channel(true).1, task: None },
            Location::Postgres(url) => {
                let (tell, is_publisher) = watch::channel(false);
                let task = tokio::spawn(take_part(url.reveal().to_owned(), tell));
                Self { is_publisher, task: Some(task) }
            }
        }
    }

    /// Whether this manager is the one that publishes.
    pub fn is_publisher(&self) -> watch::Receiver<bool> {
        self.is_publisher.clone()
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

async fn take_part(url: String, tell: watch::Sender<bool>) {
    let mut connection = None;
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let was_held = *tell.borrow();
        let held = timeout(ANSWER_TIMEOUT, hold(&url, &mut connection, was_held)).await;
        let is_publisher = match held {
            Ok(Ok(is_held)) => is_held,
            Ok(Err(error)) => {
                tracing::warn!(error = damselfly_transport::error_chain::chain(&error), "no word on who publishes");
                false
            }
            Err(_) => false,
        };
        if !is_publisher && was_held {
            // The lock may be somebody else's by now, and what is left of the connection says nothing.
            connection = None;
        }
        if tell.send_if_modified(|told| std::mem::replace(told, is_publisher) != is_publisher) {
            tracing::info!(is_publisher, "who publishes has changed");
        }
    }
}

/// Whether the lock is ours, on the one connection that is kept for it.
async fn hold(url: &str, kept: &mut Option<AnyConnection>, was_held: bool) -> Result<bool, DatabaseError> {
    // Taken out: a connection whose answer is not awaited to the end must not be used again.
    let mut connection = match kept.take() {
        Some(connection) => connection,
        None => connect(url).await?,
    };
    let is_held = match was_held {
        true => connection.ping().await.map(|()| true)?,
        false => {
            sqlx::query_scalar("SELECT pg_try_advisory_lock($1)")
                .bind(PUBLISHER_LOCK)
                .fetch_one(&mut connection)
                .await?
        }
    };
    *kept = Some(connection);
    Ok(is_held)
}

async fn connect(url: &str) -> Result<AnyConnection, DatabaseError> {
    let mut connection = AnyConnection::connect(url).await?;
    for statement in KEEPALIVE {
        connection.execute(statement).await?;
    }
    Ok(connection)
}
