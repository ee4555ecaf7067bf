//! No secret leaves the place that is meant for it: canaries are the real ones of a real mesh.
//!
//! Keys of the authority, of nodes, workloads, servers and people, the secrets of tokens and proxy credentials are taken
//! from the files and processes that hold them, and then looked for, in every usual spelling, in everything else that a
//! run leaves: outputs and errors of all commands, logs at trace level, access logs, metrics, admin pages, the store,
//! arguments and environments of all processes. Core files are another test's (`faults_host`, OPS-05).

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod holders;
mod memory;
mod needles;
mod scene;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use holders::{check_private, files, meant_for};
use needles::{Found, Secrets};
use scene::Scene;

/// The secrets of each kind that this run must have used: fewer would mean that the search lacks some.
const EXPECTED: &[(&str, usize)] = &[
    // Root and intermediate of "ctl" and "own".
    ("the keys of the authority", 2),
    // hosta, hostb, hostc, own.
    ("the key of the node", 4),
    ("the key of a workload", 4),
    ("the key of a person", 1),
    ("a proxy credential", 4),
    // Those of three nodes and of a person, and what the test made of them.
    ("a token", 4),
];

#[test]
fn no_secret_stands_anywhere_but_in_the_files_that_are_meant_to_hold_it() {
    let mut scene = Scene::start();
    scene.call();
    scene.fail();
    scene.ask_for_everything();
    let folder = scene.mesh.folder().to_owned();
    let meant = |file: &std::path::Path| meant_for(file.strip_prefix(&folder).unwrap());
    let holders: Vec<_> = files(&folder).into_iter().filter(|file| meant(file).is_some()).collect();
    holders.iter().for_each(|file| scene.collect(file));
    assert!(scene.collect_from_memory() >= 1, "the server's own key is on no disk");
    let processes = scene.processes();
    assert!(processes.len() > 10, "{processes:?}");
    scene.fail_to_start();

    let mut problems: Vec<String> = holders.iter().filter_map(|file| check_private(file).err()).collect();
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut kinds_of_files = BTreeSet::new();
    for file in files(&folder) {
        let text = fs::read(&file).unwrap_or_default();
        kinds_of_files.insert(kind_of(&file, &text));
        let found = scene.secrets.search(&text);
        match meant(&file) {
            Some(_) if found.is_empty() => problems.push(format!("{} holds nothing that we look for", file.display())),
            Some(kind) => *seen.entry(kind).or_default() += 1,
            None => problems.extend(told(&file.display().to_string(), &found)),
        }
    }
    for (name, text) in &processes {
        problems.extend(told(name, &scene.secrets.search(text)));
    }
    for (kind, least) in EXPECTED {
        let count = seen.get(kind).copied().unwrap_or_default();
        assert!(count >= *least, "{count} files with {kind}: {seen:?}");
    }
    let all = ["a log at trace level", "a page of metrics", "a store", "an access log", "another"];
    assert_eq!(kinds_of_files, BTreeSet::from(all), "a kind of output is missing");
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
    prove_that_the_search_finds(&scene);
}

/// Plants each secret, in each spelling, in a copy of a real log, a real store and a real environment.
fn prove_that_the_search_finds(scene: &Scene) {
    let log = files(&scene.mesh.folder().join("hosta")).into_iter().find(|file| {
        fs::read(file).is_ok_and(|text| kind_of(file, &text) == "a log at trace level")
    });
    let log = fs::read(log.unwrap()).unwrap();
    let (before, after) = log[..log.len().min(8 << 10)].split_at(log.len().min(8 << 10) / 2);
    assert!(scene.secrets.search(before).is_empty() && scene.secrets.search(after).is_empty());
    for (name, secret) in scene.secrets.all() {
        let hex = |upper: bool| -> String {
            let one = |byte: &u8| if upper { format!("{byte:02X}") } else { format!("{byte:02x}") };
            secret.iter().map(one).collect()
        };
        let spelt = [
            secret.to_vec(),
            hex(false).into_bytes(),
            hex(true).into_bytes(),
            BASE64_STANDARD.encode(secret).into_bytes(),
            BASE64_STANDARD.encode([b"x".as_slice(), secret].concat()).into_bytes(),
            BASE64_STANDARD.encode([b"xy".as_slice(), secret].concat()).into_bytes(),
            format!("{secret:?}").into_bytes(),
            format!("{}", secret.escape_ascii()).into_bytes(),
        ];
        for text in spelt {
            let planted = [before, &text, after].concat();
            let found = scene.secrets.search(&planted);
            assert!(found.iter().any(|found| found.secret == name), "{name} in {}", text.escape_ascii());
        }
    }
}

/// What kind of output a file is, as far as this test must have seen each.
fn kind_of(file: &std::path::Path, text: &[u8]) -> &'static str {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let holds = |word: &[u8]| text.windows(word.len()).take(1 << 20).any(|window| window == word);
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("redb") => "a store",
        Some("err") if holds(b" TRACE ") => "a log at trace level",
        Some(_) if name == "access.log" && !text.is_empty() => "an access log",
        Some(_) | None if name == "page-metrics" => "a page of metrics",
        Some(_) | None => "another",
    }
}

fn told(place: &str, found: &[Found]) -> Vec<String> {
    found.iter().map(|found| format!("{} stands as {} in {place}", found.secret, found.form)).collect()
}

/// Two secrets that share their first bytes, or none, are told apart.
#[test]
fn a_search_for_nothing_finds_nothing() {
    let mut secrets = Secrets::default();
    secrets.add("it", &[7; 32]);
    assert_eq!(secrets.search(&[7; 15]), []);
    assert_eq!(secrets.search(&[7; 16]).len(), 1);
    assert_eq!(secrets.search(b""), []);
}
