//! What the built tree of dependencies may contain: crates, versions, features.
//!
//! Reads the lines of `cargo tree --prefix none --format '{p}|{f}'`, which follows targets and
//! features as a build does; the lock file also lists crates of other platforms.

/// The platform that is judged: Weft is a Linux program.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Arguments for cargo that print the tree of what is built and tested in the whole workspace.
pub const WHOLE_TREE: &[&str] = &[
    "tree",
    "--workspace",
    "--edges=normal,build,dev",
    "--target=x86_64-unknown-linux-gnu",
    "--prefix=none",
    "--format={p}|{f}",
];

/// Crates that may not be built, with the reason. Every one is in the bans of `deny.toml` as well.
pub const BANNED: &[(&str, &str)] = &[
    (
        "ring",
        "a second crypto provider beside aws-lc-rs: choose the aws-lc features of the crate that pulls it",
    ),
    ("rustls-rustcrypto", "a second crypto provider beside aws-lc-rs"),
    ("rustls-graviola", "a second crypto provider beside aws-lc-rs"),
    ("rustls-openssl", "a second crypto provider beside aws-lc-rs"),
    ("rustls-mbedcrypto-provider", "a second crypto provider beside aws-lc-rs"),
    ("rustls-symcrypt", "a second crypto provider beside aws-lc-rs"),
    ("openssl", "a second TLS stack beside rustls"),
    ("openssl-sys", "a second TLS stack beside rustls"),
    ("native-tls", "a second TLS stack beside rustls"),
    ("boring", "a second TLS stack beside rustls"),
    ("boring-sys", "a second TLS stack beside rustls"),
    ("s2n-tls", "a second TLS stack beside rustls"),
    ("rustls-native-certs", "a pooled root store: bundles are chosen by trust domain"),
    ("rustls-platform-verifier", "a pooled root store: bundles are chosen by trust domain"),
    ("webpki-roots", "a pooled root store: bundles are chosen by trust domain"),
];

/// Crates of which two versions may not stand side by side.
const ONE_VERSION: &[&str] = &[
    "aws-lc-rs",
    "rustls",
    "rustls-webpki",
    "quinn",
    "quinn-proto",
    "tokio",
    "tonic",
    "prost",
    "http",
    "hyper",
];

/// The oldest versions without a known vulnerability that matters here (security.md 0, point 10).
const FLOORS: &[(&str, [u64; 3])] = &[
    ("quinn-proto", [0, 11, 15]), // RUSTSEC-2026-0185 memory of reassembly, 2026-0037 panic
    ("rustls-webpki", [0, 103, 13]), // RUSTSEC-2026-0098 URI name constraints, 2026-0104 panic
    ("h2", [0, 4, 18]),           // RUSTSEC-2026-0258
    ("aws-lc-sys", [0, 39, 0]),
    ("tonic", [0, 12, 3]),
    ("time", [0, 3, 47]),
    ("bytes", [1, 11, 1]), // RUSTSEC-2026-0007
];

/// Features that may not be on anywhere, with the reason; features unify over the whole tree.
const BANNED_FEATURES: &[(&str, &str, &str)] = &[
    ("rustls", "tls12", "TLS 1.3 only: find who enables it with `cargo tree -e features -i rustls`"),
    ("rustls", "ring", "one crypto provider, aws-lc-rs"),
    ("rustls", "hybrid-tls12", "TLS 1.3 only"),
    ("tokio-rustls", "tls12", "TLS 1.3 only"),
    ("tokio-rustls", "early-data", "0-RTT is off: it can be replayed and precedes authentication"),
    ("quinn", "rustls-ring", "one crypto provider, aws-lc-rs"),
    ("quinn", "platform-verifier", "a pooled root store: bundles are chosen by trust domain"),
    ("tonic", "tls-ring", "TLS of gRPC is api/src/channel.rs"),
    ("tonic", "tls-aws-lc", "TLS of gRPC is api/src/channel.rs"),
    ("tonic", "tls-native-roots", "TLS of gRPC is api/src/channel.rs"),
    ("tonic", "tls-webpki-roots", "TLS of gRPC is api/src/channel.rs"),
    ("rcgen", "ring", "one crypto provider, aws-lc-rs"),
    ("x509-parser", "verify", "its verify is ring: use verify-aws"),
];

/// Crates that bring I/O, tasks or an engine of their own: not below a pure crate.
const IMPURE: &[&str] = &[
    "tokio",
    "tokio-util",
    "mio",
    "socket2",
    "nix",
    "rustix",
    "quinn",
    "quinn-udp",
    "hyper",
    "hyper-util",
    "h2",
    "tonic",
    "tower",
    "axum",
    "async-std",
    "smol",
    "async-io",
    "polling",
    "futures-executor",
    "tracing",
    "reqwest",
    "redb",
];

/// How a proof is made: not below `weft-policy`, which only sees names.
const PROOFS: &[&str] = &["rustls", "rustls-webpki", "x509-parser", "rcgen", "aws-lc-rs"];

/// One crate of the tree.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Crate {
    /// The package name.
    pub name: String,
    /// `[major, minor, patch]`.
    pub version: [u64; 3],
    /// Features that are on.
    pub features: Vec<String>,
}

/// Parses the output of `cargo tree` in the format of [`WHOLE_TREE`].
///
/// # Panics
///
/// If a line has another form or no line is there: an unread tree is not a clean one.
pub fn parse(output: &str) -> Vec<Crate> {
    let lines = output.lines().filter(|line| !line.trim().is_empty());
    let crates: Vec<Crate> = lines
        .map(|line| parse_line(line).unwrap_or_else(|| panic!("unknown line in cargo tree: {line:?}")))
        .collect();
    assert!(!crates.is_empty(), "cargo tree printed nothing");
    crates
}

/// Arguments for cargo that print what `package` alone is built from.
pub fn tree_of(package: &str) -> Vec<String> {
    let fixed =
        ["tree", "--edges=normal", "--target=x86_64-unknown-linux-gnu", "--prefix=none", "--format={p}|{f}"];
    fixed.iter().map(ToString::to_string).chain([format!("--package={package}")]).collect()
}

/// Finds crates of [`BANNED`] and second versions of what must be one.
pub fn banned(tree: &[Crate]) -> Vec<String> {
    let banned = BANNED.iter().filter(|(name, _)| tree.iter().any(|c| c.name == *name));
    let banned = banned.map(|(name, reason)| format!("{name} is built: {reason} (`cargo tree -i {name}`)"));
    let twice = ONE_VERSION.iter().filter_map(|name| {
        let mut versions: Vec<_> = tree.iter().filter(|c| c.name == *name).map(|c| c.version).collect();
        versions.sort_unstable();
        versions.dedup();
        (versions.len() > 1).then(|| format!("{name} is built in versions {versions:?}: keep one"))
    });
    banned.chain(twice).collect()
}

/// Finds crates older than the floors of security.md, and floors of crates that are gone.
pub fn version_floors(tree: &[Crate]) -> Vec<String> {
    let old = tree.iter().filter_map(|c| {
        let (_, floor) = FLOORS.iter().find(|(name, floor)| *name == c.name && c.version < *floor)?;
        Some(format!("{} {:?} is older than {floor:?}: run `cargo update -p {}`", c.name, c.version, c.name))
    });
    let gone = FLOORS
        .iter()
        .filter(|(name, _)| !tree.iter().any(|c| c.name == *name))
        .map(|(name, _)| format!("{name} has a version floor and is not in the tree: was it read right?"));
    old.chain(gone).collect()
}

/// Finds features of `BANNED_FEATURES` that something in the tree turned on.
pub fn banned_features(tree: &[Crate]) -> Vec<String> {
    let hit = |(name, feature, _): &&(&str, &str, &str)| {
        tree.iter().any(|c| c.name == *name && c.features.iter().any(|f| f == feature))
    };
    BANNED_FEATURES
        .iter()
        .filter(hit)
        .map(|(name, feature, reason)| format!("feature `{feature}` of {name} is on: {reason}"))
        .collect()
}

/// Finds I/O and runtimes in the tree of a pure crate; for `weft-policy` also TLS and certificates.
pub fn impure(package: &str, tree: &[Crate]) -> Vec<String> {
    let proofs = if package == "weft-policy" { PROOFS } else { &[] };
    let forbidden = IMPURE.iter().chain(proofs);
    forbidden
        .filter(|name| tree.iter().any(|c| c.name == **name))
        .map(|name| {
            format!("{package} is pure and is built from {name}: pass the value in, or move the code up")
        })
        .collect()
}

fn parse_line(line: &str) -> Option<Crate> {
    let (package, features) = line.split_once('|')?;
    let mut words = package.split_whitespace();
    let name = words.next()?.to_owned();
    let version = parse_version(words.next()?.strip_prefix('v')?)?;
    let features = features.trim_end_matches(" (*)").split(',').map(str::trim);
    Some(Crate { name, version, features: features.filter(|f| !f.is_empty()).map(str::to_owned).collect() })
}

/// `1.2.3` and `1.2.3+build`; a pre-release counts as older than its release, so it is refused.
fn parse_version(text: &str) -> Option<[u64; 3]> {
    let core = text.split('+').next()?;
    let mut numbers = core.split('.').map(|part| part.parse().ok());
    let version = [numbers.next()??, numbers.next()??, numbers.next()??];
    numbers.next().is_none().then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(lines: &str) -> Vec<Crate> {
        parse(lines)
    }

    #[test]
    fn lines_of_cargo_tree_are_read_with_features_and_marks() {
        let read =
            tree("rustls v0.23.46|aws_lc_rs,std (*)\nweft-node v0.1.0 (path)|\naws-lc-sys v0.47.0+x|a\n");

        assert_eq!(read[0].features, ["aws_lc_rs", "std"]);
        assert_eq!(read[1].features, Vec::<String>::new());
        assert_eq!(read[2].version, [0, 47, 0]);
    }

    #[test]
    #[should_panic(expected = "unknown line")]
    fn a_line_that_is_not_understood_stops_the_check() {
        tree("rustls v0.24.0-dev.1|std");
    }

    #[test]
    #[should_panic(expected = "printed nothing")]
    fn an_empty_tree_is_not_a_clean_one() {
        tree("\n");
    }

    #[test]
    fn a_second_provider_and_a_second_version_are_found() {
        let found =
            banned(&tree("ring v0.17.14|\nrustls v0.23.46|\nrustls v0.22.1|\nserde v1.0.0|")).join("\n");

        assert!(found.contains("ring is built") && found.contains("rustls is built in versions"));
        assert_eq!(banned(&tree("rustls v0.23.46|\nrustls v0.23.46|")), Vec::<String>::new());
    }

    #[test]
    fn an_old_version_and_a_vanished_crate_are_found() {
        let found = version_floors(&tree("quinn-proto v0.11.14|\nbytes v1.12.0|")).join("\n");

        assert!(found.contains("quinn-proto [0, 11, 14] is older"));
        assert!(!found.contains("bytes [") && found.contains("h2 has a version floor and is not"));
    }

    #[test]
    fn tls_1_2_turned_on_by_anyone_is_found() {
        let found = banned_features(&tree("rustls v0.23.46|std,tls12\ntonic v0.14.9|tls-ring"));

        assert_eq!(found.len(), 2);
        assert!(found[0].contains("tls12"));
    }

    #[test]
    fn a_runtime_below_a_pure_crate_is_found() {
        let with_runtime = tree("weft-identity v0.1.0|\ntokio v1.54.1|\nrustls v0.23.46|");

        assert_eq!(impure("weft-identity", &with_runtime).len(), 1);
        assert_eq!(impure("weft-policy", &with_runtime).len(), 2);
    }
}
