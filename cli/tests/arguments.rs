//! What the command line accepts, and what it says when it does not.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::time::Duration;

use damselfly_cli::args::{Args, Command, Parsed, parse};

fn parse_line(line: &str) -> Parsed {
    let words = std::iter::once("dfcache").chain(line.split_whitespace());
    parse(&words.map(OsString::from).collect::<Vec<_>>())
}

fn accepted(line: &str) -> Args {
    match parse_line(line) {
        Parsed::Run(args) => *args,
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn these_are_accepted() {
    let rows = [
        ("import file", "no cid"),
        ("import -", "stdin"),
        ("import -i a -t b --ttl 2days --pin --replicas 1 file", "all options"),
        ("import --cid a --tag b file", "long forms"),
        ("stat -i a", "the least"),
        ("stat -i a -t b -l", "short forms"),
        ("stat --cid a --tag b --local", "long forms"),
        ("export -i a out", "a path"),
        ("export -i a -O out", "the same with -O"),
        ("export -i a -O -", "stdout"),
        ("export --cid a --tag b --local --force --output out", "long forms"),
        ("export -i a -lf out", "short forms together"),
        ("delete -i a -t b -l", "delete"),
        ("ls", "everything"),
        ("ls -t b", "one tag"),
        ("health", "health"),
        ("completions zsh", "a shell"),
        ("--json --socket /s --timeout 90s -q --no-progress --rate-limit 64MiB/s stat -i a", "globals before"),
        ("stat -i a --json --socket /s --timeout 90s --quiet --no-progress --rate-limit 64MiB", "globals after"),
    ];
    for (line, reason) in rows {
        assert!(matches!(parse_line(line), Parsed::Run(_)), "{line}: {reason}");
    }
}

#[test]
fn these_are_wrong_usage() {
    let rows = [
        ("", "no command", "nothing at all"),
        ("copy", "copy", "no such command"),
        ("import", "PATH", "nothing to import"),
        ("import a b", "b", "two files"),
        ("import --replicas 2 file", "--replicas", "not built yet, by name"),
        ("import --replicas 0 file", "--replicas", "nobody holds it"),
        ("import --ttl 0s file", "--ttl", "gone at once"),
        ("import --ttl 90 file", "--ttl", "no unit"),
        ("import -l file", "-l", "an option of others"),
        ("import -i  file --force", "--force", "an option of others"),
        ("stat", "--cid", "whose?"),
        ("stat a", "a", "the cid has an option"),
        ("export -i a", "PATH", "where to?"),
        ("export -i a -O x y", "--output", "where to, then?"),
        ("export out", "--cid", "what?"),
        ("delete", "--cid", "whose?"),
        ("stat -i a --timeout soon", "--timeout", "no duration"),
        ("stat -i a --rate-limit 0", "--rate-limit", "nothing would arrive"),
        ("completions basic", "basic", "no such shell"),
    ];
    for (line, expected, reason) in rows {
        match parse_line(line) {
            Parsed::Wrong { failure, json: false } => {
                assert_eq!(failure.code.exit(), 2, "{line}: {reason}");
                assert!(failure.message.contains(expected), "{line}: {}", failure.message);
                assert!(!failure.message.contains('\n'), "{line}: one line");
                assert!(failure.hint.is_some(), "{line}: says what to do");
            }
            other => panic!("{line}: {reason}: {other:?}"),
        }
    }
}

#[test]
fn hints_say_what_was_meant() {
    let rows = [
        ("stat a", "`dfcache stat -i a`", "a name without its option"),
        ("delete", "`dfcache delete -i NAME`", "the same"),
        ("export a", "`dfcache export -i NAME`", "the path is there, the name is not"),
        ("export a -O x", "`dfcache export -i NAME`", "two paths and no name"),
        ("export a x", "`dfcache export -i NAME`", "the name in the place of the path"),
        ("export -i a -O x y", "`dfcache export --help`", "two paths and a name"),
        ("stat --cdi a", "did you mean --cid?", "misspelled"),
        ("stat -i a --frobnicate", "`dfcache stat --help`", "like nothing"),
    ];
    for (line, expected, reason) in rows {
        match parse_line(line) {
            Parsed::Wrong { failure, .. } => {
                let hint = failure.hint.as_deref().unwrap_or_default();
                assert!(hint.contains(expected), "{line}: {reason}: {hint:?}");
                assert!(!hint.contains("to pass '"), "{line}: {hint:?}");
            }
            other => panic!("{line}: {reason}: {other:?}"),
        }
    }
}

#[test]
fn names_have_bounds() {
    let rows = [
        (1, 0, true, "the shortest"),
        (1024, 256, true, "the longest"),
        (0, 0, false, "no cid"),
        (1025, 0, false, "a cid too long"),
        (1, 257, false, "a tag too long"),
    ];
    for (cid, tag, fits, reason) in rows {
        let words = ["dfcache", "stat", "-i", &"c".repeat(cid), "-t", &"t".repeat(tag)].map(OsString::from);
        assert_eq!(matches!(parse(&words), Parsed::Run(_)), fits, "{reason}");
    }
    let mut words = ["dfcache", "stat", "-i"].map(OsString::from).to_vec();
    words.push(OsString::from_vec(vec![0xFF]));
    assert!(matches!(parse(&words), Parsed::Wrong { .. }), "a cid is UTF-8");
}

#[test]
fn values_arrive() {
    let args = accepted("import -i a -t b --ttl 90s --pin file --timeout 2s --rate-limit 1KiB/s --socket /s -q");
    assert_eq!(args.global.timeout, Some(Duration::from_secs(2)));
    assert_eq!(args.global.rate_limit, Some(1024));
    assert_eq!(args.global.socket.as_deref(), Some(Path::new("/s")));
    assert!(args.global.quiet && !args.global.json);
    let Command::Import(import) = args.command else { panic!("an import") };
    assert_eq!((import.cid.as_deref(), import.tag.as_str()), (Some("a"), "b"));
    assert_eq!(import.ttl, Some(Duration::from_secs(90)));
    assert!(import.pin && import.path == Path::new("file"));

    let Command::Export(export) = accepted("export -i a -f x").command else { panic!("an export") };
    assert!(export.force && !export.local && export.target() == Path::new("x") && !export.is_stdout());
    let Command::Export(export) = accepted("export -i a -O -").command else { panic!("an export") };
    assert!(export.is_stdout());
}

#[test]
fn wrong_usage_is_told_as_an_object_when_asked_for() {
    for (line, expected) in [("stat --json", true), ("--json", true), ("stat", false), ("stat -- --json", false)] {
        match parse_line(line) {
            Parsed::Wrong { json, .. } => assert_eq!(json, expected, "{line}"),
            other => panic!("{line}: {other:?}"),
        }
    }
}

#[test]
fn help_teaches() {
    let Parsed::Print(help) = parse_line("--help") else { panic!("help") };
    for (exit, meaning) in [("0", "done"), ("4", "daemon not reachable"), ("10", "no space"), ("130", "interrupted")] {
        let line = help.lines().find(|line| line.trim_start().starts_with(&format!("{exit}  ")));
        assert!(line.is_some_and(|line| line.contains(meaning)), "{exit}: {meaning}");
    }
    for command in ["import", "export", "stat", "delete", "ls"] {
        let Parsed::Print(help) = parse_line(&format!("{command} --help")) else { panic!("help") };
        assert!(help.contains(&format!("dfcache {command}")) && help.contains("Examples:"), "{command}");
    }
    assert!(matches!(parse_line("--version"), Parsed::Print(_)));
}
