//! Real programs that know nothing of Weft, and how they are started on a host.
//!
//! They listen on the loopback of their host, as a program behind an agent does.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::architecture::workspace_root;
use crate::eventually::eventually;
use crate::netns::Host;
use crate::process::{Process, Program};

/// How long a program may take from its start until it takes connections.
const START: Duration = Duration::from_secs(20);

/// `127.0.0.1:port`.
pub fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// The system's Python, or the first of the path where the system has none.
pub fn python() -> &'static str {
    if Path::new("/usr/bin/python3").exists() { "/usr/bin/python3" } else { "python3" }
}

/// `python3 -m http.server` over `folder`.
#[track_caller]
pub fn http_server(host: &Host, port: u16, folder: &Path) -> Process {
    let program = host.program(python()).args(["-m", "http.server", "--bind", "127.0.0.1", "--directory"]);
    serving(host, port, program.arg(folder).arg(port.to_string()))
}

/// One of the programs in `tests/apps`, which takes its port as its first argument.
#[track_caller]
pub fn script(host: &Host, name: &str, port: u16, args: &[&str]) -> Process {
    serving(host, port, script_program(host, name).arg(port.to_string()).args(args))
}

/// One of the programs in `tests/apps`, not started.
pub fn script_program(host: &Host, name: &str) -> Program {
    // `-I`: nothing of the machine's Python set-up; `-u`: output as it is written.
    host.program(python()).args(["-I", "-u"]).arg(workspace_root().join("tests/apps").join(name))
}

/// nginx that serves `folder`, and `ok` at `/ok`.
///
/// # Panics
///
/// If its configuration cannot be written, or it does not start.
#[track_caller]
pub fn nginx(host: &Host, port: u16, folder: &Path) -> Process {
    let state = host.folder().join(format!("nginx-{port}"));
    fs::create_dir(&state).unwrap_or_else(|error| panic!("{}: {error}", state.display()));
    let config = state.join("nginx.conf");
    fs::write(&config, nginx_config(port, &state, folder)).expect("the folder was just made");
    serving(host, port, host.program("nginx").arg("-c").arg(config).arg("-e").arg("stderr"))
}

/// redis-server without persistence.
#[track_caller]
pub fn redis(host: &Host, port: u16) -> Process {
    let program =
        host.program("redis-server").args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    serving(host, port, program.args(["--port", &port.to_string()]))
}

/// curl that is quiet on success, names its errors, and uses no proxy but one given by argument.
pub fn curl(host: &Host) -> Program {
    let quiet = ["--silent", "--show-error", "--fail", "--max-time", "30"];
    host.program("curl").args(quiet).env("no_proxy", "*").env("http_proxy", "").env("all_proxy", "")
}

/// Waits until something on `host` takes connections at `address`.
#[track_caller]
pub fn wait_for_port(host: &Host, address: SocketAddr, within: Duration) {
    eventually(&format!("{} takes connections at {address}", host.name()), within, || {
        host.enter(|| TcpStream::connect(address)).map(drop).map_err(|error| error.to_string())
    });
}

/// A file of `mebibytes` MiB of random bytes at `path`.
#[track_caller]
pub fn random_file(host: &Host, path: &Path, mebibytes: u32) {
    let size = format!("{mebibytes}M");
    host.program("sh")
        .args(["-c", "head -c \"$1\" /dev/urandom > \"$2\"", "sh", &size])
        .arg(path)
        .run()
        .expect_success();
}

/// The SHA-256 of a file, by `sha256sum`.
#[track_caller]
pub fn sha256(host: &Host, path: &Path) -> String {
    let printed = host.program("sha256sum").arg(path).run().expect_success().stdout;
    printed.split_whitespace().next().unwrap_or_default().to_owned()
}

#[track_caller]
fn serving(host: &Host, port: u16, program: Program) -> Process {
    let mut process = program.start();
    eventually(&format!("{} serves port {port}", process.name()), START, || {
        process.assert_running();
        host.enter(|| TcpStream::connect(loopback(port))).map(drop).map_err(|error| error.to_string())
    });
    process
}

fn nginx_config(port: u16, state: &Path, folder: &Path) -> String {
    let (state, folder): (PathBuf, PathBuf) = (state.to_owned(), folder.to_owned());
    let (state, folder) = (state.display(), folder.display());
    format!(
        "daemon off;\nmaster_process off;\npid {state}/pid;\nerror_log stderr;\n\
         events {{ worker_connections 8192; }}\n\
         http {{\n  access_log off;\n  sendfile on;\n  keepalive_requests 1000000;\n\
         \x20 client_body_temp_path {state}/body;\n  proxy_temp_path {state}/proxy;\n  fastcgi_temp_path {state}/fastcgi;\n\
         \x20 uwsgi_temp_path {state}/uwsgi;\n  scgi_temp_path {state}/scgi;\n\
         \x20 server {{\n    listen 127.0.0.1:{port} backlog=4096;\n    root {folder};\n\
         \x20   location = /ok {{ default_type text/plain; return 200 \"ok\"; }}\n  }}\n}}\n"
    )
}
