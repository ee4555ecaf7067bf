//! Codes that no command, port or peer brings about in a minute: a store that fails, an etcd, a build that is
//! wrong, weeks that pass. Each names the test that provokes it, and that test must be there and speak of the code.

use std::fs;

use weft_tests::architecture::workspace_root;

/// A code, and the test that provokes it.
pub(crate) struct Elsewhere {
    pub(crate) code: &'static str,
    file: &'static str,
    pub(crate) test: &'static str,
}

const fn elsewhere(code: &'static str, file: &'static str, test: &'static str) -> Elsewhere {
    Elsewhere { code, file, test }
}

/// See the module.
pub(crate) const TESTS: &[Elsewhere] = &[
    // A record of a newer version: nothing of this version writes one.
    elsewhere(
        "W2107",
        "registry/src/management/tests/check.rs",
        "pol_02_a_policy_that_cannot_be_read_closes_the_service",
    ),
    elsewhere(
        "W4025",
        "registry/src/management/tests/delete.rs",
        "an_object_that_cannot_be_read_can_be_deleted",
    ),
    elsewhere(
        "W6003",
        "registry/src/store/embedded/tests/files.rs",
        "a_store_of_a_newer_format_is_refused_and_left_alone",
    ),
    // Weeks without a renewal.
    elsewhere(
        "W3007",
        "registry/src/authority/tests.rs",
        "what_expires_unrenewed_is_a_problem_that_people_are_told",
    ),
    elsewhere("W3015", "registry/src/issuer.rs", "why_the_authority_does_not_sign_has_a_code_of_its_own"),
    // An agent that does not take a root, and one that comes back from a minute away.
    elsewhere(
        "W3050",
        "registry/src/authority/tests/steps.rs",
        "a_rotation_is_taken_step_by_step_and_each_says_what_it_waits_for",
    ),
    elsewhere("W3052", "registry/src/authority/tests/steps.rs", "force_takes_a_step_that_waits_and_warns"),
    // The PKI of a company.
    elsewhere(
        "W3053",
        "registry/src/authority/tests/above.rs",
        "files_that_cannot_be_used_keep_the_server_from_starting_with_their_code",
    ),
    // An agent that has renewed, and its copy: half of a certificate's life.
    elsewhere(
        "W3027",
        "registry/src/server/tests/issue.rs",
        "iss_04_of_two_copies_of_an_agent_one_is_found_out",
    ),
    // A background process that ends without a word, or never gets ready.
    elsewhere("W5016", "cli/src/run/background.rs", "only_what_this_start_said_is_told_with_its_own_code"),
    elsewhere("W5017", "cli/src/run/background.rs", "a_process_that_is_not_ready_in_time_is_told_as_such"),
    // A disk that fails in the middle of a commit, a store at its bound, a lease that ended.
    elsewhere(
        "W6005",
        "registry/src/store/embedded/tests/disk_faults.rs",
        "a_failed_commit_is_told_as_unknown_and_what_follows_at_once_as_not_made",
    ),
    elsewhere(
        "W6006",
        "registry/src/store/embedded/tests/disk_faults.rs",
        "a_failed_commit_is_told_as_unknown_and_what_follows_at_once_as_not_made",
    ),
    // A hundred thousand entries.
    elsewhere("W3040", "registry/src/denied/tests.rs", "a_full_list_takes_no_more_and_says_so"),
    // Ten thousand changes.
    elsewhere(
        "W6008",
        "registry/src/store/embedded/tests.rs",
        "the_history_keeps_its_bound_and_says_what_it_forgot",
    ),
    elsewhere(
        "W6054",
        "registry/src/audit/tests.rs",
        "what_cannot_be_written_is_refused_told_and_written_again_when_it_can",
    ),
    elsewhere(
        "W6009",
        "registry/src/store/embedded/tests.rs",
        "a_full_store_takes_deletions_and_smaller_values_only",
    ),
    elsewhere("W6011", "registry/src/store/conformance/leases.rs", "a_lease_takes_its_keys_in_one_commit"),
    // A server that errs.
    elsewhere(
        "W6019",
        "node/src/control/discovery.rs",
        "an_update_that_lost_a_part_is_fetched_again_whole_and_one_that_contradicts_itself_is_refused",
    ),
    elsewhere(
        "W6020",
        "node/src/control/discovery.rs",
        "an_update_that_lost_a_part_is_fetched_again_whole_and_one_that_contradicts_itself_is_refused",
    ),
    // An etcd that is guarded, full already, another one, or filled by half.
    elsewhere(
        "W6033",
        "tests/etcd.rs",
        "a_mesh_whose_etcd_was_lost_is_refused_and_then_restored_from_its_backup",
    ),
    elsewhere(
        "W6035",
        "registry/src/store/etcd/tests/access.rs",
        "etcd_08_only_a_user_with_its_password_and_permission_gets_in",
    ),
    elsewhere(
        "W6036",
        "tests/etcd.rs",
        "a_mesh_moves_from_the_embedded_store_into_etcd_with_agents_attached_and_no_failed_call",
    ),
    elsewhere(
        "W6037",
        "registry/src/store/transfer.rs",
        "a_store_that_was_not_filled_to_its_end_is_refused_until_it_is",
    ),
    // Somebody who writes into the store past the server.
    elsewhere(
        "W6060",
        "registry/src/store/etcd/tests/sealed.rs",
        "etcd_09_an_etcd_writer_cannot_widen_a_policy",
    ),
    // A further server: before it was let in, and while nobody signs for it.
    elsewhere("W6070", "tests/replicas.rs", "a_second_server_is_let_in_shares_the_agents_and_goes_on_alone"),
    elsewhere(
        "W6071",
        "registry/src/replicas/signing.rs",
        "a_server_that_is_too_new_has_others_sign_and_says_so_when_nobody_does",
    ),
    // A build in which somebody forgot a row.
    elsewhere("W6027", "registry/src/roles.rs", "api_01_a_method_without_a_role_does_not_start"),
    // A kernel without random numbers.
    elsewhere(
        "W9005",
        "registry/src/store/embedded/tests/files.rs",
        "a_system_without_random_numbers_opens_no_store_and_is_told_so",
    ),
];

impl Elsewhere {
    /// Checks that the test is a test, stands in its file, and speaks of the code by its number or its constant.
    #[track_caller]
    pub(crate) fn check(&self) {
        let path = workspace_root().join(self.file);
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let place = text.find(&format!("fn {}", self.test));
        let place = place.unwrap_or_else(|| panic!("{}: no test {} in {}", self.code, self.test, self.file));
        let body = &text[place..];
        let end = body.find("\n}\n").or_else(|| body.find("\n    }\n")).unwrap_or(body.len());
        let body = body[..end].split("\n    #[").next().unwrap_or_default();
        let constant = format!("code::{}", constant(self.code));
        let speaks = body.contains(self.code) || body.contains(&constant);
        assert!(speaks, "{}: {} of {} names neither it nor {constant}", self.code, self.test, self.file);
    }
}

/// The constant of a code, as the catalogue's sources name it.
#[track_caller]
fn constant(code: &str) -> String {
    let folder = workspace_root().join("policy/src/code");
    let files = fs::read_dir(&folder).unwrap().flatten();
    let sources = files.map(|file| fs::read_to_string(file.path()).unwrap());
    let row = format!(" = \"{code}\" ");
    let found = sources.into_iter().find_map(|text| {
        text.lines()
            .find(|line| line.contains(&row))
            .and_then(|line| line.split_whitespace().next().map(str::to_owned))
    });
    found.unwrap_or_else(|| panic!("no row {code} in {}", folder.display()))
}
