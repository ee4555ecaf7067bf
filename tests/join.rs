//! Joining by a one-use token: it works once, in time, for its node, until it is revoked.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use weft_tests::eventually::eventually;
use weft_tests::mesh::{CTL, Mesh};
use weft_tests::process::Finished;

const NODE: &str = "hosta";

#[test]
fn a_node_that_joined_has_an_identity_and_no_file_of_it_is_open_to_others() {
    let mesh = scene();
    mesh.join(NODE, &mesh.token(NODE, &[])).expect_success();

    let mut keys = 0;
    for path in files(mesh.host(NODE).folder().join("state").as_path()) {
        let mode = path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", path.display());
        keys += usize::from(std::fs::read(&path).unwrap().windows(11).any(|text| text == b"PRIVATE KEY"));
    }
    assert!(keys > 0, "the key was born on the node and is kept there");
}

#[test]
fn a_token_works_once() {
    let mesh = scene();
    let token = mesh.token(NODE, &[]);
    mesh.join(NODE, &token).expect_success();
    mesh.write_agent_config("hostb", NODE, "");

    refused(&mesh.join("hostb", &token), "W7001");
}

#[test]
fn a_token_for_another_node_is_refused_and_stays_good_for_its_own() {
    let mesh = scene();
    let token = mesh.token(NODE, &[]);
    mesh.write_agent_config("hostb", "hostb", "");

    refused(&mesh.join("hostb", &token), "W7003");
    mesh.join(NODE, &token).expect_success();
}

#[test]
fn a_token_expires() {
    let mesh = scene();
    let token = mesh.token(NODE, &["--ttl", "1s"]);
    let expired = || mesh.weft(CTL, &["token", "list", "-o", "json"]).run().expect_success().stdout;
    eventually("the token has expired", Duration::from_secs(10), || {
        let list = expired();
        if list.contains("expired") { Ok(()) } else { Err(list) }
    });

    refused(&mesh.join(NODE, &token), "W7002");
}

#[test]
fn a_revoked_token_is_refused() {
    let mesh = scene();
    let made = mesh.token(NODE, &["-o", "json"]);
    let made: serde_json::Value = serde_json::from_str(&made).unwrap();
    let (id, token) = (made["id"].as_str().unwrap(), made["token"].as_str().unwrap());
    mesh.weft(CTL, &["token", "revoke", id]).run().expect_success();

    refused(&mesh.join(NODE, token), "W7007");
}

#[test]
fn what_is_no_token_is_refused_before_anything_is_dialled() {
    let mesh = scene();

    refused(&mesh.join(NODE, "not a token\n"), "W7005");
}

#[test]
fn a_server_with_another_authority_than_the_token_names_is_not_trusted() {
    let (mesh, other) = (scene(), scene());
    // Both servers have the same address, each in its own network: the token leads to a stranger.
    let token = other.token(NODE, &[]);

    refused(&mesh.join(NODE, &token), "W7006");
}

#[test]
fn a_token_stands_in_no_log_and_no_list() {
    let mut mesh = scene();
    let token = mesh.token(NODE, &[]);
    let joined = mesh.join(NODE, &token).expect_success();
    let list = mesh.weft(CTL, &["token", "list", "-o", "json"]).run().expect_success();
    let server = mesh.server();
    let seen = format!("{joined}{list}{}{}", server.stdout(), server.stderr());

    assert!(!seen.contains(token.trim()));
}

/// A server, and two hosts that have not joined.
#[track_caller]
fn scene() -> Mesh {
    let mesh = Mesh::builder().host(NODE).host("hostb").start();
    mesh.write_agent_config(NODE, NODE, "");
    mesh
}

/// Checks that a join was refused with `code`, its reason and a next command.
#[track_caller]
fn refused(join: &Finished, code: &str) {
    assert_ne!(join.code(), Some(0), "{join}");
    assert!(join.stderr.contains(&format!("error[{code}]")), "expected {code}: {join}");
    assert!(join.stderr.contains("  fix ") && join.stderr.contains("weft "), "no next command: {join}");
}

fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("the agent keeps its state there").flatten() {
        let kind = entry.file_type().expect("it was just listed");
        if kind.is_dir() {
            found.extend(files(&entry.path()));
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    found
}
