//! The catalogue of errors, walked: every code is provoked through what a person, a program or a peer has, on real
//! processes; and what is told of it has the parts of cli.md 5.1, with next commands that exist.
//!
//! A code that no scenario provokes fails [`every_code_has_a_scenario_or_names_the_test_that_provokes_it`]. Those that
//! only a broken store, a wrong build or hours of waiting bring about name the test that does it in process.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod case;
mod changes;
mod elsewhere;
mod flows;
mod impostor;
mod inventory;
mod manifests;
mod outages;
mod peers;
mod people;
mod proxy;
mod scene;
mod starts;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use weft_tests::commands::Commands;
use weft_tests::mesh::weft_binary;
use weft_tests::process::Program;

use case::Case;
use scene::Scene;

/// Every scenario, in the order in which one mesh goes through them: what breaks it comes last.
const GROUPS: &[(&str, &[Case])] = &[
    ("manifests", manifests::CASES),
    ("changes", changes::CASES),
    ("people", people::CASES),
    ("proxy", proxy::CASES),
    ("flows", flows::CASES),
    ("peers", peers::CASES),
    ("starts", starts::CASES),
    ("outages", outages::CASES),
];

#[test]
fn every_scenario_is_refused_with_its_code_its_reason_and_a_next_command_that_exists() {
    let mut scene = Scene::start();
    let mut failed = Vec::new();
    for (group, cases) in GROUPS {
        for case in *cases {
            if let Err(why) = case.run(&mut scene) {
                failed.push(format!("{group}: {} {}: {why}", case.code, case.name));
            }
        }
    }
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
}

#[test]
fn every_code_has_a_scenario_or_names_the_test_that_provokes_it() {
    let mut covered = BTreeMap::new();
    for case in GROUPS.iter().flat_map(|(_, cases)| *cases) {
        assert_eq!(covered.insert(case.code, case.name), None, "{} has two scenarios", case.code);
    }
    for known in elsewhere::TESTS {
        known.check();
        assert_eq!(covered.insert(known.code, known.test), None, "{} stands in two tables", known.code);
    }
    let covered: BTreeSet<_> = covered.into_keys().map(str::to_owned).collect();
    let catalogue: BTreeSet<_> =
        catalogue().into_iter().map(|row| row["code"].as_str().unwrap().to_owned()).collect();
    let (without, unknown): (Vec<_>, Vec<_>) =
        (catalogue.difference(&covered).collect(), covered.difference(&catalogue).collect());
    assert!(without.is_empty(), "codes without a scenario: {without:?}");
    assert!(unknown.is_empty(), "scenarios of codes that are not in the catalogue: {unknown:?}");
}

#[test]
fn every_page_of_the_catalogue_names_only_commands_that_exist() {
    let folder = tempfile::tempdir().unwrap();
    let commands = Commands::read(folder.path());
    let rows = catalogue();
    assert!(rows.len() > 150, "{} rows", rows.len());
    for row in &rows {
        let fixes: Vec<&str> = row["fix"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert!(fixes.iter().any(|fix| fix.contains("weft ")), "no next command: {row}");
        for fix in fixes {
            commands.check(fix).unwrap_or_else(|why| panic!("{}: {why}", row["code"]));
        }
    }
    let page = Program::new(weft_binary(), folder.path()).args(["explain", "w2101"]).run().expect_success();
    assert!(page.stdout.starts_with("W2101") && page.stdout.contains("  fix "), "{page}");
    let unknown = Program::new(weft_binary(), folder.path()).args(["explain", "W0000"]).run().expect_code(3);
    assert!(unknown.stderr.contains("weft explain codes"), "{unknown}");
}

/// The catalogue as `weft explain` tells it.
fn catalogue() -> Vec<Value> {
    let folder = tempfile::tempdir().unwrap();
    let told = Program::new(weft_binary(), folder.path()).args(["explain", "codes", "-o", "json"]).run();
    let told: Value = serde_json::from_str(&told.expect_success().stdout).unwrap();
    told["items"].as_array().unwrap().clone()
}
