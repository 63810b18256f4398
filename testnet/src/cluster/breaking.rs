//! Breaks a cluster of local processes on purpose, and mends it.

use std::{
    fs::{self, File},
    io::{self, Read, Seek as _, SeekFrom, Write as _},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal};
use tokio::time::sleep;

use super::{MANAGER, change, guarded};
use crate::{
    layout::{ClusterFile, Layout},
    listing::{self, Looks, Row},
    process::{self, Ending},
    programs::Programs,
    ready,
};

/// A program that has got SIGKILL is gone by then; one that has got SIGTERM promises five seconds.
const GONE_WITHIN: Duration = Duration::from_secs(7);
const LOOK_EVERY: Duration = Duration::from_millis(20);
const FOLLOW_EVERY: Duration = Duration::from_millis(200);

/// A program of the cluster, as `cluster.json` has it.
#[derive(Debug, Clone, Copy)]
struct Member<'a> {
    name: &'a str,
    role: &'a str,
    config: &'a Path,
    metrics: &'a str,
}

impl Member<'_> {
    fn pids(&self) -> Vec<Pid> {
        process::running(self.config)
    }

    fn signal(&self, signal: Signal) {
        process::signal(self.config, signal);
    }

    const fn program(&self) -> &'static str {
        match self.role.as_bytes() {
            b"manager" => "dfmanager",
            b"scheduler" => "dfscheduler",
            _ => "dfdaemon",
        }
    }

    /// `running`, `paused` or `ended`, as the kernel says.
    fn state(&self) -> &'static str {
        let Some(pid) = self.pids().first().copied() else { return "ended" };
        let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap_or_default();
        let is_stopped = status.lines().any(|line| line.starts_with("State:\tT"));
        if is_stopped { "paused" } else { "running" }
    }
}

/// The manager first, then schedulers and nodes.
fn members(file: &ClusterFile) -> Vec<Member<'_>> {
    let manager = &file.manager;
    let manager = Member { name: MANAGER, role: MANAGER, config: &manager.config, metrics: &manager.metrics };
    let schedulers = file.schedulers.iter().map(|one| Member {
        name: &one.name,
        role: "scheduler",
        config: &one.config,
        metrics: &one.metrics,
    });
    let nodes = file.nodes.iter().map(|one| Member {
        name: &one.name,
        role: &one.role,
        config: &one.config,
        metrics: &one.metrics,
    });
    [manager].into_iter().chain(schedulers).chain(nodes).collect()
}

/// Those with these names, in their order.
fn named<'a>(members: &[Member<'a>], names: &[String]) -> anyhow::Result<Vec<Member<'a>>> {
    let find = |name: &String| match members.iter().find(|member| member.name == name) {
        Some(member) => Ok(*member),
        None => {
            let known: Vec<_> = members.iter().map(|member| member.name).collect();
            bail!("there is no {name:?}; there are {}", known.join(", "))
        }
    };
    names.iter().map(find).collect()
}

/// `testnet ps`
///
/// # Errors
/// When there is no cluster.
pub async fn ps(dir: &Path, as_json: bool) -> anyhow::Result<()> {
    let (_, file) = Layout::open(dir)?;
    let members = members(&file);
    let mut rows = Vec::new();
    for member in &members {
        let state = member.state();
        let looks = if state == "running" { Looks::at(member.metrics).await } else { Looks::nothing(state) };
        let pid = member.pids().first().map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs());
        rows.push(Row { name: member.name, role: member.role.to_owned(), state, pid, zone: None, looks });
    }
    listing::print(&rows, as_json);
    Ok(())
}

/// `testnet logs`
///
/// # Errors
/// When there is no such program, or a log cannot be read.
pub async fn logs(dir: &Path, names: &[String], lines: Option<u32>, follow: bool) -> anyhow::Result<()> {
    let (layout, file) = Layout::open(dir)?;
    let members = members(&file);
    let wanted = if names.is_empty() { members } else { named(&members, names)? };
    let mut open = Vec::new();
    for member in &wanted {
        if wanted.len() > 1 && !follow {
            println!("--- {}", member.name);
        }
        let path = layout.log(member.name);
        let mut log = File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
        show_end(&mut log, lines)?;
        open.push(log);
    }
    if follow { go_on(&mut open).await } else { Ok(()) }
}

/// Shows what comes until Ctrl-C. It is seen by looking again: a log is a file, and has nothing to wait for.
async fn go_on(logs: &mut [File]) -> anyhow::Result<()> {
    loop {
        for log in &mut *logs {
            io::copy(log, &mut io::stdout().lock())?;
        }
        io::stdout().flush()?;
        sleep(FOLLOW_EVERY).await;
    }
}

/// The whole log, or so many lines of its end.
fn show_end(log: &mut File, lines: Option<u32>) -> io::Result<()> {
    let Some(lines) = lines else {
        return io::copy(log, &mut io::stdout().lock()).map(drop);
    };
    let from = start_of_last(log, lines as usize)?;
    log.seek(SeekFrom::Start(from))?;
    io::copy(log, &mut io::stdout().lock()).map(drop)
}

/// Where the last so many lines begin; read in blocks from the end, because logs may be long.
fn start_of_last(log: &mut File, lines: usize) -> io::Result<u64> {
    const BLOCK: u64 = 64 << 10;
    let end = log.metadata()?.len();
    if lines == 0 {
        return Ok(end);
    }
    let (mut at, mut ends) = (end, 0);
    let mut block = Vec::new();
    while at > 0 {
        let from = at.saturating_sub(BLOCK);
        log.seek(SeekFrom::Start(from))?;
        block.clear();
        Read::take(&mut *log, at - from).read_to_end(&mut block)?;
        for (offset, _) in block.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            let next = from + offset as u64 + 1;
            // The newline that ends the last line begins none.
            if next == end {
                continue;
            }
            ends += 1;
            if ends >= lines {
                return Ok(next);
            }
        }
        at = from;
    }
    Ok(0)
}

/// `testnet kill`: as a crash does, or with SIGTERM when `gently`.
///
/// # Errors
/// When there is no such program, or it does not end.
pub async fn kill(dir: &Path, names: &[String], gently: bool) -> anyhow::Result<()> {
    let (_, file) = Layout::open(dir)?;
    let named = named(&members(&file), names)?;
    end(&named, if gently { Signal::TERM } else { Signal::KILL }).await
}

async fn end(members: &[Member<'_>], signal: Signal) -> anyhow::Result<()> {
    let ending: Vec<_> = members.iter().map(|member| (member, Ending::of(member.config))).collect();
    for member in members {
        member.signal(signal);
        // A stopped process takes no signal but SIGKILL before it goes on.
        member.signal(Signal::CONT);
    }
    let begun = Instant::now();
    for (member, ending) in ending {
        while !ending.is_over() {
            if begun.elapsed() > GONE_WITHIN {
                bail!("{} has not ended in {} s", member.name, GONE_WITHIN.as_secs());
            }
            sleep(LOOK_EVERY).await;
        }
    }
    Ok(())
}

/// `testnet restart`: ends what runs, starts it again, and waits until the cluster is ready.
///
/// # Errors
/// When there is no such program, or what did not get ready.
pub async fn restart(dir: &Path, names: &[String]) -> anyhow::Result<()> {
    let (layout, _) = Layout::open(dir)?;
    let detached = guarded(&layout)?;
    start_anew(dir, names, &Programs::find()?, detached).await
}

/// Ends what runs of these, starts them, and waits until the cluster is ready.
pub(crate) async fn start_anew(
    dir: &Path,
    names: &[String],
    programs: &Programs,
    detached: bool,
) -> anyhow::Result<()> {
    let (_, file) = Layout::open(dir)?;
    end(&named(&members(&file), names)?, Signal::TERM).await?;
    start(dir, names, programs, detached)?;
    let (layout, file) = Layout::open(dir)?;
    let manager = &file.manager;
    ready::until(&layout, MANAGER, ready::deadline(), async || ready::is_ready(&manager.metrics).await).await?;
    let epoch = change::epoch(manager).await?;
    ready::cluster(&layout, &file, programs, epoch).await
}

/// Starts programs that have ended; `detached`: they outlive this process.
pub(crate) fn start(dir: &Path, names: &[String], programs: &Programs, detached: bool) -> anyhow::Result<()> {
    let (layout, mut file) = Layout::open(dir)?;
    let mut started = Vec::new();
    for member in named(&members(&file), names)? {
        let (program, log) = (programs.path(member.program()), layout.log(member.name));
        let child = process::start(&[], &program, member.config, &log, &[], detached)?;
        started.push((member.name.to_owned(), child.id()));
    }
    for (name, pid) in started {
        note(&mut file, &name, pid);
    }
    layout.write(&file)
}

/// Writes down which process a program is now.
fn note(file: &mut ClusterFile, name: &str, pid: u32) {
    if name == MANAGER {
        file.manager.pid = pid;
    }
    for one in file.schedulers.iter_mut().filter(|one| one.name == name) {
        one.pid = pid;
    }
    for one in file.nodes.iter_mut().filter(|one| one.name == name) {
        one.pid = pid;
    }
}

/// `testnet pause` and `testnet resume`
///
/// # Errors
/// When there is no such program.
pub fn pause(dir: &Path, names: &[String], is_paused: bool) -> anyhow::Result<()> {
    let (_, file) = Layout::open(dir)?;
    for member in named(&members(&file), names)? {
        if member.pids().is_empty() {
            bail!("{} does not run: `testnet restart {0}` starts it", member.name);
        }
        member.signal(if is_paused { Signal::STOP } else { Signal::CONT });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_of_a_log_are_found() {
        let mut log = tempfile::tempfile().expect("a file");
        let text: String = (0..20_000).map(|line| format!("line {line}\n")).collect();
        log.write_all(text.as_bytes()).expect("written");
        for (lines, expected) in [(0, ""), (1, "line 19999\n"), (2, "line 19998\nline 19999\n")] {
            let from = start_of_last(&mut log, lines).expect("read");
            assert_eq!(&text[usize::try_from(from).expect("small")..], expected);
        }
        let many = start_of_last(&mut log, 15_000).expect("read");
        assert!(text[usize::try_from(many).expect("small")..].starts_with("line 5000\n"));
        assert_eq!(start_of_last(&mut log, 30_000).expect("read"), 0);
    }
}
