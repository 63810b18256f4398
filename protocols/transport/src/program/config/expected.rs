//! What a setting may be, for errors: the words of the libraries that parse it say little to a person.

/// What the setting with the dotted name `key` may be, with an example; `None` where its type says enough.
pub(super) fn expected(key: &str) -> Option<&'static str> {
    Some(match key {
        "http.listen" | "join_listen" => "an IP address and a port, such as 127.0.0.1:4501 or [::1]:4501",
        "listen" | "advertise" | "join_advertise" => {
            "a multiaddr, such as /ip4/192.0.2.1/tcp/4500, /ip6/::/tcp/4500 or /dns/host.example/tcp/4500"
        }
        "tags" => "NAME=VALUE, such as zone=a",
        _ => return None,
    })
}

/// What is wrong with a text, in words that are not those of a library. `message` is the library's.
pub(super) fn problem(key: &str, text: &str, message: &str) -> String {
    if let Some(expected) = expected(key) {
        return format!("{text:?} is not {expected}");
    }
    let wanted = message.strip_prefix("invalid type: string ").and_then(|rest| rest.rsplit_once(", expected "));
    match wanted {
        Some((_, "a boolean")) => format!("{text:?} is neither true nor false"),
        Some((_, number)) if number.starts_with(['u', 'i']) => format!("{text:?} is not a whole number"),
        _ => format!("{text:?}: {message}"),
    }
}

/// The same for an error in a file: after the library's message, which shows the line.
pub(super) fn in_file(text: &str, error: &toml::de::Error) -> String {
    let message = error.to_string();
    let Some(span) = error.span() else { return message };
    let before = text.get(..span.start).unwrap_or_default();
    let name = before.rsplit('\n').next().and_then(|line| line.split_once('=')).map(|(name, _)| name.trim());
    let section = before.lines().rev().find_map(|line| line.trim().strip_prefix('[')?.strip_suffix(']'));
    let key = match (section, name) {
        (Some(section), Some(name)) => format!("{section}.{name}"),
        (None, Some(name)) => name.to_owned(),
        (_, None) => return message,
    };
    match expected(&key) {
        Some(expected) => format!("{}\nexpected {expected}", message.trim_end()),
        None => message,
    }
}
