//! Processes that the coordinator starts.
//!
//! Owns their start, their logs and their end. A process is killed when its handle is dropped, and by the kernel
//! when the coordinator dies without dropping anything (see [`crate::role`]).

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use crate::site::Place;

/// From SIGTERM to SIGKILL.
const GRACE: Duration = Duration::from_secs(5);

/// How often, and how far apart, a killed process is asked whether it has ended.
const REAP_ATTEMPTS: u32 = 200;
const REAP_PAUSE: Duration = Duration::from_millis(1);

/// Lines of a log that an error quotes.
const QUOTED_LINES: usize = 6;

/// Bytes of a log that an error looks at.
const QUOTED_BYTES: u64 = 4_096;

/// Starts processes at places, with their logs below one directory.
pub(crate) struct Launcher {
    /// This binary, for roles.
    executable: PathBuf,
    logs: PathBuf,
}

/// A process that runs, and dies with this handle.
pub(crate) struct Running {
    name: String,
    pid: u32,
    child: Child,
    /// Standard output of a role. Another program's goes to its log: nobody reads on here while it runs.
    lines: Option<Lines<BufReader<ChildStdout>>>,
    log: PathBuf,
}

/// Where the standard output of a process goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Said {
    /// To the coordinator, line by line.
    Here,
    /// To the log, with standard error.
    Log,
}

impl Launcher {
    /// `logs` must exist.
    pub(crate) fn new(logs: PathBuf) -> Result<Self> {
        Ok(Self { executable: std::env::current_exe()?, logs })
    }

    /// A command for a role of this binary at `place`.
    pub(crate) fn role(&self, place: &Place, arguments: &[&str]) -> Command {
        let mut command = place.command(&self.executable);
        command.arg("role").args(arguments);
        command
    }

    /// A command for another program at `place`, tied to the life of the coordinator.
    pub(crate) fn foreign(&self, place: &Place, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.role(place, &["exec", "--"]);
        command.arg(program);
        command
    }

    /// Starts a role that speaks to the coordinator. Its standard error goes to the log called `name`.
    pub(crate) fn start(&self, name: &str, command: Command) -> Result<Running> {
        self.spawn(name, command, Said::Here)
    }

    /// Starts a program that serves. All it prints goes to the log called `name`.
    pub(crate) fn start_silent(&self, name: &str, command: Command) -> Result<Running> {
        self.spawn(name, command, Said::Log)
    }

    fn spawn(&self, name: &str, mut command: Command, said: Said) -> Result<Running> {
        let log = self.logs.join(format!("{name}.log"));
        let file = OpenOptions::new().create(true).append(true).open(&log)?;
        let stdout = match said {
            Said::Here => Stdio::piped(),
            Said::Log => file.try_clone()?.into(),
        };
        command.stdin(Stdio::null()).stdout(stdout).stderr(file);
        let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let lines = child.stdout.take().map(|stdout| BufReader::new(stdout).lines());
        let pid = child.id().context("a process just started has an id")?;
        Ok(Running { name: name.to_owned(), pid, child, lines, log })
    }

    /// Runs `command` to its end within `limit` and returns what it printed.
    ///
    /// # Errors
    ///
    /// A failure to start, a timeout, or an exit code other than 0; with the end of its log.
    pub(crate) async fn finish(&self, name: &str, command: Command, limit: Duration) -> Result<String> {
        let mut running = self.start(name, command)?;
        let mut printed = String::new();
        let all = async {
            while let Some(line) = running.next_line().await? {
                printed.push_str(&line);
                printed.push('\n');
            }
            anyhow::Ok(running.child.wait().await?)
        };
        let Ok(status) = timeout(limit, all).await else {
            bail!("{name} did not end within {limit:?}{}", running.quote())
        };
        let status = status?;
        ensure!(status.success(), "{name} failed ({status}){}", running.quote());
        Ok(printed)
    }
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for `word` as a line of its own on standard output.
    ///
    /// # Errors
    ///
    /// The end of the process, another line, or `limit` passed; with the end of its log.
    pub(crate) async fn says(&mut self, word: &str, limit: Duration) -> Result<()> {
        match timeout(limit, self.next_line()).await {
            Ok(Ok(Some(line))) if line == word => Ok(()),
            Ok(Ok(Some(line))) => bail!("{} said {line:?} where {word:?} was due", self.name),
            Ok(_) => bail!("{} ended before it was {word}{}", self.name, self.quote()),
            Err(_) => bail!("{} was not {word} within {limit:?}{}", self.name, self.quote()),
        }
    }

    async fn next_line(&mut self) -> std::io::Result<Option<String>> {
        match &mut self.lines {
            Some(lines) => lines.next_line().await,
            None => Ok(None),
        }
    }

    /// Waits for the process to end by itself, which is an error for one that serves. Cancel-safe.
    pub(crate) async fn ended(&mut self) -> anyhow::Error {
        match self.child.wait().await {
            Ok(status) => anyhow::anyhow!("{} ended ({status}){}", self.name, self.quote()),
            Err(error) => anyhow::Error::new(error).context(format!("cannot wait for {}", self.name)),
        }
    }

    /// Asks the process to end, waits, and kills it if it does not.
    pub(crate) async fn stop(mut self) {
        if let Ok(pid) = i32::try_from(self.pid)
            && self.child.id().is_some()
            && kill(Pid::from_raw(pid), Signal::SIGTERM).is_ok()
            && timeout(GRACE, self.child.wait()).await.is_ok()
        {
            return;
        }
        // Fails only for a process that has ended already.
        let _ = self.child.kill().await;
    }

    /// The end of the log, as the tail of an error message.
    pub(crate) fn quote(&self) -> String {
        quote(&self.log)
    }
}

impl Drop for Running {
    /// Kills and reaps, so that the process is gone before the namespace it runs in.
    fn drop(&mut self) {
        // Fails only for a process that has ended already.
        let _ = self.child.start_kill();
        for _ in 0..REAP_ATTEMPTS {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(REAP_PAUSE);
        }
    }
}

fn quote(log: &Path) -> String {
    let text = tail(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(QUOTED_LINES)..];
    if last.is_empty() { String::new() } else { format!(": {}", last.join(" | ")) }
}

/// The last [`QUOTED_BYTES`] of a log, which may be large: an agent writes a line per flow.
fn tail(log: &Path) -> std::io::Result<String> {
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(QUOTED_BYTES)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
