//! The architecture, kept by tools: the checks of [`weft_tests::architecture`] on this workspace.
//!
//! A failure says what is wrong and how to mend it. A rule that turns out wrong is changed in
//! ARCHITECTURE.md and in its check, in one commit.

use std::fs;
use std::sync::LazyLock;

use serde_json::Value;
use weft_tests::architecture::{
    assert_none, cargo, crates, licences, manifests, sources, tree, workspace_root,
};

static METADATA: LazyLock<Value> = LazyLock::new(|| {
    let output = cargo(&["metadata", "--no-deps", "--format-version=1"]);
    serde_json::from_str(&output).expect("cargo metadata is JSON")
});
static TREE: LazyLock<Vec<tree::Crate>> = LazyLock::new(|| tree::parse(&cargo(tree::WHOLE_TREE)));
static FILES: LazyLock<Vec<sources::File>> = LazyLock::new(|| sources::read(&workspace_root()));

#[test]
fn crates_use_only_the_floors_below_them() {
    assert_none(&crates::edges(&METADATA));
}

#[test]
fn policy_sees_who_and_never_how_it_was_proven() {
    assert_none(&crates::policy_sees_only_names(&METADATA));
    assert_none(&tree::impure("weft-policy", &tree_of("weft-policy")));
}

#[test]
fn identity_is_built_without_runtime_and_sockets() {
    assert_none(&tree::impure("weft-identity", &tree_of("weft-identity")));
}

#[test]
fn pure_crates_have_no_clock_randomness_or_io_in_their_sources() {
    assert_none(&sources::purity(&FILES));
}

#[test]
fn one_crypto_provider_and_one_tls_stack_are_built() {
    assert_none(&tree::banned(&TREE));
}

#[test]
fn dependencies_are_at_or_above_their_version_floors() {
    assert_none(&tree::version_floors(&TREE));
}

#[test]
fn tls_1_2_and_other_banned_features_are_off_in_the_whole_tree() {
    assert_none(&tree::banned_features(&TREE));
}

#[test]
fn files_stay_small_or_say_why() {
    assert_none(&sources::size(&FILES));
}

#[test]
fn modules_open_with_what_they_own() {
    assert_none(&sources::module_docs(&FILES));
}

#[test]
fn unsafe_code_stands_in_one_documented_module_at_most() {
    assert_none(&sources::unsafe_code(&FILES));
}

#[test]
fn open_ends_name_their_issue() {
    assert_none(&sources::open_ends(&FILES));
}

#[test]
fn nothing_stands_in_for_code_and_no_test_is_skipped() {
    assert_none(&sources::stand_ins(&FILES));
}

#[test]
fn silenced_lints_have_reasons() {
    assert_none(&sources::silenced_lints_have_reasons(&FILES));
}

#[test]
fn clippy_forbids_the_methods_of_the_house_each_with_its_reason() {
    assert_none(&manifests::disallowed_methods_have_reasons(&root_file("clippy.toml")));
}

#[test]
fn members_inherit_the_lints_and_the_versions_of_the_workspace() {
    let members = METADATA["packages"].as_array().expect("metadata lists packages");
    let paths =
        members.iter().map(|package| package["manifest_path"].as_str().expect("a package has a manifest"));
    let violations = paths.flat_map(|path| {
        let manifest = fs::read_to_string(path).expect("cargo just read the manifest");
        manifests::member(path, &manifest)
    });
    assert_none(&violations.collect::<Vec<_>>());
}

#[test]
fn cargo_deny_bans_what_the_tree_may_not_contain() {
    assert_none(&manifests::deny_names_the_bans(&root_file("deny.toml")));
}

#[test]
fn licences_of_everything_that_is_built_tested_or_fuzzed_are_allowed() {
    let everything = serde_json::from_str(&cargo(licences::EVERY_CRATE)).expect("cargo metadata is JSON");
    assert_none(&licences::forbidden(&everything, &root_file("deny.toml")));
}

fn tree_of(package: &str) -> Vec<tree::Crate> {
    let arguments = tree::tree_of(package);
    tree::parse(&cargo(&arguments.iter().map(String::as_str).collect::<Vec<_>>()))
}

fn root_file(name: &str) -> String {
    fs::read_to_string(workspace_root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}
