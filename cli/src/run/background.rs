//! Background processes of one user: private directories, pid files, configuration texts, readiness.

use std::{
    fs,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    net::{Ipv4Addr, UdpSocket},
    os::unix::{
        fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use weft_api::fault::Fault;
use weft_node::clock::Clock;
use weft_policy::code;

use crate::error::{CliError, Exit};

/// How long a background process may take until it serves.
const READY_WITHIN: Duration = Duration::from_secs(15);
/// How long it may take to end in good order before it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(20);
/// How long the kernel may take to end a killed process.
const KILLED_WITHIN: Duration = Duration::from_secs(5);
/// The most of a log that is looked through for an error, in bytes.
const MAX_LOG_BYTES: u64 = 1 << 20;

/// Makes a directory that only its owner can enter.
pub(crate) fn private_dir(dir: &Path) -> Result<(), CliError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.and_then(|()| fs::set_permissions(dir, fs::Permissions::from_mode(0o700)))
        .map_err(|e| CliError::state_directory(dir, &e))
}

/// Writes a file that only its owner can read; a crash leaves the old one or the new one.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> Result<(), CliError> {
    let draft = path.with_extension("tmp");
    let write = || {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&draft, path)
    };
    write().map_err(|e| CliError::write(path, &e))
}

/// A server's configuration from its text; `origin` names it in errors.
pub(crate) fn server_config(text: &str, origin: &str) -> Result<weft_registry::config::Config, CliError> {
    weft_registry::config::Config::parse(text, origin).map_err(config_faults)
}

/// An agent's configuration from its file.
pub(crate) fn agent_config(path: &Path) -> Result<weft_node::config::Config, CliError> {
    let text = fs::read_to_string(path).map_err(|e| CliError::file(path, &e))?;
    parse_agent_config(&text, path)
}

/// An agent's configuration from its text; `path` names it in errors.
pub(crate) fn parse_agent_config(text: &str, path: &Path) -> Result<weft_node::config::Config, CliError> {
    weft_node::config::Config::parse(text, &path.display().to_string()).map_err(config_faults)
}

fn config_faults(faults: Vec<Fault>) -> CliError {
    let mut faults = faults.into_iter();
    let first =
        faults.next().unwrap_or_else(|| Fault::new(code::CONFIG_MALFORMED, "the configuration is not valid"));
    faults.fold(CliError::new(Exit::Usage, first), CliError::and)
}

/// A UDP port of loopback that nothing uses now.
pub(crate) fn free_udp_port() -> Result<u16, CliError> {
    let bound = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| socket.local_addr());
    bound
        .map(|address| address.port())
        .map_err(|e| CliError::internal(format!("cannot open a loopback port: {e}")))
}

/// A process that was just started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Started {
    /// Its process id.
    pub(crate) pid: Pid,
    /// Where its part of the log begins, in bytes.
    log_from: u64,
}

/// A background process with its pid file and its log.
#[derive(Clone, Debug)]
pub(crate) struct Background {
    /// `<state>/<name>.pid`
    pub(crate) pid_file: PathBuf,
    /// `<state>/<name>.log`
    pub(crate) log_file: PathBuf,
}

impl Background {
    /// The process called `name` of the mesh in `state`.
    pub(crate) fn new(state: &Path, name: &str) -> Self {
        Self { pid_file: state.join(format!("{name}.pid")), log_file: state.join(format!("{name}.log")) }
    }

    /// The pid, when the process lives and is a weft.
    pub(crate) fn running(&self) -> Option<Pid> {
        let pid = fs::read_to_string(&self.pid_file).ok()?.trim().parse().ok().map(Pid::from_raw)?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        is_live_weft(&stat).then_some(pid)
    }

    /// Starts this binary with `arguments` in a process group of its own, output to the log.
    pub(crate) fn start(&self, arguments: &[&std::ffi::OsStr]) -> Result<Started, CliError> {
        let program = std::env::current_exe()
            .map_err(|e| CliError::internal(format!("cannot find this binary: {e}")))?;
        let log = fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&self.log_file);
        let log = log.map_err(|e| CliError::file(&self.log_file, &e))?;
        let log_from = log.metadata().map_or(0, |metadata| metadata.len());
        let again = log.try_clone().map_err(|e| CliError::file(&self.log_file, &e))?;
        let child = Command::new(&program)
            .args(arguments)
            // Its errors are read back from the log as blocks, whatever form this command's own are to have.
            .env("WEFT_OUTPUT", "table")
            .env("WEFT_COLOR", "never")
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(again)
            .process_group(0)
            .spawn()
            .map_err(|e| CliError::file(&program, &e))?;
        let pid = Pid::from_raw(i32::try_from(child.id()).map_err(CliError::internal)?);
        write_private(&self.pid_file, pid.to_string().as_bytes())?;
        Ok(Started { pid, log_from })
    }

    /// Waits until `ready` holds; an early end of the process is told in its own words.
    pub(crate) fn wait_ready(
        &self,
        started: Started,
        mut ready: impl FnMut() -> bool,
    ) -> Result<(), CliError> {
        let clock = Clock::system();
        let start = clock.now();
        loop {
            if ready() {
                return Ok(());
            }
            let ended = match waitpid(started.pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(_, code)) => Some(code),
                Ok(WaitStatus::Signaled(_, signal, _)) => Some(128 + signal as i32),
                Ok(_) | Err(_) => None,
            };
            if ended.is_some() || clock.now().saturating_duration_since(start) > READY_WITHIN {
                return Err(self.not_ready(started, ended));
            }
            nap();
        }
    }

    /// What the process said since it was started: its error if it told one, else its last lines.
    fn not_ready(&self, started: Started, ended: Option<i32>) -> CliError {
        let log = self.log_since(started.log_from);
        let read = format!("read {}", self.log_file.display());
        if let Some(code) = ended {
            let mut told = reported(&log).into_iter();
            if let Some(first) = told.next() {
                let exit = Exit::of(code).unwrap_or(Exit::Unreachable);
                return told.fold(CliError::new(exit, first.fix(read)), CliError::and);
            }
        }
        let mut fault = match ended {
            Some(code) => {
                Fault::new(code::CANNOT_START, format!("the background process ended at once (exit {code})"))
            }
            None => Fault::new(code::START_TIMEOUT, "the background process is not ready"),
        };
        let lines: Vec<_> = log.lines().rev().take(8).collect();
        for line in lines.into_iter().rev() {
            fault = fault.why(line);
        }
        CliError::new(Exit::Unreachable, fault.fix(read))
    }

    fn log_since(&self, from: u64) -> String {
        let read = || {
            let mut file = fs::File::open(&self.log_file)?;
            file.seek(SeekFrom::Start(from))?;
            let mut bytes = Vec::new();
            file.take(MAX_LOG_BYTES).read_to_end(&mut bytes)?;
            Ok::<_, std::io::Error>(bytes)
        };
        // Without its log there is only the exit code to tell.
        String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
    }

    /// Ends the process in good order, by force after 20 s. Tells whether there was one.
    pub(crate) fn stop(&self) -> Result<bool, CliError> {
        let Some(pid) = self.running() else {
            // A pid file without its process is left over from a crash.
            let _ = fs::remove_file(&self.pid_file);
            return Ok(false);
        };
        let clock = Clock::system();
        let start = clock.now();
        let failed = |e: Errno| CliError::internal(format!("cannot stop process {pid}: {e}"));
        kill(pid, Signal::SIGTERM).map_err(failed)?;
        while self.running().is_some() {
            let waited = clock.now().saturating_duration_since(start);
            if waited > STOP_WITHIN + KILLED_WITHIN {
                return Err(CliError::internal(format!("process {pid} does not end, even by SIGKILL")));
            }
            if waited > STOP_WITHIN {
                kill(pid, Signal::SIGKILL).map_err(failed)?;
            }
            nap();
        }
        // Already gone is as good as removed.
        let _ = fs::remove_file(&self.pid_file);
        Ok(true)
    }
}

/// Whether a text of `/proc/PID/stat` is of a weft that runs. A zombie has ended; only its parent can remove it.
fn is_live_weft(stat: &str) -> bool {
    // The name stands in parentheses and may hold some itself.
    let Some((head, tail)) = stat.rsplit_once(')') else { return false };
    let name = head.split_once('(').map_or("", |(_, name)| name);
    let state = tail.trim_start().chars().next();
    name.starts_with("weft") && !matches!(state, None | Some('Z' | 'X'))
}

/// The errors that a weft told in `log`, read back from their blocks (`Output::fault`).
fn reported(log: &str) -> Vec<Fault> {
    let mut faults: Vec<Fault> = Vec::new();
    let mut part = "";
    for line in log.lines() {
        if let Some((code, what)) = line.strip_prefix("error[").and_then(|rest| rest.split_once("]: ")) {
            faults.push(Fault::new(code, what));
            part = "";
            continue;
        }
        let (Some(label), Some(text)) = (line.get(..8), line.get(8..)) else { continue };
        let Some(fault) = faults.last_mut() else { continue };
        part = match label.trim() {
            "" => part,
            label @ ("why" | "fix") => label,
            _ => "end",
        };
        match part {
            "why" => fault.why.push(text.to_owned()),
            "fix" => fault.fix.push(text.to_owned()),
            _ => {}
        }
    }
    faults
}

/// Between two looks at another process.
fn nap() {
    std::thread::sleep(Duration::from_millis(20));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zombie_and_another_program_are_no_running_weft() {
        assert!(is_live_weft("12 (weft) S 1 12 12 0"));
        assert!(is_live_weft("12 (weft) x) R 1 12 12 0"));
        for stat in ["12 (weft) Z 1 12 12 0", "12 (weft) X 1", "12 (bash) S 1 12", "", "12 (weft)"] {
            assert!(!is_live_weft(stat), "{stat}");
        }
    }

    #[test]
    fn only_what_this_start_said_is_told_with_its_own_code() {
        let dir = tempfile::tempdir().unwrap();
        let process = Background::new(dir.path(), "weft");
        let old = "error[W5003]: an older failure\n  why   old\n  docs  weft explain W5003\n";
        let new = "INFO something\nerror[W5006]: cannot listen on 127.0.0.1:7480 for the proxy\n  \
                   why   the port is taken by nc (pid 7)\n        and more\n  fix   stop it: kill 7\n  docs  weft explain W5006\n";
        fs::write(&process.log_file, format!("{old}{new}")).unwrap();
        let started = Started { pid: Pid::from_raw(1), log_from: old.len() as u64 };

        let error = process.not_ready(started, Some(2));
        let [fault] = error.faults() else { panic!("{error:?}") };
        assert_eq!((&*fault.code, error.exit()), ("W5006", Exit::Usage));
        assert_eq!(fault.why, ["the port is taken by nc (pid 7)", "and more"]);
        assert_eq!(fault.fix[0], "stop it: kill 7");
        let silent =
            process.not_ready(Started { log_from: (old.len() + new.len()) as u64, ..started }, Some(9));
        assert_eq!((&*silent.faults()[0].code, silent.exit()), ("W5016", Exit::Unreachable));
    }

    #[test]
    fn a_process_that_is_not_ready_in_time_is_told_as_such() {
        let dir = tempfile::tempdir().unwrap();
        let process = Background::new(dir.path(), "weft");
        fs::write(&process.log_file, "INFO still waiting for the disk\n").unwrap();
        let late = process.not_ready(Started { pid: Pid::from_raw(1), log_from: 0 }, None);
        assert_eq!((&*late.faults()[0].code, late.exit()), ("W5017", Exit::Unreachable));
        assert_eq!(late.faults()[0].why, ["INFO still waiting for the disk"]);
    }
}
