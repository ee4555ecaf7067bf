//! Issuing and the management API as a person meets them: real processes, what they print, what they log, what they
//! refuse at their start.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use weft_tests::eventually::eventually;
use weft_tests::mesh::{CTL, Mesh};
use weft_tests::process::{Finished, Program};

const NODE: &str = "hosta";
const SOON: Duration = Duration::from_secs(20);

/// Names that somebody might give to be taken for something else.
const EVIL: [&str; 6] = [
    "a\nerror[W0000]: all is well",
    "\u{1b}[2J\u{1b}[31mred",
    "--replace",
    "-x",
    "../../etc/passwd",
    "a\u{202e}gpj.exe",
];

#[test]
fn api_15_names_that_steer_a_terminal_or_a_command_line_are_refused_and_shown_harmless() {
    let mesh = scene();
    for name in EVIL {
        let equals = |flag: &str| format!("{flag}={name}");
        let slash = format!("service/{name}");
        let (node, user, service) = (equals("--node"), equals("--user"), equals("--service"));
        let (namespace, ttl, form) = (equals("--namespace"), equals("--ttl"), equals("--output"));
        let runs: [&[&str]; 10] = [
            &["token", "create", "--for", "agent", &node],
            &["token", "create", "--for", "user", "--role", "viewer", &user],
            &["token", "create", "--for", "agent", "--node", "hostb", &service],
            &["token", "create", "--for", "agent", "--node", "hostb", &namespace],
            &["token", "create", "--for", "agent", "--node", "hostb", &ttl],
            &["token", "revoke", "--", name],
            &["get", &form, "services"],
            &["describe", "--", "service", name],
            &["delete", "--yes", "--", &slash],
            &["explain", "--", name],
        ];
        for args in runs {
            harmless(&mesh.on_server(args), args);
        }
        let manifest = format!(
            "apiVersion: weft.mesh/v1alpha1\nkind: Service\nmetadata: {{name: {}, namespace: shop}}\n\
             spec: {{ports: [{{port: 80}}]}}\n",
            serde_json::Value::from(name)
        );
        harmless(&mesh.weft(CTL, &["apply", "-f", "-"]).input(&manifest).run(), &["apply"]);
    }
    let list = mesh.on_server(&["token", "list", "-o", "json"]).expect_success().stdout;
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list["items"].as_array().map(Vec::len), Some(0), "nothing was made: {list}");
}

#[test]
fn api_09_a_server_without_file_descriptors_goes_on_when_it_has_some_again() {
    let mut mesh = scene();
    let control: SocketAddr = SocketAddr::new(mesh.host(CTL).ip4().into(), 7444);
    let pid = mesh.server().pid();
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let limit = format!("--nofile={0}:{0}", open + 8);
    let prlimit = Program::new("prlimit", mesh.host(CTL).folder());
    prlimit.args(["--pid", &pid.to_string(), &limit]).run().expect_success();

    let flood: Vec<TcpStream> = mesh.host(CTL).clone().enter(|| {
        (0..64).map(|_| TcpStream::connect(control).expect("the kernel's queue takes it")).collect()
    });
    eventually("the server is out of descriptors", SOON, || {
        let said = format!("{}{}", mesh.server().stdout(), mesh.server().stderr());
        if said.contains("cannot accept a connection") { Ok(()) } else { Err(said) }
    });
    mesh.server().assert_running();
    drop(flood);

    eventually("it serves again", SOON, || {
        let status = mesh.on_server(&["status"]);
        if status.code() == Some(0) { Ok(()) } else { Err(status.to_string()) }
    });
    mesh.join(NODE, &mesh.token(NODE, &[])).expect_success();
}

#[test]
fn iss_04_a_copy_of_an_agents_state_is_refused_and_the_server_raises_an_alarm() {
    let life = "identity: {leafTtl: 40s, allowShortLifetimes: true}";
    let mut mesh = Mesh::builder().server_line(life).host(NODE).host("hostb").start();
    for host in [NODE, "hostb"] {
        mesh.write_agent_config(host, NODE, "workloads: []\n");
    }
    mesh.join(NODE, &mesh.token(NODE, &[])).expect_success();
    let state = mesh.host(NODE).folder().join("state/agent");
    copy_folder(&state, &mesh.host("hostb").folder().join("state/agent"));

    mesh.start_agent(NODE);
    mesh.wait_for_agent(NODE);
    let certificate = || fs::read(state.join("node.pem")).unwrap_or_default();
    let first = certificate();
    eventually("the agent has renewed", Duration::from_secs(40), || {
        if certificate() == first { Err("it has its first certificate".to_owned()) } else { Ok(()) }
    });
    // Its next connection presents the new one; from then on the one before is a sign of a copy.
    mesh.kill_agent(NODE);
    mesh.start_agent(NODE);
    mesh.wait_for_agent(NODE);
    mesh.start_agent("hostb");

    eventually("the server raises an alarm", SOON, || {
        let metrics = mesh.metrics(CTL)?;
        let alarm = "weft_registry_alarms_total{kind=\"older_copy\"} ";
        let count = metrics.lines().find_map(|line| line.strip_prefix(alarm)).unwrap_or("none");
        if count.parse().is_ok_and(|count: u64| count > 0) { Ok(()) } else { Err(count.to_owned()) }
    });
    let said = format!("{}{}", mesh.server().stdout(), mesh.server().stderr());
    assert!(said.contains("the agent's state may have been copied"), "{said}");
    let copy = mesh.agent_log("hostb");
    assert!(copy.contains("W3027") || copy.contains("has replaced the certificate"), "{copy}");
    mesh.agent(NODE).assert_running();
    mesh.wait_for_agent(NODE);
}

#[test]
fn wl_05_neither_server_nor_agent_starts_where_its_socket_could_be_somebody_elses() {
    let mut mesh = scene();
    mesh.join(NODE, &mesh.token(NODE, &[])).expect_success();
    mesh.kill_server();
    let server = mesh.host(CTL).folder().join("state/run/server.sock");
    assert!(server.exists(), "kill -9 leaves the socket");
    let start = |mesh: &Mesh, host: &str, args: &[&str], file: &str| {
        let config = mesh.host(host).folder().join(file);
        mesh.weft(host, args).arg(config).limit(SOON).run()
    };
    for (host, socket, args, file) in [
        (CTL, "state/run/server.sock", ["server", "run", "--config"], "server.yaml"),
        (NODE, "state/run/agent.sock", ["agent", "run", "--config"], "agent.yaml"),
    ] {
        let socket = mesh.host(host).folder().join(socket);
        let folder = socket.parent().unwrap().to_owned();
        fs::create_dir_all(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
        let plant = |what: &dyn Fn()| {
            let _ = fs::remove_file(&socket);
            what();
            let refused = start(&mesh, host, &args, file);
            assert_ne!(refused.code(), Some(0), "{refused}");
            assert!(refused.stderr.contains("error[W5"), "{refused}");
        };
        plant(&|| fs::write(&socket, "precious").unwrap());
        assert_eq!(fs::read(&socket).unwrap(), b"precious");
        plant(&|| symlink("/dev/null", &socket).unwrap());
        fs::remove_file(&socket).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
        let refused = start(&mesh, host, &args, file);
        assert!(refused.code() != Some(0) && refused.stderr.contains("error["), "{refused}");
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    }
    // Over the stale sockets that lie there now, both start.
    mesh.start_server();
    mesh.wait_for_server();
    mesh.start_agent(NODE);
    mesh.wait_for_agent(NODE);
}

/// A server, and two hosts that have not joined.
#[track_caller]
fn scene() -> Mesh {
    let mesh = Mesh::builder().host(NODE).host("hostb").start();
    mesh.write_agent_config(NODE, NODE, "");
    mesh
}

/// Checks that a command was refused, and printed nothing that a terminal obeys or that looks like somebody else's words.
#[track_caller]
fn harmless(run: &Finished, args: &[&str]) {
    assert_ne!(run.code(), Some(0), "{args:?} succeeded: {run}");
    let said = format!("{}{}", run.stdout, run.stderr);
    let steers = |c: char| (c.is_control() && c != '\n' && c != '\t') || c == '\u{202e}';
    assert!(!said.contains(steers), "{args:?}: {said:?}");
    assert!(!said.lines().any(|line| line.starts_with("error[W0000]")), "{args:?}: {said}");
    assert!(run.code() != Some(101) && !said.contains("panicked"), "{args:?}: {said}");
}

#[track_caller]
fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    fs::set_permissions(to, fs::Permissions::from_mode(0o700)).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&from, &to);
        } else {
            fs::copy(&from, &to).unwrap();
        }
    }
}
