//! Who belongs to the cluster: joining, renewing, and being put out.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use damselfly_messages::membership::{JoinToken, Roots, Secret};
use damselfly_testnet::ports;
use damselfly_tests::{Cluster, Node, Options, Programs, until};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::{SETTLED, exports};

/// A daemon or scheduler that is no member yet, in a folder of its own.
pub struct Newcomer {
    folder: PathBuf,
    program: PathBuf,
}

impl Newcomer {
    /// With a configuration and nothing else.
    pub fn new(cluster: &Cluster, program: &str, name: &str) -> anyhow::Result<Self> {
        Self::in_folder(cluster.programs(), program, cluster.path(name))
    }

    /// In a folder that is made for it; a scheduler is told a port, which it tells the manager.
    pub fn in_folder(programs: &Programs, program: &str, folder: PathBuf) -> anyhow::Result<Self> {
        let port = if program == "dfscheduler" { ports::free(1)?[0] } else { 0 };
        fs::create_dir(&folder)?;
        let socket = match program {
            "dfdaemon" => format!("socket = {:?}\n", folder.join("sock")),
            _ => String::new(),
        };
        let data = folder.join("data");
        let config = format!(
            "data_dir = {data:?}\n{socket}listen = [\"/ip4/127.0.0.1/tcp/{port}\"]\nallow_loopback = true\n\
             [http]\nlisten = \"127.0.0.1:0\"\n"
        );
        fs::write(folder.join("config.toml"), config)?;
        Ok(Self { folder, program: programs.path(program) })
    }

    /// Its folder; a daemon's socket is `sock` in it.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Runs it with a token; dropped, it is killed.
    pub fn command(&self, token: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(self.folder.join("config.toml")).arg("--join").arg(token);
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Starts it with a token that is of no use.
    async fn fails(&self, token: &str) -> anyhow::Result<Output> {
        let running = self.command(token).output();
        Ok(tokio::time::timeout(SETTLED, running).await.context("it runs")??)
    }
}

fn text(token: &Value) -> &str {
    token["token"].as_str().unwrap_or_default()
}

#[tokio::test]
async fn a_token_lets_in_whom_it_says_and_nobody_else() -> anyhow::Result<()> {
    Cluster::run(Options { nodes: 1, ..Options::default() }, async |cluster| {
        let good = cluster.join_token(&["node"], 1, 600).await?;
        let begun = Instant::now();
        let newcomer = Newcomer::new(cluster, "dfdaemon", "newcomer")?;
        // From a file: other users of the host see a command line.
        let token_file = cluster.path("token");
        fs::write(&token_file, format!("{}\n", text(&good)))?;
        let from_file = format!("@{}", token_file.display());
        let mut running = newcomer.command(&from_file).stderr(Stdio::null()).spawn()?;
        let health = async || -> anyhow::Result<Value> {
            let dfcache = cluster.programs().path("dfcache");
            let socket = newcomer.folder.join("sock");
            let asked = Command::new(dfcache).arg("--socket").arg(socket).args(["--json", "health"]).output();
            Ok(serde_json::from_slice(&asked.await?.stdout)?)
        };
        until("it is a member that reaches a scheduler", SETTLED, async || {
            let health = health().await?;
            let reachable =
                health["schedulers"].as_array().is_some_and(|all| all.iter().any(|one| one["reachable"] == true));
            ensure!(health["member"] == true && reachable, "{health}");
            Ok(())
        })
        .await?;
        println!("from the start with a token to a working node: {:?}", begun.elapsed());
        running.kill().await?;
        starts_without_its_token(&newcomer, &token_file).await?;

        let expired = cluster.join_token(&["node"], 1, 1).await?;
        let withdrawn = cluster.join_token(&["node"], 1, 600).await?;
        let resource = format!("join-tokens/{}", withdrawn["id"].as_str().unwrap_or_default());
        ensure!(cluster.manage("DELETE", &resource, None).await?.status == 204);
        let scheduler = cluster.join_token(&["scheduler"], 1, 600).await?;
        let parsed: JoinToken = text(&scheduler).parse()?;
        let guessed = JoinToken { secret: Secret([7; 32]), ..parsed.clone() }.reveal();
        let stranger = cluster_of_nobody();
        let other_cluster = JoinToken { roots: Roots::of(stranger), ..parsed }.reveal();
        let refused = newcomer.fails(&other_cluster).await?;
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(told.contains("this host belongs to cluster"), "one that has joined goes elsewhere: {told}");
        let slip = text(&scheduler).replace("dfj1_C", "dfj1_D");
        let file = cluster.path("missing");
        // (token, exit code, what it says)
        let table = [
            (text(&good).to_owned(), 1, "good for 1 host, which has used it"),
            (text(&withdrawn).to_owned(), 1, "withdrawn"),
            (text(&scheduler).to_owned(), 1, "makes a host scheduler, not node"),
            (guessed, 1, "no such token, or this is not its secret"),
            (other_cluster, 1, "does not prove that it speaks for cluster"),
            (slip, 2, "damaged"),
            ("abc".to_owned(), 2, "does not begin with dfj1_"),
            (format!("@{}", file.display()), 2, "cannot read"),
        ];
        for (number, (token, code, says)) in table.into_iter().enumerate() {
            let refused = Newcomer::new(cluster, "dfdaemon", &format!("refused-{number}"))?.fails(&token).await?;
            let told = String::from_utf8_lossy(&refused.stderr).into_owned();
            ensure!(refused.status.code() == Some(code) && told.contains(says), "{says}: {:?} {told}", refused.status);
            ensure!(!told.contains(&token) || token.len() < 100, "the token is in the log: {told}");
        }
        let late = Newcomer::new(cluster, "dfdaemon", "late")?;
        until("the token expires", SETTLED, async || {
            let refused = late.fails(text(&expired)).await?;
            ensure!(String::from_utf8_lossy(&refused.stderr).contains("the token has expired"), "{refused:?}");
            Ok(())
        })
        .await?;
        hosts(cluster, 4).await.map(drop)
    })
    .await
}

/// A member needs its token no more: one warning says that it is gone, or damaged.
async fn starts_without_its_token(member: &Newcomer, token_file: &Path) -> anyhow::Result<()> {
    for text in [None, Some("dfj1_damaged")] {
        match text {
            None => fs::remove_file(token_file)?,
            Some(text) => fs::write(token_file, text)?,
        }
        let log = member.folder.join("log");
        let mut command = member.command(&format!("@{}", token_file.display()));
        let mut running = command.stderr(fs::File::create(&log)?).spawn()?;
        until("it is up", SETTLED, async || {
            let log = fs::read_to_string(&log)?;
            ensure!(log.contains("dfdaemon is up"), "{log}");
            Ok(())
        })
        .await?;
        running.kill().await?;
        let log = fs::read_to_string(&log)?;
        ensure!(log.matches("the join token is not used").count() == 1, "{log}");
    }
    Ok(())
}

#[tokio::test]
async fn a_join_whose_answer_is_not_kept_takes_no_further_use() -> anyhow::Result<()> {
    Cluster::run(Options { nodes: 1, ..Options::default() }, async |cluster| {
        let token = cluster.join_token(&["node"], 1, 600).await?;
        let left = async || -> anyhow::Result<Value> {
            let listed: Value = serde_json::from_str(&cluster.manage("GET", "join-tokens", None).await?.body)?;
            let ours = listed["items"].as_array().and_then(|all| all.iter().find(|one| one["id"] == token["id"]));
            Ok(ours.context("no such token")?["uses_left"].clone())
        };
        let newcomer = Newcomer::new(cluster, "dfdaemon", "newcomer")?;
        let data = newcomer.folder.join("data");
        fs::create_dir(&data)?;
        fs::set_permissions(&data, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        for in_the_way in ["configuration.signed", "membership.json"] {
            fs::create_dir(data.join(in_the_way))?;
            let refused = newcomer.fails(text(&token)).await?;
            let told = String::from_utf8_lossy(&refused.stderr).into_owned();
            ensure!(!refused.status.success() && told.contains(in_the_way), "{told}");
            ensure!(left().await? == 1, "a use is gone before anything could be kept");
            fs::remove_dir(data.join(in_the_way))?;
        }
        let up = async || -> anyhow::Result<()> {
            let log = newcomer.folder.join("log");
            let mut running = newcomer.command(text(&token)).stderr(fs::File::create(&log)?).spawn()?;
            until("it is up", SETTLED, async || {
                let log = fs::read_to_string(&log)?;
                ensure!(log.contains("dfdaemon is up"), "{log}");
                Ok(())
            })
            .await?;
            Ok(running.kill().await?)
        };
        up().await?;
        ensure!(left().await? == 0, "it has joined");
        // As if it had been killed between the answer and the first write.
        fs::remove_file(data.join("membership.json"))?;
        fs::remove_file(data.join("configuration.signed"))?;
        up().await?;
        let other = Newcomer::new(cluster, "dfdaemon", "other")?.fails(text(&token)).await?;
        ensure!(String::from_utf8_lossy(&other.stderr).contains("has used it"), "{other:?}");
        Ok(())
    })
    .await
}

/// A cluster that nobody has founded.
fn cluster_of_nobody() -> damselfly_messages::id::ClusterId {
    let text = format!("1220{}", "5a".repeat(32));
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

/// The manager's list of hosts, which has so many.
async fn hosts(cluster: &Cluster, count: usize) -> anyhow::Result<Vec<Value>> {
    let answer = cluster.manage("GET", "hosts", None).await?;
    let hosts: Value = serde_json::from_str(&answer.body)?;
    let hosts = hosts["items"].as_array().context("a list")?.clone();
    ensure!(hosts.len() == count, "{hosts:?}");
    Ok(hosts)
}

#[tokio::test]
async fn who_is_put_out_is_out_in_the_middle_of_a_transfer_and_stays_out() -> anyhow::Result<()> {
    let options = Options { nodes: 3, upload_rate_limit: Some("8MiB/s"), ..Options::default() };
    Cluster::run(options, async |cluster| {
        let file = cluster.file("file", 64 << 20)?;
        cluster.node(0).import("file", &file).await?.ok()?;
        let out = cluster.node(2);
        let target = cluster.path("never");
        let export = tokio::spawn({
            let (out, target) = (out.clone(), target.clone());
            async move { out.export("file", &target).await }
        });
        crate::support::received(out, 0.0, 1).await?;
        let begun = Instant::now();
        let body = json!({ "peer_id": out.program().peer_id(), "reason": "lost" });
        let answer = cluster.manage("POST", "revocations", Some(&body)).await?;
        ensure!(answer.status == 201, "{}", answer.body);
        let gone = async || -> anyhow::Result<()> {
            // The daemon of a host that is put out ends, or nobody talks with it.
            if out.program().is_running() {
                let connected = out.program().metric("damselfly_connected_peers").await?;
                ensure!(connected == 0.0, "{connected} connections");
            }
            Ok(())
        };
        until("it has no connection", SETTLED, gone).await?;
        println!("revoked and out after {:?}", begun.elapsed());
        let ended = tokio::time::timeout(Duration::from_secs(60), export).await.context("the export goes on")??;
        ensure!(ended.is_err() || ended?.ok().is_err(), "the export succeeded");
        ensure!(!target.exists(), "something was left behind");

        if out.program().is_running() {
            out.program().kill().await?;
        }
        starts_in_vain(out).await?;
        // The others go on.
        exports(cluster, cluster.node(1), "file", &file).await?;
        let stat = cluster.node(1).stat("file").await?.ok()?;
        ensure!(stat["holders"] == 2, "{stat}");
        let hosts = hosts(cluster, 5).await?;
        let revoked: Vec<_> = hosts.iter().filter(|host| host["revoked"] == true).collect();
        ensure!(revoked.len() == 1 && revoked[0]["peer_id"] == out.program().peer_id(), "{revoked:?}");
        let token = cluster.join_token(&["node"], 1, 600).await?;
        refused_for_good(cluster, out.program().folder(), text(&token)).await?;
        says_what_to_do(out, text(&token)).await?;
        // One that was off, and so has heard nothing of it.
        let off = cluster.node(1);
        off.program().kill().await?;
        let body = json!({ "peer_id": off.program().peer_id(), "reason": "lost too" });
        ensure!(cluster.manage("POST", "revocations", Some(&body)).await?.status == 201);
        starts_in_vain(off).await
    })
    .await
}

/// A host that was put out is told so, and ends.
async fn starts_in_vain(node: &Node) -> anyhow::Result<()> {
    let program = node.program();
    program.start()?;
    until("it is told why", SETTLED, async || {
        let log = program.folder().join("log");
        let told = program.log().contains("the host is revoked") && !program.is_running();
        ensure!(told, "it is not told: {}", damselfly_testnet::process::tail(&log));
        Ok(())
    })
    .await
}

/// With a new token it says at once that it needs a new identity, and with that it is a member.
async fn says_what_to_do(node: &Node, token: &str) -> anyhow::Result<()> {
    let (program, before) = (node.program(), node.program().log().len());
    program.start_with(&["--join", token], &[])?;
    let told = until("it says what to do", SETTLED, async || {
        let told = program.log().split_off(before);
        ensure!(!program.is_running() && told.contains("remove identity.key and membership.json"), "{told}");
        Ok(told)
    })
    .await?;
    ensure!(!told.contains("dfdaemon is up"), "it started first: {told}");
    for file in ["identity.key", "membership.json"] {
        fs::remove_file(program.data().join(file))?;
    }
    program.start_with(&["--join", token], &[])?;
    program.ready().await?;
    program.kill().await
}

/// Not with a new token either: the key is out.
async fn refused_for_good(cluster: &Cluster, folder: &Path, token: &str) -> anyhow::Result<()> {
    let newcomer = Newcomer::new(cluster, "dfdaemon", "comes back")?;
    fs::create_dir(newcomer.folder.join("data"))?;
    fs::set_permissions(newcomer.folder.join("data"), std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    fs::copy(folder.join("data/identity.key"), newcomer.folder.join("data/identity.key"))?;
    let refused = newcomer.fails(token).await?;
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(told.contains("put out of the cluster"), "{told}");
    Ok(())
}

#[tokio::test]
async fn a_credential_is_renewed_and_without_a_manager_the_host_waits() -> anyhow::Result<()> {
    Cluster::run(Options { nodes: 1, ..Options::default() }, async |cluster| {
        cluster
            .change_settings(|settings| {
                settings.credential_ms = 4_000;
                settings.grace_ms = 0;
            })
            .await?;
        // These two join with short lives, the others have joined with long ones.
        let short = cluster.add_node(&[]).await?;
        let file = cluster.file("file", 1 << 20)?;
        short.import("file", &file).await?.ok()?;
        let serial = |hosts: &[Value]| {
            let host = hosts.iter().find(|host| host["peer_id"] == short.program().peer_id());
            host.map(|host| host["expires"].to_string()).unwrap_or_default()
        };
        let first = serial(&hosts(cluster, 4).await?);
        until("it is renewed past its first end", SETTLED, async || {
            let now = serial(&hosts(cluster, 4).await?);
            ensure!(now > first, "{now}");
            Ok(())
        })
        .await?;
        let begun = Instant::now();
        // Longer than a credential lives: the connections live on.
        while begun.elapsed() < Duration::from_secs(6) {
            exports(cluster, cluster.node(0), "file", &file).await?;
            fs::remove_file(cluster.path("file of node-1"))?;
            cluster.node(0).run(&["delete", "-l", "-i", "file"]).await?.ok()?;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        ensure!(short.program().is_running() && !short.program().log().contains("no member"), "it was put out");
        cluster.manager().kill().await?;
        until("it says that it is no member now", SETTLED, async || {
            let ready = damselfly_testnet::http::get(&short.program().url("readyz")).await?;
            ensure!(ready.status == 503 && ready.body.contains("has expired"), "{}", ready.body);
            let health = short.run(&["health"]).await?.json;
            let problems = health["problems"].as_array().context("no problems")?;
            ensure!(problems.iter().any(|problem| problem["code"] == "credential"), "{health}");
            ensure!(short.program().log().contains("has expired"), "not in the log");
            Ok(())
        })
        .await?;
        until("others have closed their connections", SETTLED, async || {
            let connected = short.program().metric("damselfly_connected_peers").await?;
            ensure!(connected == 0.0, "{connected}");
            Ok(())
        })
        .await?;
        // What is here is of use meanwhile, also after a restart.
        exports(cluster, &short, "file", &file).await?;
        short.program().terminate().await?;
        short.program().start()?;
        fs::remove_file(cluster.path(&format!("file of {}", short.program().name())))?;
        until("it serves its users again", SETTLED, async || exports(cluster, &short, "file", &file).await.map(drop))
            .await?;
        ensure!(short.program().is_running(), "it has ended");
        // The manager comes back, and with it the host, although its credential has expired long ago.
        cluster.manager().start_ready().await?;
        short.program().ready().await?;
        until("it is a holder again", SETTLED, async || {
            exports(cluster, cluster.node(0), "file", &file).await.map(drop)
        })
        .await
    })
    .await
}

#[tokio::test]
async fn with_grace_an_expired_host_goes_on_with_an_alarm() -> anyhow::Result<()> {
    Cluster::run(Options { nodes: 1, ..Options::default() }, async |cluster| {
        cluster
            .change_settings(|settings| {
                settings.credential_ms = 2_000;
                settings.grace_ms = 600_000;
            })
            .await?;
        let short = cluster.add_node(&[]).await?;
        let file = cluster.file("file", 1 << 20)?;
        short.import("file", &file).await?.ok()?;
        cluster.manager().kill().await?;
        until("it gives the alarm", SETTLED, async || {
            ensure!(short.program().log().contains("the credential has expired"), "no alarm");
            Ok(())
        })
        .await?;
        exports(cluster, cluster.node(0), "file", &file).await?;
        // Also after a restart, without anybody who could renew it.
        short.program().kill().await?;
        short.program().start_ready().await?;
        let other = cluster.file("other", 1 << 10)?;
        until("it imports", SETTLED, async || short.import("other", &other).await?.ok().map(drop)).await?;
        until("others have it", SETTLED, async || exports(cluster, cluster.node(0), "other", &other).await.map(drop))
            .await?;
        let token = cluster.join_token(&["node"], 1, 600).await;
        ensure!(token.is_err(), "who is to answer?");
        Ok(())
    })
    .await
}
