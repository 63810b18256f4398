//! Where the database is, without telling its password.

use std::{fmt, path::Path};

use serde::{Deserialize, Serialize, Serializer};

/// The address of a PostgreSQL database: `postgres://user:password@host/name`.
///
/// It is shown and written without the password.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    /// The address with its password, for the driver.
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether it is one of PostgreSQL.
    pub fn is_postgres(&self) -> bool {
        ["postgres://", "postgresql://"].iter().any(|scheme| self.0.starts_with(scheme))
    }
}

impl From<String> for DatabaseUrl {
    fn from(url: String) -> Self {
        Self(url)
    }
}

impl fmt::Display for DatabaseUrl {
    /// Scheme, host and name. Parameters are left out as well: one of them may be a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((scheme, rest)) = self.0.split_once("://") else { return f.write_str("***") };
        let (rest, hidden) = rest.split_once('?').map_or((rest, ""), |(rest, _)| (rest, "?***"));
        // The last one: a password may have an unescaped `@`.
        match rest.rsplit_once('@') {
            Some((user, host)) => {
                write!(f, "{scheme}://{}:***@{host}{hidden}", user.split(':').next().unwrap_or_default())
            }
            None => write!(f, "{scheme}://{rest}{hidden}"),
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for DatabaseUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The address of the SQLite file at `path`, which is made when it is missing.
pub(super) fn of_file(path: &Path) -> String {
    use std::{fmt::Write as _, os::unix::ffi::OsStrExt as _};
    let mut url = "sqlite://".to_owned();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => url.push(char::from(*byte)),
            // Writing to a string does not fail.
            byte => drop(write!(url, "%{byte:02X}")),
        }
    }
    url + "?mode=rwc"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_never_shown() {
        let cases = [
            ("postgres://df:hunter2@db/name", "postgres://df:***@db/name"),
            ("postgres://df:hunter2@2@db:5/name?sslmode=disable", "postgres://df:***@db:5/name?***"),
            ("postgres://db/name?user=df&password=hunter2", "postgres://db/name?***"),
            ("postgres:/df:hunter2@db", "***"),
        ];
        for (url, shown) in cases {
            let url = DatabaseUrl::from(url.to_owned());
            assert_eq!((url.to_string(), format!("{url:?}")), (shown.to_owned(), shown.to_owned()));
            assert_eq!(serde_json::to_string(&url).expect("JSON"), format!("\"{shown}\""));
        }
    }

    #[test]
    fn paths_are_escaped() {
        assert_eq!(of_file(Path::new("/a b/c?d.db")), "sqlite:///a%20b/c%3Fd.db?mode=rwc");
    }
}
