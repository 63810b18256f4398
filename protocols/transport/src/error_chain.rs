//! Reasons for people: one clear line, however many errors are behind it.

use std::error::Error;

/// Longer texts are cut, in characters: a person reads one line.
pub const REASON_CHARS_MAX: usize = 200;

/// An error and its sources on one line, outermost first, without empty and repeated parts.
pub fn chain(error: &dyn Error) -> String {
    joined(error, one_line)
}

/// Like [`chain`], with the lines of each part as they are: for an error that ends a program.
pub fn report(error: &dyn Error) -> String {
    joined(error, |text| text.trim_end().to_owned())
}

/// Many errors say in their own text what their source says again.
fn joined(error: &dyn Error, shape: impl Fn(&str) -> String) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let part = shape(&error.to_string());
        if !part.is_empty() && !text.contains(&part) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&part);
        }
        next = error.source();
    }
    text
}

/// The lines of an error that is a list, without its heading: a dial by way of DNS says `Multiple dial errors occurred:`
/// even of one.
fn one_line(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(|line| line.trim().trim_start_matches("- ")).collect();
    match &lines[..] {
        [heading, items @ ..] if heading.ends_with(':') && !items.is_empty() => items.join("; "),
        _ => lines.join("; "),
    }
}

/// Why each of several failed, as `connection refused` for one and `2 schedulers: connection refused; 1 scheduler: no
/// answer in time` for more; the most frequent reason first, cut to one line.
pub fn tally(reasons: impl IntoIterator<Item = String>, one: &str, many: &str) -> String {
    let mut counted: Vec<(usize, String)> = Vec::new();
    for reason in reasons {
        match counted.iter_mut().find(|(_, known)| *known == reason) {
            Some((count, _)) => *count += 1,
            None => counted.push((1, reason)),
        }
    }
    if let [(1, reason)] = &counted[..] {
        return shortened(reason);
    }
    counted.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
    let parts =
        counted.iter().map(|(count, reason)| format!("{count} {}: {reason}", if *count == 1 { one } else { many }));
    shortened(&parts.collect::<Vec<_>>().join("; "))
}

/// At most [`REASON_CHARS_MAX`] characters of `text`, and a sign that there were more.
pub fn shortened(text: &str) -> String {
    match text.char_indices().nth(REASON_CHARS_MAX) {
        None => text.to_owned(),
        Some(_) => text.chars().take(REASON_CHARS_MAX - 1).chain(['…']).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use libp2p::TransportError;

    use super::*;

    #[test]
    fn errors_that_only_wrap_another_are_not_empty() {
        let inner = io::Error::other("connection refused");
        assert_eq!(TransportError::Other(io::Error::other("x")).to_string(), "", "or this module is not needed");
        assert_eq!(chain(&TransportError::Other(inner)), "connection refused");
        let list = io::Error::other("Multiple dial errors occurred:\n - connection refused\n - too late");
        assert_eq!(chain(&list), "connection refused; too late", "one line");
    }

    #[test]
    fn a_source_that_is_in_the_text_already_is_not_repeated() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot listen at 127.0.0.1:4501: {0} (is another program there?)")]
        struct Taken(#[source] io::Error);
        let error = Taken(io::Error::other("Address already in use"));
        let once = "cannot listen at 127.0.0.1:4501: Address already in use (is another program there?)";
        assert_eq!(chain(&error), once);
        assert_eq!(report(&error), once);
        assert_eq!(report(&io::Error::other("line 1\n  ^ here")), "line 1\n  ^ here", "lines are kept");
    }

    #[test]
    fn many_reasons_become_one_line() {
        let table: [(&[&str], &str, &str); 5] = [
            (&[], "", "nobody was asked"),
            (&["refused"], "refused", "a single one needs no number"),
            (&["refused", "refused"], "2 hosts: refused", "the same reason once"),
            (&["late", "refused", "refused"], "2 hosts: refused; 1 host: late", "the most frequent first"),
            (&["late", "refused"], "1 host: late; 1 host: refused", "in the order they came"),
        ];
        for (reasons, expected, why) in table {
            assert_eq!(tally(reasons.iter().map(|reason| (*reason).to_owned()), "host", "hosts"), expected, "{why}");
        }
        let long = tally((0..50).map(|n| format!("größer als {n}")), "host", "hosts");
        assert_eq!(long.chars().count(), REASON_CHARS_MAX);
        assert!(long.ends_with('…'));
    }
}
