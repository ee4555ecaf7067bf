//! One mesh for all scenarios: callers, services that fail in every way, small agents, spare hosts.
//!
//! ```text
//!   ctl    server                      hosta  "order" (root) calls; "ghost" has no identity; "twin-a", "twin-b" share a user
//!   hostb  the services                hostc  an agent with small limits, later stopped, killed and drained
//!   hostd  advertises a name nobody knows     mal    an agent whose place an impostor takes
//!   late   a clock of its own          fresh  joined, not started        spare, ctl2   bare
//! ```

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use weft_tests::app::loopback;
use weft_tests::commands::Commands;
use weft_tests::eventually::eventually;
use weft_tests::manifest::NAMESPACE;
use weft_tests::mesh::{CTL, Mesh};
use weft_tests::netns::Host;
use weft_tests::process::{Finished, Process, Program};
use weft_tests::told::{Told, with_code};

use crate::inventory::{agents, manifests, programs};

/// The proxy port of every agent.
pub(crate) const PROXY: u16 = 7_480;
/// What anything may take that is only waited for.
pub(crate) const SOON: Duration = Duration::from_secs(15);

/// At this level the scenarios find what they read.
const LOG: &str = "info,weft_node=debug";

/// See the module.
pub(crate) struct Scene {
    pub(crate) mesh: Mesh,
    pub(crate) commands: Commands,
    /// Programs, and whatever a scenario leaves for a later one, by its name.
    pub(crate) kept: Vec<(&'static str, Process)>,
    pub(crate) flows: Vec<(&'static str, TcpStream)>,
    /// A token of the second server.
    pub(crate) kept_token: String,
}

/// A place in a log: what comes after it is new.
#[derive(Debug)]
pub(crate) struct Mark {
    node: &'static str,
    access: usize,
    said: usize,
}

impl Scene {
    #[track_caller]
    pub(crate) fn start() -> Self {
        let mesh = ["hosta", "hostb", "hostc", "hostd", "mal", "late", "fresh", "spare", "ctl2"]
            .into_iter()
            .fold(Mesh::builder(), weft_tests::mesh::Builder::host)
            .own_clock("late", 0)
            .own_clock(CTL, 0)
            .log(LOG)
            .server_line("limits: {joinsPerSecond: 100, joinBurst: 100}");
        let mut mesh = manifests().into_iter().fold(mesh, weft_tests::mesh::Builder::manifest).start();
        for (host, node, lines) in agents() {
            mesh.write_agent_config(host, node, &lines);
            mesh.join(host, &mesh.token(node, &[])).expect_success();
            if host != "fresh" {
                mesh.start_agent(host);
            }
        }
        for (host, ..) in agents().into_iter().filter(|(host, ..)| *host != "fresh") {
            mesh.wait_for_agent(host);
        }
        // As an administrator opens the agent's socket to the users of a host.
        let state = mesh.state("hosta");
        for folder in [state.clone(), state.join("run")] {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).expect("the folder is ours");
        }
        let kept = programs(&mesh);
        let commands = Commands::read(mesh.host("spare").folder());
        let scene = Self { mesh, commands, kept, flows: Vec::new(), kept_token: String::new() };
        eventually("a first call succeeds", SOON, || match scene.get("charge", "/ok") {
            answer if answer.starts_with("HTTP/1.1 200") => Ok(()),
            answer => Err(answer),
        });
        scene
    }

    pub(crate) fn host(&self, name: &str) -> &Host {
        self.mesh.host(name)
    }

    /// Runs `weft` on `host` as root and returns what it told with `code`.
    pub(crate) fn told(&self, host: &str, args: &[&str], code: &str) -> Result<Told, String> {
        told_by(&self.mesh.weft(host, args).run(), code)
    }

    /// Applies `manifest` from the server's host and returns what was told with `code`.
    pub(crate) fn applied(&self, manifest: &str, code: &str) -> Result<Told, String> {
        told_by(&self.mesh.weft(CTL, &["apply", "-n", NAMESPACE, "-f", "-"]).input(manifest).run(), code)
    }

    /// A `weft` command of a user of hosta, against the agent's socket.
    pub(crate) fn weft_of(&self, user: u32, args: &[&str]) -> Program {
        let home = self.host("hosta").folder().join(format!("home-{user}"));
        let socket = self.mesh.state("hosta").join("run/agent.sock");
        let program = self.mesh.weft("hosta", &["--agent-socket"]).arg(socket).args(args);
        program.env("HOME", &home).env("WEFT_STATE_DIR", &home).as_user(user)
    }

    /// Sends `bytes` to a port of `host`'s loopback and reads to the end.
    pub(crate) fn exchange(&self, host: &str, port: u16, bytes: &[u8]) -> String {
        self.host(host).enter(|| exchange(loopback(port), bytes)).unwrap_or_else(|error| error)
    }

    /// The proxy's answer to a GET of "order" for `path` of a service, perhaps with its port.
    pub(crate) fn get(&self, service: &str, path: &str) -> String {
        let (name, port) = service
            .split_once(':')
            .map_or((service, String::new()), |(name, port)| (name, format!(":{port}")));
        let host = format!("{name}.{NAMESPACE}.svc.weft{port}");
        let request =
            format!("GET http://{host}{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        self.exchange("hosta", PROXY, request.as_bytes())
    }

    /// What the proxy tells "order" of a call to `service`: the answer, and its header say the same code.
    pub(crate) fn refused(&self, service: &str, code: &str) -> Result<Told, String> {
        in_answer(&self.get(service, "/ok"), code)
    }

    /// What the proxy of hosta answers to odd bytes.
    pub(crate) fn proxied(&self, bytes: &[u8], code: &str) -> Result<Told, String> {
        in_answer(&self.exchange("hosta", PROXY, bytes), code)
    }

    /// What curl of another user of hosta is told by the shared proxy port.
    pub(crate) fn curled(&self, user: u32, code: &str) -> Result<Told, String> {
        let url = format!("http://charge.{NAMESPACE}.svc.weft/ok");
        let proxy = format!("http://127.0.0.1:{PROXY}");
        let curl = self.host("hosta").program("curl").args([
            "-s",
            "-i",
            "--max-time",
            "10",
            "--proxy",
            &proxy,
            &url,
        ]);
        in_answer(&curl.env("no_proxy", "").as_user(user).run().stdout, code)
    }

    /// Notes where the logs of an agent end now.
    pub(crate) fn mark(&mut self, node: &'static str) -> Mark {
        let (access, said) = self.logs(node);
        Mark { node, access: access.len(), said: said.len() }
    }

    /// Waits for a line with `code` in either log of the agent, after `mark`.
    pub(crate) fn logged(&mut self, mark: &Mark, code: &str) -> Result<Told, String> {
        Ok(eventually(&format!("{} logs {code}", mark.node), SOON, || {
            let (access, said) = self.logs(mark.node);
            let new = format!("{}{}", &access[mark.access..], &said[mark.said..]);
            Told::in_log(&new, code).ok_or(new)
        }))
    }

    fn logs(&mut self, node: &str) -> (String, String) {
        let access = fs::read_to_string(self.mesh.state(node).join("agent/access.log")).unwrap_or_default();
        let agent = self.mesh.agent(node);
        (access, format!("{}{}", agent.stdout(), agent.stderr()))
    }

    /// A connection to an upstream port of `host` that has carried a byte there and back.
    pub(crate) fn flow(&self, host: &str, port: u16) -> Result<TcpStream, String> {
        self.host(host).enter(|| {
            let mut stream = connect(loopback(port))?;
            stream.write_all(b"a").map_err(|error| error.to_string())?;
            stream.read_exact(&mut [0]).map_err(|error| format!("no byte came back: {error}"))?;
            Ok(stream)
        })
    }

    /// Waits until a flow to that port works, and returns it.
    pub(crate) fn settled_flow(&self, host: &str, port: u16) -> TcpStream {
        eventually("a flow works", SOON, || self.flow(host, port))
    }

    /// Where `name` was kept.
    #[track_caller]
    pub(crate) fn take(&mut self, name: &str) -> Process {
        let place = self.kept.iter().position(|(known, _)| *known == name);
        self.kept.remove(place.unwrap_or_else(|| panic!("{name} is not there"))).1
    }
}

/// What a command told with `code`, on its standard error or, as JSON, anywhere.
pub(crate) fn told_by(finished: &Finished, code: &str) -> Result<Told, String> {
    let text = format!("{}\n{}", finished.stderr, finished.stdout);
    let all = Told::in_blocks(&text).into_iter().chain(Told::in_objects(&text)).collect();
    with_code(all, code).map_err(|why| format!("{why}: {finished}"))
}

/// What an HTTP answer tells with `code`.
pub(crate) fn in_answer(answer: &str, code: &str) -> Result<Told, String> {
    let (head, body) =
        answer.split_once("\r\n\r\n").ok_or_else(|| format!("no answer of HTTP: {answer:?}"))?;
    let header = head.lines().find_map(|line| line.strip_prefix("X-Weft-Code: "));
    let told = Told::in_answer(body).filter(|told| Some(told.code.as_str()) == header && told.code == code);
    told.ok_or_else(|| format!("no {code} in {answer:?}"))
}

fn connect(target: SocketAddr) -> Result<TcpStream, String> {
    let stream = TcpStream::connect(target).map_err(|error| format!("connect: {error}"))?;
    stream.set_read_timeout(Some(SOON)).map_err(|error| error.to_string())?;
    Ok(stream)
}

fn exchange(target: SocketAddr, bytes: &[u8]) -> Result<String, String> {
    let mut stream = connect(target)?;
    stream.write_all(bytes).map_err(|error| format!("write: {error}"))?;
    let mut answer = Vec::new();
    // A reset after the answer is as good as its end.
    let _ = stream.read_to_end(&mut answer);
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Copies a folder with its modes.
pub(crate) fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("the folder is ours");
    fs::set_permissions(to, fs::Permissions::from_mode(0o700)).expect("it was just made");
    for entry in fs::read_dir(from).expect("it is there").flatten() {
        let (from, to): (PathBuf, PathBuf) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().expect("it was just listed");
        if kind.is_dir() {
            copy_folder(&from, &to);
        } else if kind.is_file() {
            fs::copy(&from, &to).expect("both folders are ours");
        }
    }
}
