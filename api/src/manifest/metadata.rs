//! What every object carries: name, namespace, labels, annotations, revision.

use std::collections::BTreeMap;

use serde_json::Value;
use weft_policy::{
    code,
    model::{Kind, Metadata},
    name::{MAX_LABEL_BYTES, Namespace, ObjectName},
};

use super::{
    Form,
    fields::{At, Context},
    nearest::nearest,
    object::Object,
    output::Output,
    quoted,
};
use crate::fault::Fault;

/// The most labels, and the most annotations, of one object.
pub const MAX_LABELS: usize = 64;
/// The longest DNS name, the prefix of a label's key (RFC 1035 §2.3.4).
const MAX_PREFIX_BYTES: usize = 253;

/// Annotations of ours that mean something in this version.
const OWN_ANNOTATIONS: [&str; 2] = ["weft.mesh/reason", "weft.mesh/explain-denials"];
/// Annotations of the specification that would restrict something and are not served: never ignored.
const UNSERVED_ANNOTATIONS: [&str; 2] = ["weft.mesh/callers", "weft.mesh/match-order"];
const OWN_PREFIX: &str = "weft.mesh/";

pub(super) fn read(kind: Kind, at: &At<'_>) -> Option<Metadata> {
    let mut object = at.object()?;
    let name: Option<ObjectName> = object.required("name").and_then(|at| at.parse());
    let namespace = namespace(kind, &mut object);
    let labels = object.or("labels", BTreeMap::new(), |at| at.texts(MAX_LABELS, label));
    let annotations = object.or("annotations", BTreeMap::new(), annotations);
    let revision = object.or("resourceVersion", 0, revision);
    object.finish();
    Some(Metadata {
        namespace: namespace?,
        name: name?,
        labels: labels?,
        annotations: annotations?,
        revision: revision?,
    })
}

/// The namespace: given, or the context's; never for a kind that has none.
fn namespace(kind: Kind, object: &mut Object<'_>) -> Option<Option<Namespace>> {
    let given = object.optional("namespace");
    match (kind.is_namespaced(), given) {
        (true, Some(at)) => at.parse().map(Some),
        (false, None) => Some(None),
        (false, Some(at)) => {
            let what = format!("a {kind} belongs to no namespace");
            at.fault(Fault::new(code::BAD_VALUE, what).fix("remove metadata.namespace"));
            None
        }
        (true, None) => object.at.cx.default_namespace(&object.at).map(Some),
    }
}

impl Context {
    fn default_namespace(&self, metadata: &At<'_>) -> Option<Namespace> {
        if self.namespace.is_none() && self.form == Form::Manifest {
            let fault = Fault::new(code::MISSING_FIELD, "metadata.namespace is missing");
            metadata.fault(fault.fix("add metadata.namespace"));
        }
        self.namespace.clone()
    }
}

fn annotations(at: &At<'_>) -> Option<BTreeMap<String, String>> {
    for (key, at) in at.entries(MAX_LABELS)? {
        if UNSERVED_ANNOTATIONS.contains(&key) {
            at.not_served(&format!("the annotation {key}"), "remove it");
        } else if key.starts_with(OWN_PREFIX) && !OWN_ANNOTATIONS.contains(&key) {
            let fault = Fault::new(code::UNKNOWN_FIELD, format!("unknown annotation {}", quoted(key)))
                .why(format!("annotations of {OWN_PREFIX} are {}", OWN_ANNOTATIONS.join(", ")));
            at.fault(match nearest(key, OWN_ANNOTATIONS) {
                Some(known) => fault.fix(format!("did you mean {known}?")),
                None => fault.fix("remove it"),
            });
        }
    }
    at.texts(MAX_LABELS, |key, text| {
        label_key(key)?;
        let hidden = |c: char| c.is_control() && c != '\n' && c != '\t';
        match (key, text) {
            (_, text) if text.contains(hidden) => Err("it contains a control character".to_owned()),
            ("weft.mesh/explain-denials", text) if text != "to-caller" => {
                Err("the only value is to-caller".to_owned())
            }
            _ => Ok(()),
        }
    })
}

fn revision(at: &At<'_>) -> Option<u64> {
    let text = at.text()?;
    let found = text.parse().ok().filter(|revision: &u64| revision.to_string() == text);
    if found.is_none() {
        at.invalid("a resourceVersion is a number in quotes, as the server gave it");
    }
    found
}

/// Whether `key: text` is a label (Kubernetes' grammar, so that labels travel).
pub(super) fn label(key: &str, text: &str) -> Result<(), String> {
    label_key(key)?;
    if text.is_empty() || is_label_text(text) {
        return Ok(());
    }
    Err("a label's value has at most 63 letters, digits and inner '-', '_', '.'".to_owned())
}

fn label_key(key: &str) -> Result<(), String> {
    let (prefix, name) = key.split_once('/').unwrap_or(("weft", key));
    let prefix_ok = prefix.len() <= MAX_PREFIX_BYTES
        && prefix.split('.').all(|label| label.parse::<ObjectName>().is_ok());
    if prefix_ok && is_label_text(name) {
        return Ok(());
    }
    Err(format!("{} is not a key: write [prefix.example/]name", quoted(key)))
}

/// 1 to 63 letters, digits, `-`, `_`, `.`, with a letter or digit at both ends.
pub(super) fn is_label_text(text: &str) -> bool {
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    let inner = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    bytes.len() <= MAX_LABEL_BYTES
        && first.is_ascii_alphanumeric()
        && last.is_ascii_alphanumeric()
        && bytes.iter().all(inner)
}

pub(super) fn write(form: Form, metadata: &Metadata) -> Value {
    let out = Output::new(form)
        .text("name", &metadata.name)
        .optional("namespace", metadata.namespace.as_ref().map(ToString::to_string))
        .map("labels", &metadata.labels)
        .map("annotations", &metadata.annotations);
    match (form, metadata.revision) {
        (Form::Manifest, 0) => out.done(),
        (Form::Manifest | Form::Record, revision) => out.text("resourceVersion", revision).done(),
    }
}
