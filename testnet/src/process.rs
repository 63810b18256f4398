//! Starting and ending the programs of a cluster.

use std::{
    env,
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt as _, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use tokio::time::sleep;

/// A program that has not ended so long after SIGTERM is killed; it promises five seconds.
const END_TIMEOUT: Duration = Duration::from_secs(7);

/// How much of a log is shown.
const TAIL_BYTES: u64 = 4096;

/// Starts a program so that it ends with its parent.
///
/// The standard library can set the signal only in unsafe code after `fork`, so this program sets it and then becomes
/// the other one.
#[derive(Debug, clap::Args)]
pub struct Become {
    /// Has a session of its own and outlives its parent.
    #[arg(long)]
    detached: bool,
    /// The parent.
    #[arg(long)]
    parent: i32,
    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    program: Vec<PathBuf>,
}

impl Become {
    /// Returns only when it fails.
    pub fn exec(self) -> io::Error {
        let prepared = if self.detached {
            rustix::process::setsid().map(drop)
        } else {
            rustix::process::set_parent_process_death_signal(Some(Signal::TERM))
        };
        if let Err(error) = prepared {
            return error.into();
        }
        let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
        if !self.detached && parent != self.parent {
            return io::Error::other("the parent has ended already");
        }
        let Some((program, arguments)) = self.program.split_first() else {
            return io::ErrorKind::InvalidInput.into();
        };
        Command::new(program).args(arguments).exec()
    }
}

/// Starts `program --config config` with its log in `log` and these environment variables, by `wrapper`, a command that
/// becomes what its further arguments say, if that is not empty. `detached`: it outlives this process.
///
/// Must be called on the main thread: the kernel takes the end of the calling thread for that of the parent.
pub(crate) fn start(
    wrapper: &[OsString],
    program: &Path,
    config: &Path,
    log: &Path,
    variables: &[(String, String)],
    detached: bool,
) -> anyhow::Result<Child> {
    let log = self::log(log)?;
    let mut command = become_command(detached)?;
    command.args(wrapper).arg(program).arg("--config").arg(config);
    command.envs(variables.iter().cloned()).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.spawn().with_context(|| format!("cannot start {}", program.display()))
}

/// The log of a program, to be written on.
pub(crate) fn log(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// A command that becomes the program given as its further arguments.
pub(crate) fn become_command(detached: bool) -> anyhow::Result<Command> {
    let mut command = Command::new(env::current_exe()?);
    command.arg("become").arg("--parent").arg(std::process::id().to_string());
    if detached {
        command.arg("--detached");
    }
    command.arg("--");
    Ok(command)
}

/// The processes that run with `--config` and this file, whoever started them.
pub fn running(config: &Path) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(Pid::from_raw).filter(|pid| runs_with(*pid, config)).collect()
}

fn runs_with(pid: Pid, config: &Path) -> bool {
    let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
    let arguments: Vec<_> = line.split(|byte| *byte == 0).collect();
    arguments.windows(2).any(|pair| pair[0] == b"--config" && pair[1] == config.as_os_str().as_bytes())
}

/// Those that run with this configuration, by descriptors: a number may be another process's by the time it is used.
fn opened(config: &Path) -> Vec<OwnedFd> {
    let open = |pid| {
        // One that cannot be opened has ended meanwhile.
        let process = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        runs_with(pid, config).then_some(process)
    };
    running(config).into_iter().filter_map(open).collect()
}

/// Sends `signal` to all that run with this configuration.
pub fn signal(config: &Path, signal: Signal) {
    for process in opened(config) {
        // It may have ended meanwhile.
        let _ = pidfd_send_signal(process, signal);
    }
}

/// Processes that are to end.
///
/// They are waited for by descriptors: a process is without a command line, and its first thread a zombie, while other
/// threads have yet to close its ports, and what is started in its place would not get them.
#[derive(Debug)]
pub struct Ending(Vec<OwnedFd>);

impl Ending {
    /// Those that run with this configuration; to be made before they are told to end.
    pub fn of(config: &Path) -> Self {
        Self(opened(config))
    }

    /// Whether nothing is left of them.
    pub fn is_over(&self) -> bool {
        let has_ended = |process: &OwnedFd| {
            let mut polled = [PollFd::new(process, PollFlags::IN)];
            poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
        };
        self.0.iter().all(has_ended)
    }
}

/// Ends all processes with these configurations; first the later ones in the list.
pub(crate) async fn end(configs: &[PathBuf]) {
    let all = || configs.iter().rev();
    all().for_each(|config| signal(config, Signal::TERM));
    let begun = Instant::now();
    while all().any(|config| !running(config).is_empty()) {
        if begun.elapsed() > END_TIMEOUT {
            all().for_each(|config| signal(config, Signal::KILL));
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// The last lines of a log.
pub fn tail(log: &Path) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    match read() {
        Ok(text) if text.len() as u64 >= TAIL_BYTES => {
            text.split_once('\n').map_or(text.clone(), |(_, rest)| rest.into())
        }
        Ok(text) => text,
        Err(error) => format!("{}: {error}\n", log.display()),
    }
}
