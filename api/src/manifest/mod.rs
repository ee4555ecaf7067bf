//! Manifests: what an operator writes, as text and as the model.
//!
//! Owns the way from YAML or JSON to [`Resource`] and back. Everything that can be told of one object alone is checked
//! here, all faults of a text at once, each with its code, field, place and fix. What needs other objects (references,
//! overlaps, the trust domain) is the registry's.
//!
//! ```text
//! text ──node──▶ tree with places ──fields──▶ kinds/* ──▶ Resource ──output──▶ JSON, YAML
//! ```
//!
//! Invariants: nothing that is given is ignored; an empty list or a field without a value is a fault, never "any"; a
//! fault always refuses the whole text. `parse(to_yaml(r)) == r`. The same readers serve [`crate::record`], where a field
//! that is absent is a fault too.

mod document;
mod fields;
mod kinds;
mod metadata;
pub mod nearest;
mod node;
mod object;
mod output;
pub mod strict;

#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;

pub use document::{MAX_OBJECT_BYTES, MAX_POLICY_BYTES};
use serde_json::Value;
use weft_policy::{
    code,
    model::{Endpoint, Resource},
    name::Namespace,
};

use self::fields::{At, Context};
pub use self::{metadata::MAX_LABELS, node::MAX_INPUT_BYTES};
use crate::fault::Fault;

/// Who wrote the text, which decides what an absent field means.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Form {
    /// A person: what is absent takes its default; a field without a value is a fault.
    Manifest,
    /// A plane of ours: every field is present, `null` where there is nothing; an absent one is a fault.
    Record,
}

/// Reads every object of a text: YAML (several documents, lists with `items`) or JSON. Objects of kinds with a namespace
/// that name none get `namespace`; with `None` they must name one.
///
/// # Errors
///
/// All faults that can be told at once, at least one, in the order of the text.
pub fn parse(text: &str, namespace: Option<&Namespace>) -> Result<Vec<Resource>, Vec<Fault>> {
    let nodes = node::read_yaml(text, code::MALFORMED).map_err(|fault| vec![fault])?;
    let context = Context::new(Form::Manifest, namespace.cloned());
    let resources = document::read_all(&context, &nodes);
    finished(context, resources)
}

/// Reads one object from JSON, the form in which the management API carries it.
///
/// # Errors
///
/// All faults that can be told at once, at least one.
pub fn parse_json(json: &[u8], namespace: Option<&Namespace>) -> Result<Resource, Vec<Fault>> {
    let node = node::read_json(json, code::MALFORMED).map_err(|fault| vec![fault])?;
    let context = Context::new(Form::Manifest, namespace.cloned());
    let resource = document::read(&At::root(&context, &node));
    finished(context, resource)
}

/// Reads one object from its record.
pub(crate) fn parse_record(json: &[u8]) -> Result<Resource, Vec<Fault>> {
    let node = node::read_json(json, code::MALFORMED).map_err(|fault| vec![fault])?;
    let context = Context::new(Form::Record, None);
    let resource = document::read(&At::root(&context, &node));
    finished(context, resource)
}

/// Reads an endpoint from its record.
pub(crate) fn parse_endpoint(json: &[u8]) -> Result<Endpoint, Vec<Fault>> {
    let node = node::read_json(json, code::MALFORMED).map_err(|fault| vec![fault])?;
    let context = Context::new(Form::Record, None);
    let endpoint = kinds::endpoint::read(&At::root(&context, &node));
    finished(context, endpoint)
}

fn finished<T>(context: Context, value: Option<T>) -> Result<T, Vec<Fault>> {
    match (context.into_faults(), value) {
        (faults, Some(value)) if faults.is_empty() => Ok(value),
        (faults, None) if faults.is_empty() => {
            Err(vec![Fault::new(code::BAD_VALUE, "the object cannot be read")])
        }
        (faults, _) => Err(faults),
    }
}

/// The object as JSON, in full: defaults are written, what is absent is left out. This is the object of the output
/// contract (cli.md 4.2).
#[must_use]
pub fn to_json(resource: &Resource) -> Value {
    document::write(Form::Manifest, resource)
}

/// The object as one YAML document.
#[must_use]
pub fn to_yaml(resource: &Resource) -> String {
    let json = to_json(resource);
    // Writing a tree of JSON into a text has no way to fail; JSON is YAML, should it ever.
    value_to_yaml(&json).unwrap_or_else(|_| json.to_string())
}

/// Any value as one YAML document, for `-o yaml`.
///
/// # Errors
///
/// [`UnwritableYaml`] when the value's own `Serialize` fails; a JSON value's never does.
pub fn value_to_yaml(value: &impl serde::Serialize) -> Result<String, UnwritableYaml> {
    serde_saphyr::to_string(value).map_err(|error| UnwritableYaml(error.to_string()))
}

/// A value cannot be written as YAML.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the value cannot be written as YAML: {0}")]
pub struct UnwritableYaml(String);

pub(crate) fn to_record(resource: &Resource) -> Value {
    document::write(Form::Record, resource)
}

pub(crate) fn endpoint_to_record(endpoint: &Endpoint) -> Value {
    kinds::endpoint::write(endpoint, output::Output::new(Form::Record))
}

/// The longest foreign text that a message repeats.
const MAX_QUOTED_CHARS: usize = 80;

/// A foreign text for a message: in quotes, control characters and quotes escaped (API-15), cut at 80 characters.
pub(crate) fn quoted(text: &str) -> String {
    let mut cut: String = text.chars().take(MAX_QUOTED_CHARS).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    format!("{cut:?}")
}

/// Whether a key can stand in a path as it is.
pub(crate) fn plain_key(key: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    !key.is_empty() && key.len() <= MAX_QUOTED_CHARS && key.bytes().all(plain)
}
