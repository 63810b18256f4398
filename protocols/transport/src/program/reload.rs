//! SIGHUP: the configuration is read again while the program runs.

use std::{collections::BTreeSet, io, path::PathBuf};

use tokio::signal::unix::{Signal, SignalKind, signal};
use toml::Value;

use super::config::{self, Config, Override};

/// Reads a program's configuration again at each SIGHUP, with the flags and variables that it was started with.
///
/// Without one of these, SIGHUP ends a program at once.
#[derive(Debug)]
pub struct Reloader<C> {
    hangups: Signal,
    file: Option<PathBuf>,
    overrides: Vec<Override>,
    current: C,
}

impl<C: Config> Reloader<C> {
    /// Starts catching SIGHUP; `current` is what the program has begun with.
    ///
    /// # Errors
    /// [`io::Error`]: the system refuses.
    pub fn catch(file: Option<PathBuf>, overrides: Vec<Override>, current: C) -> io::Result<Self> {
        Ok(Self { hangups: signal(SignalKind::hangup())?, file, overrides, current })
    }

    /// Waits until the configuration is another one. A wrong one is reported in the log, and the one before stays.
    ///
    /// May be dropped and called again.
    pub async fn changed(&mut self) -> C
    where
        C: Clone,
    {
        loop {
            if self.hangups.recv().await.is_none() {
                return std::future::pending().await;
            }
            match config::load::<C>(self.file.as_deref(), &self.overrides) {
                Ok(loaded) => {
                    let before = std::mem::replace(&mut self.current, loaded.config);
                    report(&before, &self.current);
                    return self.current.clone();
                }
                Err(error) => tracing::warn!(%error, "SIGHUP: the configuration is not used, the one before stays"),
            }
        }
    }
}

fn report<C: Config>(before: &C, after: &C) {
    let changed = differences(before, after);
    let (in_force, later): (Vec<_>, Vec<_>) = changed.into_iter().partition(|key| C::RELOADED.contains(&key.as_str()));
    tracing::info!(changed = ?in_force, "SIGHUP: the configuration was read again");
    if !later.is_empty() {
        tracing::warn!(settings = ?later, "these settings are changed only by a restart");
    }
}

/// The dotted names of the settings that are not the same.
fn differences<C: Config>(before: &C, after: &C) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    if let (Ok(before), Ok(after)) = (Value::try_from(before), Value::try_from(after)) {
        compare(&before, &after, "", &mut found);
        compare(&after, &before, "", &mut found);
    }
    found
}

/// Notes what `one` has and `other` has not, or has as another value.
fn compare(one: &Value, other: &Value, key: &str, found: &mut BTreeSet<String>) {
    match (one, other) {
        (Value::Table(one), Value::Table(other)) => {
            for (name, value) in one {
                let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                match other.get(name) {
                    Some(other) => compare(value, other, &key, found),
                    None => drop(found.insert(key)),
                }
            }
        }
        (one, other) if one != other => drop(found.insert(key.to_owned())),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default)]
    struct Example {
        limit: Option<u64>,
        http: Http,
    }

    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default)]
    struct Http {
        port: u16,
    }

    impl Config for Example {
        const RELOADED: &'static [&'static str] = &["limit"];
    }

    #[test]
    fn settings_that_differ_are_named() {
        let none = Example::default();
        let some = Example { limit: Some(1), http: Http { port: 2 } };
        let names = |one, other| differences::<Example>(one, other).into_iter().collect::<Vec<_>>();
        assert_eq!(names(&none, &some), ["http.port", "limit"]);
        assert_eq!(names(&some, &none), ["http.port", "limit"], "a value that is gone");
        assert_eq!(names(&some, &some), [""; 0]);
    }
}
