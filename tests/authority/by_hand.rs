//! A rotation by hand, step by step: no call fails, and what is left under a root that is revoked ends.

use std::time::Duration;

use serde_json::Value;

use weft_tests::app::loopback;
use weft_tests::eventually::eventually;
use weft_tests::load::{self, Echo, Traffic, failed_since};
use weft_tests::mesh::Mesh;
use weft_tests::process::Finished;

use super::{LONG, UPSTREAM, authority, scene};

/// Agents take a bundle within that time.
const SOON: Duration = Duration::from_secs(10);

#[test]
fn a_rotation_by_hand_fails_no_call_and_what_is_left_under_a_revoked_root_ends_within_five_seconds() {
    let (mesh, _programs) = scene("{}", &["hosta"]);
    let hosta = mesh.host("hosta");
    let traffic = Traffic::start(hosta, loopback(UPSTREAM));
    let mut flow = Echo::open(hosta, loopback(LONG)).expect("a flow");
    flow.exchange(b"before").expect("it works");

    assert!(rotate(&mesh, &["--phase", "activate"]).stderr.contains("W3051"), "nothing is prepared");
    rotate(&mesh, &[]).expect_success();
    assert_eq!(states(&mesh), ["active", "prepared"]);
    eventually("every agent has taken the prepared root", SOON, || missing(&mesh));
    rotate(&mesh, &[]).expect_success();
    assert_eq!(states(&mesh), ["active", "old"]);
    flow.exchange(b"under the old root").expect("what was signed under it is good");

    rotate(&mesh, &["--phase", "rollback"]).expect_success();
    rotate(&mesh, &["--phase", "rollback"]).expect_success();
    rotate(&mesh, &["--reason", "the old key leaked"]).expect_success();
    assert_eq!(states(&mesh), ["active", "tainted"]);
    let audit =
        mesh.on_server(&["server", "audit", "show", "--limit", "20", "-o", "json"]).expect_success().stdout;
    assert!(audit.contains("RotateAuthority") && audit.contains("the old key leaked"), "{audit}");
    let early = rotate(&mesh, &[]);
    assert!(early.stderr.contains("W3050"), "{early}");
    flow.exchange(b"tainted").expect("cert_28: what a tainted root has signed is accepted");
    eventually(
        "every certificate under it is renewed, and no tunnel needs it",
        Duration::from_secs(120),
        || match rotate(&mesh, &["--phase", "revoke"]) {
            done if done.code() == Some(0) => Ok(()),
            waits => Err(waits.stderr),
        },
    );
    assert_eq!(states(&mesh), ["active", "revoked"]);
    flow.ended(Duration::from_secs(5)).expect("a flow that has stayed in a tunnel of the old root is cut");
    for node in ["hosta", "served"] {
        eventually(&format!("{node} tells why"), SOON, || {
            let log = std::fs::read_to_string(mesh.state(node).join("agent/access.log")).unwrap_or_default();
            let unclean: Vec<_> = log.lines().filter(|line| !line.contains("\"close\":\"clean\"")).collect();
            let told = unclean.iter().any(|line| line.contains("\"W3018\""));
            if told { Ok(()) } else { Err(unclean.join("\n")) }
        });
    }
    mesh.wait_for_call("a call under the new root", || hosta.enter(|| load::call(loopback(UPSTREAM))));
    let calls = traffic.stop();
    let failed = failed_since(&calls, Duration::ZERO);
    assert!(failed.is_empty(), "{} of {} calls failed: {:?}", failed.len(), calls.len(), failed.first());
}

fn rotate(mesh: &Mesh, args: &[&str]) -> Finished {
    let all: Vec<_> = ["identity", "ca", "rotate", "--yes"].iter().chain(args).copied().collect();
    mesh.on_server(&all)
}

fn roots(mesh: &Mesh) -> Vec<Value> {
    authority(mesh)["roots"].as_array().cloned().unwrap_or_default()
}

fn states(mesh: &Mesh) -> Vec<String> {
    roots(mesh).iter().map(|root| root["state"].as_str().unwrap_or_default().to_owned()).collect()
}

/// Whether anybody lacks a root.
fn missing(mesh: &Mesh) -> Result<(), String> {
    let lacking: Vec<_> = roots(mesh).iter().map(|root| root["missing"].to_string()).collect();
    if lacking.iter().all(|nodes| nodes == "[]") { Ok(()) } else { Err(lacking.join(" ")) }
}
