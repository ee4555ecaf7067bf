//! A mesh whose every process tells all it can, and everything that a person, an administrator or a program asks of it,
//! with every secret that it has used on the way.
//!
//! ```text
//!   ctl    server at trace level      hosta  the callers: "order", and "twin-a" and "twin-b" of one user
//!   hostb  "charge"                   hostc  joined by one command, which starts the agent in the background
//!   own    `weft up`                  spare  a person; those who are refused
//! ```

use std::fs::{self, DirBuilder, OpenOptions};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use serde_json::Value;
use weft_tests::app;
use weft_tests::eventually::eventually;
use weft_tests::manifest::{NAMESPACE, allow, service};
use weft_tests::mesh::{CTL, Mesh};
use weft_tests::process::{Finished, Process, Program};

use crate::memory;
use crate::needles::Secrets;

/// The user of both twins: a credential says which of them a program is.
const TWINS: u32 = 4_302;
const PROXY: u16 = 7_480;
const HTTP: u16 = 8_081;
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// See the module.
pub(crate) struct Scene {
    pub(crate) mesh: Mesh,
    pub(crate) secrets: Secrets,
    programs: Vec<Process>,
}

impl Scene {
    /// Starts the mesh, joins and logs in, with tokens in files as people have them.
    #[track_caller]
    pub(crate) fn start() -> Self {
        let hosts = ["hosta", "hostb", "hostc", "own", "spare"];
        let mesh = hosts.into_iter().fold(Mesh::builder(), weft_tests::mesh::Builder::host);
        let mesh =
            mesh.manifest(service("charge", &[("http", 80, "http")])).manifest(allow("order", "charge"));
        let mesh = mesh.manifest(allow("twin-a", "charge")).log("trace").start();
        DirBuilder::new().mode(0o700).create(mesh.folder().join("handed")).expect("the folder is ours");
        let mut scene = Self { mesh, secrets: Secrets::default(), programs: Vec::new() };
        for (host, workloads) in [("hosta", callers()), ("hostb", charge())] {
            let token = scene.token(&["agent", "--node", host, "--namespace", NAMESPACE], host);
            let config = scene.mesh.write_agent_config(host, host, &workloads);
            scene
                .verbose(host, &["agent", "join", "--no-start", "--token-file"])
                .arg(token)
                .arg("--config")
                .arg(config)
                .run()
                .expect_success();
            scene.mesh.start_agent(host);
        }
        let token = scene.token(&["agent", "--node", "hostc", "--namespace", NAMESPACE], "hostc");
        scene.verbose("hostc", &["agent", "join", "--token-file"]).arg(token).run().expect_success();
        let token = scene.token(&["user", "--user", "ann", "--role", "admin"], "ann");
        scene.person("ann", &["user", "login", "--token-file"]).arg(token).run().expect_success();
        scene.token(&["server"], "a-server");
        scene.verbose("own", &["up"]).run().expect_success();
        let hostb = scene.mesh.host("hostb");
        let run = ["run", "--service", "order", "--", "sleep", "600"];
        scene.programs = vec![app::nginx(hostb, HTTP, hostb.folder()), scene.verbose("own", &run).start()];
        for host in ["hosta", "hostb"] {
            scene.mesh.wait_for_agent(host);
        }
        scene.wait_for_files();
        scene
    }

    /// A token as `weft token create` prints it, in a file for its holder; its secret is one of ours.
    #[track_caller]
    fn token(&mut self, purpose: &[&str], name: &str) -> PathBuf {
        let path = self.handed(name, "");
        let create = self.verbose(CTL, &["token", "create", "--for"]).args(purpose).output_to(&path);
        create.run().expect_success();
        let secret = content(&fs::read_to_string(&path).expect("it was just written"))["s"].clone();
        self.add_token(name, secret.as_str().expect("its secret is text"));
        path
    }

    pub(crate) fn add_token(&mut self, name: &str, secret: &str) {
        self.secrets.add(&format!("the text of the token of {name}"), secret.as_bytes());
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(secret).expect("base64url");
        self.secrets.add(&format!("the token of {name}"), &bytes);
    }

    /// A file of a person who was handed something.
    #[track_caller]
    pub(crate) fn handed(&self, name: &str, text: &str) -> PathBuf {
        let path = self.mesh.folder().join("handed").join(name);
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).expect("the folder is ours");
        fs::write(&path, text).expect("the file is ours");
        path
    }

    /// A `weft` command that tells each step and each call.
    pub(crate) fn verbose(&self, host: &str, args: &[&str]) -> Program {
        self.mesh.weft(host, &["-vv"]).args(args)
    }

    /// A `weft` command of a person on the spare host.
    pub(crate) fn person(&self, name: &str, args: &[&str]) -> Program {
        let home = self.mesh.host("spare").folder().join(format!("home-{name}"));
        self.verbose("spare", args).env("HOME", &home).env("XDG_CONFIG_HOME", home.join("config"))
    }

    /// Waits until the agents have written what they keep of each workload.
    #[track_caller]
    fn wait_for_files(&self) {
        let (hosta, hostb) = (self.mesh.state("hosta").join("agent"), self.mesh.state("hostb").join("agent"));
        let wanted = ["order", "twin-a", "twin-b"]
            .map(|name| hosta.join(format!("svids/{NAMESPACE}.{name}-hosta.pem")));
        let all: Vec<PathBuf> =
            wanted.into_iter().chain([hostb.join(format!("svids/{NAMESPACE}.charge-hostb.pem"))]).collect();
        // Its name is the host's, which is that of the machine.
        let of_run = self.mesh.state("own").join("agent/credentials");
        eventually("all workloads have their identities", SOON, || {
            let missing: Vec<_> = all.iter().filter(|path| !path.exists()).collect();
            let ran = fs::read_dir(&of_run).is_ok_and(|files| files.count() > 0);
            if missing.is_empty() && ran { Ok(()) } else { Err(format!("{missing:?}, run: {ran}")) }
        });
    }

    /// Adds the keys and credentials that stand in the files which are meant to hold them.
    #[track_caller]
    pub(crate) fn collect(&mut self, file: &Path) {
        let name = file.strip_prefix(self.mesh.folder()).unwrap_or(file).display().to_string();
        let bytes = fs::read(file).unwrap_or_else(|error| panic!("{name}: {error}"));
        if file.ends_with("keys") {
            self.secrets.add(&name, &bytes);
            return;
        }
        let text = String::from_utf8(bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        if file.ends_with("records/key.json") {
            self.secrets.add(&name, &record_seed(&text));
            return;
        }
        if self.secrets.add_pem(&name, &text) > 0 || name.starts_with("handed/") {
            return;
        }
        let (_, secret) = text.trim().split_once(':').unwrap_or_else(|| panic!("{name} is no credential"));
        self.secrets.add(&format!("the text of {name}"), secret.as_bytes());
        self.secrets.add(&name, &BASE64_URL_SAFE_NO_PAD.decode(secret).expect("base64url"));
    }

    /// Adds the keys that the running processes hold and no file does, such as the server's own; returns how many.
    #[track_caller]
    pub(crate) fn collect_from_memory(&mut self) -> usize {
        let before = self.secrets.len();
        let server = ("the server", self.mesh.server().pid());
        let agents = ["hosta", "hostb"].map(|host| (host, self.mesh.agent(host).pid()));
        for (name, pid) in [server].into_iter().chain(agents) {
            let keys = memory::keys_of(pid);
            assert!(
                keys.iter().any(|key| self.secrets.knows(key)),
                "{name} holds none of the keys that its files hold"
            );
            keys.iter().for_each(|key| self.secrets.add(&format!("a key in the memory of {name}"), key));
        }
        self.secrets.len() - before
    }

    /// Programs call with every proof that a proxy takes, right and wrong.
    #[track_caller]
    pub(crate) fn call(&mut self) {
        let credential = |name: &str| {
            let path = self.mesh.state("hosta").join(format!("agent/credentials/{name}-hosta.{NAMESPACE}"));
            fs::read_to_string(&path)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
                .trim()
                .to_owned()
        };
        let (right, denied) = (credential("twin-a"), credential("twin-b"));
        let invented = "Zm9yZ2VkIHByb3h5IHNlY3JldA-0123456789";
        let wrong = format!("twin-a-hosta.{NAMESPACE}:{invented}");
        let url = format!("http://charge.{NAMESPACE}.svc.weft/ok");
        eventually("a call with a credential succeeds", SOON, || {
            let answer = self.proxied("http", &right, &url);
            if answer.stdout.contains("200 OK") { Ok(()) } else { Err(answer.to_string()) }
        });
        let answers = [("socks5h", &right, "200 OK"), ("http", &denied, "W2101"), ("http", &wrong, "W2204")];
        for (scheme, proof, expected) in answers {
            let answer = self.proxied(scheme, proof, &url);
            assert!(answer.stdout.contains(expected), "{expected}: {answer}");
        }
        self.proxied("socks5h", &wrong, &url);
        self.secrets.add("an invented proxy credential", invented.as_bytes());
        let bearer = "c2VjcmV0IG9mIGEgY2FsbGVyIGFuZCBpdHMgc2VydmljZQ";
        let header = format!("header = \"Authorization: Bearer {bearer}\"\n");
        let answer = self.curl(&(header + &with_proof("http", &right, &url))).run();
        assert!(answer.stdout.contains("200 OK"), "{answer}");
        self.secrets.add("what a caller sends to a service", bearer.as_bytes());
    }

    #[track_caller]
    fn proxied(&self, scheme: &str, proof: &str, url: &str) -> Finished {
        self.curl(&with_proof(scheme, proof, url)).run()
    }

    /// curl of the twins' user, which reads its configuration, as no proof must stand in its arguments.
    fn curl(&self, config: &str) -> Program {
        let curl =
            self.mesh.host("hosta").program("curl").args(["-s", "-i", "--max-time", "10", "--config", "-"]);
        curl.input(config).env("no_proxy", "").as_user(TWINS)
    }
}

/// The secret bytes of the key that signs records: the seed of an Ed25519 key in PKCS#8 (RFC 8410, section 7). What
/// stands around it is public, and in the store.
#[track_caller]
fn record_seed(text: &str) -> Vec<u8> {
    const BEFORE: [u8; 4] = [0x04, 0x22, 0x04, 0x20];
    let kept: Value = serde_json::from_str(text).expect("JSON");
    let key = BASE64_STANDARD.decode(kept["key"].as_str().expect("it holds a key")).expect("base64");
    let at = key.windows(BEFORE.len()).position(|window| window == BEFORE).expect("a key of Ed25519");
    key[at + BEFORE.len()..][..32].to_vec()
}

/// The workloads of hosta.
fn callers() -> String {
    let one = |name: &str, uid: u32| {
        format!("  - {{service: {name}, namespace: {NAMESPACE}, ports: {{}}, uid: {uid}}}\n")
    };
    format!("workloads:\n{}{}{}", one("order", 0), one("twin-a", TWINS), one("twin-b", TWINS))
}

/// The workload of hostb.
fn charge() -> String {
    format!(
        "workloads:\n  - {{service: charge, namespace: {NAMESPACE}, ports: {{http: \"127.0.0.1:{HTTP}\"}}, uid: 0}}\n"
    )
}

/// The configuration of a curl that proves who it is to the proxy.
fn with_proof(scheme: &str, proof: &str, url: &str) -> String {
    format!("proxy = \"{scheme}://127.0.0.1:{PROXY}\"\nproxy-user = \"{proof}\"\nurl = \"{url}\"\n")
}

/// The JSON within a token.
#[track_caller]
pub(crate) fn content(token: &str) -> Value {
    let encoded = token.trim().strip_prefix("weft1.").expect("a token");
    serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(encoded).expect("base64url")).expect("JSON")
}
