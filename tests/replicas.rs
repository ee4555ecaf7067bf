//! Two servers over one etcd: the second is let in, takes its part of the agents, and goes on alone; and both go on while a
//! member of etcd is lost.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;

use weft_tests::app::{self, loopback};
use weft_tests::eventually::{Stopwatch, eventually};
use weft_tests::load::{self, Traffic, failed_since, http_get};
use weft_tests::manifest::{allow, deny, service};
use weft_tests::mesh::{CTL, ETCD_PORT, Mesh, Workload};
use weft_tests::process::{Finished, Process};

/// nginx of "charge" on hostb.
const HTTP: u16 = 8081;
/// Where "order" on hosta reaches it.
const TO_CHARGE: u16 = 9001;
/// Where each server tells its metrics.
const METRICS: [u16; 2] = [7402, 7412];
const SOON: Duration = Duration::from_secs(20);
/// Certificates live so long, so a server that was just let in has others sign for so long.
const LEAF: Duration = Duration::from_secs(20);

#[test]
fn a_second_server_is_let_in_shares_the_agents_and_goes_on_alone() {
    let mut scene = Scene::start();
    let hosta = scene.mesh.host("hosta").clone();
    let unknown = scene.weft_with_config(&["server", "run"]).expect_code(2);
    assert!(unknown.stderr.contains("weft server join"), "a stranger does not serve: {unknown}");
    let agents_token = scene.mesh.on_server(&["token", "create", "--for", "agent", "--node", "hostz"]);
    let wrong = scene.join(&agents_token.expect_success().stdout).expect_code(8);
    assert!(wrong.stderr.contains("W7010"), "a token for an agent lets no server in: {wrong}");

    let withdrawn = scene.mesh.on_server(&["token", "create", "--for", "server", "-o", "json"]);
    let withdrawn: serde_json::Value = serde_json::from_str(&withdrawn.expect_success().stdout).unwrap();
    scene.mesh.on_server(&["token", "revoke", withdrawn["id"].as_str().unwrap()]).expect_success();
    let refused = scene.join(withdrawn["token"].as_str().unwrap()).expect_code(8);
    assert!(refused.stderr.contains("W7007"), "{refused}");
    let stranger = scene.weft_with_config(&["server", "run"]).expect_code(2);
    assert!(stranger.stderr.contains("W6070"), "keys alone make nobody a server of the mesh: {stranger}");

    let traffic = Traffic::start(&hosta, loopback(TO_CHARGE));
    let token = scene.mesh.on_server(&["token", "create", "--for", "server"]).expect_success().stdout;
    scene.join(&token).expect_success();
    let again = scene.join(&token).expect_code(8);
    assert!(again.stderr.contains("W7001"), "a token lets one server in: {again}");
    let mut second = scene.second();
    eventually("the second server has its part of the agents", SOON, || match scene.agents() {
        [1, 1] => Ok(()),
        other => Err(format!("{other:?}")),
    });

    // Whoever asks one server learns of both.
    eventually("both servers and their agents are told", SOON, || {
        // It exits with 1 while there is a problem, such as an agent that moves.
        let status = scene.mesh.on_server(&["status"]).stdout;
        let listed = scene.mesh.on_server(&["get", "agents", "--no-headers"]).expect_success().stdout;
        let connected = listed.lines().filter(|line| line.contains(" connected ")).count();
        let at: BTreeSet<_> = listed.lines().filter_map(|line| line.split_whitespace().last()).collect();
        let beside = status.lines().any(|line| line.starts_with("beside ") && line.contains("agents 1"));
        if beside && connected == 2 && at.len() == 2 { Ok(()) } else { Err(format!("{status}{listed}")) }
    });

    // Certificates are renewed meanwhile; those that the new server hands out are signed by the old one.
    eventually("the first server signs for the second", LEAF, || {
        let said = scene.mesh.server().stderr();
        if said.contains("signed for another server") { Ok(()) } else { Err(said) }
    });
    std::thread::sleep(LEAF);
    scene.mesh.kill_server();
    eventually("the second server has all agents", SOON, || match scene.agents_of(1) {
        Some(2) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    // Every certificate that stood at the loss of the first server has ended by now.
    std::thread::sleep(LEAF + Duration::from_secs(2));
    let failed = failed_since(&traffic.stop(), Duration::ZERO);
    assert!(failed.is_empty(), "{failed:?}");

    scene.on_second(&["apply", "-f", "-"], &deny("order", "charge"));
    eventually("the denial is in force", SOON, || match hosta.enter(|| load::call(loopback(TO_CHARGE))) {
        Ok(()) => Err("the call is allowed".to_owned()),
        Err(_) => Ok(()),
    });
    second.assert_running();

    // The first one comes back as it was, and what happened without it is in force there.
    scene.mesh.start_server();
    scene.mesh.wait_for_server();
    let listed = scene.mesh.on_server(&["get", "authorizationpolicies", "-A"]).expect_success();
    assert!(listed.stdout.contains("deny"), "{listed}");
    eventually("both servers have agents", SOON, || match scene.agents() {
        [1, 1] => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

#[test]
fn two_servers_over_three_members_of_etcd_miss_none_of_them() {
    let mut scene = Scene::over(3);
    let hosta = scene.mesh.host("hosta").clone();
    let token = scene.mesh.on_server(&["token", "create", "--for", "server"]).expect_success().stdout;
    scene.join(&token).expect_success();
    let mut second = scene.second();
    eventually("both servers have agents", SOON, || match scene.agents() {
        [1, 1] => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let traffic = Traffic::start(&hosta, loopback(TO_CHARGE));
    // Where this begins a server is connected to the first, and one of the three leads.
    for (member, fault) in [(0, Loss::Killed), (1, Loss::Paused), (2, Loss::CutOff), (0, Loss::Paused)] {
        scene.lose(member, fault);
        let watch = Stopwatch::start();
        let (by_first, by_second) =
            (format!("first-{member}-{fault:?}"), format!("second-{member}-{fault:?}"));
        let (by_first, by_second) = (by_first.to_lowercase(), by_second.to_lowercase());
        scene.mesh.apply(&service(&by_first, &[("http", 80, "http")]));
        scene.on_second(&["apply", "-f", "-"], &service(&by_second, &[("http", 80, "http")]));
        println!("{fault:?} member {member}: both servers wrote after {:?}", watch.elapsed());
        // What was written through one server is read, and current, at both.
        eventually("both servers are current", SOON, || {
            for done in [scene.listed_at_first(), scene.listed_at_second()] {
                let known = done.stdout.contains(&by_first) && done.stdout.contains(&by_second);
                if !known || done.stderr.contains("as of ") {
                    return Err(done.to_string());
                }
            }
            Ok(())
        });
        scene.find(member, fault);
    }
    second.assert_running();
    let failed = failed_since(&traffic.stop(), Duration::ZERO);
    assert!(failed.is_empty(), "{failed:?}");
    scene.on_second(&["apply", "-f", "-"], &deny("order", "charge"));
    eventually("the denial is in force", SOON, || match hosta.enter(|| load::call(loopback(TO_CHARGE))) {
        Ok(()) => Err("the call is allowed".to_owned()),
        Err(_) => Ok(()),
    });
}

/// How a member of etcd is lost.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Loss {
    Killed,
    Paused,
    /// No packet reaches the ports on which it is asked, by servers and by the other members.
    CutOff,
}

/// A mesh over etcd in which order on hosta may call charge on hostb, and the configuration of a second server.
struct Scene {
    mesh: Mesh,
    _nginx: Process,
}

impl Scene {
    fn start() -> Self {
        Self::over(1)
    }

    /// Over so many members of etcd.
    fn over(members: usize) -> Self {
        let lives = format!("identity: {{leafTtl: {}s, allowShortLifetimes: true}}\n", LEAF.as_secs());
        let mesh = Mesh::builder()
            .node("hosta", &[Workload::new("order").upstream("charge", 80, TO_CHARGE)])
            .node("hostb", &[Workload::new("charge").serves("http", HTTP)])
            .manifest(service("charge", &[("http", 80, "http")]))
            .manifest(allow("order", "charge"))
            .server_line(&lives)
            .etcd_members(members)
            .start();
        let hostb = mesh.host("hostb").clone();
        let nginx = app::nginx(&hostb, HTTP, hostb.folder());
        app::wait_for_port(&hostb, loopback(HTTP), SOON);
        let hosta = mesh.host("hosta").clone();
        mesh.wait_for_call("order calls charge", || hosta.enter(|| load::call(loopback(TO_CHARGE))));
        let folder = mesh.host(CTL).folder().to_path_buf();
        let text = fs::read_to_string(folder.join("server.yaml")).unwrap();
        let text = text
            .replace(":7444", ":7445")
            .replace(":7401", ":7411")
            .replace(":7402", ":7412")
            .replace("state/server", "state/second")
            .replace("state/run", "state/run2");
        fs::write(folder.join("second.yaml"), text).unwrap();
        Self { mesh, _nginx: nginx }
    }

    fn weft_with_config(&self, args: &[&str]) -> Finished {
        let config = self.mesh.host(CTL).folder().join("second.yaml");
        self.mesh.weft(CTL, args).arg("--config").arg(config).run()
    }

    fn join(&self, token: &str) -> Finished {
        let config = self.mesh.host(CTL).folder().join("second.yaml");
        let program = self.mesh.weft(CTL, &["server", "join", "--token-file", "-", "--config"]);
        program.arg(config).input(token).run()
    }

    fn second(&self) -> Process {
        let config = self.mesh.host(CTL).folder().join("second.yaml");
        self.mesh.weft(CTL, &["server", "run", "--config"]).arg(config).start()
    }

    fn on_second(&self, args: &[&str], input: &str) {
        let socket = self.mesh.state(CTL).join("run2/server.sock");
        let program = self.mesh.weft(CTL, &["--server"]).arg(socket).args(args);
        program.input(input).run().expect_success();
    }

    fn lose(&mut self, member: usize, loss: Loss) {
        match loss {
            Loss::Killed => self.mesh.kill_etcd_member(member),
            Loss::Paused => self.mesh.etcd_member(member).signal(Signal::SIGSTOP),
            Loss::CutOff => {
                let client = ETCD_PORT + 100 * u16::try_from(member).unwrap();
                let ports = format!("{{{client}, {}}}", client + 1);
                self.filter(&format!("  tcp dport {ports} drop\n  tcp sport {ports} drop\n"));
            }
        }
    }

    fn find(&mut self, member: usize, loss: Loss) {
        match loss {
            Loss::Killed => self.mesh.start_etcd_member(member),
            Loss::Paused => self.mesh.etcd_member(member).signal(Signal::SIGCONT),
            Loss::CutOff => self.filter(""),
        }
        // The next one may be lost once this one has caught up: it answers for the whole cluster.
        let endpoint = format!("127.0.0.1:{}", ETCD_PORT + 100 * u16::try_from(member).unwrap());
        eventually("the member is back", SOON, || {
            let program = self.mesh.host(CTL).program("etcdctl").env("ETCDCTL_API", "3");
            let done = program
                .args(["--endpoints", &endpoint, "--command-timeout", "2s", "endpoint", "health"])
                .run();
            if done.code() == Some(0) { Ok(()) } else { Err(done.to_string()) }
        });
    }

    /// Puts `rules` in the way of what the host of the servers sends itself; `""` removes them.
    fn filter(&self, rules: &str) {
        let table = format!(
            "table inet weft\ndelete table inet weft\ntable inet weft {{\n chain input {{\n  \
             type filter hook input priority 0; policy accept;\n{rules} }}\n}}\n"
        );
        self.mesh.host(CTL).program("nft").args(["-f", "-"]).input(&table).run().expect_success();
    }

    fn listed_at_first(&self) -> Finished {
        self.mesh.on_server(&["get", "services", "-n", "shop"]).expect_success()
    }

    fn listed_at_second(&self) -> Finished {
        let socket = self.mesh.state(CTL).join("run2/server.sock");
        let program = self.mesh.weft(CTL, &["--server"]).arg(socket);
        program.args(["get", "services", "-n", "shop"]).run().expect_success()
    }

    /// How many agents are connected to the first and the second server.
    fn agents(&self) -> [u64; 2] {
        [0, 1].map(|server| self.agents_of(server).unwrap_or(u64::MAX))
    }

    fn agents_of(&self, server: usize) -> Option<u64> {
        let (_, text) = http_get(self.mesh.host(CTL), loopback(METRICS[server]), "/metrics").ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("weft_registry_agents "))?;
        line.parse().ok()
    }
}
