//! Real members of etcd: started on free ports of loopback, killed, paused, and ended with the test.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::super::Endpoint;
use crate::clock::Clock;

/// One member. Dropping it kills it.
pub(in super::super) struct Member {
    name: String,
    folder: TempDir,
    client: u16,
    peer: u16,
    /// All members as `--initial-cluster` names them.
    cluster: String,
    more: Vec<String>,
    /// `http`, or `https` for clients when the further arguments say with which certificate.
    scheme: &'static str,
    child: Option<Child>,
}

impl Member {
    /// Starts a cluster of one.
    pub(in super::super) fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with further arguments.
    pub(in super::super) fn start_with(more: &[&str]) -> Self {
        let (client, peer) = (free_port(), free_port());
        let mut member = Self::new("m0", client, peer, format!("m0=http://127.0.0.1:{peer}"), more);
        if more.contains(&"--cert-file") {
            member.scheme = "https";
        }
        member.run();
        member
    }

    /// Starts a cluster of `count`.
    pub(in super::super) fn start_cluster(count: usize) -> Vec<Self> {
        let ports: Vec<_> = (0..count).map(|_| (free_port(), free_port())).collect();
        let name = |(number, (_, peer)): (usize, &(u16, u16))| format!("m{number}=http://127.0.0.1:{peer}");
        let cluster = ports.iter().enumerate().map(name).collect::<Vec<_>>().join(",");
        let member = |(number, (client, peer))| {
            let mut member = Self::new(&format!("m{number}"), client, peer, cluster.clone(), &[]);
            member.run();
            member
        };
        ports.into_iter().enumerate().map(member).collect()
    }

    /// Puts another member in the place of `gone`, which is dead, by the word of `other`: a new name, new ports, an empty disk.
    pub(in super::super) fn in_place_of(gone: Self, other: &Self) -> Self {
        let listed = other.etcdctl(&["member", "list"]);
        let line = listed.lines().find(|line| line.contains(&format!(", {}, ", gone.name)));
        let id = line.and_then(|line| line.split(',').next()).expect("the dead member is one still");
        other.etcdctl(&["member", "remove", id]);
        let (client, peer, name) = (free_port(), free_port(), format!("{}-again", gone.name));
        let url = format!("http://127.0.0.1:{peer}");
        other.etcdctl(&["member", "add", &name, &format!("--peer-urls={url}")]);
        let old = format!("{}=http://127.0.0.1:{}", gone.name, gone.peer);
        let cluster = gone.cluster.replace(&old, &format!("{name}={url}"));
        let mut member = Self::new(&name, client, peer, cluster, &["--initial-cluster-state", "existing"]);
        member.run();
        member
    }

    fn new(name: &str, client: u16, peer: u16, cluster: String, more: &[&str]) -> Self {
        let more = more.iter().map(|&argument| argument.to_owned()).collect();
        Self {
            name: name.to_owned(),
            folder: folder(),
            client,
            peer,
            cluster,
            more,
            scheme: "http",
            child: None,
        }
    }

    pub(in super::super) fn endpoint(&self) -> Endpoint {
        format!("{}://127.0.0.1:{}", self.scheme, self.client).parse().unwrap()
    }

    /// Where its data are.
    pub(in super::super) fn data(&self) -> &Path {
        self.folder.path()
    }

    /// What `etcdctl` prints when it is asked of this member; it must succeed, if need be once the member serves.
    pub(in super::super) fn etcdctl(&self, arguments: &[&str]) -> String {
        // A member that was added or lost counts as unhealthy for the first five seconds of its neighbours.
        const PATIENCE: Duration = Duration::from_secs(20);
        let (endpoint, clock) = (self.endpoint().to_string(), Clock::system());
        let mut last = String::new();
        while clock.uptime() < PATIENCE {
            let output = Command::new("etcdctl")
                .env("ETCDCTL_API", "3")
                .args(["--endpoints", &endpoint, "--dial-timeout", "1s", "--command-timeout", "2s"])
                .args(arguments)
                .output()
                .expect("etcdctl is installed (tests/run does it)");
            if output.status.success() {
                return String::from_utf8(output.stdout).unwrap();
            }
            last = String::from_utf8_lossy(&output.stderr).into_owned();
            std::thread::park_timeout(Duration::from_millis(50));
        }
        panic!("etcdctl {arguments:?}: {last}");
    }

    /// Whether it leads its cluster, by its own word.
    pub(in super::super) fn leads(&self) -> bool {
        let status = self.etcdctl(&["endpoint", "status", "--write-out", "fields"]);
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.rsplit(':').next()).map(|value| value.trim().to_owned())
        };
        field("\"MemberID\"").is_some_and(|id| Some(id) == field("\"Leader\""))
    }

    pub(in super::super) fn run(&mut self) {
        let client = self.endpoint().to_string();
        let peer = format!("http://127.0.0.1:{}", self.peer);
        let log = std::fs::File::create(self.folder.path().join("log")).unwrap();
        // `tests/run` names a second version here.
        let program = std::env::var_os("WEFT_TEST_ETCD").unwrap_or_else(|| "etcd".into());
        let child = Command::new(program)
            .args(["--name", &self.name, "--initial-cluster", &self.cluster])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .arg("--data-dir")
            .arg(self.folder.path().join("data"))
            // Quick elections make quick tests.
            .args(["--heartbeat-interval", "50", "--election-timeout", "300"])
            .args(&self.more)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("etcd is installed (tests/run does it)");
        self.child = Some(child);
        self.wait_until_it_listens();
    }

    fn wait_until_it_listens(&mut self) {
        const PATIENCE: Duration = Duration::from_secs(30);
        let clock = Clock::system();
        while TcpStream::connect(("127.0.0.1", self.client)).is_err() {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().unwrap());
            let log = || std::fs::read_to_string(self.folder.path().join("log")).unwrap();
            assert!(
                ended.is_none() && clock.uptime() < PATIENCE,
                "etcd does not listen: {ended:?}\n{}",
                log()
            );
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }

    /// Ends it as a power cut does.
    pub(in super::super) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub(in super::super) fn restart(&mut self) {
        self.kill();
        self.run();
    }

    /// Stops it without ending it: it holds its connections and answers nothing.
    pub(in super::super) fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    pub(in super::super) fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs");
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A folder in memory where there is one: etcd syncs every commit, and no test here is about the disk.
pub(in super::super) fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// A port that nobody has, and that the kernel gives to nobody who connects: a member that is down must find it free
/// when it comes back.
fn free_port() -> u16 {
    loop {
        let port = rand::random_range(10_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
