//! What the kernel says about processes and the machine: processor time, resident memory, how busy it is.
//!
//! Owns the reading of `/proc`. Parsing is apart from reading, so that it is under test.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// Ticks per second of the times in `/proc` (`USER_HZ`; proc(5)). 100 on every architecture Linux runs Weft on.
const TICKS_PER_SECOND: f64 = 100.0;

/// Bytes of a MiB over bytes of the kB that `/proc` counts in.
const KIB_PER_MIB: f64 = 1024.0;

/// User and system time that the process has used so far, all its threads together. Resolution 10 ms.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let ticks = ticks(&text).with_context(|| format!("cannot understand {path}"))?;
    Ok(Duration::from_secs_f64(ticks as f64 / TICKS_PER_SECOND))
}

/// Resident memory of the process in MiB.
pub(crate) fn resident_mib(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let kib = field_kib(&text, "VmRSS:").with_context(|| format!("no VmRSS in {path}"))?;
    Ok(kib as f64 / KIB_PER_MIB)
}

/// Processor time of the whole machine since its start.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Machine {
    busy_ticks: u64,
    all_ticks: u64,
}

impl Machine {
    pub(crate) fn read() -> Result<Self> {
        let text = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        machine(&text).context("cannot understand /proc/stat")
    }

    /// The fraction of the machine (0 to 1) that was busy since `earlier`.
    pub(crate) fn busy_since(self, earlier: Self) -> f64 {
        let all = self.all_ticks.saturating_sub(earlier.all_ticks);
        let busy = self.busy_ticks.saturating_sub(earlier.busy_ticks);
        if all == 0 { 0.0 } else { busy as f64 / all as f64 }
    }
}

/// Kernel release and processor count, for the heading of a report.
pub(crate) fn describe() -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    format!("Linux {}, {cpus} CPUs", kernel.trim())
}

/// The congestion control that new TCP sockets of this namespace get by default.
pub(crate) fn default_congestion_control() -> String {
    let text = fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap_or_default();
    text.trim().to_owned()
}

/// utime + stime of a `/proc/<pid>/stat` line. The command name may hold spaces and parentheses: the fields start
/// after its last one.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(user + system)
}

fn field_kib(status: &str, name: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

/// The first line of `/proc/stat`: user nice system idle iowait irq softirq steal (guest is inside user).
fn machine(stat: &str) -> Option<Machine> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = line.split_whitespace().take(8).map_while(|field| field.parse().ok()).collect();
    let [user, nice, system, idle, iowait, irq, softirq, steal] = ticks[..] else { return None };
    let busy_ticks = user + nice + system + irq + softirq + steal;
    Some(Machine { busy_ticks, all_ticks: busy_ticks + idle + iowait })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_with_spaces_and_parentheses_does_not_shift_the_times() {
        let line = "42 (a (b) c) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 7 8 20 0 1 0 100 1000 10";
        assert_eq!(ticks(line), Some(300));
    }

    #[test]
    fn resident_memory_is_found_among_the_fields() {
        assert_eq!(field_kib("Name:\tx\nVmRSS:\t   20480 kB\n", "VmRSS:"), Some(20_480));
        assert_eq!(field_kib("Name:\tx\n", "VmRSS:"), None);
    }

    #[test]
    fn a_machine_that_idles_half_the_time_is_half_busy() {
        let earlier = machine("cpu  0 0 0 0 0 0 0 0 0 0\n").expect("a cpu line");
        let later = machine("cpu  20 0 20 40 10 0 5 5 0 0\ncpu0 1\n").expect("a cpu line");
        assert!((later.busy_since(earlier) - 0.5).abs() < 1e-9);
    }

    #[test]
    fn this_process_has_memory_and_a_readable_time() {
        assert!(resident_mib(std::process::id()).expect("own status") > 0.1);
        cpu_time(std::process::id()).expect("own stat");
    }
}
