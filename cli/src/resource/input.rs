//! Manifests from files, directories and standard input.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
};

use weft_api::{fault::Fault, manifest, pb::management::Document};
use weft_policy::{code, model::Resource};

use super::namespace_of;
use crate::{args::Global, error::CliError};

/// The largest manifest file, in bytes: 4,096 objects of the largest size would be 1 GiB, so a file has its own bound.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// Reads every resource of `files`; all faults of all files are told at once.
pub(crate) fn read(files: &[PathBuf], global: &Global) -> Result<Vec<Resource>, CliError> {
    let default = namespace_of(global);
    let namespace = default.parse().map_err(|e| CliError::usage(format!("{default:?}: {e}"), "-n shop"))?;
    let mut resources = Vec::new();
    let mut faults = Vec::new();
    for (name, text) in texts(files)? {
        match manifest::parse(&text, Some(&namespace)) {
            Ok(found) => resources.extend(found),
            Err(found) => faults.extend(found.into_iter().map(|mut fault| {
                fault.what = format!("{name}: {}", fault.what);
                fault
            })),
        }
    }
    if !faults.is_empty() {
        return Err(CliError::invalid(faults));
    }
    if resources.is_empty() {
        return Err(CliError::invalid(vec![Fault::new(
            code::NOTHING_TO_DO,
            "no object stands in the input",
        )]));
    }
    Ok(resources)
}

/// The wire form of resources.
pub(crate) fn documents(resources: &[Resource]) -> Vec<Document> {
    let json = |resource| manifest::to_json(resource).to_string().into_bytes();
    resources.iter().map(|resource| Document { json: json(resource) }).collect()
}

fn texts(files: &[PathBuf]) -> Result<Vec<(String, String)>, CliError> {
    let mut texts = Vec::new();
    for path in files {
        if path == Path::new("-") {
            let mut text = String::new();
            let read = std::io::stdin().lock().take(MAX_FILE_BYTES).read_to_string(&mut text);
            read.map_err(|e| CliError::file(path, &e))?;
            texts.push(("standard input".to_owned(), text));
            continue;
        }
        for file in manifest_files(path)? {
            let size = std::fs::metadata(&file).map_err(|e| CliError::file(&file, &e))?.len();
            if size > MAX_FILE_BYTES {
                return Err(CliError::file(&file, &format!("{size} bytes are more than {MAX_FILE_BYTES}")));
            }
            let text = std::fs::read_to_string(&file).map_err(|e| CliError::file(&file, &e))?;
            texts.push((file.display().to_string(), text));
        }
    }
    Ok(texts)
}

/// The file itself, or the manifests of a directory in the order of their names.
fn manifest_files(path: &Path) -> Result<Vec<PathBuf>, CliError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path).map_err(|e| CliError::file(path, &e))?;
    let is_manifest = |file: &PathBuf| {
        file.is_file() && file.extension().is_some_and(|ext| ext == "yaml" || ext == "yml" || ext == "json")
    };
    let mut files: Vec<_> = entries.filter_map(|e| e.ok().map(|e| e.path())).filter(is_manifest).collect();
    files.sort();
    Ok(files)
}
