//! What processes take, from `/proc`.

use std::fs;

use anyhow::Context as _;

/// Seconds of processor time that process `pid` has taken so far.
pub(crate) fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    cpu_of(&pid.to_string())
}

pub(crate) fn own_cpu_seconds() -> anyhow::Result<f64> {
    cpu_of("self")
}

fn cpu_of(process: &str) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).context("the process has ended")?;
    // The name, in parentheses, may hold anything.
    let (_, fields) = stat.rsplit_once(')').context("/proc/…/stat is unreadable")?;
    let ticks = |index: usize| fields.split_whitespace().nth(index).and_then(|field| field.parse::<u64>().ok());
    let (user, system) = ticks(11).zip(ticks(12)).context("/proc/…/stat is unreadable")?;
    Ok((user + system) as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Resident memory of process `pid` now and at its highest, in bytes.
pub(crate) fn memory_bytes(pid: u32) -> anyhow::Result<(u64, u64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the process has ended")?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
    };
    field("VmRSS:").zip(field("VmHWM:")).context("/proc/…/status is unreadable")
}

/// How many descriptors process `pid` has open.
pub(crate) fn descriptors(pid: u32) -> anyhow::Result<u64> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd")).context("the process has ended")?.count() as u64)
}
