//! What several of these tests need: a daemon without configuration, and a check of how dfcache tells a failure.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, OpenOptions, Permissions},
    io::Read as _,
    ops::Deref,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use damselfly_tests::{Dfcache, Programs, until};
use damselfly_transport::local::{Code, client, proto::CheckHealthRequest};
use rand::{RngCore as _, SeedableRng as _, rngs::SmallRng};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};

/// A piece of a content that is not very large.
pub const PIECE: u64 = 1 << 20;
/// By then news have travelled, even on a busy machine.
pub const SETTLED: Duration = Duration::from_secs(30);
/// No run of dfcache takes longer.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Variables that would make a run depend on who starts the tests.
const VARIABLES: [&str; 7] = [
    "DFCACHE_SOCKET",
    "DFDAEMON_CONFIG",
    "DFDAEMON_DATA_DIR",
    "DFDAEMON_HTTP_LISTEN",
    "DFDAEMON_SOCKET",
    "NOTIFY_SOCKET",
    "RUST_LOG",
];

/// A daemon without a cluster, in a folder of its own; it is also its CLI. Dropped, it is killed.
#[derive(Debug)]
pub struct Host {
    folder: TempDir,
    programs: Programs,
    dfcache: Dfcache,
    daemon: Option<Child>,
    before: Vec<OsString>,
    arguments: Vec<OsString>,
}

impl Deref for Host {
    type Target = Dfcache;

    fn deref(&self) -> &Dfcache {
        &self.dfcache
    }
}

impl Host {
    /// Starts a daemon and tests it. When the test fails, its log is shown.
    pub async fn run(test: impl AsyncFnOnce(&mut Self) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let mut host = Self::new().await?;
        host.start().await?;
        let result = test(&mut host).await;
        if result.is_err() {
            eprintln!("--- the daemon's log\n{}", host.log());
        }
        result
    }

    /// A folder for a daemon that does not run yet.
    pub async fn new() -> anyhow::Result<Self> {
        let programs = programs().await?;
        let folder = TempDir::with_prefix("dft-")?;
        // Other users reach what is opened to them.
        fs::set_permissions(folder.path(), Permissions::from_mode(0o711))?;
        let dfcache = Dfcache::new(&programs, &folder.path().join("socket"));
        Ok(Self { folder, programs, dfcache, daemon: None, before: Vec::new(), arguments: Vec::new() })
    }

    /// Further arguments for the next start.
    pub fn with_arguments(&mut self, arguments: &[impl AsRef<OsStr>]) {
        self.arguments = arguments.iter().map(|one| one.as_ref().to_owned()).collect();
    }

    /// A command that runs the one given as its further arguments: it becomes the daemon at the next start.
    pub fn with_wrapper(&mut self, wrapper: &[impl AsRef<OsStr>]) {
        self.before = wrapper.iter().map(|one| one.as_ref().to_owned()).collect();
    }

    /// Starts the daemon; returns how long it took until it answered.
    pub async fn start(&mut self) -> anyhow::Result<Duration> {
        let log = OpenOptions::new().create(true).append(true).open(self.path("log"))?;
        let mut command = command(&self.programs, &self.before);
        command.arg(self.programs.path("dfdaemon"));
        command.arg("--data-dir").arg(self.data()).arg("--socket").arg(self.socket());
        command.args(["--http-listen", "127.0.0.1:0"]).args(&self.arguments);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let begun = Instant::now();
        let mut daemon = command.spawn().context("cannot start dfdaemon")?;
        let answers = until("the daemon answers", Duration::from_secs(20), async || {
            if let Some(status) = daemon.try_wait()? {
                return Ok(Err(anyhow::anyhow!("the daemon ended with {status}: {}", self.log())));
            }
            answers(&self.socket()).await.map(Ok)
        });
        answers.await??;
        let took = begun.elapsed();
        self.daemon = Some(daemon);
        Ok(took)
    }

    /// Kills the daemon as a crash does, and returns when it is gone.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        self.end(Signal::KILL).await.map(drop)
    }

    /// Sends a signal, and returns how the daemon ended.
    pub async fn end(&mut self, signal: Signal) -> anyhow::Result<ExitStatus> {
        let mut daemon = self.daemon.take().context("no daemon runs")?;
        send(&daemon, signal)?;
        tokio::time::timeout(TIMEOUT, daemon.wait()).await.context("the daemon does not end")?.map_err(Into::into)
    }

    /// The daemon's process.
    pub fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().and_then(Child::id)
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file of so many random bytes. The same name and length give the same bytes.
    pub fn file(&self, name: &str, bytes: u64) -> anyhow::Result<PathBuf> {
        let path = self.path(name);
        fs::write(&path, random(name, bytes))?;
        Ok(path)
    }

    /// The daemon's socket.
    pub fn socket(&self) -> PathBuf {
        self.path("socket")
    }

    /// The daemon's data directory.
    pub fn data(&self) -> PathBuf {
        self.path("data")
    }

    /// The folder with one file per content.
    pub fn store(&self) -> PathBuf {
        self.data().join("contents")
    }

    /// The programs.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// All that the daemon has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Nothing is in the store and nothing is listed.
    pub async fn is_empty(&self) -> anyhow::Result<()> {
        let entries = self.entries().await?;
        ensure!(entries.is_empty(), "listed: {entries:?}");
        holds(&self.data(), 0)
    }

    /// Exports the task to a new file and compares the bytes.
    pub async fn exports(&self, cid: &str, expected: &[u8]) -> anyhow::Result<()> {
        let output = self.path("exported");
        self.dfcache.run(&["export", "-l", "-i", cid, "-f", &text(&output)]).await?.ok()?;
        same_bytes(&fs::read(&output)?, expected)
    }
}

/// The programs, built if need be.
pub async fn programs() -> anyhow::Result<Programs> {
    tokio::task::spawn_blocking(Programs::get).await?
}

/// A command that ends with this test, through `wrapper`; the program and its arguments are still missing.
pub fn command(programs: &Programs, wrapper: &[impl AsRef<OsStr>]) -> Command {
    let mut command = Command::new(programs.path("testnet"));
    command.arg("become").arg("--parent").arg(std::process::id().to_string()).arg("--").args(wrapper);
    command.kill_on_drop(true);
    for variable in VARIABLES {
        command.env_remove(variable);
    }
    command
}

/// The daemon answers.
pub async fn answers(socket: &Path) -> anyhow::Result<()> {
    client::connect(socket).await?.check_health(CheckHealthRequest {}).await?;
    Ok(())
}

/// The store in this data directory holds so many contents, and nothing unfinished.
pub fn holds(data: &Path, contents: usize) -> anyhow::Result<()> {
    let held = list(&data.join("contents"))?;
    ensure!(held.len() == contents, "the store holds {held:?}, not {contents}");
    for folder in ["incoming", "partial", "damaged"] {
        let left = list(&data.join(folder))?;
        ensure!(left.is_empty(), "{folder}/ has {left:?}");
    }
    Ok(())
}

/// The names in a folder, hidden ones too.
pub fn list(folder: &Path) -> anyhow::Result<Vec<String>> {
    let name = |entry: std::io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut names: Vec<String> = entries.map(name).collect::<std::io::Result<_>>()?;
    names.sort();
    Ok(names)
}

/// Random bytes; the same seed and length give the same.
pub fn random(seed: &str, bytes: u64) -> Vec<u8> {
    let seed = seed.bytes().fold(bytes, |seed, byte| seed.wrapping_mul(0x100_0000_01b3) ^ u64::from(byte));
    let mut made = vec![0; bytes as usize];
    SmallRng::seed_from_u64(seed).fill_bytes(&mut made);
    made
}

/// The bytes are the same; does not print them.
pub fn same_bytes(found: &[u8], expected: &[u8]) -> anyhow::Result<()> {
    ensure!(found.len() == expected.len(), "{} bytes and not {}", found.len(), expected.len());
    match found.iter().zip(expected).position(|(one, other)| one != other) {
        None => Ok(()),
        Some(at) => bail!("byte {at} of {} is another", found.len()),
    }
}

/// The files have the same bytes; they may be longer than the memory.
pub fn same_files(one: &Path, other: &Path) -> anyhow::Result<()> {
    let (mut files, mut buffers) = ([File::open(one)?, File::open(other)?], [vec![0; 1 << 20], vec![0; 1 << 20]]);
    let mut left = files[0].metadata()?.len();
    ensure!(left == files[1].metadata()?.len(), "{} has another length than {}", other.display(), one.display());
    while left > 0 {
        let length = left.min(buffers[0].len() as u64) as usize;
        for (file, buffer) in files.iter_mut().zip(&mut buffers) {
            file.read_exact(&mut buffer[..length])?;
        }
        ensure!(
            buffers[0][..length] == buffers[1][..length],
            "{} has other bytes, {left} before its end",
            other.display()
        );
        left -= length as u64;
    }
    Ok(())
}

/// A path as an argument among others.
pub fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Changes one byte of a file in place.
pub fn flip(path: &Path, at: u64) -> anyhow::Result<()> {
    use std::os::unix::fs::FileExt as _;
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ 1], at).map_err(Into::into)
}

/// Sends a signal to a child.
pub fn send(child: &Child, signal: Signal) -> anyhow::Result<()> {
    let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())).context("it has ended already")?;
    Ok(kill_process(pid, signal)?)
}

/// Waits for the end of a run of dfcache.
pub async fn output(mut command: Command) -> anyhow::Result<Output> {
    tokio::time::timeout(TIMEOUT, command.output()).await.context("dfcache hangs")?.context("cannot run dfcache")
}

/// dfcache is run twice, and must tell its failure well as text and as JSON.
///
/// `makes` gives the run but for `--json`, each time from the same beginning.
pub async fn fails(makes: impl Fn() -> Command, exit: i32, says: &str) -> anyhow::Result<()> {
    let mut command = makes();
    command.stdin(Stdio::null());
    tells_text(&output(command).await?, exit, says)?;
    let mut command = makes();
    command.arg("--json").stdin(Stdio::null());
    tells_json(&output(command).await?, exit, says)
}

/// As [`fails`], for a run with these arguments.
pub async fn run_fails(
    dfcache: &Dfcache,
    arguments: &[impl AsRef<OsStr>],
    exit: i32,
    says: &str,
) -> anyhow::Result<()> {
    let makes = || {
        let mut command = dfcache.command();
        command.args(arguments);
        command
    };
    fails(makes, exit, says).await
}

/// A failure as text: nothing on stdout; on stderr one line with the reason and one with a hint.
pub fn tells_text(output: &Output, exit: i32, says: &str) -> anyhow::Result<()> {
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let shown = format!("{}: stdout {stdout:?}, stderr {stderr:?}", output.status);
    ensure!(output.status.code() == Some(exit), "not exit {exit}: {shown}");
    ensure!(stdout.is_empty(), "something on stdout: {shown}");
    let lines: Vec<_> = stderr.lines().collect();
    let [error, hint] = lines[..] else { bail!("not one error and one hint: {shown}") };
    ensure!(error.starts_with("error: ") && error.contains(says), "no error with {says:?}: {shown}");
    ensure!(hint.starts_with("hint: ") && hint.len() > "hint: ".len(), "no hint: {shown}");
    ensure!(error.chars().count() < 300, "not a line that anybody reads: {shown}");
    Ok(())
}

/// A failure as JSON: one object on stdout, nothing on stderr.
pub fn tells_json(output: &Output, exit: i32, says: &str) -> anyhow::Result<()> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let shown = format!("{}: stdout {:?}, stderr {stderr:?}", output.status, String::from_utf8_lossy(&output.stdout));
    ensure!(stderr.is_empty(), "something on stderr: {shown}");
    tells_object(output.status, &output.stdout, exit, says).with_context(|| shown)
}

/// The one object of a failure.
pub fn tells_object(status: ExitStatus, object: &[u8], exit: i32, says: &str) -> anyhow::Result<()> {
    ensure!(status.code() == Some(exit), "not exit {exit}");
    let object: Value = serde_json::from_slice(object).context("not one object")?;
    let code = u8::try_from(exit).ok().and_then(Code::from_exit).map_or("", Code::name);
    let error = &object["error"];
    ensure!(error["exit"] == exit && error["code"] == code, "not exit {exit}, {code}");
    ensure!(error["message"].as_str().is_some_and(|message| message.contains(says)), "it does not say {says:?}");
    ensure!(error["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "no hint");
    Ok(())
}

/// Whether this is root; else says which test is left out.
pub fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("left out: {test} needs root");
    }
    root
}

/// Whether the command succeeds; else says which test is left out.
pub fn can(test: &str, command: &[&str]) -> bool {
    let run = std::process::Command::new(command[0]).args(&command[1..]).stdin(Stdio::null()).output();
    let problem = match run {
        Ok(output) if output.status.success() => return true,
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    eprintln!("left out: {test}: `{}` fails: {problem}", command.join(" "));
    false
}

/// Puts the programs where every user may run them.
pub fn programs_for_all(programs: &Programs, folder: &Path) -> anyhow::Result<PathBuf> {
    let copies = folder.join("bin");
    fs::create_dir(&copies)?;
    fs::set_permissions(&copies, Permissions::from_mode(0o755))?;
    for name in ["dfcache", "dfdaemon"] {
        fs::copy(programs.path(name), copies.join(name))?;
        fs::set_permissions(copies.join(name), Permissions::from_mode(0o755))?;
    }
    Ok(copies)
}

/// A user without any rights.
pub const NOBODY: &str = "65534";

/// What makes a command that of [`NOBODY`].
pub const AS_NOBODY: [&str; 4] = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
