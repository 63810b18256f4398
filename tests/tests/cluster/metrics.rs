//! What Prometheus sees: each program's metrics are well formed, and `docs/metrics.md` says what they are.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{ErrorKind, Write as _},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};
use damselfly_testnet::http;
use damselfly_tests::{Cluster, Options, Program};
use serde_json::json;

use crate::support::exports;

/// Kind, and labels without `le`, of each metric by its name.
type Metrics = BTreeMap<String, (String, BTreeSet<String>)>;

#[tokio::test]
async fn metrics_are_well_formed_and_documented() -> anyhow::Result<()> {
    Cluster::run(Options { nodes: 2, ..Options::default() }, async |cluster| {
        let file = cluster.file("file", 9 << 20)?;
        cluster.node(0).import("file", &file).await?.ok()?;
        exports(cluster, cluster.node(1), "file", &file).await?;
        exports(cluster, cluster.node(1), "file", &file).await?;
        let login = json!({ "name": "nobody", "password": "of nobody's choosing" });
        ensure!(cluster.manage("POST", "session", Some(&login)).await?.status == 401);
        counted(cluster).await?;
        let documented = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md"))?;
        let of_all = tabled(&documented, "Every program")?;
        for (program, title) in [
            (cluster.manager(), "dfmanager"),
            (cluster.scheduler(0), "dfscheduler"),
            (cluster.scheduler(1), "dfscheduler"),
            (cluster.node(0).program(), "dfdaemon"),
            (cluster.node(1).program(), "dfdaemon"),
        ] {
            let text = http::get(&program.url("metrics")).await?.body;
            let mut expected = of_all.clone();
            expected.extend(tabled(&documented, title)?);
            agree(&shown(&text)?, &expected).with_context(|| format!("{} and docs/metrics.md", program.name()))?;
            check(program, &text)?;
        }
        Ok(())
    })
    .await
}

/// What has just happened is counted.
async fn counted(cluster: &Cluster) -> anyhow::Result<()> {
    let (giver, taker) = (cluster.node(0).program(), cluster.node(1).program());
    let expected = [
        (giver, "damselfly_node_imports_total", 1.0),
        (giver, "damselfly_node_imported_bytes_total", f64::from(9 << 20)),
        (giver, "damselfly_node_sent_pieces_total", 9.0),
        (giver, "damselfly_node_uploads", 0.0),
        (taker, "damselfly_node_exports_total", 2.0),
        (taker, "damselfly_node_exported_bytes_total{source=\"local\"}", f64::from(9 << 20)),
        (taker, "damselfly_node_exported_bytes_total{source=\"peers\"}", f64::from(9 << 20)),
        (taker, "damselfly_node_exported_pieces_total{source=\"local\"}", 9.0),
        (taker, "damselfly_node_exported_pieces_total{source=\"peers\"}", 9.0),
        (taker, "damselfly_node_received_pieces_total", 9.0),
        (taker, "damselfly_node_running_exports", 0.0),
        (taker, "damselfly_node_reachable_schedulers", 2.0),
        (cluster.manager(), "damselfly_manager_logins_total{result=\"wrong\"}", 1.0),
        (cluster.manager(), "damselfly_manager_joins_total{result=\"joined\"}", 4.0),
        (cluster.manager(), "damselfly_manager_is_leader", 1.0),
    ];
    for (program, name, expected) in expected {
        let text = http::get(&program.url("metrics")).await?.body;
        let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse::<f64>().ok());
        ensure!(found == Some(expected), "{}: {name} is {found:?} and not {expected}", program.name());
    }
    let requests = http::get(&cluster.manager().url("metrics")).await?.body;
    let login = "damselfly_manager_http_requests_total{method=\"POST\",route=\"/api/v1/session\",status=\"401\"} 1";
    ensure!(requests.lines().any(|line| line == login), "{requests}");
    Ok(())
}

/// What a program shows.
fn shown(text: &str) -> anyhow::Result<Metrics> {
    let mut metrics = Metrics::new();
    for line in text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            metrics.insert(name.to_owned(), (kind.to_owned(), BTreeSet::new()));
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap_or_default();
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            let family = family.filter(|family| metrics.contains_key(*family)).unwrap_or(name);
            let (_, labels) = metrics.get_mut(family).with_context(|| format!("of no metric: {line}"))?;
            let inside = line.split_once('{').and_then(|(_, rest)| Some(rest.rsplit_once('}')?.0)).unwrap_or_default();
            let names = inside.split(',').filter_map(|label| Some(label.split_once('=')?.0.to_owned()));
            labels.extend(names.filter(|name| name != "le"));
        }
    }
    Ok(metrics)
}

/// What the table below a title says: name, type, unit, labels, meaning.
fn tabled(text: &str, title: &str) -> anyhow::Result<Metrics> {
    let (_, part) = text.split_once(&format!("## {title}\n")).with_context(|| format!("no part {title}"))?;
    let part = part.split("\n## ").next().unwrap_or_default();
    let mut metrics = Metrics::new();
    for row in part.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, unit, labels, meaning] = cells[..] else { anyhow::bail!("not five cells: {row}") };
        let name = name.trim_matches('`');
        let labels: BTreeSet<_> = labels.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        ensure!(!meaning.is_empty(), "no meaning: {row}");
        let base = name.trim_end_matches("_total");
        ensure!(!["bytes", "seconds"].contains(&unit) || base.ends_with(unit), "the name has not its unit: {row}");
        ensure!(metrics.insert(name.to_owned(), (kind.to_owned(), labels)).is_none(), "twice: {row}");
    }
    ensure!(!metrics.is_empty(), "no table below {title}");
    Ok(metrics)
}

/// Has no values, and so no labels, before something went wrong.
const MAYBE_EMPTY: &str = "damselfly_node_excluded_parents";

fn agree(shown: &Metrics, documented: &Metrics) -> anyhow::Result<()> {
    for (name, is) in shown {
        let said = documented.get(name).with_context(|| format!("{name} is shown and not documented"))?;
        let is_empty = name == MAYBE_EMPTY && is.1.is_empty() && is.0 == said.0;
        ensure!(said == is || is_empty, "{name} is documented as {said:?} and shown as {is:?}");
    }
    let missing: Vec<_> = documented.keys().filter(|name| !shown.contains_key(*name)).collect();
    ensure!(missing.is_empty(), "documented and not shown: {missing:?}");
    Ok(())
}

/// Has Prometheus' own tool look at it, where there is one.
fn check(program: &Program, text: &str) -> anyhow::Result<()> {
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = match promtool.spawn() {
        Ok(running) => running,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            eprintln!("promtool is not installed: the metrics of {} are not checked by it", program.name());
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    running.stdin.take().context("no input")?.write_all(text.as_bytes())?;
    let done = running.wait_with_output()?;
    let told = [done.stdout, done.stderr].concat();
    let told = String::from_utf8_lossy(&told);
    ensure!(done.status.success() && told.is_empty(), "promtool of {}: {told}", program.name());
    Ok(())
}
