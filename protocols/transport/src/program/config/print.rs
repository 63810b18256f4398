//! How a configuration is shown, and where its values stand in the file.

use std::{collections::BTreeMap, fmt::Write as _};

use toml::{Table, Value, de::DeTable};

use super::Source;

/// Notes `source` for each value of `table`.
pub(super) fn mark(table: &Table, prefix: &str, source: &Source, sources: &mut BTreeMap<String, Source>) {
    for (name, value) in table {
        let key = format!("{prefix}{name}");
        match value {
            Value::Table(inner) => mark(inner, &format!("{key}."), source, sources),
            _ => drop(sources.insert(key, source.clone())),
        }
    }
}

/// The source of `key`, or of what it is a part of.
pub(super) fn source_of(key: &str, sources: &BTreeMap<String, Source>) -> Source {
    let mut part = Some(key);
    while let Some(key) = part {
        if let Some(source) = sources.get(key) {
            return source.clone();
        }
        part = key.rsplit_once('.').map(|(parent, _)| parent);
    }
    Source::Default
}

/// `table` as TOML, with the source of each value as a comment.
pub(super) fn annotated(table: &Table, sources: &BTreeMap<String, Source>) -> String {
    let mut text = String::new();
    section(table, "", sources, &mut text);
    text
}

fn section(table: &Table, prefix: &str, sources: &BTreeMap<String, Source>, text: &mut String) {
    let is_section = |value: &Value| matches!(value, Value::Table(_));
    for (name, value) in table.iter().filter(|(_, value)| !is_section(value)) {
        let source = source_of(&format!("{prefix}{name}"), sources);
        // Writing to a string does not fail.
        let _ = writeln!(text, "{} = {value}  # {source}", quoted(name));
    }
    for (name, value) in table {
        if let Value::Table(inner) = value {
            let path = format!("{prefix}{}", quoted(name));
            let separator = if text.is_empty() { "" } else { "\n" };
            let _ = writeln!(text, "{separator}[{path}]");
            section(inner, &format!("{path}."), sources, text);
        }
    }
}

/// A key as TOML wants it.
fn quoted(name: &str) -> String {
    let bare = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
    if bare { name.to_owned() } else { Value::String(name.to_owned()).to_string() }
}

/// The line of the setting with the dotted name `key`, counted from 1.
pub(super) fn line_of(text: &str, key: &str) -> Option<usize> {
    let document = DeTable::parse(text).ok()?;
    let mut table = document.get_ref();
    let mut parts = key.split('.').peekable();
    while let Some(part) = parts.next() {
        let (name, value) = table.iter().find(|(name, _)| name.get_ref().as_ref() == part)?;
        if parts.peek().is_none() {
            let start = name.span().start;
            return Some(text.get(..start)?.matches('\n').count() + 1);
        }
        table = value.get_ref().as_table()?;
    }
    None
}
