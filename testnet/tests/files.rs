//! The files for containers and for Prometheus and Grafana say what they must, without Docker.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = folder().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The lines without comments.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(|line| line.split(" #").next().unwrap_or_default()).filter(|line| !line.trim().starts_with('#'))
}

/// What stands after `key:` in each line that has it.
fn values<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    let of = |line: &'a str| line.trim().trim_start_matches("- ").strip_prefix(key)?.strip_prefix(':').map(str::trim);
    lines(text).filter_map(of).collect()
}

#[test]
fn compose_pins_images_and_publishes_on_loopback_only() {
    let compose = read("compose.yaml");
    let images = values(&compose, "image");
    assert!(images.len() >= 3, "{images:?}");
    for image in images {
        let tag = image.split_once(':').map_or("", |(_, tag)| tag);
        assert!(!tag.is_empty() && !tag.contains("latest"), "{image} has no fixed tag");
    }
    let ports = values(&compose, "ports");
    assert!(ports.len() >= 5, "{ports:?}");
    for port in ports {
        assert!(port.starts_with("[\"127.0.0.1:"), "{port} is open to other hosts");
    }
    for key in ["container_name", "privileged", "pid", "cap_add"] {
        assert!(values(&compose, key).is_empty(), "{key} has no place here");
    }
    for (key, least) in [("read_only", 3), ("cap_drop", 3), ("security_opt", 3), ("healthcheck", 3)] {
        assert!(values(&compose, key).len() >= least, "{key} is missing somewhere");
    }
}

/// The base images too.
#[test]
fn dockerfiles_pin_what_they_begin_with_and_end_as_an_unprivileged_user() {
    for name in ["Dockerfile", "Dockerfile.scratch"] {
        let text = read(name);
        let froms: Vec<_> = lines(&text).filter_map(|line| line.strip_prefix("FROM ")).collect();
        assert!(froms.iter().all(|from| *from == "scratch" || from.starts_with("rust:1.")), "{name}: {froms:?}");
        assert_eq!(froms.last(), Some(&"scratch"), "{name}");
        assert!(lines(&text).any(|line| line == "USER 65532:65532"), "{name} runs as root");
    }
    let variables = |name: &str| {
        read(name).lines().skip_while(|line| !line.starts_with("ENV ")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(variables("Dockerfile"), variables("Dockerfile.scratch"), "both make the same image");
}

#[test]
fn every_setting_of_compose_is_explained() {
    let (compose, example) = (read("compose.yaml"), read(".env.example"));
    let used: BTreeSet<_> = compose
        .match_indices("${")
        .filter_map(|(at, _)| compose[at + 2..].split_once(['}', ':']).map(|(name, _)| name))
        .collect();
    let explained: BTreeSet<_> = example
        .lines()
        .filter_map(|line| line.split_once('=').map(|(name, _)| name))
        .filter(|name| !name.starts_with('#'))
        .collect();
    assert_eq!(used, explained);
    for line in example.lines().filter(|line| !line.starts_with('#') && line.contains('=')) {
        let (name, value) = line.split_once('=').expect("a setting");
        assert!(compose.contains(&format!("${{{name}:-{value}}}")), "{line} is not the default");
    }
    assert!(example.contains("DAMSELFLY_VERSION=") && example.contains(env!("CARGO_PKG_VERSION")), "another version");
}

/// Every metric that rules and dashboards use is one that a program shows, by `docs/metrics.md`.
#[test]
fn rules_and_dashboards_use_metrics_that_there_are() {
    let documented = read("../docs/metrics.md");
    let known: BTreeSet<_> =
        documented.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert!(known.len() > 50, "docs/metrics.md is not read");
    let rules = read("observe/prometheus/damselfly.rules.yml");
    let dashboard: Value = serde_json::from_str(&read("observe/grafana/dashboards/damselfly.json")).expect("JSON");
    let mut expressions: Vec<String> = vec![rules.clone()];
    strings(&dashboard, "expr", &mut expressions);
    assert!(expressions.len() > 30, "the dashboard is not read");
    let mut seen = 0;
    for word in expressions.iter().flat_map(|text| text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')) {
        if word.starts_with("damselfly_") || word.starts_with("process_") {
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word);
            assert!(known.contains(word) || known.contains(family), "there is no metric {word}");
            seen += 1;
        }
    }
    assert!(seen > 60, "{seen}");
}

fn strings(value: &Value, key: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(object) => object.iter().for_each(|(name, value)| match value {
            Value::String(text) if name == key => found.push(text.clone()),
            _ => strings(value, key, found),
        }),
        Value::Array(items) => items.iter().for_each(|item| strings(item, key, found)),
        _ => {}
    }
}

/// Who is woken up finds what to do.
#[test]
fn every_alert_has_its_line_in_the_handbook() {
    let (rules, handbook) = (read("observe/prometheus/damselfly.rules.yml"), read("../docs/operations.md"));
    let alerts = values(&rules, "alert");
    assert!(alerts.len() > 10, "{alerts:?}");
    for alert in alerts {
        let row = handbook.lines().find(|line| line.starts_with('|') && line.contains(alert));
        assert!(row.is_some(), "docs/operations.md does not say what to do about {alert}");
    }
}
