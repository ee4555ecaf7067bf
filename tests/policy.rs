//! Rules decide: at the first call, while a flow runs, and when a person asks.

use std::time::Duration;

use weft_tests::app::{self, loopback};
use weft_tests::eventually::{eventually, throughout};
use weft_tests::load::{Echo, Flow};
use weft_tests::manifest::{allow, deny, service};
use weft_tests::mesh::{CTL, Mesh, Workload};
use weft_tests::process::Process;

const LOCAL: u16 = 8081;
const UPSTREAM: u16 = 9001;

/// From a committed change to the last cut, with a handful of agents (the target for 100 is 1 s).
const CUT: Duration = Duration::from_secs(1);
/// What a quiet moment is, to see that nothing happens in it.
const A_MOMENT: Duration = Duration::from_secs(2);

#[test]
fn nothing_is_allowed_until_a_rule_allows_it() {
    let (mesh, _echo) = scene(&[]);
    let hosta = mesh.host("hosta").clone();
    throughout("no call passes without a rule", A_MOMENT, || match call(&mesh) {
        Ok(()) => Err("a call passed".to_owned()),
        Err(_) => Ok(()),
    });

    mesh.apply(&allow("order", "echo"));
    eventually("the rule is in force", CUT * 2, || Echo::open(&hosta, loopback(UPSTREAM))?.exchange(b"now"));
}

#[test]
fn a_rule_that_is_deleted_cuts_the_flows_it_allowed() {
    let (mesh, _echo) = scene(&[allow("order", "echo")]);
    let flow = open_flow(&mesh);

    mesh.delete(&allow("order", "echo"));
    let deleted = flow.now();
    let (ended, _) = eventually("the flow is cut", CUT * 3, || flow.ended().ok_or_else(|| "open".to_owned()));

    assert!(ended.saturating_sub(deleted) <= CUT, "cut {:?} after the change", ended.saturating_sub(deleted));
    assert!(call(&mesh).is_err());
}

#[test]
fn a_deny_wins_over_an_allow_and_cuts_live_flows() {
    let (mesh, _echo) = scene(&[allow("order", "echo")]);
    let flow = open_flow(&mesh);

    mesh.apply(&deny("order", "echo"));
    eventually("the flow is cut", CUT * 2, || flow.ended().ok_or_else(|| "open".to_owned()));
    assert!(call(&mesh).is_err());
}

#[test]
fn an_unrelated_change_leaves_live_flows_alone() {
    let (mesh, _echo) = scene(&[allow("order", "echo")]);
    let flow = open_flow(&mesh);

    mesh.apply(&service("elsewhere", &[("main", 80, "tcp")]));
    mesh.apply(&deny("stranger", "echo"));
    throughout("the flow lives", A_MOMENT, || flow.ended().map_or(Ok(()), |end| Err(format!("{end:?}"))));
}

#[test]
fn a_deny_in_dry_run_blocks_nothing() {
    let (mesh, _echo) = scene(&[allow("order", "echo")]);
    let flow = open_flow(&mesh);

    mesh.apply(&deny("order", "echo").replace("action: DENY", "action: DENY, mode: DryRun"));
    throughout("the flow lives", A_MOMENT, || flow.ended().map_or(Ok(()), |end| Err(format!("{end:?}"))));
    assert_eq!(call(&mesh), Ok(()));
}

#[test]
fn a_check_answers_by_its_exit_code_and_names_the_rule() {
    let (mesh, _echo) = scene(&[allow("order", "echo")]);
    let check = |source: &str| mesh.weft(CTL, &["policy", "check", source, "echo.shop", "-n", "shop"]).run();

    let allowed = check("order.shop").expect_success();
    assert!(allowed.stdout.contains("allow-order-echo"), "{allowed}");
    let denied = check("stranger.shop").expect_code(1);
    assert!(format!("{}{}", denied.stdout, denied.stderr).contains("W2101"), "{denied}");
}

#[test]
fn allow_by_the_command_line_is_in_force_at_once() {
    let (mesh, _echo) = scene(&[]);
    mesh.weft(CTL, &["policy", "allow", "order", "echo", "-n", "shop", "--yes"]).run().expect_success();

    eventually("the rule is in force", CUT * 2, || call(&mesh));
}

#[track_caller]
fn scene(rules: &[String]) -> (Mesh, Process) {
    let mut builder = Mesh::builder().manifest(service("echo", &[("echo", 7, "tcp")]));
    for rule in rules {
        builder = builder.manifest(rule.clone());
    }
    let mesh = builder
        .node("hosta", &[Workload::new("order").upstream("echo", 7, UPSTREAM)])
        .node("hostb", &[Workload::new("echo").serves("echo", LOCAL)])
        .start();
    let echo = app::script(mesh.host("hostb"), "echo.py", LOCAL, &[]);
    if !rules.is_empty() {
        mesh.wait_for_call("the first echo", || call(&mesh));
    }
    (mesh, echo)
}

#[track_caller]
fn open_flow(mesh: &Mesh) -> Flow {
    Flow::open(mesh.host("hosta"), loopback(UPSTREAM))
}

fn call(mesh: &Mesh) -> Result<(), String> {
    Echo::open(mesh.host("hosta"), loopback(UPSTREAM))?.exchange(b"call")
}
