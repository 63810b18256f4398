//! Two managers that share a PostgreSQL: when one is killed, the other one goes on, and hosts know it.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::Instant,
};

use anyhow::{Context as _, ensure};
use damselfly_testnet::http;
use damselfly_tests::{Dfcache, Programs, until};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::{membership::Newcomer, support::SETTLED};

#[path = "../../../manager/src/database/tests/postgres.rs"]
mod postgres;

/// One of the managers.
struct Manager {
    folder: PathBuf,
    running: Child,
    http: String,
}

impl Manager {
    async fn start(programs: &Programs, folder: PathBuf, database: &str) -> anyhow::Result<Self> {
        fs::create_dir_all(folder.join("data"))?;
        fs::set_permissions(folder.join("data"), fs::Permissions::from_mode(0o700))?;
        let config = format!(
            "data_dir = {:?}\nlisten = [\"/ip4/127.0.0.1/tcp/0\"]\njoin_listen = \"127.0.0.1:0\"\nallow_loopback = true\n\
             [http]\nlisten = \"127.0.0.1:0\"\n",
            folder.join("data")
        );
        fs::write(folder.join("config.toml"), config)?;
        let log = folder.join("log");
        let mut command = Command::new(programs.path("dfmanager"));
        command.arg("--config").arg(folder.join("config.toml")).env("DFMANAGER_DATABASE_URL", database);
        command.stdin(Stdio::null()).stderr(fs::File::create(&log)?).kill_on_drop(true);
        let running = command.spawn()?;
        let http = until("the manager runs", SETTLED, async || {
            let text = fs::read_to_string(&log)?;
            let line = text.lines().find(|line| line.contains("the manager runs")).context(text.clone())?;
            let http = line.split_whitespace().find_map(|part| part.strip_prefix("http=")).context("no address")?;
            let ready = http::get(&format!("{}/readyz", http.trim_end_matches('/'))).await?;
            ensure!(ready.status == 200, "{}", ready.body);
            Ok(http.trim_end_matches('/').to_owned())
        });
        Ok(Self { http: http.await?, folder, running })
    }

    async fn ask(
        &self,
        method: &str,
        resource: &str,
        more: &[(&str, &str)],
        body: String,
    ) -> anyhow::Result<http::Answer> {
        let token = fs::read_to_string(self.folder.join("data/admin_token"))?;
        let authorization = format!("Bearer {}", token.trim());
        let headers = [more, &[("authorization", &authorization), ("content-type", "application/json")]].concat();
        http::ask(method, &format!("{}/api/v1/{resource}", self.http), &headers, body).await
    }

    async fn token(&self, role: &str) -> anyhow::Result<String> {
        let wanted = json!({ "roles": [role], "uses": 9, "ttl_seconds": 600 });
        let answer = self.ask("POST", "join-tokens", &[], wanted.to_string()).await?;
        ensure!(answer.status == 201, "{}: {}", answer.status, answer.body);
        let made: Value = serde_json::from_str(&answer.body)?;
        Ok(made["token"].as_str().context("no token")?.to_owned())
    }

    /// The configuration, and its epoch.
    async fn settings(&self) -> anyhow::Result<(u64, Value)> {
        let answer = self.ask("GET", "config", &[], String::new()).await?;
        let epoch = answer.etag.as_deref().context("no epoch")?.trim_matches('"').parse()?;
        Ok((epoch, serde_json::from_str(&answer.body)?))
    }

    /// Changes one of the settings; the new epoch.
    async fn change(&self, name: &str, value: u64) -> anyhow::Result<u64> {
        let (epoch, mut settings) = self.settings().await?;
        settings[name] = json!(value);
        let tag = format!("\"{epoch}\"");
        let answer = self.ask("PUT", "config", &[("if-match", &tag)], settings.to_string()).await?;
        ensure!(answer.status == 200, "{}: {}", answer.status, answer.body);
        Ok(epoch + 1)
    }
}

/// Waits until a daemon is a member that reaches a scheduler and has this epoch.
async fn in_touch(programs: &Programs, daemon: &Newcomer, epoch: u64) -> anyhow::Result<()> {
    let dfcache = Dfcache::new(programs, &daemon.folder().join("sock"));
    until("a daemon is in touch", SETTLED, async || {
        let health = dfcache.run(&["health"]).await?.json;
        let reachable = |one: &Value| one["reachable"] == true;
        ensure!(health["schedulers"].as_array().is_some_and(|all| all.iter().any(reachable)), "{health}");
        ensure!(health["epoch"].as_u64() >= Some(epoch), "{health}");
        Ok(())
    })
    .await
}

/// The managers that a host remembers, the one that answered last first.
fn knows(host: &Newcomer) -> anyhow::Result<Vec<Value>> {
    let remembered: Value = serde_json::from_slice(&fs::read(host.folder().join("data/membership.json"))?)?;
    Ok(remembered["managers"].as_array().context("no managers")?.clone())
}

fn join(programs: &Programs, program: &str, folder: &Path, token: &str) -> anyhow::Result<(Newcomer, Child)> {
    let newcomer = Newcomer::in_folder(programs, program, folder.to_owned())?;
    let running = newcomer.command(token).stderr(Stdio::null()).spawn()?;
    Ok((newcomer, running))
}

#[tokio::test]
async fn a_manager_is_killed_and_the_other_goes_on() -> anyhow::Result<()> {
    let Some(postgres) = tokio::task::spawn_blocking(postgres::Server::start).await? else {
        eprintln!("PostgreSQL is not installed: nothing tested");
        return Ok(());
    };
    let programs = tokio::task::spawn_blocking(Programs::get).await??;
    let folder = tempfile::TempDir::with_prefix("dft-")?;
    let at = |name: &str| folder.path().join(name);
    let mut first = Manager::start(&programs, at("first"), &postgres.url()).await?;
    // So that hosts are renewed every second or two.
    first.change("credential_ms", 20_000).await?;
    let _scheduler = join(&programs, "dfscheduler", &at("scheduler"), &first.token("scheduler").await?)?;
    until("the scheduler is in the ring", SETTLED, async || {
        let (_, settings) = first.settings().await?;
        ensure!(settings["schedulers"].as_array().is_some_and(|all| all.len() == 1), "{settings}");
        Ok(())
    })
    .await?;
    let (node, _running) = join(&programs, "dfdaemon", &at("node"), &first.token("node").await?)?;
    in_touch(&programs, &node, first.change("candidate_parents", 5).await?).await?;
    let alone = knows(&node)?;
    ensure!(alone.len() == 1, "{alone:?}");

    fs::create_dir_all(at("second/data"))?;
    fs::copy(at("first/data/root.key"), at("second/data/root.key"))?;
    let second = Manager::start(&programs, at("second"), &postgres.url()).await?;
    until("the node hears of the other manager when it is renewed", SETTLED, async || {
        let both = knows(&node)?;
        ensure!(both.len() == 2 && both[0] == alone[0], "{both:?}");
        Ok(())
    })
    .await?;
    let token = first.token("node").await?;

    first.running.kill().await?;
    let begun = Instant::now();
    // It may not have seen yet what the first one changed last: then it says so.
    let epoch = until("the other manager changes the configuration", SETTLED, async || {
        second.change("candidate_parents", 6).await
    });
    let epoch = epoch.await?;
    in_touch(&programs, &node, epoch).await?;
    println!("from the kill to the changed configuration on a node: {:?}", begun.elapsed());
    until("the other manager renews the node", SETTLED, async || {
        let now = knows(&node)?;
        ensure!(now[0] != alone[0], "{now:?}");
        Ok(())
    })
    .await?;
    // The token names both managers, though the one that made it is gone.
    let (late, _running) = join(&programs, "dfdaemon", &at("late"), &token)?;
    in_touch(&programs, &late, epoch).await?;
    let (later, _running) = join(&programs, "dfdaemon", &at("later"), &second.token("node").await?)?;
    in_touch(&programs, &later, epoch).await
}
