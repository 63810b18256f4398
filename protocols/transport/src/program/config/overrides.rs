//! Values from flags and the environment.

use std::ffi::OsString;

use clap::{Arg, ArgMatches, Command, Parser, parser::ValueSource};
use toml::{Table, Value};

use super::{Config, ConfigError, Source, expected};

/// One value that replaces what the file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    key: String,
    texts: Vec<String>,
    source: Source,
}

impl Override {
    /// Sets the setting with the dotted name `key` to the value written in `texts`: one, or the items of a list.
    pub fn new(key: impl Into<String>, texts: Vec<String>, source: Source) -> Self {
        Self { key: key.into(), texts, source }
    }

    pub(super) fn key(&self) -> &str {
        &self.key
    }

    pub(super) const fn source(&self) -> &Source {
        &self.source
    }

    /// Puts the value into `table` in the first form that the configuration understands.
    pub(super) fn apply<C: Config>(&self, table: &mut Table) -> Result<C, ConfigError> {
        let mut problem = None;
        for value in self.readings() {
            let mut changed = table.clone();
            insert(&mut changed, &self.key, value);
            match changed.clone().try_into() {
                Ok(config) => {
                    *table = changed;
                    return Ok(config);
                }
                Err(error) => problem = problem.or(Some(error)),
            }
        }
        let message =
            problem.map_or_else(|| "no value".to_owned(), |error: toml::de::Error| error.message().to_owned());
        let problem = expected::problem(&self.key, &self.texts.join(" "), &message);
        Err(ConfigError::Override { origin: self.source.clone(), problem })
    }

    /// What the text may mean: a string, a number or truth value, a list, or a table when each item is `NAME=VALUE`.
    fn readings(&self) -> Vec<Value> {
        let list = Value::Array(self.texts.iter().cloned().map(Value::String).collect());
        let pair = |text: &String| Some(text.split_once('=')?).map(|(name, value)| (name.to_owned(), value.into()));
        let table = self.texts.iter().map(pair).collect::<Option<Table>>().map(Value::Table);
        match &self.texts[..] {
            [text] => [Some(Value::String(text.clone())), text.parse().ok(), Some(list), table]
                .into_iter()
                .flatten()
                .collect(),
            _ => [Some(list), table].into_iter().flatten().collect(),
        }
    }
}

fn insert(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        None => drop(table.insert(key.to_owned(), value)),
        Some((first, rest)) => {
            let entry = table.entry(first).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = entry {
                insert(inner, rest, value);
            }
        }
    }
}

/// Parses the command line, and takes the settings among the arguments out as overrides.
///
/// `settings` pairs the names of arguments (fields of `A`) with the dotted keys that they set. A variable that is set to
/// nothing counts as not set. Ends the program where the command line is wrong or help is asked for.
pub fn parse_args<A: Parser>(settings: &[(&str, &str)]) -> (A, Vec<Override>) {
    let (arguments, overrides) = args_from::<A>(settings, std::env::args_os()).unwrap_or_else(|error| error.exit());
    (arguments, overrides)
}

/// [`parse_args`] of `line`, the program's name first.
pub(super) fn args_from<A: Parser>(
    settings: &[(&str, &str)],
    line: impl IntoIterator<Item = impl Into<OsString> + Clone>,
) -> Result<(A, Vec<Override>), clap::Error> {
    let mut command = without_empty_variables(A::command());
    let matches = command.try_get_matches_from_mut(line)?;
    let arguments = A::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
    let found = settings.iter().filter_map(|(id, key)| from_match(&command, &matches, id, key));
    Ok((arguments, found.collect()))
}

/// Service managers and containers pass a variable without a value for "not set": such a one is no value of any argument.
fn without_empty_variables(command: Command) -> Command {
    let is_empty = |argument: &Arg| {
        argument.get_env().is_some_and(|name| std::env::var_os(name).is_some_and(|value| value.is_empty()))
    };
    let command = command.mut_args(|argument| if is_empty(&argument) { argument.env(None::<&str>) } else { argument });
    command.mut_subcommands(without_empty_variables)
}

fn from_match(command: &Command, matches: &ArgMatches, id: &str, key: &str) -> Option<Override> {
    let argument = command.get_arguments().find(|argument| argument.get_id() == id)?;
    let source = match matches.value_source(id)? {
        ValueSource::CommandLine => Source::Flag(format!("--{}", argument.get_long().unwrap_or(id))),
        ValueSource::EnvVariable => {
            Source::Env(argument.get_env().map_or_else(|| id.to_owned(), |name| name.to_string_lossy().into_owned()))
        }
        _ => return None,
    };
    let texts = match matches.try_get_one::<bool>(id) {
        Ok(Some(flag)) => vec![flag.to_string()],
        _ => matches.get_raw(id)?.map(|text| text.to_string_lossy().into_owned()).collect(),
    };
    Some(Override::new(key, texts, source))
}
