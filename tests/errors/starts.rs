//! Processes that do not start, or start and warn: W5, and W6 of a second server.

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::PathBuf;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use nix::sys::signal::Signal;
use weft_tests::eventually::eventually;
use weft_tests::mesh::CTL;
use weft_tests::process::{Process, Program};
use weft_tests::told::Told;

use crate::case::{Case, case};
use crate::impostor::TUNNELS;
use crate::scene::{SOON, Scene, copy_folder, told_by};

/// A user without privileges.
const USER: u32 = 4_242;

/// In this order: the second server is started, looked at, ended, and its store broken.
pub(crate) const CASES: &[Case] = &[
    case("W1001", "a host without a server", |s| s.told("ctl2", &["status"], "W1001")),
    case("W1002", "a host without an agent", |s| s.told("ctl2", &["agent", "status"], "W1002")),
    case("W5001", "a configuration that is cut", |s| agent(s, |_| "node: [\n".to_owned(), "W5001")),
    case("W5002", "a key that is misspelt", |s| agent(s, |yaml| yaml + "advertize: []\n", "W5002")),
    case("W5003", "a file that is not there", |s| s.told(CTL, &["apply", "-f", "/no/such/file"], "W5003")),
    case("W5004", "a value of the wrong type", |s| agent(s, |yaml| yaml + "workers: many\n", "W5004")),
    case("W5005", "a server without a trust domain", |s| {
        server(s, |yaml| yaml.replace("trustDomain: corp.example\n", ""), "W5005")
    }),
    case("W6072", "a further server without an etcd", |s| {
        let token = s.mesh.on_server(&["token", "create", "--for", "server"]).expect_success().stdout;
        let path = s.host("ctl2").folder().join("alone.yaml");
        fs::write(&path, second_yaml(s, "")).map_err(|error| error.to_string())?;
        let join = s.mesh.weft("ctl2", &["server", "join", "--token-file", "-", "--config"]);
        told_by(&join.arg(path).input(&token).run(), "W6072")
    }),
    case("W5006", "a port that another program has", |s| {
        let held = s
            .host("fresh")
            .enter(|| UdpSocket::bind(("0.0.0.0", TUNNELS)))
            .map_err(|error| error.to_string())?;
        let told = agent(s, |yaml| yaml.replace("[::]:7443", "0.0.0.0:7443"), "W5006");
        drop(held);
        told
    }),
    case("W5007", "a port that this user may not have", |s| up(s, &["--port-base", "100"], "W5007")),
    case("W5008", "a key that others can read", |s| {
        spoilt(
            s,
            "node.pem",
            |path| fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap(),
            "W5008",
        )
    }),
    case("W5009", "a state directory below a file", |s| {
        s.told("ctl2", &["up", "--state-dir", "/dev/null/state"], "W5009")
    }),
    case("W5010", "a state directory that an agent uses", |s| {
        let config = s.host("hosta").folder().join("agent.yaml");
        told_by(&s.mesh.weft("hosta", &["agent", "run", "--config"]).arg(config).run(), "W5010")
    }),
    case("W5011", "loopback told to others", |s| agent(s, |yaml| yaml + "advertise: [127.0.0.1]\n", "W5011")),
    case("W5013", "more ports than descriptors", |s| {
        let upstreams: Vec<_> = (0..80)
            .map(|n| format!("{{service: a, port: 80, listen: \"127.0.0.1:{}\"}}", 9_100 + n))
            .collect();
        let workloads =
            format!("workloads: [{{service: fresh, uid: 0, upstreams: [{}]}}]\n", upstreams.join(", "));
        let config = config(s, |yaml| yaml[..yaml.find("workloads:").unwrap()].to_owned() + &workloads);
        let limited = s
            .mesh
            .weft("fresh", &["agent", "run", "--config"])
            .arg(config)
            .through("prlimit", &["--nofile=64:64"]);
        told_by(&limited.run(), "W5013")
    }),
    case("W5014", "a file where the socket should be", |s| {
        let socket = s.mesh.state("fresh").join("run/agent.sock");
        fs::create_dir_all(socket.parent().unwrap()).map_err(|error| error.to_string())?;
        let _ = fs::remove_file(&socket);
        fs::write(&socket, "precious").map_err(|error| error.to_string())?;
        let told = agent(s, |yaml| yaml, "W5014");
        fs::remove_file(&socket).map_err(|error| error.to_string())?;
        told
    }),
    case("W5015", "a file of the state that is cut", |s| {
        spoilt(s, "join.json", |path| fs::write(path, "{").unwrap(), "W5015")
    }),
    case("W3014", "a certificate with another key", |s| {
        let other = fs::read_to_string(s.mesh.state("hosta").join("agent/node.pem"))
            .map_err(|error| error.to_string())?;
        let key = other[other.find("-----BEGIN PRIVATE KEY").unwrap()..].to_owned();
        spoilt(
            s,
            "node.pem",
            |path| {
                let own = fs::read_to_string(path).unwrap();
                fs::write(path, own[..own.find("-----BEGIN PRIVATE KEY").unwrap()].to_owned() + &key)
                    .unwrap();
            },
            "W3014",
        )
    }),
    case("W3016", "a trust bundle that is none", |s| {
        spoilt(s, "bundle.json", |path| fs::write(path, "{\"keys\": 7}").unwrap(), "W3016")
    }),
    case("W5018", "a disk that takes nothing", |s| {
        let state = s.host("ctl2").folder().join("full");
        fs::create_dir(&state).map_err(|error| error.to_string())?;
        // The file that is written first, and renamed when it is whole.
        symlink("/dev/full", state.join("node.tmp")).map_err(|error| error.to_string())?;
        s.told("ctl2", &["up", "--state-dir", &state.display().to_string()], "W5018")
    }),
    case("W5019", "an address of another host", |s| {
        agent(s, |yaml| yaml.replace("[::]:7443", "192.0.2.1:7443"), "W5019")
    }),
    case("W5021", "an address that this host cannot listen on", |s| {
        agent(s, |yaml| yaml.replace("[::]:7443", "[fe80::1]:7443"), "W5021")
    }),
    case("W5023", "an agent that has not joined", |s| {
        let state = s.mesh.state("fresh").join("agent").display().to_string();
        agent(s, |yaml| yaml.replace(&state, &format!("{state}-empty")), "W5023")
    }),
    case("W5024", "a proxy port for everybody", |s| {
        agent(s, |yaml| yaml.replace("127.0.0.1:7480", "0.0.0.0:7480"), "W5024")
    }),
    case("W5012", "small buffers of the kernel", |s| {
        person(s, &["up"]).run().expect_success();
        person(s, &["down"]).run().expect_success();
        // Only root gets more than the kernel's usual limit.
        let agent = users_agent(s, "limits: {tunnels: {socketBuffer: 64MiB}}\n").start();
        Ok(eventually("the agent warns", SOON, || {
            let said = format!("{}{}", agent.stdout(), agent.stderr());
            Told::in_log(&said, "W5012").ok_or(said)
        }))
    }),
    case("W9003", "a user who may have no more threads", |s| {
        told_by(&users_agent(s, "").through("prlimit", &["--nproc=1:1"]).run(), "W9003")
    }),
    case("W3021", "certificates of a minute", |s| {
        let said = second(s, "identity: {leafTtl: 1m, allowShortLifetimes: true}");
        Told::in_log(&said, "W3021").ok_or(said)
    }),
    case("W3025", "certificates that outlive their issuer", |s| {
        s.take("second server").kill();
        let said = second(s, "identity: {leafTtl: 144h}");
        Told::in_log(&said, "W3025").ok_or(said)
    }),
    case("W6034", "an etcd that is not there", |s| {
        let own = s.mesh.state("ctl2").join("server").display().to_string();
        let etcd = format!("etcd: {{path: \"{own}-etcd\", endpoints: [\"http://127.0.0.1:9\"]}}");
        server(s, |yaml| yaml.replace(&format!("embedded: {{path: \"{own}\"}}"), &etcd), "W6034")
    }),
    case("W6002", "a store that another server has", |s| {
        server(s, |yaml| yaml.replace("[::]:7444", "[::]:7544").replace("/run\"", "/run-other\""), "W6002")
    }),
    case("W6018", "more calls than a client may have open", |s| {
        let held = s.mesh.weft("ctl2", &["get", "services", "-A", "-w"]).start();
        let told = eventually("the first call is open", SOON, || {
            s.told("ctl2", &["get", "services", "-A"], "W6018")
        });
        drop(held);
        Ok(told)
    }),
    case("W7014", "more tokens than may wait", |s| {
        let create = ["token", "create", "--for", "user", "--role", "viewer", "--user"];
        let make = |name: &str| s.mesh.weft("ctl2", &create).arg(name).run();
        s.kept_token = eventually("a first token", SOON, || match make("a") {
            made if made.code() == Some(0) => Ok(made.stdout),
            refused => Err(refused.to_string()),
        });
        told_by(&make("b"), "W7014")
    }),
    case("W6055", "an audit log that somebody has changed", |s| {
        let log = fs::read_dir(audit(s)).unwrap().flatten().next().unwrap().path();
        let text = fs::read_to_string(&log).map_err(|error| error.to_string())?;
        fs::write(&log, text.replacen("CreateToken", "CreateTokem", 1)).map_err(|error| error.to_string())?;
        s.told("ctl2", &["server", "audit", "verify"], "W6055")
    }),
    case("W6028", "the server of another mesh", |s| {
        let server = format!("{}:7444", s.host("ctl2").ip4());
        let home = s.host("spare").folder().join("home-vera");
        let vera = s.mesh.weft("spare", &["--server", &server, "get", "services"]);
        told_by(&vera.env("HOME", &home).env("XDG_CONFIG_HOME", home.join("config")).run(), "W6028")
    }),
    case("W7006", "a token that leads to another mesh", |s| {
        let elsewhere = format!("{}:7444", s.host("ctl2").ip4());
        let token = s.mesh.token("seventh", &[]);
        s.mesh.write_agent_config("spare", "seventh", "workloads: []\n");
        told_by(&s.mesh.join("spare", &led_to(&token, &elsewhere)), "W7006")
    }),
    case("W7008", "a seventh attempt to join in a second", |s| {
        let token = s.kept_token.clone();
        let mut told = Err("no attempt".to_owned());
        for _ in 0..8 {
            let login = s.mesh.weft("spare", &["user", "login", "--token-file", "-"]).input(&token);
            let home = s.host("spare").folder().join("home-flood");
            told = told_by(&login.env("HOME", &home).env("XDG_CONFIG_HOME", &home).run(), "W7008");
            if told.is_ok() {
                break;
            }
        }
        told
    }),
    case("W6013", "a watch on a server that ends", |s| {
        let open = |s: &Scene| s.mesh.weft("ctl2", &["get", "services", "-A", "-w"]).start();
        let mut watch = open(s);
        eventually("the watch is open", SOON, || {
            // There is one place: whoever looks whether it is taken may have taken it from the watch.
            if watch.try_wait().is_some() {
                watch = open(s);
            }
            s.told("ctl2", &["get", "services", "-A"], "W6018")
        });
        let mut server = s.take("second server");
        server.signal(Signal::SIGTERM);
        server.finish(SOON);
        told_by(&watch.finish(SOON), "W6013")
    }),
    case("W5022", "a server with the state of another trust domain", |s| {
        server(s, |yaml| yaml.replace("trustDomain: corp.example", "trustDomain: other.example"), "W5022")
    }),
    case("W6004", "a store that is damaged", |s| {
        fs::write(s.mesh.state("ctl2").join("server/registry.redb"), vec![0x5a; 64 << 10])
            .map_err(|error| error.to_string())?;
        server(s, |yaml| yaml, "W6004")
    }),
];

/// Where the second server keeps its audit log.
fn audit(scene: &Scene) -> PathBuf {
    scene.mesh.state("ctl2").join("server/audit")
}

/// Writes the configuration of the agent of "fresh", bent, and returns its path.
fn config(scene: &Scene, bend: impl FnOnce(String) -> String) -> PathBuf {
    let folder = scene.host("fresh").folder();
    let yaml = fs::read_to_string(folder.join("agent.yaml")).unwrap();
    let path = folder.join("bent.yaml");
    fs::write(&path, bend(yaml)).unwrap();
    path
}

/// What an agent with a bent configuration tells when it does not start.
fn agent(scene: &Scene, bend: impl FnOnce(String) -> String, code: &str) -> Result<Told, String> {
    let config = config(scene, bend);
    told_by(&scene.mesh.weft("fresh", &["agent", "run", "--config"]).arg(config).limit(SOON).run(), code)
}

/// What the agent of "fresh" tells of its state when one file of it was spoilt. The state itself stays as it is.
fn spoilt(scene: &Scene, file: &str, spoil: impl FnOnce(&PathBuf), code: &str) -> Result<Told, String> {
    let state = scene.mesh.state("fresh").join("agent");
    let copy = state.with_file_name("agent-spoilt");
    let _ = fs::remove_dir_all(&copy);
    copy_folder(&state, &copy);
    spoil(&copy.join(file));
    let (own, other) = (state.display().to_string(), copy.display().to_string());
    agent(scene, |yaml| yaml.replace(&format!("\"{own}\""), &format!("\"{other}\"")), code)
}

/// The configuration of the second server.
fn second_yaml(scene: &Scene, lines: &str) -> String {
    let (host, state) = (scene.host("ctl2"), scene.mesh.state("ctl2"));
    format!(
        "cluster: local\ntrustDomain: corp.example\nadvertise: [\"{}\"]\nlisten: {{control: \"[::]:7444\"}}\n\
         store: {{embedded: {{path: \"{state}/server\"}}}}\nrunDir: \"{state}/run\"\n\
         limits: {{streamsPerClient: 1, openTokens: 1}}\n{lines}\n",
        host.ip4(),
        state = state.display(),
    )
}

fn server_program(scene: &Scene, yaml: &str, name: &str) -> Program {
    let path = scene.host("ctl2").folder().join(name);
    fs::write(&path, yaml).unwrap();
    scene.mesh.weft("ctl2", &["server", "run", "--config"]).arg(path)
}

/// What a server with a bent configuration tells when it does not start.
fn server(scene: &Scene, bend: impl FnOnce(String) -> String, code: &str) -> Result<Told, String> {
    let yaml = bend(second_yaml(scene, ""));
    told_by(&server_program(scene, &yaml, "bent.yaml").limit(SOON).run(), code)
}

/// Starts the second server and returns what it said until it was ready.
fn second(scene: &mut Scene, lines: &str) -> String {
    let yaml = second_yaml(scene, lines);
    let server = server_program(scene, &yaml, "server.yaml").start();
    let ready = |server: &Process| {
        let said = format!("{}{}", server.stdout(), server.stderr());
        if said.contains("server ready") { Ok(said) } else { Err(said) }
    };
    let said = eventually("the second server is ready", SOON, || ready(&server));
    scene.kept.push(("second server", server));
    said
}

/// A `weft` command of a user without privileges on the spare host.
fn person(scene: &Scene, args: &[&str]) -> Program {
    let home = scene.host("spare").folder().join("user");
    if !home.exists() {
        fs::create_dir(&home).unwrap();
        chown(&home, Some(USER), Some(USER)).unwrap();
    }
    let program =
        scene.mesh.weft("spare", args).env("HOME", &home).env("XDG_CONFIG_HOME", home.join("config"));
    let program = program.env("XDG_DATA_HOME", home.join("data")).env("XDG_RUNTIME_DIR", home.join("run"));
    program.env("WEFT_STATE_DIR", home.join("data/weft")).as_user(USER)
}

/// The agent of that user, as the one that was up, with more lines in its configuration.
fn users_agent(scene: &Scene, lines: &str) -> Program {
    let home = scene.host("spare").folder().join("user");
    let config = home.join("agent.yaml");
    let yaml = fs::read_to_string(home.join("data/weft/agent.yaml")).unwrap();
    fs::write(&config, yaml + "logs: {access: \"off\"}\n" + lines).unwrap();
    chown(&config, Some(USER), Some(USER)).unwrap();
    person(scene, &["agent", "run", "--config"]).arg(&config)
}

fn up(scene: &Scene, args: &[&str], code: &str) -> Result<Told, String> {
    told_by(&person(scene, &["up"]).args(args).run(), code)
}

/// The same token with another server in it.
fn led_to(token: &str, server: &str) -> String {
    let encoded = token.trim().strip_prefix("weft1.").unwrap();
    let mut fields: serde_json::Value =
        serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(encoded).unwrap()).unwrap();
    fields["a"] = vec![server].into();
    format!("weft1.{}", BASE64_URL_SAFE_NO_PAD.encode(fields.to_string()))
}
