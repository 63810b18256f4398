//! dfdaemon on its own: without configuration, with a wrong one, and how it ends.

use std::{
    ffi::OsString,
    fs::{self, Permissions},
    net::TcpListener,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use damselfly_testnet::http;
use damselfly_tests::until;
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::support::{
    AS_NOBODY, Host, NOBODY, can, command, fails, is_root, output, programs, programs_for_all, random, same_bytes,
    send, text,
};

/// The port of a daemon without configuration: one at a time.
static PORT: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
const HTTP_LISTEN: &str = "127.0.0.1:4501";
/// Puts two folders where a daemon of root keeps its things, for this process only.
const OWN_SYSTEM: &str = r#"mount --bind "$1" /run && mount --bind "$2" /var/lib && shift 2 && exec "$@""#;

/// A daemon that was started without an argument.
struct Alone {
    daemon: Child,
    /// What runs dfcache beside it, and where they are.
    beside: Vec<OsString>,
    variables: Vec<(&'static str, PathBuf)>,
    folder: PathBuf,
    http: String,
}

impl Alone {
    /// Starts `programs/dfdaemon` with nothing but these variables and waits for its socket.
    async fn start(mut command: Command, folder: &Path, socket: &Path) -> anyhow::Result<Self> {
        let log = fs::File::create(folder.join("log"))?;
        // Somebody else's daemon may have the port: then, and only then, another one is asked for.
        let free = TcpListener::bind(HTTP_LISTEN).is_ok();
        if !free {
            eprintln!("{HTTP_LISTEN} is in use: the daemon gets another port");
            command.env("DFDAEMON_HTTP_LISTEN", "127.0.0.1:0");
        }
        let mut daemon = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        let read = || fs::read_to_string(folder.join("log"));
        until("the daemon is up", Duration::from_secs(20), async || {
            ensure!(daemon.try_wait()?.is_none() && read()?.contains(" is up "), "{}", read()?);
            Ok(())
        })
        .await?;
        ensure!(socket.exists(), "no socket at {}", socket.display());
        let log = read()?;
        let http = log.rsplit_once(" http=").map_or("", |(_, rest)| rest).trim().to_owned();
        ensure!(!free || http == HTTP_LISTEN, "HTTP is at {http}");
        Ok(Self { daemon, beside: Vec::new(), variables: Vec::new(), folder: folder.to_owned(), http })
    }

    fn dfcache(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.beside[0]);
        command.args(&self.beside[1..]).args(arguments).env_clear().current_dir("/");
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    async fn json(&self, arguments: &[&str], exit: i32) -> anyhow::Result<serde_json::Value> {
        let done = output(self.dfcache(&[arguments, &["--json"]].concat())).await?;
        let (stdout, stderr) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        ensure!(done.status.code() == Some(exit), "{arguments:?}: {}: {stdout} {stderr}", done.status);
        Ok(serde_json::from_str(&stdout)?)
    }

    /// All that a host can do on its own, and what it says of the rest.
    async fn works(&self) -> anyhow::Result<()> {
        let log = fs::read_to_string(self.folder.join("log"))?;
        let warnings: Vec<_> = log.lines().filter(|line| line.contains(" WARN ")).collect();
        ensure!(warnings.len() == 1 && warnings[0].contains("dfdaemon --join TOKEN"), "{log}");
        let bytes = random("file", 2_000_000);
        let (file, exported) = (self.folder.join("file"), self.folder.join("outputs/exported"));
        fs::write(&file, &bytes)?;
        fs::set_permissions(&file, Permissions::from_mode(0o644))?;
        let imported = self.json(&["import", "-i", "task", &text(&file)], 0).await?;
        ensure!(imported["announced"] == false && imported["bytes"] == 2_000_000, "{imported}");
        for arguments in [&["stat", "-i", "task", "-l"][..], &["stat", "-i", "task"]] {
            let found = self.json(arguments, 0).await?;
            ensure!(found["local"] == true && found["holders"] == 1 && found["state"] == "available", "{found}");
        }
        for local in [Some("-l"), None] {
            let arguments = ["export", "-f", "-i", "task", &text(&exported)];
            let done = self.json(&[&arguments[..], local.as_slice()].concat(), 0).await?;
            ensure!(done["from_local_bytes"] == 2_000_000 && done["peers"] == 0, "{done}");
            same_bytes(&fs::read(&exported)?, &bytes)?;
        }
        let listed = self.json(&["ls"], 0).await?;
        ensure!(listed["entries"][0]["cid"] == "task", "{listed}");

        fails(|| self.dfcache(&["stat", "-i", "elsewhere"]), 3, "not a member").await?;
        let health = output(self.dfcache(&["health"])).await?;
        ensure!(health.status.code() == Some(8), "{}", health.status);
        let told = String::from_utf8(health.stderr)?;
        ensure!(told.contains("not a member") && told.contains("dfdaemon --join"), "{told}");
        ensure!(String::from_utf8(health.stdout)?.contains("daemon      up"));
        let health = self.json(&["health"], 8).await?;
        ensure!(health["healthy"] == false && health["member"] == false, "{health}");
        ensure!(health["error"]["exit"] == 8, "{health}");

        for (path, status) in [("healthz", 200), ("readyz", 503), ("metrics", 200)] {
            let answer = http::get(&format!("http://{}/{path}", self.http)).await?;
            ensure!(answer.status == status, "/{path} is {}: {}", answer.status, answer.body);
            ensure!(path != "readyz" || answer.body.contains("not a member"), "{}", answer.body);
        }

        let deleted = self.json(&["delete", "-i", "task"], 0).await?;
        ensure!(deleted["deleted"] == true, "{deleted}");
        self.json(&["stat", "-i", "task", "-l"], 3).await.map(drop)
    }

    /// Nobody else gets at what it keeps, and it ends when it is asked to.
    async fn ends(mut self, store: &Path, socket: &Path) -> anyhow::Result<()> {
        let mode = |path: &Path| anyhow::Ok(fs::metadata(path)?.permissions().mode() & 0o777);
        ensure!(mode(store)? == 0o700 && mode(&store.join("identity.key"))? == 0o600, "the store is open to others");
        ensure!(mode(socket)? == 0o660, "the socket has mode {:o}", mode(socket)?);
        let peers = listeners(self.daemon.id().context("it has ended")?)?;
        ensure!(peers == 1, "it listens at {peers} addresses, not only for HTTP");
        send(&self.daemon, Signal::TERM)?;
        let begun = Instant::now();
        let status = tokio::time::timeout(Duration::from_secs(5), self.daemon.wait()).await.context("it goes on")??;
        eprintln!("ended in {:.0?}", begun.elapsed());
        ensure!(status.success() && !socket.exists(), "{status}, socket: {}", socket.exists());
        Ok(())
    }
}

/// The number of TCP sockets on which a process listens.
fn listeners(pid: u32) -> anyhow::Result<usize> {
    let mut inodes = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let target = fs::read_link(entry?.path()).unwrap_or_default();
        if let Some(inode) = text(&target).strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')) {
            inodes.push(inode.to_owned());
        }
    }
    let tables = ["tcp", "tcp6"].map(|table| fs::read_to_string(format!("/proc/{pid}/net/{table}")));
    let tables = tables.into_iter().flatten().collect::<String>();
    let listens = |line: &&str| {
        let columns: Vec<_> = line.split_whitespace().collect();
        columns.get(3) == Some(&"0A") && columns.get(9).is_some_and(|inode| inodes.iter().any(|one| one == inode))
    };
    Ok(tables.lines().filter(listens).count())
}

#[tokio::test]
async fn without_configuration_as_root() -> anyhow::Result<()> {
    let what = "a daemon of root without configuration";
    if !is_root(what) || !can(what, &["unshare", "--mount", "true"]) {
        return Ok(());
    }
    let _port = PORT.lock().await;
    let programs = programs().await?;
    let folder = TempDir::with_prefix("dft-")?;
    let [run, lib, outputs] = ["run", "lib", "outputs"].map(|name| folder.path().join(name));
    [&run, &lib, &outputs].into_iter().try_for_each(fs::create_dir)?;
    let mut daemon = command(&programs, &["unshare", "--mount", "sh", "-c", OWN_SYSTEM, "sh"]);
    daemon.arg(&run).arg(&lib).arg(programs.path("dfdaemon")).env_remove("XDG_RUNTIME_DIR");
    // This is not for root.
    daemon.env("XDG_DATA_HOME", folder.path());
    let (socket, store) = (run.join("damselfly/dfdaemon.sock"), lib.join("damselfly"));
    let mut alone = Alone::start(daemon, folder.path(), &socket).await?;
    let pid = alone.daemon.id().context("it has ended")?.to_string();
    alone.beside = ["nsenter", "--mount", "--target", &pid].map(OsString::from).to_vec();
    alone.beside.push(programs.path("dfcache").into());
    alone.works().await?;
    alone.ends(&store, &socket).await
}

#[tokio::test]
async fn without_configuration_as_a_plain_user() -> anyhow::Result<()> {
    let root = rustix::process::geteuid().is_root();
    if root && !can("a daemon of a plain user", &[&AS_NOBODY[..], &["true"]].concat()) {
        return Ok(());
    }
    let _port = PORT.lock().await;
    let built = programs().await?;
    for (data_home, has_runtime_dir) in [(None, true), (Some("data"), true), (None, false)] {
        let folder = TempDir::with_prefix("dft-")?;
        fs::set_permissions(folder.path(), Permissions::from_mode(0o711))?;
        let [home, run, outputs] = ["home", "run", "outputs"].map(|name| folder.path().join(name));
        for path in [&home, &run, &outputs] {
            fs::create_dir(path)?;
            fs::set_permissions(path, Permissions::from_mode(0o700))?;
            if root {
                let nobody = NOBODY.parse().ok();
                chown(path, nobody, nobody)?;
            }
        }
        let copies = programs_for_all(&built, folder.path())?;
        let mut variables = vec![("HOME", home.clone())];
        variables.extend(has_runtime_dir.then(|| ("XDG_RUNTIME_DIR", run.clone())));
        variables.extend(data_home.map(|name| ("XDG_DATA_HOME", home.join(name))));
        let own: &[&str] = if root { &AS_NOBODY } else { &["env"] };
        let mut daemon = command(&built, own);
        daemon.arg(copies.join("dfdaemon")).env_remove("XDG_DATA_HOME").env_remove("XDG_RUNTIME_DIR");
        daemon.env_remove("XDG_STATE_HOME").envs(variables.clone()).current_dir("/");
        // Without a runtime directory, as in a container or under cron, it is in the home directory.
        let folder_of_socket = if has_runtime_dir { run.clone() } else { home.join(".local/state") };
        let socket = folder_of_socket.join("damselfly/dfdaemon.sock");
        let store = home.join(data_home.unwrap_or(".local/share")).join("damselfly");
        let mut alone = Alone::start(daemon, folder.path(), &socket).await?;
        alone.beside = own.iter().map(OsString::from).chain([copies.join("dfcache").into()]).collect();
        alone.variables = variables;
        alone.works().await?;
        alone.ends(&store, &socket).await?;
    }
    Ok(())
}

/// Runs a daemon that must not start, and returns what it says.
async fn refused(host: &Host, arguments: &[&str]) -> anyhow::Result<String> {
    let Output { status, stdout, stderr } = dfdaemon(host, arguments).await?;
    let told = String::from_utf8(stderr)?;
    ensure!(status.code().is_some_and(|code| code != 0), "{arguments:?}: {status}: {told}");
    ensure!(stdout.is_empty(), "{}", String::from_utf8_lossy(&stdout));
    Ok(told)
}

async fn dfdaemon(host: &Host, arguments: &[&str]) -> anyhow::Result<Output> {
    let mut command = command(host.programs(), &[host.programs().path("dfdaemon")]);
    // A running daemon must not be disturbed by one that starts after all.
    command.env("DFDAEMON_DATA_DIR", host.path("own")).env("DFDAEMON_SOCKET", host.path("own-socket"));
    command.env("DFDAEMON_HTTP_LISTEN", "127.0.0.1:0").args(arguments).stdin(Stdio::null());
    tokio::time::timeout(Duration::from_secs(10), command.output()).await.context("it runs")?.map_err(Into::into)
}

#[tokio::test]
async fn a_wrong_configuration_stops_the_start() -> anyhow::Result<()> {
    let host = Host::new().await?;
    let config = host.path("config.toml");
    let rows = [
        ("# first\nrole = \"node\"\nupload_limit = 5\n", &["line 3", "upload_limit", "upload_rate_limit"][..]),
        ("\n[http]\nlistne = \"127.0.0.1:1\"\n", &["line 3", "listne", "listen"]),
        ("role = \"king\"\n", &["line 1", "king", "node", "seed"]),
        ("upload_rate_limit = \"fast\"\n", &["line 1", "MiB/s"]),
        ("data_dir = 5\n", &["line 1", "string"]),
        ("\n\nthis is no TOML\n", &["line 3"]),
        ("[http]\nlisten = \"x\"\n", &["line 2", "socket address"]),
    ];
    for (text_of_file, expected) in rows {
        fs::write(&config, text_of_file)?;
        let told = refused(&host, &["--config", &text(&config)]).await?;
        for part in [&text(&config), *expected.first().context("none")?].into_iter().chain(expected.iter().copied()) {
            ensure!(told.contains(part), "{text_of_file:?}: no {part:?} in {told:?}");
        }
    }
    let told = refused(&host, &["--config", &text(&host.path("missing.toml"))]).await?;
    ensure!(told.contains("missing.toml"), "{told}");
    let told = refused(&host, &["--upload-rate-limit", "fast"]).await?;
    ensure!(told.contains("--upload-rate-limit") && told.contains("MiB/s"), "{told}");
    ensure!(!host.path("own").exists(), "a daemon that does not start has made its store");
    let told = refused(&host, &["--http-listen", "0.0.0.0:0"]).await?;
    ensure!(told.contains("insecure"), "{told}");
    Ok(())
}

#[tokio::test]
async fn the_configuration_is_shown_with_its_sources() -> anyhow::Result<()> {
    let host = Host::new().await?;
    let config = host.path("config.toml");
    fs::write(&config, "role = \"seed\"\nfree_space_floor_bytes = 77\n")?;
    let arguments = ["--config", &text(&config), "--upload-rate-limit", "5MiB/s", "--print-config"];
    let shown = dfdaemon(&host, &arguments).await?;
    ensure!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
    let shown = String::from_utf8(shown.stdout)?;
    let rows = [
        ("role = \"seed\"", "file"),
        ("free_space_floor_bytes = 77", "file"),
        ("upload_rate_limit = \"5", "flag --upload-rate-limit"),
        ("listen = [\"/ip4/0.0.0.0/tcp/4500\", \"/ip6/::/tcp/4500\"]", "default"),
        ("listen = \"127.0.0.1:0\"", "env DFDAEMON_HTTP_LISTEN"),
        ("data_dir = ", "env DFDAEMON_DATA_DIR"),
    ];
    for (setting, source) in rows {
        let line =
            shown.lines().find(|line| line.starts_with(setting)).with_context(|| format!("{setting}: {shown}"))?;
        ensure!(line.contains(&format!("# {source}")), "not from {source}: {line}");
    }
    // It can be used as a configuration.
    fs::write(&config, &shown)?;
    let again = dfdaemon(&host, &["--config", &text(&config), "--print-config"]).await?;
    ensure!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    Ok(())
}

#[tokio::test]
async fn a_store_is_for_one_daemon_of_one_user() -> anyhow::Result<()> {
    Host::run(async |host| {
        let (data, socket) = (text(&host.data()), text(&host.socket()));
        let told = refused(host, &["--data-dir", &data]).await?;
        ensure!(told.contains("another daemon") && told.contains(&data), "{told}");
        let told = refused(host, &["--socket", &socket]).await?;
        ensure!(told.contains("another daemon") && told.contains(&socket), "{told}");
        // The first one has not noticed.
        let file = host.file("file", 10)?;
        host.import("task", &file).await?.ok()?;
        host.end(Signal::TERM).await?;

        for mode in [0o777, 0o755, 0o704, 0o770] {
            fs::set_permissions(host.data(), Permissions::from_mode(mode))?;
            let told = refused(host, &["--data-dir", &data]).await?;
            ensure!(told.contains(&data) && told.contains("open to") && told.contains("700"), "{mode:o}: {told}");
        }
        fs::set_permissions(host.data(), Permissions::from_mode(0o700))?;
        if is_root("a store of another owner") {
            chown(host.data(), NOBODY.parse().ok(), None)?;
            let told = refused(host, &["--data-dir", &data]).await?;
            ensure!(told.contains(&data) && told.contains(NOBODY), "{told}");
            chown(host.data(), Some(0), None)?;
        }
        host.start().await?;
        host.exports("task", &random("file", 10)).await
    })
    .await
}

#[tokio::test]
async fn it_ends_also_while_it_works() -> anyhow::Result<()> {
    Host::run(async |host| {
        let file = host.file("file", 50_000_000)?;
        host.import("task", &file).await?.ok()?;
        for signal in [Signal::TERM, Signal::INT] {
            // An export that nobody reads, one that takes long, and an import that waits.
            let mut children = Vec::new();
            let rows: [&[&str]; 3] = [
                &["export", "-i", "task", "-O", "-"],
                &["export", "-f", "-i", "task", "--rate-limit", "1MiB/s", &text(&host.path("output"))],
                &["import", "-i", "x", "-"],
            ];
            for arguments in rows {
                let mut command = host.command();
                command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
                children.push(command.spawn()?);
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
            let begun = Instant::now();
            let status = host.end(signal).await?;
            eprintln!("{signal:?} in the middle of work: ended in {:.0?}", begun.elapsed());
            ensure!(status.success() && begun.elapsed() <= Duration::from_secs(5), "{status}, {:?}", begun.elapsed());
            for mut child in children {
                let (_in, _out) = (child.stdin.take(), child.stdout.take());
                let ended = tokio::time::timeout(Duration::from_secs(5), child.wait_with_output()).await;
                let ended = ended.context("dfcache does not notice that its daemon has gone")??;
                let told = String::from_utf8_lossy(&ended.stderr);
                ensure!(ended.status.code() == Some(4), "{}: {told}", ended.status);
            }
            ensure!(!host.path("output").exists(), "an output is left");
            host.start().await?;
            crate::support::holds(&host.data(), 1)?;
        }
        Ok(())
    })
    .await
}
