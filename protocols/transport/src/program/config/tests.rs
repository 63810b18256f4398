use std::io::Write as _;

use serde::Deserialize;

use super::{overrides::args_from, *};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Example {
    name: String,
    listen: Vec<String>,
    http: Http,
    tags: BTreeMap<String, String>,
}

impl Default for Example {
    fn default() -> Self {
        Self {
            name: "none".into(),
            listen: vec!["a".into()],
            http: Http { port: 7, ..Http::default() },
            tags: BTreeMap::new(),
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Http {
    port: u16,
    open: bool,
    limit: Option<u64>,
}

impl Config for Example {
    fn check(&self) -> Result<(), BadValue> {
        if self.http.port == 1 { Err(BadValue::new("http.port", "must not be 1")) } else { Ok(()) }
    }
}

#[derive(Debug, clap::Parser)]
struct Arguments {
    #[arg(long)]
    name: Option<String>,
    #[arg(long)]
    listen: Vec<String>,
    #[arg(long, env = "EXAMPLE_PORT_OF_THIS_TEST")]
    port: Option<u16>,
    #[arg(long)]
    open: bool,
    #[arg(long)]
    tag: Vec<String>,
}

const SETTINGS: &[(&str, &str)] =
    &[("name", "name"), ("listen", "listen"), ("port", "http.port"), ("open", "http.open"), ("tag", "tags")];

fn load_text(text: &str, line: &[&str]) -> Result<Loaded<Example>, String> {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(text.as_bytes()).expect("written");
    let line = ["example"].iter().chain(line);
    let (_, overrides) = args_from::<Arguments>(SETTINGS, line).expect("a command line");
    load(Some(file.path()), &overrides).map_err(|error| error.to_string())
}

#[test]
fn flags_win_over_the_file_and_the_file_over_defaults() {
    let text = "name = \"5\"\n[http]\nport = 80\n[tags]\n\"a b\" = \"c\"\n";
    let loaded = load_text(text, &["--port", "81", "--listen", "b", "--listen", "c", "--open"]).expect("loaded");
    let http = Http { port: 81, open: true, limit: None };
    assert_eq!(loaded.config.http, http);
    assert_eq!((loaded.config.name.as_str(), loaded.config.listen.len()), ("5", 2));
    let expected = "listen = [\"b\", \"c\"]  # flag --listen\nname = \"5\"  # file\n\n\
                    [http]\nopen = true  # flag --open\nport = 81  # flag --port\n\n[tags]\n\"a b\" = \"c\"  # file\n";
    assert_eq!(loaded.print(), expected);
    assert_eq!(toml::from_str::<Example>(&loaded.print()).expect("TOML"), loaded.config);
    assert_eq!(load_text("", &[]).expect("loaded").source("name"), Source::Default);
    let partly = load_text("[http]\nopen = true\n", &[]).expect("loaded").config.http;
    assert_eq!(partly, Http { port: 7, open: true, limit: None }, "the program's default, not that of the section");
    assert_eq!(load_text("", &["--listen", "b"]).expect("loaded").config.listen, ["b"], "a list of one");
    let tags = |line: &[&str]| load_text("[tags]\na = \"1\"\n", line).map(|loaded| loaded.config.tags);
    let expected = BTreeMap::from([("b".to_owned(), "2=3".to_owned()), ("c".to_owned(), String::new())]);
    assert_eq!(tags(&["--tag", "b=2=3", "--tag", "c="]).expect("loaded"), expected, "in place of those of the file");
    assert!(tags(&["--tag", "b"]).expect_err("no value").contains("--tag"), "it is named");
}

#[test]
fn what_is_wrong_is_named_with_its_place_and_what_is_allowed() {
    let cases = [
        ("name = \"a\"\nnaem = \"b\"\n", &[][..], &["line 2", "naem", "expected one of", "listen"][..]),
        ("[http]\nport = 70000\n", &[], &["line 2", "70000", "u16"]),
        ("[http]\nopen = true\nport = 1\n", &[], &["line 3", "http.port", "must not be 1"]),
        ("", &["--port", "1"], &["--port", "must not be 1"]),
        ("= 1", &[], &["line 1"]),
    ];
    for (text, line, expected) in cases {
        let message = load_text(text, line).expect_err(text);
        for part in expected {
            assert!(message.contains(part), "{part:?} is not in {message}");
        }
    }
    let told = load_text("", &["--tag", "zone"]).expect_err("no value");
    assert_eq!(told, "flag --tag: \"zone\" is not NAME=VALUE, such as zone=a", "no word of a library");
    let over = Override::new("http.port", vec!["eighty".into()], Source::Env("PORT".into()));
    let told = load::<Example>(None, &[over]).expect_err("no number").to_string();
    assert_eq!(told, "env PORT: \"eighty\" is not a whole number");
    let over = Override::new("http.open", vec!["maybe".into()], Source::Env("OPEN".into()));
    let message = load::<Example>(None, &[over]).expect_err("no truth value").to_string();
    assert!(message.contains("env OPEN") && message.contains("maybe"), "{message}");
}
