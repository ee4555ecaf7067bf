//! What a process uses, as Linux tells it.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// Ticks of the processor times in `/proc`: the constant `USER_HZ` of Linux.
const TICKS_PER_SECOND: u64 = 100;

/// Resident memory of a process now, in KiB.
pub(super) fn resident_kib(process: u32) -> Result<u64> {
    field(process, "VmRSS:")
}

/// The most that it ever was, in KiB.
pub(super) fn peak_kib(process: u32) -> Result<u64> {
    field(process, "VmHWM:")
}

fn field(process: u32, name: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).context("a process has ended")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next()).context("no such field")?;
    Ok(number.parse()?)
}

/// Processor time that a process has used.
pub(super) fn cpu(process: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).context("a process has ended")?;
    // After the name, which may hold anything, come the state and then numbers; the 12th and 13th are the times.
    let (_, rest) = stat.rsplit_once(')').context("no name")?;
    let ticks = rest.split_whitespace().skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(Duration::from_millis(ticks * 1_000 / TICKS_PER_SECOND))
}
