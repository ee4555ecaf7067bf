//! What one build of the `weft` binary is made of, as cargo tells it.
//!
//! `cargo tree` resolves features as the build of that one package does; `cargo metadata` would add what the tests of the
//! whole workspace turn on. Licences come from the metadata, checksums from the lock file.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::SbomError;

/// The package that becomes the binary.
const ROOT: &str = "weft-cli";

/// One crate that is in the binary, or took part in building it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Crate {
    /// The package name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its licence, as it says it.
    pub licence: String,
    /// What it says it is.
    pub description: String,
    /// SHA-256 of its package, in hexadecimal; folders of the workspace have none.
    pub checksum: Option<String>,
    /// Whether it is a folder of this workspace.
    pub is_ours: bool,
    /// Whether it is the package that becomes the binary.
    pub is_root: bool,
}

/// Name and version.
type Key = (String, String);

/// All crates of a build, and the edges between them.
#[derive(Debug)]
pub struct Inventory {
    target: String,
    root: Key,
    crates: BTreeMap<Key, Crate>,
    linked: BTreeSet<Key>,
    below: BTreeMap<Key, BTreeSet<Key>>,
}

/// Arguments of cargo for everything that is built for the binary, with depths.
pub fn whole_tree(target: &str) -> Vec<String> {
    tree(target, "normal,build", "depth")
}

/// Arguments of cargo for what is linked into the binary.
pub fn linked_tree(target: &str) -> Vec<String> {
    tree(target, "normal,no-proc-macro", "none")
}

/// Arguments of cargo for the metadata of all of these.
pub fn metadata(target: &str) -> Vec<String> {
    ["metadata".to_owned(), "--format-version=1".to_owned(), format!("--filter-platform={target}")].to_vec()
}

fn tree(target: &str, edges: &str, prefix: &str) -> Vec<String> {
    vec![
        "tree".to_owned(),
        format!("--package={ROOT}"),
        format!("--edges={edges}"),
        format!("--target={target}"),
        format!("--prefix={prefix}"),
        "--format={p}".to_owned(),
    ]
}

impl Inventory {
    /// Reads the answers of cargo to [`whole_tree`], [`linked_tree`] and [`metadata`], and the lock file.
    ///
    /// # Errors
    ///
    /// [`SbomError::Line`] for a line of another form, [`SbomError::Unknown`] for a crate without metadata.
    pub fn read(
        target: &str,
        whole: &str,
        linked: &str,
        metadata: &Value,
        lock: &str,
    ) -> Result<Self, SbomError> {
        let below = edges(whole)?;
        let root = root_of(&below).ok_or_else(|| SbomError::Line { line: whole.to_owned() })?;
        let linked = lines(linked).map(package).collect::<Result<_, _>>()?;
        let checksums = checksums(lock);
        let crates = below.keys().map(|key| Ok((key.clone(), describe(key, metadata, &checksums)?)));
        Ok(Self { target: target.to_owned(), root, crates: crates.collect::<Result<_, _>>()?, linked, below })
    }

    /// The platform.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The package that becomes the binary.
    pub fn root(&self) -> &Crate {
        &self.crates[&self.root]
    }

    /// Every crate, by name and version.
    pub fn crates(&self) -> impl Iterator<Item = &Crate> {
        self.crates.values()
    }

    /// Whether code of the crate is in the binary.
    pub fn is_linked(&self, part: &Crate) -> bool {
        self.linked.contains(&(part.name.clone(), part.version.clone()))
    }

    /// What the crate itself depends on.
    pub fn below(&self, part: &Crate) -> impl Iterator<Item = &Crate> {
        self.below[&(part.name.clone(), part.version.clone())].iter().map(|key| &self.crates[key])
    }
}

/// Reads lines such as `2serde v1.0.1 (proc-macro) (*)`: the depth, then the package. Each crate has an entry.
fn edges(tree: &str) -> Result<BTreeMap<Key, BTreeSet<Key>>, SbomError> {
    let mut below: BTreeMap<Key, BTreeSet<Key>> = BTreeMap::new();
    let mut above: Vec<Key> = Vec::new();
    for line in lines(tree) {
        let fault = || SbomError::Line { line: line.to_owned() };
        let digits = line.find(|letter: char| !letter.is_ascii_digit()).ok_or_else(fault)?;
        let depth: usize = line[..digits].parse().map_err(|_| fault())?;
        let key = package(&line[digits..])?;
        below.entry(key.clone()).or_default();
        if depth > above.len() {
            return Err(fault());
        }
        above.truncate(depth);
        if let Some(parent) = above.last() {
            below.entry(parent.clone()).or_default().insert(key.clone());
        }
        above.push(key);
    }
    Ok(below)
}

fn root_of(below: &BTreeMap<Key, BTreeSet<Key>>) -> Option<Key> {
    below.keys().find(|(name, _)| name == ROOT).cloned()
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty())
}

/// `name v1.2.3`, with anything behind it: a path, a mark.
fn package(line: &str) -> Result<Key, SbomError> {
    let mut words = line.split_whitespace();
    let name = words.next().filter(|name| name.starts_with(|first: char| first.is_ascii_alphabetic()));
    let version = words.next().and_then(|word| word.strip_prefix('v'));
    name.zip(version)
        .map(|(name, version)| (name.to_owned(), version.to_owned()))
        .ok_or_else(|| SbomError::Line { line: line.to_owned() })
}

fn describe(
    (name, version): &Key,
    metadata: &Value,
    checksums: &BTreeMap<Key, String>,
) -> Result<Crate, SbomError> {
    let packages = metadata["packages"].as_array().map_or(&[][..], Vec::as_slice);
    let found = packages.iter().find(|package| package["name"] == **name && package["version"] == **version);
    let found = found.ok_or_else(|| SbomError::Unknown { name: name.clone(), version: version.clone() })?;
    let text = |key: &str| found[key].as_str().unwrap_or_default().trim().to_owned();
    Ok(Crate {
        name: name.clone(),
        version: version.clone(),
        licence: text("license"),
        description: text("description"),
        checksum: checksums.get(&(name.clone(), version.clone())).cloned(),
        is_ours: found["source"].is_null(),
        is_root: name == ROOT,
    })
}

/// The checksums of a lock file: three lines of each `[[package]]`.
fn checksums(lock: &str) -> BTreeMap<Key, String> {
    let value = |package: &str, key: &str| {
        let line = package.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \""))?;
        Some(line.trim_end_matches('"').to_owned())
    };
    lock.split("[[package]]")
        .filter_map(|package| {
            Some(((value(package, "name")?, value(package, "version")?), value(package, "checksum")?))
        })
        .collect()
}
