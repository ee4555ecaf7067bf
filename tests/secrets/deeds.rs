//! Everything that fails with a secret in its hands, and everything that may be asked for.

use std::fs;
use std::path::PathBuf;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use weft_tests::app::loopback;
use weft_tests::load::http_get;
use weft_tests::manifest::NAMESPACE;
use weft_tests::mesh::CTL;
use weft_tests::process::Finished;

use crate::scene::{SOON, Scene, content};

/// Where the hosts that have one serve their pages.
const ADMIN: u16 = 7_401;
const METRICS: u16 = 7_402;
/// Every kind of resource.
const KINDS: &str = "meshes,namespaces,services,workloads,workloadenrollments,tcproutes,trafficpolicies,authorizationpolicies";

impl Scene {
    /// Joins, logins and starts that fail, each with a secret in its hands.
    #[track_caller]
    pub(crate) fn fail(&mut self) {
        let handed = |name: &str| self.mesh.folder().join("handed").join(name);
        let (used, person) = (handed("hosta"), handed("ann"));
        let text = fs::read_to_string(&used).expect("it was handed over");
        let mut forged = content(&text);
        let secret = BASE64_URL_SAFE_NO_PAD.encode(b"a secret that no server has made");
        forged["s"] = json!(secret);
        let wrong = format!("weft1.{}", BASE64_URL_SAFE_NO_PAD.encode(forged.to_string()));
        self.add_token("a forger", &secret);
        let wrong = self.handed("forged", &wrong);
        let cut = self.handed("cut", &text.trim()[..text.trim().len() - 3]);
        let node = self.mesh.state("hosta").join("agent/node.pem");
        let authority = self.mesh.state(CTL).join("server/ca/authority.json");
        let records = self.mesh.state(CTL).join("server/records/key.json");
        let config = self.mesh.write_agent_config("spare", "hosta", "");
        let of_server = self.mesh.host(CTL).folder().join("server.yaml");
        for token in [&used, &wrong, &cut, &person, &node, &authority, &records] {
            let join = self.verbose("spare", &["server", "join", "--token-file"]).arg(token);
            refused(&join.arg("--config").arg(&of_server).run());
            let join = self.verbose("spare", &["agent", "join", "--no-start", "--token-file"]).arg(token);
            refused(&join.arg("--config").arg(&config).run());
            refused(&self.person("bob", &["user", "login", "--token-file"]).arg(token).run());
        }
        for file in [&used, &node, &authority, &records] {
            refused(&self.verbose(CTL, &["apply", "-f"]).arg(file).run());
            refused(&self.verbose("spare", &["agent", "run", "--config"]).arg(file).run());
            refused(&self.verbose("spare", &["server", "run", "--config"]).arg(file).run());
            refused(&self.verbose("spare", &["config", "view", "--agent-config"]).arg(file).run());
        }
        // As an argument the token is the person's own deed: what counts is that nothing repeats it.
        refused(&self.verbose("spare", &["agent", "join", text.trim()]).run());
        refused(&self.verbose("spare", &["user", "login", "--token-file", text.trim()]).run());
        refused(&self.verbose("spare", &["get", "services", "--server", text.trim()]).run());
    }

    /// A server and an agent do not start with what they keep: damaged, but the secret is still in it.
    #[track_caller]
    pub(crate) fn fail_to_start(&mut self) {
        let authority = self.mesh.state(CTL).join("server/ca/authority.json");
        let text = fs::read_to_string(&authority).expect("the server has one");
        let mut spoilt: Value = serde_json::from_str(&text).expect("JSON");
        let key = first_key(&spoilt).expect("it holds keys").to_owned();
        spoilt["format"] = json!(key);
        self.mesh.stop_server(SOON);
        let config = self.mesh.host(CTL).folder().join("server.yaml");
        let backup = self.mesh.host(CTL).folder().join("mesh.backup");
        self.verbose(CTL, &["server", "backup"])
            .arg(backup)
            .arg("--config")
            .arg(&config)
            .run()
            .expect_success();
        for text in [
            spoilt.to_string(),
            text.replace("-----BEGIN PRIVATE", "-----BEGIN STOLEN"),
            text[..text.len() / 2].to_owned(),
        ] {
            fs::write(&authority, text).expect("the file is there");
            refused(&self.verbose(CTL, &["server", "run", "--config"]).arg(&config).run());
        }
        fs::write(&authority, text).expect("the file is there");
        let records = self.mesh.state(CTL).join("server/records/key.json");
        let text = fs::read_to_string(&records).expect("the server has one");
        let mut spoilt: Value = serde_json::from_str(&text).expect("JSON");
        spoilt["format"] = spoilt["key"].clone();
        for text in [spoilt.to_string(), text[..text.len() / 2].to_owned()] {
            fs::write(&records, text).expect("the file is there");
            refused(&self.verbose(CTL, &["server", "run", "--config"]).arg(&config).run());
        }
        fs::write(&records, text).expect("the file is there");
        self.mesh.kill_agent("hostb");
        let node = self.mesh.state("hostb").join("agent/node.pem");
        let text = fs::read_to_string(&node).expect("the agent has one");
        for text in [text.replace("BEGIN PRIVATE", "BEGIN STOLEN"), text[..text.len() - 40].to_owned()] {
            fs::write(&node, text).expect("the file is there");
            let config = self.mesh.host("hostb").folder().join("agent.yaml");
            refused(&self.verbose("hostb", &["agent", "run", "--config"]).arg(config).run());
        }
        fs::write(&node, text).expect("the file is there");
    }

    /// Asks for everything that there is to see, in every form; the answers stay in files of the run.
    #[track_caller]
    pub(crate) fn ask_for_everything(&self) {
        let server = format!("{}:7444", self.mesh.host(CTL).ip4());
        for form in ["json", "yaml", "wide"] {
            for what in [KINDS, "agents"] {
                self.verbose(CTL, &["get", what, "-A", "-o", form]).run().expect_success();
                let own = ["--server", &server, "get", what, "-A", "-o", form];
                self.person("ann", &own).run().expect_success();
            }
            for asked in [
                ["token", "list"].as_slice(),
                &["status"],
                &["server", "audit", "show"],
                &["history", "service/charge", "-n", NAMESPACE],
                &["identity", "ca", "show"],
                &["describe", "service", "charge", "-n", NAMESPACE],
            ] {
                self.verbose(CTL, asked).args(["-o", form]).run().expect_success();
            }
            for asked in
                [["agent", "status"].as_slice(), &["identity", "svid", "show", "--pem"], &["explain", "last"]]
            {
                self.verbose("hosta", asked).args(["-o", form]).run().expect_success();
            }
        }
        for host in ["hosta", "hostb", CTL] {
            let config = if host == CTL {
                ["--server-config", "server.yaml"]
            } else {
                ["--agent-config", "agent.yaml"]
            };
            self.verbose(host, &["config", "view"]).args(config).run().expect_success();
            for (port, path) in PAGES {
                if let Ok((200, page)) = http_get(self.mesh.host(host), loopback(*port), path) {
                    let file =
                        self.mesh.host(host).folder().join(format!("page-{}", path[1..].replace('/', "-")));
                    fs::write(file, page).expect("the folder is ours");
                }
            }
        }
    }

    /// The arguments and the environment of every process of the hosts, with who it is.
    #[track_caller]
    pub(crate) fn processes(&self) -> Vec<(String, Vec<u8>)> {
        let hosts = [CTL, "hosta", "hostb", "hostc", "own", "spare"];
        let namespace = |name: &str| self.mesh.host(name).enter(|| fs::read_link("/proc/thread-self/ns/net"));
        let ours: Vec<PathBuf> = hosts.iter().map(|name| namespace(name).expect("it has one")).collect();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").expect("a system with /proc").flatten() {
            let process = entry.path();
            if !fs::read_link(process.join("ns/net")).is_ok_and(|own| ours.contains(&own)) {
                continue;
            }
            let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
            for part in ["cmdline", "environ"] {
                let text = fs::read(process.join(part)).unwrap_or_default();
                found.push((format!("the {part} of {} {}", name.trim(), process.display()), text));
            }
        }
        found
    }
}

/// Every page of a server or an agent.
const PAGES: &[(u16, &str)] = &[
    (METRICS, "/metrics"),
    (METRICS, "/readyz"),
    (METRICS, "/livez"),
    (ADMIN, "/version"),
    (ADMIN, "/config"),
    (ADMIN, "/config_dump"),
    (ADMIN, "/flows?limit=1000"),
    (ADMIN, "/tunnels"),
];

/// Checks that it was refused in the form of all errors.
#[track_caller]
fn refused(finished: &Finished) {
    assert!(finished.code() != Some(0) && finished.stderr.contains("error[W"), "{finished}");
}

/// The first text in it that is a private key.
fn first_key(value: &Value) -> Option<&str> {
    match value {
        Value::String(text) => text.contains("PRIVATE KEY").then_some(text),
        Value::Array(all) => all.iter().find_map(first_key),
        Value::Object(all) => all.values().find_map(first_key),
        Value::Null | Value::Bool(_) | Value::Number(_) => None,
    }
}
