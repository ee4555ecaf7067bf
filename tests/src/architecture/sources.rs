//! What the sources themselves must keep: purity, size, `unsafe`, reasons, open ends.
//!
//! Every check takes a [`File`] and looks at code and comments apart (see [`super::lexer`]), so that
//! a word in a string or in prose is not taken for code.

use std::fs;
use std::path::{Path, PathBuf};

use super::lexer::{self, Split, find_word, line_of};

/// Lines that a file may have before its module doc must say why (`Size:` line).
pub const MOST_LINES: usize = 600;

/// Folders of the workspace that hold Rust sources by hand or generated.
const FOLDERS: &[&str] = &[
    "identity", "policy", "api", "overlay", "registry", "node", "cli", "tests", "benches", "fuzz", "deploy",
];

/// Generated code: it has no author who could make it shorter.
const GENERATED: &str = "api/src/gen/";

/// What a pure crate may not name in its code, with what to do instead.
const IMPURE: &[(&str, &str)] = &[
    ("Instant::now", "take `now` as an argument"),
    ("SystemTime::now", "take `now` as an argument"),
    ("UtcDateTime::now", "take `now` as an argument"),
    ("OffsetDateTime::now_utc", "take `now` as an argument"),
    ("rand::rng", "take `&mut impl Rng` as an argument"),
    ("thread_rng", "take `&mut impl Rng` as an argument"),
    ("rand::random", "take `&mut impl Rng` as an argument"),
    ("TcpStream", "sockets belong to the planes"),
    ("TcpListener", "sockets belong to the planes"),
    ("UdpSocket", "sockets belong to the planes"),
    ("UnixStream", "sockets belong to the planes"),
    ("std::os::unix::net", "sockets belong to the planes"),
    ("std::fs", "files belong to the planes: take the text or bytes"),
    ("std::env", "settings are passed in"),
    ("std::thread", "tasks belong to the planes"),
    ("std::process", "processes belong to the planes"),
    ("tokio", "no runtime in a pure crate"),
    ("async fn", "a pure crate does not wait: return what to do"),
];

/// One source file of the workspace.
#[derive(Clone, Debug)]
pub struct File {
    /// Path from the workspace root, with `/`.
    pub path: String,
    /// The whole text.
    pub text: String,
    /// Code and comments of it.
    pub parts: Split,
}

impl File {
    /// A file with `text` that stands, or would stand, at `path`.
    pub fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned(), parts: lexer::split(text) }
    }

    /// Whether the file was made by a generator.
    pub fn is_generated(&self) -> bool {
        self.path.starts_with(GENERATED)
    }

    fn at(&self, offset: usize, text: &str) -> String {
        format!("{}:{}", self.path, line_of(text, offset))
    }

    /// The lines of the module doc at the top.
    fn module_doc(&self) -> impl Iterator<Item = &str> {
        self.text.lines().take_while(|line| line.starts_with("//!")).map(|line| line[3..].trim())
    }
}

/// Reads every Rust file of the workspace under `root`, build output aside.
///
/// # Panics
///
/// If a folder cannot be read, or none was found.
pub fn read(root: &Path) -> Vec<File> {
    let mut paths = Vec::new();
    for folder in FOLDERS.iter().map(|folder| root.join(folder)).filter(|folder| folder.is_dir()) {
        collect(&folder, &mut paths);
    }
    assert!(!paths.is_empty(), "no sources under {}", root.display());
    paths.sort();
    let read = |path: &PathBuf| {
        let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let relative = path.strip_prefix(root).expect("it was found under the root");
        File::new(&relative.to_string_lossy(), &text)
    };
    paths.iter().map(read).collect()
}

/// Pure crates have no clock, no randomness of their own, no socket, file, thread or runtime.
/// Their tests may.
pub fn purity(files: &[File]) -> Vec<String> {
    let pure = |file: &&File| file.path.starts_with("identity/src/") || file.path.starts_with("policy/src/");
    let tests = test_files(files);
    let mut violations = Vec::new();
    for file in files.iter().filter(pure).filter(|file| !tests.contains(&file.path)) {
        let code = lexer::without_tests(&file.parts.code);
        for (word, instead) in IMPURE {
            let hits = find_word(&code, word).map(|at| file.at(at, &code));
            violations.extend(hits.map(|place| format!("{place}: `{word}` in a pure crate: {instead}")));
        }
    }
    violations
}

/// A file over [`MOST_LINES`] says why in a `Size:` line of its module doc; generated code aside.
pub fn size(files: &[File]) -> Vec<String> {
    let explained = |file: &File| {
        file.module_doc()
            .any(|line| line.strip_prefix("Size:").is_some_and(|reason| !reason.trim().is_empty()))
    };
    files
        .iter()
        .filter(|file| !file.is_generated() && file.text.lines().count() > MOST_LINES && !explained(file))
        .map(|file| {
            let lines = file.text.lines().count();
            format!(
                "{}: {lines} lines: split it, or say why in a `//! Size: …` line of its module doc",
                file.path
            )
        })
        .collect()
}

/// Modules open with what they own.
pub fn module_docs(files: &[File]) -> Vec<String> {
    let undocumented = files.iter().filter(|file| !file.is_generated() && file.module_doc().next().is_none());
    undocumented.map(|file| format!("{}: does not open with `//!` and what it owns", file.path)).collect()
}

/// `unsafe` stands in at most one module, which says so in an `Unsafe:` line of its doc and
/// explains each block with `SAFETY:`.
pub fn unsafe_code(files: &[File]) -> Vec<String> {
    let mut violations = Vec::new();
    let mut modules = Vec::new();
    for file in files.iter().filter(|file| !file.is_generated()) {
        let code = &file.parts.code;
        let places: Vec<usize> = find_word(code, "unsafe").collect();
        if places.is_empty() {
            continue;
        }
        modules.push(file.path.as_str());
        if !file.module_doc().any(|line| line.starts_with("Unsafe:")) {
            violations.push(format!(
                "{}: `unsafe`, and no `//! Unsafe: …` line in the module doc says why safe code cannot do it",
                file.at(places[0], code)
            ));
        }
        let unexplained = places.iter().filter(|&&at| !has_safety_comment(file, line_of(code, at)));
        violations.extend(unexplained.map(|&at| {
            format!("{}: `unsafe` without a `SAFETY:` comment right above it", file.at(at, code))
        }));
    }
    if modules.len() > 1 {
        violations.push(format!(
            "`unsafe` in {} modules, one may have it: {}",
            modules.len(),
            modules.join(", ")
        ));
    }
    violations
}

/// Every open end in a comment names its issue, as `TODO(#12)`.
pub fn open_ends(files: &[File]) -> Vec<String> {
    let mut violations = Vec::new();
    for file in files.iter().filter(|file| !file.is_generated()) {
        let comments = &file.parts.comments;
        for word in ["TODO", "FIXME", "XXX"] {
            for at in find_word(comments, word).filter(|&at| !names_issue(&comments[at + word.len()..])) {
                let place = file.at(at, comments);
                violations
                    .push(format!("{place}: `{word}` without its issue: write `{word}(#12)`, or do it"));
            }
        }
    }
    violations
}

/// No stand-ins for code and no tests that do not run.
pub fn stand_ins(files: &[File]) -> Vec<String> {
    let mut violations = Vec::new();
    for file in files.iter().filter(|file| !file.is_generated()) {
        let code = &file.parts.code;
        for word in ["todo!", "unimplemented!", "#[ignore"] {
            let hits = code.match_indices(word).map(|(at, _)| file.at(at, code));
            violations.extend(hits.map(|place| format!("{place}: `{word}`: write it, or leave it out")));
        }
    }
    violations
}

/// Every silenced lint says why: `#[expect(…, reason = "…")]`, and the same for `allow`.
pub fn silenced_lints_have_reasons(files: &[File]) -> Vec<String> {
    let mut violations = Vec::new();
    for file in files.iter().filter(|file| !file.is_generated()) {
        let code = &file.parts.code;
        for open in ["#[expect(", "#![expect(", "#[allow(", "#![allow("] {
            for (at, _) in code.match_indices(open) {
                let attribute = code[at..].split_once(")]").map_or(&code[at..], |(inside, _)| inside);
                if find_word(attribute, "reason").next().is_none() {
                    let place = file.at(at, code);
                    violations.push(format!("{place}: a lint is silenced without `reason = \"…\"`"));
                }
            }
        }
    }
    violations
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for entry in entries {
        let path = entry.expect("the folder stays while it is read").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            collect(&path, paths);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            paths.push(path);
        }
    }
}

/// Paths of modules that are declared as `#[cfg(test)] mod name;`.
fn test_files(files: &[File]) -> Vec<String> {
    let mut paths = Vec::new();
    for file in files {
        let folder = match file.path.rsplit_once('/') {
            Some((folder, "lib.rs" | "main.rs" | "mod.rs")) => folder.to_owned(),
            _ => file.path.trim_end_matches(".rs").to_owned(),
        };
        for name in lexer::test_modules(&file.parts.code) {
            paths.push(format!("{folder}/{name}.rs"));
            paths.push(format!("{folder}/{name}/mod.rs"));
        }
    }
    paths
}

/// Whether the comment that ends right above `line` (or stands on it) says `SAFETY:`.
fn has_safety_comment(file: &File, line: usize) -> bool {
    let comments: Vec<&str> = file.parts.comments.lines().collect();
    let on_line = comments.get(line - 1).is_some_and(|text| text.contains("SAFETY:"));
    let above = comments[..line - 1].iter().rev().take_while(|text| !text.trim().is_empty());
    on_line || above.into_iter().any(|text| text.contains("SAFETY:"))
}

fn names_issue(after: &str) -> bool {
    let inside = after.strip_prefix("(#").and_then(|rest| rest.split_once(')'));
    inside.is_some_and(|(number, _)| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(path: &str, text: &str) -> Vec<File> {
        vec![File::new(path, text)]
    }

    #[test]
    fn a_clock_in_a_pure_crate_is_found_and_its_tests_may_have_one() {
        let text =
            "//! x\nfn f() { Instant::now(); }\n#[cfg(test)]\nmod tests { fn g() { Instant::now(); } }\n";

        assert_eq!(purity(&one("policy/src/a.rs", text)).len(), 1);
        assert!(purity(&one("policy/src/a.rs", text))[0].starts_with("policy/src/a.rs:2:"));
        assert_eq!(purity(&one("node/src/a.rs", text)), [""; 0]);
    }

    #[test]
    fn a_socket_a_file_and_a_random_source_in_a_pure_crate_are_found() {
        let text = "use std::net::UdpSocket;\nuse std::fs;\nfn f() { rand::rng(); } // std::env in prose\n";

        assert_eq!(purity(&one("identity/src/a.rs", text)).len(), 3);
    }

    #[test]
    fn the_file_of_a_test_module_is_no_production_code() {
        let files = [
            File::new("policy/src/a.rs", "#[cfg(test)]\nmod tests;"),
            File::new("policy/src/a/tests.rs", "fn f() { Instant::now(); }"),
            File::new("policy/src/a/other.rs", "fn f() { Instant::now(); }"),
        ];

        assert_eq!(purity(&files).len(), 1);
    }

    #[test]
    fn a_long_file_needs_its_reason() {
        let long = "//! Owns x.\n".to_owned() + &"fn f() {}\n".repeat(MOST_LINES);

        assert_eq!(size(&one("node/src/a.rs", &long)).len(), 1);
        assert_eq!(size(&one("node/src/a.rs", &long.replace("Owns x.", "Size:"))).len(), 1);
        assert_eq!(size(&one("node/src/a.rs", &long.replace("Owns x.", "Size: one table."))), [""; 0]);
        assert_eq!(size(&one("api/src/gen/a.rs", &long)), [""; 0]);
        assert_eq!(size(&one("node/src/a.rs", &"\n".repeat(MOST_LINES))), [""; 0]);
    }

    #[test]
    fn a_module_that_does_not_say_what_it_owns_is_found() {
        assert_eq!(module_docs(&one("node/src/a.rs", "use x;\n//! late\n")).len(), 1);
    }

    #[test]
    fn unsafe_needs_a_documented_module_and_a_reason_each() {
        let bare = "//! x\nfn f() { unsafe { g() } }\n";
        let documented = "//! x\n//!\n//! Unsafe: the call has no safe wrapper.\nfn f() {\n    // SAFETY: g has none.\n    \
                          unsafe { g() }\n}\n";

        assert_eq!(unsafe_code(&one("node/src/a.rs", bare)).len(), 2);
        assert_eq!(unsafe_code(&one("node/src/a.rs", documented)), [""; 0]);
        let two = [File::new("a.rs", documented), File::new("b.rs", documented)];
        assert_eq!(unsafe_code(&two).len(), 1);
        assert_eq!(unsafe_code(&one("a.rs", "//! unsafe in prose\nconst A: &str = \"unsafe\";")), [""; 0]);
    }

    #[test]
    fn an_open_end_names_its_issue() {
        let word = "TODO";
        let text =
            format!("// {word} later\n// {word}(#12) later\n// {word}(soon)\nconst A: &str = \"{word}\";\n");

        assert_eq!(open_ends(&one("node/src/a.rs", &text)).len(), 2);
    }

    #[test]
    fn a_stand_in_and_a_skipped_test_are_found() {
        let text = "fn f() { todo!() }\n#[ignore = \"slow\"]\n#[test]\nfn g() {}\n// todo!() in prose\n";

        assert_eq!(stand_ins(&one("node/src/a.rs", text)).len(), 2);
    }

    #[test]
    fn a_silenced_lint_needs_its_reason() {
        let text = "#[expect(clippy::x)]\n#[expect(\n  clippy::x,\n  reason = \"a (b)\",\n)]\n#[allow(dead_code)]\nfn f() {}\n";

        assert_eq!(silenced_lints_have_reasons(&one("node/src/a.rs", text)).len(), 2);
    }
}
