//! Environment variables that are set to nothing, as service managers and containers pass what is not set.

use std::process::Stdio;

use anyhow::{Context as _, ensure};
use damselfly_tests::Programs;
use tokio::process::Command;

use crate::support::{Host, output, programs};

const DAEMONS: [&str; 3] = ["dfdaemon", "dfscheduler", "dfmanager"];
/// Variables that no `--help` names.
const OTHERS: [&str; 7] = [
    "DFCACHE_SOCKET",
    "NOTIFY_SOCKET",
    "OTEL_RESOURCE_ATTRIBUTES",
    "OTEL_SERVICE_NAME",
    "RUST_LOG",
    "XDG_DATA_HOME",
    "XDG_RUNTIME_DIR",
];

/// What `program` prints with exactly these variables, none of which has a value.
async fn prints(programs: &Programs, program: &str, option: &str, empty: &[String]) -> anyhow::Result<String> {
    let mut command = Command::new(programs.path(program));
    command.arg(option).env_clear().envs(empty.iter().map(|name| (name, ""))).stdin(Stdio::null()).kill_on_drop(true);
    let done = output(command).await?;
    let stderr = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{program} {option} with {empty:?} set to nothing: {}: {stderr}", done.status);
    Ok(String::from_utf8(done.stdout)?)
}

/// The variables that `program --help` names, each of which is an argument's.
async fn variables(programs: &Programs, program: &str) -> anyhow::Result<Vec<String>> {
    let help = prints(programs, program, "--help", &[]).await?;
    let named = help.split("[env: ").skip(1).filter_map(|rest| rest.split(['=', ']']).next());
    Ok(named.chain(OTHERS).map(str::to_owned).collect())
}

/// Each variable of each program, alone and all together.
#[tokio::test(flavor = "multi_thread")]
async fn a_variable_set_to_nothing_is_not_set() -> anyhow::Result<()> {
    let programs = programs().await?;
    for program in DAEMONS {
        let variables = variables(&programs, program).await?;
        ensure!(variables.len() > OTHERS.len() + 8, "{program} --help names only {variables:?}");
        let expected = prints(&programs, program, "--print-config", &[]).await?;
        let one_by_one = variables.iter().map(|one| vec![one.clone()]);
        for empty in one_by_one.chain([variables.clone()]) {
            let printed = prints(&programs, program, "--print-config", &empty).await?;
            ensure!(printed == expected, "{program} with {empty:?} set to nothing:\n{printed}\ninstead of\n{expected}");
        }
    }
    Ok(())
}

/// They do not stop a start either, and the log is what it is without them.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_starts_with_all_variables_set_to_nothing() -> anyhow::Result<()> {
    let mut host = Host::new().await?;
    let variables = variables(host.programs(), "dfdaemon").await?;
    let assignments = variables.iter().map(|name| format!("{name}="));
    host.with_wrapper(&["env".to_owned()].into_iter().chain(assignments).collect::<Vec<_>>());
    host.start().await?;
    let log = host.log();
    log.contains(" INFO ")
        .then_some(())
        .with_context(|| format!("RUST_LOG= hides what is logged by default: {log}"))?;
    ensure!(!log.contains("service manager"), "NOTIFY_SOCKET= names none: {log}");
    host.run(&["health"]).await?.exits(8)?;
    Ok(())
}
