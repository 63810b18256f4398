//! Configuration from a TOML file, environment and flags, each value with its source.
//!
//! The configuration is a struct with `Default` and `#[serde(default, deny_unknown_fields)]`, its settings named by
//! dotted keys like `http.listen`. A flag wins over the environment, that over the file, that over the default.

use std::{
    collections::BTreeMap,
    env, fmt, fs, io,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};
use toml::{Table, Value};

mod expected;
mod overrides;
mod print;

pub use overrides::{Override, parse_args};

/// What a program is configured with.
pub trait Config: Serialize + DeserializeOwned + Default {
    /// The settings that SIGHUP changes while the program runs, by their dotted names.
    const RELOADED: &'static [&'static str] = &[];

    /// Checks what the types cannot: ranges, and settings that need each other.
    ///
    /// # Errors
    /// [`BadValue`] names the setting and what is allowed.
    fn check(&self) -> Result<(), BadValue> {
        Ok(())
    }
}

/// A setting that cannot be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadValue {
    key: String,
    allowed: String,
}

impl BadValue {
    /// The setting with the dotted name `key` must be as `allowed` says.
    pub fn new(key: impl Into<String>, allowed: impl Into<String>) -> Self {
        Self { key: key.into(), allowed: allowed.into() }
    }
}

/// How a program ends that cannot be configured as it is told: like clap ends after a wrong argument.
pub const EXIT_CODE: u8 = 2;

/// Where the data of a program lie by default: `/var/lib/NAME` for root, else `$XDG_DATA_HOME/NAME`, which is
/// `~/.local/share/NAME` by default.
pub fn default_data_dir(name: &str) -> PathBuf {
    let absolute = |variable| env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    let own = || absolute("XDG_DATA_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/share")));
    match own() {
        Some(path) if !rustix::process::geteuid().is_root() => path.join(name),
        _ => Path::new("/var/lib").join(name),
    }
}

/// Where a value comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Source {
    /// It is the program's own.
    #[default]
    Default,
    /// The configuration file.
    File,
    /// The environment variable of this name.
    Env(String),
    /// The command line flag of this name.
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File => f.write_str("file"),
            Self::Env(name) => write!(f, "env {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// A configuration with the source of each value.
#[derive(Debug)]
pub struct Loaded<C> {
    /// The effective configuration.
    pub config: C,
    sources: BTreeMap<String, Source>,
}

/// Why the program cannot be configured; the text is for a person and says what is allowed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is wrong.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Line, column and what is allowed.
        problem: String,
    },
    /// A flag or an environment variable is wrong.
    #[error("{origin}: {problem}")]
    Override {
        /// Which one.
        origin: Source,
        /// What is allowed.
        problem: String,
    },
}

/// Reads `file`, if given, and applies `overrides` in their order.
///
/// # Errors
/// [`ConfigError`] for the first thing that is wrong.
pub fn load<C: Config>(file: Option<&Path>, overrides: &[Override]) -> Result<Loaded<C>, ConfigError> {
    let mut sources = BTreeMap::new();
    let mut table = match Value::try_from(C::default()) {
        Ok(Value::Table(defaults)) => defaults,
        _ => Table::new(),
    };
    let (mut config, mut text) = (C::default(), String::new());
    if let Some(path) = file {
        let given;
        (text, given) = read::<C>(path)?;
        print::mark(&given, "", &Source::File, &mut sources);
        merge(&mut table, given);
        let wrong = |error: toml::de::Error| ConfigError::File { path: path.into(), problem: error.to_string() };
        config = table.clone().try_into().map_err(wrong)?;
    }
    for value in overrides {
        config = value.apply(&mut table)?;
        sources.retain(|key, _| !key.starts_with(&format!("{}.", value.key())));
        sources.insert(value.key().to_owned(), value.source().clone());
    }
    match config.check() {
        Ok(()) => Ok(Loaded { config, sources }),
        Err(bad) => Err(blame(bad, file, &text, &sources)),
    }
}

/// The text and the table of the file, which is a good configuration by itself: only here errors know their line.
fn read<C: Config>(path: &Path) -> Result<(String, Table), ConfigError> {
    let text = fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
    let wrong =
        |error: toml::de::Error| ConfigError::File { path: path.into(), problem: expected::in_file(&text, &error) };
    toml::from_str::<C>(&text).map_err(wrong)?;
    let table = toml::from_str(&text).map_err(wrong)?;
    Ok((text, table))
}

/// Puts the values of `given` over those of `table`, so that a section in the file keeps the program's defaults for
/// what it does not say.
fn merge(table: &mut Table, given: Table) {
    for (name, value) in given {
        match (table.get_mut(&name), value) {
            (Some(Value::Table(below)), Value::Table(above)) => merge(below, above),
            (_, value) => drop(table.insert(name, value)),
        }
    }
}

/// Says where a value that failed [`Config::check`] comes from.
fn blame(bad: BadValue, file: Option<&Path>, text: &str, sources: &BTreeMap<String, Source>) -> ConfigError {
    let BadValue { key, allowed } = bad;
    let origin = sources.get(&key).cloned().unwrap_or_default();
    match (file, print::line_of(text, &key)) {
        (Some(path), Some(line)) if origin == Source::File => {
            ConfigError::File { path: path.into(), problem: format!("line {line}: `{key}` {allowed}") }
        }
        (Some(path), _) if matches!(origin, Source::Default | Source::File) => {
            ConfigError::File { path: path.into(), problem: format!("`{key}` {allowed}") }
        }
        _ => ConfigError::Override { origin, problem: format!("`{key}` {allowed}") },
    }
}

impl<C: Config> Loaded<C> {
    /// The effective configuration as TOML, with the source of each value as a comment.
    pub fn print(&self) -> String {
        match Value::try_from(&self.config) {
            Ok(Value::Table(table)) => print::annotated(&table, &self.sources),
            Ok(value) => format!("# not a table: {value}\n"),
            Err(error) => format!("# cannot be shown: {error}\n"),
        }
    }

    /// Where the value of `key` comes from.
    pub fn source(&self, key: &str) -> Source {
        print::source_of(key, &self.sources)
    }
}

#[cfg(test)]
mod tests;
