//! Changes under control: their history, the way back, the time to confirm in, the guard, and who is held to account.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::time::Duration;

use serde_json::Value;

use weft_tests::app::{self, loopback};
use weft_tests::eventually::{eventually, throughout};
use weft_tests::load::Echo;
use weft_tests::manifest::{NAMESPACE, allow, service};
use weft_tests::mesh::{CTL, Mesh, Workload};
use weft_tests::process::{Finished, Process};

const LOCAL: u16 = 8081;
const UPSTREAM: u16 = 9001;
/// From a change to its effect.
const SOON: Duration = Duration::from_secs(5);
/// The shortest time to confirm in, and what a busy machine may take on top of it.
const WINDOW: Duration = Duration::from_secs(10);
const POLICY: &str = "ap/allow-order-echo";

#[test]
fn a_deleted_rule_is_in_the_history_and_comes_back_by_a_rollback() {
    let (mesh, _echo) = scene();
    let deleted = weft(&mesh, &["delete", POLICY, "--force", "--reason", "ticket 7"]).expect_success();
    assert!(deleted.stdout.contains("deleted"), "{deleted}");
    eventually("the call is refused", SOON, || expect_refused(&mesh));

    let history = items(&weft(&mesh, &["history", POLICY, "-o", "json"]).expect_success());
    let rows: Vec<_> = history.iter().map(|row| (text(row, "action"), text(row, "reason"))).collect();
    assert_eq!(rows, [("deleted".into(), "ticket 7".into()), ("created".into(), String::new())]);
    assert!(history.iter().all(|row| text(row, "author").starts_with("uid ")), "{history:?}");
    let table = weft(&mesh, &["history", POLICY]).expect_success();
    assert!(table.stdout.starts_with("REVISION  TIME"), "{table}");

    let created = history[1]["revision"].to_string();
    let was = weft(&mesh, &["history", POLICY, "--revision", &created]).expect_success();
    assert!(was.stdout.contains("kind: AuthorizationPolicy"), "{was}");
    let back = weft(&mesh, &["rollback", POLICY, "--to", &created]).expect_success();
    assert!(back.stdout.contains("created"), "{back}");
    eventually("the call passes again", SOON, || call(&mesh));
    let newest = items(&weft(&mesh, &["history", POLICY, "-o", "json"]).expect_success()).remove(0);
    assert_eq!((text(&newest, "verb"), newest["of"].to_string()), ("rollback".into(), created));

    let unknown = weft(&mesh, &["rollback", POLICY, "--to", "9999"]).expect_code(3);
    assert!(unknown.stderr.contains("W6053"), "{unknown}");
}

#[test]
fn pol_06_a_policy_that_denies_everything_is_refused_and_once_forced_taken_back_by_a_server_that_was_killed()
{
    let (mut mesh, _echo) = scene();
    let refused = apply(&mesh, &deny_everything(), &[]).expect_code(8);
    assert!(refused.stderr.contains("W6031") && refused.stderr.contains("echo.shop"), "{refused}");
    assert_eq!(call(&mesh), Ok(()), "nothing was changed");
    let dry = apply(&mesh, &deny_everything(), &["--force", "--dry-run", "server"]).expect_success();
    assert!(dry.stdout.contains("allowed → denied"), "{dry}");
    assert_eq!(call(&mesh), Ok(()), "a dry run changes nothing");

    let forced = apply(&mesh, &deny_everything(), &["--force", "--confirm-within", "10s"]).expect_success();
    assert!(forced.stderr.contains("weft confirm"), "{forced}");
    eventually("the call is refused", SOON, || expect_refused(&mesh));
    let status = weft(&mesh, &["status"]);
    assert!(status.stdout.contains("waits    change"), "{status}");
    // No policy is about the channel between agents and servers, so the way back is open.
    mesh.kill_server();
    mesh.start_server();
    mesh.wait_for_server();
    eventually("the call passes again", WINDOW * 3, || call(&mesh));
    let history = items(&weft(&mesh, &["history", "ap/deny-everything", "-o", "json"]).expect_success());
    assert_eq!(
        (text(&history[0], "action"), text(&history[0], "verb")),
        ("deleted".into(), "unconfirmed".into())
    );
}

#[test]
fn what_is_confirmed_stays_and_what_is_aborted_goes_at_once() {
    let (mesh, _echo) = scene();
    let kept = ["--force", "--confirm-within", "10s"];
    apply(&mesh, &deny_everything(), &kept).expect_success();
    weft(&mesh, &["confirm"]).expect_success();
    eventually("the call is refused", SOON, || expect_refused(&mesh));
    throughout("it stays refused", WINDOW + SOON, || expect_refused(&mesh));

    weft(&mesh, &["delete", "ap/deny-everything"]).expect_success();
    eventually("the call passes", SOON, || call(&mesh));
    apply(&mesh, &deny_everything(), &["--force", "--confirm-within"]).expect_success();
    let aborted = weft(&mesh, &["confirm", "--abort"]).expect_success();
    assert!(aborted.stdout.contains("taken-back") && aborted.stdout.contains("deleted"), "{aborted}");
    eventually("the call passes", SOON, || call(&mesh));
    let nothing = weft(&mesh, &["confirm"]).expect_code(3);
    assert!(nothing.stderr.contains("W6052"), "{nothing}");
}

#[test]
fn api_11_the_audit_log_names_who_did_what_and_an_entry_that_is_changed_is_found() {
    let (mesh, _echo) = scene();
    let shown = weft(&mesh, &["server", "audit", "show"]).expect_success();
    assert!(shown.stdout.contains("AuthorizationPolicy/allow-order-echo.shop"), "{shown}");
    let whole = weft(&mesh, &["server", "audit", "verify"]).expect_success();
    assert!(whole.stdout.starts_with("audit log whole: entries 1 to "), "{whole}");

    let folder = mesh.state(CTL).join("server").join("audit");
    let log = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let log = log.map(|entry| entry.unwrap().path()).next().unwrap();
    let text = fs::read_to_string(&log).unwrap();
    fs::write(&log, text.replacen("allow-order-echo", "allow-order-ecco", 1)).unwrap();
    let broken = weft(&mesh, &["server", "audit", "verify"]).expect_code(1);
    assert!(broken.stderr.contains("W6055") && broken.stderr.contains("was changed"), "{broken}");
}

#[test]
fn api_08_a_file_made_from_an_older_revision_is_refused_as_a_conflict() {
    let (mesh, _echo) = scene();
    let old = weft(&mesh, &["get", POLICY, "-o", "yaml"]).expect_success().stdout;
    mesh.apply(&allow("order", "echo").replace("name: order,", "name: orders,"));
    let refused = apply(&mesh, &old.replace("name: order", "name: late"), &[]).expect_code(5);
    assert!(refused.stderr.contains("W6007"), "{refused}");
}

fn deny_everything() -> String {
    format!(
        "apiVersion: weft.mesh/v1alpha1\nkind: AuthorizationPolicy\n\
         metadata: {{name: deny-everything, namespace: {NAMESPACE}}}\n\
         spec: {{targetRefs: [{{kind: Namespace, name: {NAMESPACE}}}], action: DENY, \
         rules: [{{name: all, sources: [{{type: Any}}]}}]}}\n"
    )
}

#[track_caller]
fn scene() -> (Mesh, Process) {
    let mesh = Mesh::builder()
        .manifest(service("echo", &[("echo", 7, "tcp")]))
        .manifest(allow("order", "echo"))
        .node("hosta", &[Workload::new("order").upstream("echo", 7, UPSTREAM)])
        .node("hostb", &[Workload::new("echo").serves("echo", LOCAL)])
        .start();
    let echo = app::script(mesh.host("hostb"), "echo.py", LOCAL, &[]);
    mesh.wait_for_call("the first echo", || call(&mesh));
    (mesh, echo)
}

#[track_caller]
fn weft(mesh: &Mesh, args: &[&str]) -> Finished {
    mesh.weft(CTL, args).args(["-n", NAMESPACE, "--yes"]).run()
}

#[track_caller]
fn apply(mesh: &Mesh, manifest: &str, args: &[&str]) -> Finished {
    mesh.weft(CTL, &["apply", "-f", "-"]).args(args).input(manifest).run()
}

fn items(finished: &Finished) -> Vec<Value> {
    let read: Value = serde_json::from_str(&finished.stdout).unwrap();
    read["items"].as_array().unwrap().clone()
}

fn text(row: &Value, key: &str) -> String {
    row[key].as_str().unwrap().to_owned()
}

fn call(mesh: &Mesh) -> Result<(), String> {
    Echo::open(mesh.host("hosta"), loopback(UPSTREAM))?.exchange(b"call")
}

fn expect_refused(mesh: &Mesh) -> Result<(), String> {
    match call(mesh) {
        Ok(()) => Err("a call passed".to_owned()),
        Err(_) => Ok(()),
    }
}
