//! Child processes in a namespace: output in files, signals by pid, always ended.
//!
//! A [`Program`] is what to start, a [`Process`] is one that runs, [`Finished`] is what it left.
//! Invariant: a [`Process`] that is dropped is dead, and its pid was known to be ours when it was
//! killed (it is our child and was not yet waited for).

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::eventually::Stopwatch;

/// How long [`Program::run`] lets a program take unless told otherwise.
const USUAL_LIMIT: Duration = Duration::from_secs(60);

/// Between two looks whether a process ended.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Lines of output that a failure message repeats.
const TAIL_LINES: usize = 60;

static STARTED: AtomicU32 = AtomicU32::new(0);

/// What to start, and where.
#[derive(Clone, Debug)]
pub struct Program {
    netns: Option<String>,
    uid: Option<u32>,
    through: Vec<OsString>,
    program: OsString,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    folder: PathBuf,
    input: Option<Vec<u8>>,
    output: Option<PathBuf>,
    limit: Duration,
}

impl Program {
    /// `program`, found by the `PATH`, with its working directory and output files in `folder`.
    pub fn new(program: impl AsRef<OsStr>, folder: &Path) -> Self {
        Self {
            netns: None,
            uid: None,
            through: Vec::new(),
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            folder: folder.to_owned(),
            input: None,
            output: None,
            limit: USUAL_LIMIT,
        }
    }

    /// Runs it inside the network namespace of that name.
    #[must_use]
    pub fn in_netns(mut self, name: &str) -> Self {
        self.netns = Some(name.to_owned());
        self
    }

    /// Runs it as user and group `uid`, without other groups.
    #[must_use]
    pub fn as_user(mut self, uid: u32) -> Self {
        self.uid = Some(uid);
        self
    }

    /// Starts it by another program, which becomes it, such as `prlimit` with what it allows.
    #[must_use]
    pub fn through(mut self, program: &str, args: &[&str]) -> Self {
        self.through = std::iter::once(program).chain(args.iter().copied()).map(OsString::from).collect();
        self
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// Gives it `bytes` on standard input, which is empty otherwise.
    #[must_use]
    pub fn input(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.input = Some(bytes.as_ref().to_vec());
        self
    }

    /// Sends standard output to `path`, which is there already, such as a device; none of it is read back.
    #[must_use]
    pub fn output_to(mut self, path: &Path) -> Self {
        self.output = Some(path.to_owned());
        self
    }

    /// How long [`Self::run`] may take.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Starts it. The caller keeps the [`Process`] for as long as it must run.
    ///
    /// # Panics
    ///
    /// If it cannot be started.
    #[track_caller]
    pub fn start(self) -> Process {
        let name = Path::new(&self.program).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let base = format!("{:03}-{name}", STARTED.fetch_add(1, Ordering::Relaxed));
        let files = Files {
            out: self.folder.join(format!("{base}.out")),
            err: self.folder.join(format!("{base}.err")),
        };
        let mut command = self.command();
        let own = create(&files.out);
        let out = self.output.as_deref().map_or(own, |path| {
            let opened = fs::OpenOptions::new().write(true).open(path);
            opened.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        });
        command.stdin(self.input_file(&base)).stdout(out).stderr(create(&files.err));
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Process { what: format!("{command:?}"), name, child, files }
    }

    /// Starts it, waits for its end and returns what it left.
    ///
    /// # Panics
    ///
    /// If it cannot be started or takes longer than its limit.
    #[track_caller]
    pub fn run(self) -> Finished {
        let limit = self.limit;
        self.start().finish(limit)
    }

    /// The command: into the namespace as root, then to the user, then the program; all by `exec`, so
    /// that the pid of the child is the pid of the program.
    fn command(&self) -> Command {
        let mut words: Vec<OsString> = Vec::new();
        if let Some(netns) = &self.netns {
            words.extend(["ip", "netns", "exec", netns].map(OsString::from));
        }
        if let Some(uid) = self.uid {
            words.extend(["setpriv", "--clear-groups"].map(OsString::from));
            words.extend([format!("--reuid={uid}"), format!("--regid={uid}")].map(OsString::from));
        }
        words.extend(self.through.iter().cloned());
        words.push(self.program.clone());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(&self.args).current_dir(&self.folder);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    fn input_file(&self, base: &str) -> Stdio {
        let Some(text) = &self.input else { return Stdio::null() };
        let path = self.folder.join(format!("{base}.in"));
        fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).into()
    }
}

/// A program that was started. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    what: String,
    name: String,
    child: Child,
    files: Files,
}

impl Process {
    /// The pid of the program itself.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The short name of the program.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it wrote to standard output so far.
    pub fn stdout(&self) -> String {
        read(&self.files.out)
    }

    /// What it wrote to standard error so far.
    pub fn stderr(&self) -> String {
        read(&self.files.err)
    }

    /// Sends a signal.
    ///
    /// # Panics
    ///
    /// If it has ended already.
    #[track_caller]
    pub fn signal(&mut self, signal: Signal) {
        assert!(self.try_wait().is_none(), "{} has ended before {signal}:\n{}", self.what, self.tail());
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, signal).unwrap_or_else(|error| panic!("cannot send {signal} to {}: {error}", self.what));
    }

    /// Ends it as `kill -9` does and waits until it is gone.
    #[track_caller]
    pub fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        let ended = self.child.wait();
        assert!(ended.is_ok(), "{} cannot be waited for", self.what);
    }

    /// Its exit status if it has ended.
    ///
    /// # Panics
    ///
    /// If the system cannot tell.
    #[track_caller]
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap_or_else(|error| panic!("cannot wait for {}: {error}", self.what))
    }

    /// Fails the test if it has ended, with its last words.
    ///
    /// # Panics
    ///
    /// If it has ended.
    #[track_caller]
    pub fn assert_running(&mut self) {
        if let Some(status) = self.try_wait() {
            panic!("{} ended with {status}:\n{}", self.what, self.tail());
        }
    }

    /// Waits for its end and returns what it left.
    ///
    /// # Panics
    ///
    /// If it takes longer than `limit`; it is killed then.
    #[track_caller]
    pub fn finish(mut self, limit: Duration) -> Finished {
        let watch = Stopwatch::start();
        loop {
            if let Some(status) = self.try_wait() {
                let (stdout, stderr) = (self.stdout(), self.stderr());
                return Finished { what: self.what.clone(), status, stdout, stderr, took: watch.elapsed() };
            }
            assert!(watch.elapsed() < limit, "{} did not end within {limit:?}:\n{}", self.what, self.tail());
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// The last lines of both outputs, for messages.
    pub fn tail(&self) -> String {
        format!("stdout:\n{}\nstderr:\n{}", tail(&self.stdout()), tail(&self.stderr()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if it has ended and was waited for: then there is nothing to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a program left when it ended.
#[derive(Debug)]
pub struct Finished {
    what: String,
    /// How it ended.
    pub status: ExitStatus,
    /// All it wrote to standard output.
    pub stdout: String,
    /// All it wrote to standard error.
    pub stderr: String,
    /// From its start, or from the call that waited for it, to its end.
    pub took: Duration,
}

impl Finished {
    /// Its exit code; `None` after a signal.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Fails the test unless it ended with 0; returns itself to read on.
    ///
    /// # Panics
    ///
    /// If it ended otherwise, with both outputs.
    #[track_caller]
    pub fn expect_success(self) -> Self {
        self.expect_code(0)
    }

    /// Fails the test unless it ended with `code`.
    ///
    /// # Panics
    ///
    /// If it ended otherwise, with both outputs.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert!(self.code() == Some(code), "expected exit code {code}, got {}: {self}", self.status);
        self
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (stdout, stderr) = (tail(&self.stdout), tail(&self.stderr));
        write!(f, "{} ended with {}\nstdout:\n{stdout}\nstderr:\n{stderr}", self.what, self.status)
    }
}

#[derive(Debug)]
struct Files {
    out: PathBuf,
    err: PathBuf,
}

fn create(path: &Path) -> File {
    File::create(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn read(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    String::from_utf8_lossy(&bytes).into_owned()
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_input_and_exit_code_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let script = "read word; echo \"out $word $NAME\"; echo err >&2; exit 3";
        let program = Program::new("sh", folder.path()).args(["-c", script]).input("in\n").env("NAME", "x");
        let finished = program.run().expect_code(3);

        assert_eq!((finished.stdout.as_str(), finished.stderr.as_str()), ("out in x\n", "err\n"));
    }

    #[test]
    fn a_dropped_process_is_dead() {
        let folder = tempfile::tempdir().unwrap();
        let process = Program::new("sleep", folder.path()).arg("600").start();
        let entry = PathBuf::from(format!("/proc/{}", process.pid()));
        assert!(entry.exists());
        drop(process);

        assert!(!entry.exists());
    }

    #[test]
    #[should_panic(expected = "did not end within 10ms")]
    fn a_program_past_its_limit_fails_the_test() {
        let folder = tempfile::tempdir().unwrap();
        Program::new("sleep", folder.path()).arg("600").limit(Duration::from_millis(10)).run();
    }
}
