//! No secret leaves the place that is meant for it: canaries are the real ones of a real mesh.
//!
//! Keys of the authority, of nodes, workloads, servers and people, the secrets of tokens and proxy credentials are taken
//! from the files and processes that hold them, and then looked for, in every usual spelling, in everything else that a
//! run leaves: outputs and errors of all commands, logs at trace level, access logs, metrics, admin pages, the store,
//! arguments and environments of all processes. Core files are another test's (`faults_host`, OPS-05).

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod deeds;
mod holders;
mod memory;
mod needles;
mod scene;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use holders::{TOKEN, check_private, files, meant_for};
use needles::{Found, Secrets};
use scene::Scene;

/// The secrets of each kind that this run must have used: fewer would mean that the search lacks some.
const EXPECTED: &[(&str, usize)] = &[
    // Root and intermediate of "ctl" and "own".
    ("the keys of the authority", 2),
    ("the key of records", 2),
    // hosta, hostb, hostc, own.
    ("the key of the node", 4),
    ("the keys of its tunnels' port", 4),
    ("the key of a workload", 5),
    ("the key of a person", 1),
    ("a proxy credential", 5),
    // Those of three nodes, a server and a person, and what the test made of them.
    (TOKEN, 5),
];

/// The kinds of output that must have been among what was searched.
const OUTPUTS: [&str; 7] = [
    "a backup",
    "a log at trace level",
    "a page of metrics",
    "a store",
    "an access log",
    "an audit log",
    "another",
];

#[test]
fn no_secret_stands_anywhere_but_in_the_files_that_are_meant_to_hold_it() {
    let mut scene = Scene::start();
    scene.call();
    scene.fail();
    scene.ask_for_everything();
    let folder = scene.mesh.folder().to_owned();
    let holders: Vec<_> = files(&folder).into_iter().filter(|file| meant(&folder, file).is_some()).collect();
    holders.iter().for_each(|file| scene.collect(file));
    assert!(scene.collect_from_memory() >= 1, "the server's own key is on no disk");
    let processes = scene.processes();
    for program in ["weft", "nginx", "sleep"] {
        assert!(processes.iter().any(|(name, _)| name.contains(program)), "no {program}: {processes:?}");
    }
    scene.fail_to_start();

    let walk = Walk::over(&scene.secrets, &folder);
    for (kind, least) in EXPECTED {
        let count = walk.holders.get(kind).copied().unwrap_or_default();
        assert!(count >= *least, "{count} files with {kind}: {:?}", walk.holders);
    }
    assert_eq!(walk.outputs, BTreeSet::from(OUTPUTS), "a kind of output is missing");
    let in_processes = processes.iter().flat_map(|(name, text)| told(name, &scene.secrets.search(text)));
    let exposed = holders.iter().filter_map(|file| check_private(file).err());
    let problems: Vec<String> = walk.problems.into_iter().chain(in_processes).chain(exposed).collect();
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));

    prove_that_a_planted_secret_is_found(&scene, &folder);
}

/// What stands in the files of a run.
struct Walk {
    problems: Vec<String>,
    /// How many files hold what is meant for them.
    holders: BTreeMap<&'static str, usize>,
    outputs: BTreeSet<&'static str>,
}

impl Walk {
    fn over(secrets: &Secrets, folder: &Path) -> Self {
        let mut walk = Self { problems: Vec::new(), holders: BTreeMap::new(), outputs: BTreeSet::new() };
        for file in files(folder) {
            let text = fs::read(&file).unwrap_or_default();
            walk.outputs.insert(kind_of(&file, &text));
            walk.look(folder, &file, &text, secrets.search(&text));
        }
        walk
    }

    fn look(&mut self, folder: &Path, file: &Path, text: &[u8], found: Vec<Found>) {
        let name = file.strip_prefix(folder).unwrap().display().to_string();
        let Some(kind) = meant(folder, file) else {
            self.problems.extend(told(&name, &found));
            if holds(text, b"PRIVATE KEY-----") {
                self.problems.push(format!("{name} holds a private key"));
            }
            return;
        };
        let is_own =
            |found: &Found| kind == TOKEN && found.secret.contains("token") || found.secret.contains(&name);
        let (own, foreign): (Vec<_>, Vec<_>) = found.into_iter().partition(is_own);
        self.problems.extend(told(&name, &foreign));
        if own.is_empty() {
            self.problems.push(format!("{name} holds nothing that we look for"));
        } else {
            *self.holders.entry(kind).or_default() += 1;
        }
    }
}

/// Plants each secret, in each spelling, in a copy of a real log, and searches again as before.
fn prove_that_a_planted_secret_is_found(scene: &Scene, folder: &Path) {
    let is_log =
        |file: &PathBuf| fs::read(file).is_ok_and(|text| kind_of(file, &text) == "a log at trace level");
    let log = files(&folder.join("hosta")).into_iter().find(is_log).unwrap();
    let (log, copy) = (fs::read(log).unwrap(), folder.join("copied"));
    fs::create_dir(&copy).unwrap();
    let middle = log.len().min(4 << 10);
    fs::write(copy.join("clean.log"), &log[..middle * 2]).unwrap();
    let mut planted = 0;
    for (_, secret) in scene.secrets.all() {
        for text in spellings(secret) {
            let text = [&log[..middle], &text, &log[middle..middle * 2]].concat();
            fs::write(copy.join(format!("{planted}.log")), text).unwrap();
            planted += 1;
        }
    }
    assert!(planted > 200, "{planted}");
    let found = Walk::over(&scene.secrets, folder).problems;
    let in_clean = found.iter().filter(|problem| problem.contains("clean.log")).count();
    let missed: Vec<usize> = (0..planted)
        .filter(|n| !found.iter().any(|problem| problem.ends_with(&format!("copied/{n}.log"))))
        .collect();
    assert_eq!((in_clean, missed), (0, Vec::new()), "{found:?}");
}

/// A whole secret, as something that tells too much would write it.
fn spellings(secret: &[u8]) -> [Vec<u8>; 8] {
    let hex = |one: fn(&u8) -> String| -> Vec<u8> { secret.iter().map(one).collect::<String>().into_bytes() };
    let base64_behind = |before: &[u8]| BASE64_STANDARD.encode([before, secret].concat()).into_bytes();
    [
        secret.to_vec(),
        hex(|byte| format!("{byte:02x}")),
        hex(|byte| format!("{byte:02X}")),
        base64_behind(b""),
        base64_behind(b"x"),
        base64_behind(b"xy"),
        format!("{secret:?}").into_bytes(),
        secret.escape_ascii().to_string().into_bytes(),
    ]
}

fn meant(folder: &Path, file: &Path) -> Option<&'static str> {
    meant_for(file.strip_prefix(folder).unwrap())
}

/// What kind of output a file is, as far as this test must have seen each.
fn kind_of(file: &Path, text: &[u8]) -> &'static str {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("redb") => "a store",
        Some("backup") => "a backup",
        Some("jsonl") => "an audit log",
        Some("err") if holds(text, b" TRACE ") => "a log at trace level",
        Some(_) if name == "access.log" && !text.is_empty() => "an access log",
        Some(_) | None if name == "page-metrics" => "a page of metrics",
        Some(_) | None => "another",
    }
}

fn holds(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|window| window == word)
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
