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

/// All that are to run are started again, after a crash and after a start of Docker; the one that does its work once is not.
#[test]
fn every_service_of_compose_says_when_it_is_started_again() {
    let compose = read("compose.yaml");
    let (_, services) = compose.split_once("\nservices:\n").expect("services");
    let (services, _) = services.split_once("\nnetworks:\n").expect("networks");
    let begins = |line: &&str| line.starts_with("  ") && !line.starts_with("   ") && line.trim_end().ends_with(':');
    let names: Vec<_> = lines(services).filter(begins).map(|line| line.trim().trim_end_matches(':')).collect();
    assert!(names.len() >= 10, "{names:?}");
    let templates = compose.split_once("\nservices:\n").map_or("", |(before, _)| before);
    assert_eq!(values(templates, "restart"), ["unless-stopped"], "that of the template");
    for name in names {
        let (_, rest) = services.split_once(&format!("  {name}:\n")).expect("the service");
        let own: Vec<_> = rest.lines().take_while(|line| line.starts_with("    ") || line.trim().is_empty()).collect();
        let own = own.join("\n");
        let is_program = ["*program", "*scheduler", "*node"].iter().any(|one| own.contains(&format!("<<: {one}")));
        match (name, values(&own, "restart").as_slice()) {
            ("init", ["\"no\""]) | (_, ["unless-stopped"]) => {}
            (name, []) if name != "init" && is_program => {}
            (name, other) => panic!("{name}: restart is {other:?}"),
        }
    }
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

/// The sources of the whole workspace.
fn sources(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_built = path.join("CACHEDIR.TAG").exists();
        if path.is_dir() && !is_built && !name.starts_with('.') {
            sources(&path, found);
        } else if name.ends_with(".rs") {
            found.push(fs::read_to_string(&path).expect("a source file"));
        }
    }
}

#[test]
fn every_attack_has_its_answer_and_tests_that_there_are() {
    let document = read("../docs/security.md");
    let rows: Vec<Vec<&str>> = document
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| #"))
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect();
    let numbers: Vec<_> = rows.iter().map(|row| row[0].to_owned()).collect();
    assert_eq!(numbers, (1..=rows.len()).map(|number| number.to_string()).collect::<Vec<_>>());
    assert!(rows.len() >= 40, "{} attacks", rows.len());
    let mut texts = Vec::new();
    sources(&folder().join(".."), &mut texts);
    for row in rows {
        assert_eq!(row.len(), 4, "{row:?}");
        let tests: Vec<_> = row[3].split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty() || row[3].starts_with("by decision"), "attack {} has no test and no reason", row[0]);
        for test in tests {
            let is_there = texts.iter().any(|text| {
                text.match_indices(&format!("fn {test}()")).any(|(at, _)| {
                    let before: Vec<_> = text[..at].lines().rev().take(4).collect();
                    before.iter().any(|line| line.contains("test]") || line.contains("test("))
                })
            });
            assert!(is_there, "attack {}: there is no test {test}", row[0]);
        }
    }
}
