//! Background processes of one user: private directories, pid files, configuration texts, readiness.

use std::{
    fs,
    io::Write as _,
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
    sys::signal::{Signal, kill},
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

/// Makes a directory that only its owner can enter.
pub(crate) fn private_dir(dir: &Path) -> Result<(), CliError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|e| CliError::file(dir, &e))?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(|e| CliError::file(dir, &e))
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
    write().map_err(|e| CliError::file(path, &e))
}

/// A server's configuration from its text; `origin` names it in errors.
pub(crate) fn server_config(text: &str, origin: &str) -> Result<weft_registry::config::Config, CliError> {
    weft_registry::config::Config::parse(text, origin).map_err(config_faults)
}

/// An agent's configuration from its file.
pub(crate) fn agent_config(path: &Path) -> Result<weft_node::config::Config, CliError> {
    let text = fs::read_to_string(path).map_err(|e| CliError::file(path, &e))?;
    weft_node::config::Config::parse(&text, &path.display().to_string()).map_err(config_faults)
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
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        (kill(pid, None) != Err(Errno::ESRCH) && name.starts_with("weft")).then_some(pid)
    }

    /// Starts this binary with `arguments` in a process group of its own, output to the log.
    pub(crate) fn start(&self, arguments: &[&std::ffi::OsStr]) -> Result<Pid, CliError> {
        let program = std::env::current_exe()
            .map_err(|e| CliError::internal(format!("cannot find this binary: {e}")))?;
        let log = fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&self.log_file);
        let log = log.map_err(|e| CliError::file(&self.log_file, &e))?;
        let again = log.try_clone().map_err(|e| CliError::file(&self.log_file, &e))?;
        let child = Command::new(&program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(again)
            .process_group(0)
            .spawn()
            .map_err(|e| CliError::file(&program, &e))?;
        let pid = Pid::from_raw(i32::try_from(child.id()).map_err(CliError::internal)?);
        write_private(&self.pid_file, pid.to_string().as_bytes())?;
        Ok(pid)
    }

    /// Waits until `ready` holds; an early end of the process is told with the end of its log.
    pub(crate) fn wait_ready(&self, pid: Pid, mut ready: impl FnMut() -> bool) -> Result<(), CliError> {
        let clock = Clock::system();
        let start = clock.now();
        loop {
            if ready() {
                return Ok(());
            }
            let reaped = nix::sys::wait::waitpid(pid, Some(nix::sys::wait::WaitPidFlag::WNOHANG));
            let gone = matches!(
                reaped,
                Ok(nix::sys::wait::WaitStatus::Exited(..) | nix::sys::wait::WaitStatus::Signaled(..))
            );
            if gone || clock.now().saturating_duration_since(start) > READY_WITHIN {
                return Err(self.not_ready(gone));
            }
            nap();
        }
    }

    fn not_ready(&self, gone: bool) -> CliError {
        let log = fs::read_to_string(&self.log_file).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(8).collect();
        let what =
            if gone { "the background process ended at once" } else { "the background process is not ready" };
        let mut fault = Fault::new(if gone { code::CANNOT_START } else { code::START_TIMEOUT }, what);
        for line in lines.into_iter().rev() {
            fault = fault.why(line);
        }
        CliError::new(Exit::Unreachable, fault.fix(format!("read {}", self.log_file.display())))
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
            if clock.now().saturating_duration_since(start) > STOP_WITHIN {
                kill(pid, Signal::SIGKILL).map_err(failed)?;
            }
            nap();
        }
        // Already gone is as good as removed.
        let _ = fs::remove_file(&self.pid_file);
        Ok(true)
    }
}

/// Between two looks at another process.
fn nap() {
    std::thread::sleep(Duration::from_millis(20));
}
