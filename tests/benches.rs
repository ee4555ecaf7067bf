//! The benches run, at a size at which they measure little: so that they do not rot.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use weft_tests::process::Program;

/// How long a bench of this size may take, on a busy machine and unoptimised.
const LIMIT: Duration = Duration::from_secs(180);
/// Simulated agents, and how often the policy of all of them is changed.
const AGENTS: u64 = 20;
const ROUNDS: u64 = 3;

#[test]
fn the_bench_of_scale_measures_every_row_with_agents_that_hold_what_they_are_told() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let program = Program::new(bench("weft-bench-control"), folder.path()).limit(LIMIT);
    let program = program.args(["scale", "--agents", &AGENTS.to_string(), "--rounds", &ROUNDS.to_string()]);
    let finished = program.args(["--churn", "3", "--rest", "1", "--denied", "50", "-o", "json"]).run();
    let finished = finished.expect_success();
    let report: Value = serde_json::from_str(&finished.stdout).expect("the report is JSON");

    assert_eq!((&report["format"], &report["agents"]), (&1.into(), &AGENTS.into()), "{report}");
    let row = |kind: &str, name: &str| {
        let rows = report[kind].as_array().into_iter().flatten();
        let found = rows.into_iter().find(|row| row["row"] == name);
        found.cloned().unwrap_or_else(|| panic!("{kind} has no row {name}: {report}"))
    };
    for name in ["policy-all", "policy-one", "policy-all-in-churn", "denied"] {
        let times = row("times", name);
        assert!(times["changes"].as_u64() >= Some(ROUNDS), "{times}");
        assert!(times["lastP99Us"].as_u64() > Some(0) && times["verdict"].is_string(), "{times}");
    }
    assert!(row("times", "policy-all")["bytes"].as_u64() > Some(AGENTS * 100), "{report}");
    // 1 % of 200 endpoints a second, each told to agents.
    let churned = row("times", "endpoint-in-churn");
    assert!(churned["changes"].as_u64() >= Some(3) && churned["eachP99Us"].as_u64() > Some(0), "{churned}");
    assert!(row("figures", "agent-large-to-small")["value"].as_f64() > Some(0.0), "{report}");
    for name in ["server-at-rest", "server-peak", "server-peak-with-denylist"] {
        assert_eq!(row("figures", name)["verdict"], "pass", "{report}");
    }
}

/// `target/<profile>/<name>`, seen from `target/<profile>/deps/<this test>`.
fn bench(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a running program has a path");
    let deps = test.parent().expect("it stands in a folder");
    deps.parent().unwrap_or(deps).join(name)
}
