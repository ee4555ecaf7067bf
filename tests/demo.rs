//! The demo is a test of the mesh for everybody: it must hold, and it must be able to fail.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use weft_tests::person::Person;
use weft_tests::process::Finished;

/// How long the whole demo may take, on a busy machine and unoptimised.
const LIMIT: Duration = Duration::from_secs(90);

/// Checks that the demo performs at least.
const CHECKS: usize = 7;

#[test]
fn the_demo_holds_and_prints_each_check_as_an_object() {
    let demo = Demo::new();
    let finished = demo.run(&[]).expect_success();

    let checks = checks(&finished);
    assert!(checks.len() >= CHECKS, "{finished}");
    for check in &checks {
        assert_eq!(check["ok"], true, "{check}");
        assert!(check["name"].as_str().is_some_and(|name| !name.is_empty()), "{check}");
        assert!(check["detail"].is_string() && check["duration_ms"].is_number(), "{check}");
    }
}

#[test]
fn the_demo_writes_nothing_outside_its_state_directory() {
    let demo = Demo::new();
    demo.run(&[]).expect_success();

    let outside: Vec<PathBuf> =
        files(demo.person.home()).into_iter().filter(|path| !path.starts_with(demo.state())).collect();
    assert!(outside.is_empty(), "{outside:?}");
    demo.person.weft(&["demo", "--clean", "--state-dir"]).arg(demo.state()).run().expect_success();
    assert!(!demo.state().exists());
}

#[test]
fn the_demo_runs_twice_from_the_same_state() {
    let demo = Demo::new();
    demo.run(&[]).expect_success();
    demo.run(&[]).expect_success();
}

#[test]
fn the_demo_fails_when_no_rule_allows_its_call() {
    fails("no-policy", "allowed call");
}

#[test]
fn the_demo_fails_when_everything_is_allowed() {
    fails("allow-all", "denied call");
}

#[test]
fn the_demo_fails_when_the_stranger_is_trusted() {
    fails("trust-stranger", "stranger");
}

#[test]
fn the_demo_fails_when_a_byte_of_the_echo_is_wrong() {
    fails("corrupt-echo", "echo of 64 MiB");
}

#[test]
fn the_demo_fails_when_rotation_cuts_calls() {
    fails("cut-rotation", "rotation under load");
}

#[test]
fn the_demo_fails_when_the_killed_agent_stays_away() {
    fails("no-restart", "agent killed and restarted");
}

#[test]
fn the_demo_fails_when_calls_stop_with_the_registry() {
    fails("stop-all", "registry stopped");
}

/// Breaks what one check relies on: that check fails, the demo goes on, and ends with 1.
#[track_caller]
fn fails(sabotage: &str, broken: &str) {
    let finished = Demo::new().run(&["--sabotage", sabotage]).expect_code(1);

    let checks = checks(&finished);
    let check = checks.iter().find(|check| check["name"] == broken);
    assert!(check.is_some_and(|check| check["ok"] == false), "{broken} holds: {finished}");
    assert!(checks.len() >= CHECKS, "it did not go on: {finished}");
    // Without a single call that is allowed there is not much to hold; else the others do not notice.
    let held = checks.iter().filter(|check| check["ok"] == true).count();
    assert!(held > 0, "nothing else holds: {finished}");
}

struct Demo {
    person: Person,
}

impl Demo {
    #[track_caller]
    fn new() -> Self {
        Self { person: Person::new() }
    }

    fn state(&self) -> PathBuf {
        self.person.home().join("demo")
    }

    #[track_caller]
    fn run(&self, args: &[&str]) -> Finished {
        let demo = self.person.weft(&["demo", "--once", "-o", "json", "--state-dir"]).arg(self.state());
        demo.args(args).limit(LIMIT).run()
    }
}

#[track_caller]
fn checks(finished: &Finished) -> Vec<Value> {
    let lines = finished.stdout.lines().filter(|line| !line.trim().is_empty());
    lines.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("the home folder is there").flatten() {
        let path = entry.path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}
