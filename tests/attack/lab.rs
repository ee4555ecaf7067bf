//! The attacker's side: starts a tool, reads its JSON lines.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncWriteExt, copy};
use tokio::task::JoinSet;
use weft_overlay::{Accepted, Incoming, Overlay, TransportSettings};
use weft_tests::forge::Leaf;
use weft_tests::handshake::{self, Lab, ORDER};
use weft_tests::python;

/// An endpoint that echoes every flow, and a certificate that it trusts.
pub(crate) struct Bench {
    pub(crate) victim: Overlay,
    folder: TempDir,
    _serving: JoinSet<()>,
    _lab: Lab,
}

impl Bench {
    /// With `settings`, on loopback; needs a tokio runtime of several threads, because the tool blocks one.
    pub(crate) fn start(settings: TransportSettings) -> Self {
        let lab = Lab::new();
        let victim = lab.victim_with(settings);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let good = lab.sign(&Leaf::good(ORDER));
        let chain: String = good.chain.iter().map(|der| pem("CERTIFICATE", der)).collect();
        fs::write(folder.path().join("chain.pem"), chain).expect("the folder was just made");
        let key = pem("PRIVATE KEY", good.key().secret_der());
        fs::write(folder.path().join("key.pem"), key).expect("the folder was just made");
        let _serving = serve(victim.clone());
        Self { victim, folder, _serving, _lab: lab }
    }

    /// Runs `attacks` one after another, and returns what became of each.
    pub(crate) fn attack(&self, attacks: &[&str], more: &[&str]) -> Vec<Value> {
        let file = |name| self.folder.path().join(name);
        let address = handshake::address(&self.victim);
        let chain: [PathBuf; 2] = [file("chain.pem"), file("key.pem")];
        let mut tool = tool("quic_attack.py", address);
        tool.arg(attacks.join(",")).arg("--chain").arg(&chain[0]).arg("--key").arg(&chain[1]).args(more);
        lines(tool)
    }

    /// Runs a mode of the raw attacker.
    pub(crate) fn raw(&self, mode: &str, more: &[&str]) -> Value {
        let mut tool = tool("quic_raw.py", handshake::address(&self.victim));
        tool.arg(mode).args(more);
        lines(tool).remove(0)
    }

    /// The control of every case: a flow in good order is served, now.
    pub(crate) fn still_serves(&self) {
        let good = self.attack(&["good"], &[]).remove(0);
        assert_eq!(good["echo"], true, "{good}");
    }
}

/// The folder of the tools.
pub(crate) fn tools() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tools")
}

fn tool(script: &str, target: SocketAddr) -> Command {
    let mut tool = python::tool(script);
    tool.args(["--host", &target.ip().to_string(), "--port", &target.port().to_string()]);
    tool
}

/// What the tool printed.
fn lines(mut tool: Command) -> Vec<Value> {
    let output = tool.output().expect("the interpreter was just found");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{tool:?}: {said}");
    parse(&String::from_utf8_lossy(&output.stdout))
}

/// JSON lines.
pub(crate) fn parse(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")))
        .collect()
}

fn serve(victim: Overlay) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut tunnels = JoinSet::new();
        while let Some(handshake) = victim.accept().await {
            tunnels.spawn(async move {
                let Ok(tunnel) = handshake.finish().await else { return };
                let mut flows = JoinSet::new();
                while let Ok(opening) = tunnel.accept().await {
                    flows.spawn(async move {
                        if let Ok(incoming) = opening.header().await {
                            echo(incoming).await;
                        }
                    });
                }
            });
        }
    });
    tasks
}

async fn echo(incoming: Incoming) {
    let Ok(stream) = incoming.accept(Accepted::default()).await else { return };
    let (mut send, mut recv) = stream.split();
    // Either end may break off: that is what the attacks are about.
    let _ = copy(&mut recv, &mut send).await;
    let _ = send.shutdown().await;
}

fn pem(label: &str, der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for lot in der.chunks(3) {
        let bits = lot.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - lot.len()));
        for place in 0..4 {
            let digit = ALPHABET[(bits >> (18 - 6 * place) & 63) as usize];
            text.push(if place <= lot.len() { char::from(digit) } else { '=' });
        }
    }
    let lines: Vec<&str> = (0..text.len()).step_by(64).map(|at| &text[at..text.len().min(at + 64)]).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
