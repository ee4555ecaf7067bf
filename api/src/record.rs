//! Records: objects as the planes keep and send them.
//!
//! Owns their codec. A record is canonical JSON in which every field is present (`null` where there is nothing), with
//! the SHA-256 of its bytes. A reader refuses a field that is absent, unknown, empty or of another type, so that a part
//! that is lost on the way never reads as "any" (security.md f08, POL-01, POL-02).
//!
//! Invariant: what is decoded is what was encoded, or it is refused. A policy that is refused becomes
//! [`Unreadable`], which closes its targets; any other object that is refused fails the whole message.

mod denied;

use std::fmt;

use aws_lc_rs::digest;
use weft_policy::{
    model::{Resource, TargetRef},
    name::{Namespace, ServiceName},
    snapshot::{Unreadable, View, ViewKey, ViewObject},
};

use crate::{fault::Fault, manifest, pb::discovery as pb};

/// Why bytes are not a record.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RecordError {
    /// The bytes do not begin as a record of this version does.
    #[error("the record has no header of a version known here")]
    Header,
    /// The bytes are not those that were written.
    #[error("the record's SHA-256 differs: it is damaged")]
    Damaged,
    /// The content cannot be read: a field is missing, unknown, empty or wrong.
    #[error("the record cannot be read: {}", Faults(.0))]
    Content(Vec<Fault>),
    /// The key is not one of a view.
    #[error("{0} is not the key of an object")]
    Key(String),
    /// A page of the denylist is not one.
    #[error("page {number:02x} of the denylist cannot be read: {why}")]
    Denylist {
        /// Its number.
        number: u8,
        /// Why.
        why: String,
    },
    /// The content is another object than the key says.
    #[error("the record of {key} holds {found}")]
    OtherObject {
        /// What the key says.
        key: String,
        /// What the content says.
        found: String,
    },
}

struct Faults<'a>(&'a [Fault]);

impl fmt::Display for Faults<'_> {
    /// The first fault and the number of the others.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => f.write_str("it is empty"),
            [only] => only.fmt(f),
            [first, others @ ..] => write!(f, "{first} (and {} more)", others.len()),
        }
    }
}

/// How a stored record begins; the SHA-256 in hexadecimal and a line feed follow, then the JSON.
const HEADER: &str = "weft-record/1 ";
/// The length of a SHA-256 in hexadecimal.
const HEX_BYTES: usize = 64;

/// The bytes that the store keeps of `resource`. The revision is not among them: the store knows it.
#[must_use]
pub fn encode_resource(resource: &Resource) -> Vec<u8> {
    let mut record = manifest::to_record(resource);
    record["metadata"]["resourceVersion"] = "0".into();
    let json = record.to_string();
    let mut bytes = format!("{HEADER}{}\n", hex(&sha256(json.as_bytes()))).into_bytes();
    bytes.extend_from_slice(json.as_bytes());
    bytes
}

/// The object of which [`encode_resource`] made `bytes`, at the `revision` that the store has it at.
///
/// # Errors
///
/// [`RecordError`] when the bytes are not exactly a record.
pub fn decode_resource(bytes: &[u8], revision: u64) -> Result<Resource, RecordError> {
    let rest = bytes.strip_prefix(HEADER.as_bytes()).ok_or(RecordError::Header)?;
    let (sum, rest) = rest.split_at_checked(HEX_BYTES).ok_or(RecordError::Header)?;
    let json = rest.strip_prefix(b"\n").ok_or(RecordError::Header)?;
    if hex(&sha256(json)).as_bytes() != sum {
        return Err(RecordError::Damaged);
    }
    let mut resource = manifest::parse_record(json).map_err(RecordError::Content)?;
    resource.metadata_mut().revision = revision;
    Ok(resource)
}

/// The message that carries `object` to an agent. `revision` tells a reader how new it is; nothing is decided by it.
#[must_use]
pub fn encode_view_object(object: &ViewObject, revision: u64) -> pb::Object {
    let document = document(object);
    let targets = match object {
        ViewObject::AuthorizationPolicy(policy) => policy.targets.iter().map(target_text).collect(),
        ViewObject::Unreadable(lost) => lost.targets.iter().map(target_text).collect(),
        ViewObject::Mesh(_)
        | ViewObject::Namespace(_)
        | ViewObject::Service(_)
        | ViewObject::Endpoint(_)
        | ViewObject::TcpRoute(_)
        | ViewObject::TrafficPolicy(_)
        | ViewObject::Denied(_) => Vec::new(),
    };
    let sha256 = sha256(&document).to_vec();
    pb::Object { key: Some(key_to_message(&object.key())), revision, document, sha256, targets }
}

/// The canonical JSON of an object.
fn document(object: &ViewObject) -> Vec<u8> {
    let resource = match object {
        ViewObject::Endpoint(endpoint) => {
            return manifest::endpoint_to_record(endpoint).to_string().into_bytes();
        }
        ViewObject::Denied(page) => return denied::encode(page),
        ViewObject::Unreadable(lost) => {
            return serde_json::json!({ UNREADABLE: lost.why }).to_string().into_bytes();
        }
        ViewObject::Mesh(mesh) => Resource::Mesh((**mesh).clone()),
        ViewObject::Namespace(settings) => Resource::Namespace((**settings).clone()),
        ViewObject::Service(service) => Resource::Service((**service).clone()),
        ViewObject::TcpRoute(route) => Resource::TcpRoute((**route).clone()),
        ViewObject::TrafficPolicy(policy) => Resource::TrafficPolicy((**policy).clone()),
        ViewObject::AuthorizationPolicy(policy) => Resource::AuthorizationPolicy((**policy).clone()),
    };
    manifest::to_record(&resource).to_string().into_bytes()
}

/// The object of which [`encode_view_object`] made `message`.
///
/// An authorization policy that cannot be read is [`ViewObject::Unreadable`] with the targets that the message names;
/// none when those cannot be read either, which closes its whole namespace.
///
/// # Errors
///
/// [`RecordError`] when the key, or any other object, cannot be read: the message is to be refused.
pub fn decode_view_object(message: &pb::Object) -> Result<ViewObject, RecordError> {
    let key = message.key.as_ref().ok_or_else(|| RecordError::Key("nothing".to_owned()))?;
    let key = key_from_message(key)?;
    match decode_document(&key, message) {
        Ok(object) => Ok(object),
        Err(error) if matches!(key, ViewKey::AuthorizationPolicy(..)) => {
            Ok(unreadable(key, message, &error).into())
        }
        Err(error) => Err(error),
    }
}

fn decode_document(key: &ViewKey, message: &pb::Object) -> Result<ViewObject, RecordError> {
    if sha256(&message.document).as_slice() != message.sha256 {
        return Err(RecordError::Damaged);
    }
    let object = match key {
        ViewKey::Endpoint(..) => {
            manifest::parse_endpoint(&message.document).map_err(RecordError::Content)?.into()
        }
        ViewKey::Denied(number) => denied::decode(*number, &message.document)?.into(),
        ViewKey::Mesh
        | ViewKey::Namespace(_)
        | ViewKey::Service(_)
        | ViewKey::TcpRoute(..)
        | ViewKey::TrafficPolicy(..)
        | ViewKey::AuthorizationPolicy(..) => {
            view_object(manifest::parse_record(&message.document).map_err(RecordError::Content)?)?
        }
    };
    if object.key() == *key {
        return Ok(object);
    }
    Err(RecordError::OtherObject { key: key.to_string(), found: object.key().to_string() })
}

/// The object of a view that `resource` is.
///
/// # Errors
///
/// [`RecordError::Key`] for a Workload or WorkloadEnrollment: agents are told endpoints instead.
pub fn view_object(resource: Resource) -> Result<ViewObject, RecordError> {
    match resource {
        Resource::Mesh(mesh) => Ok(mesh.into()),
        Resource::Namespace(settings) => Ok(settings.into()),
        Resource::Service(service) => Ok(service.into()),
        Resource::TcpRoute(route) => Ok(route.into()),
        Resource::TrafficPolicy(policy) => Ok(policy.into()),
        Resource::AuthorizationPolicy(policy) => Ok(policy.into()),
        Resource::Workload(_) | Resource::WorkloadEnrollment(_) => {
            Err(RecordError::Key(resource.key().to_string()))
        }
    }
}

/// The one field of the document of an object that the sender could not read either.
const UNREADABLE: &str = "unreadable";
/// What stands in the reason of an unreadable policy before the SHA-256 of what was not read, so that views still compare.
const OF_DOCUMENT: &str = "; SHA-256 of the document: ";
/// The longest reason that is kept.
const MAX_WHY_CHARS: usize = 400;

fn unreadable(key: ViewKey, message: &pb::Object, error: &RecordError) -> Unreadable {
    let namespace = key.namespace();
    let targets: Option<Vec<_>> =
        message.targets.iter().map(|text| target_from_text(text, namespace)).collect();
    let why = sender_could_not_read(&message.document).unwrap_or_else(|| {
        let reason: String = error.to_string().chars().take(MAX_WHY_CHARS).collect();
        format!("{reason}{OF_DOCUMENT}{}", hex(&sha256(&message.document)))
    });
    Unreadable { key, targets: targets.unwrap_or_default(), why }
}

/// The reason that the sender gives, when it could not read the object itself.
fn sender_could_not_read(document: &[u8]) -> Option<String> {
    let document: serde_json::Map<_, _> = serde_json::from_slice(document).ok()?;
    match document.get(UNREADABLE) {
        Some(serde_json::Value::String(why)) if document.len() == 1 => Some(why.clone()),
        Some(_) | None => None,
    }
}

/// SHA-256 over the keys and documents of a view: equal for two views when they hold the same objects, also where one
/// side could not read a policy.
#[must_use]
pub fn view_digest(view: &View) -> [u8; 32] {
    let mut digest = ViewDigest::new();
    for (_, object) in view {
        digest.line(&digest_line(object));
    }
    digest.finish()
}

/// [`view_digest`] of a view of which the lines are known, in the order of the view.
#[derive(Clone)]
pub struct ViewDigest(digest::Context);

impl ViewDigest {
    /// Of the view of nothing.
    #[must_use]
    pub fn new() -> Self {
        Self(digest::Context::new(&digest::SHA256))
    }

    /// Adds the next object, by its [`digest_line`].
    pub fn line(&mut self, line: &str) {
        self.0.update(line.as_bytes());
    }

    /// The digest.
    #[must_use]
    pub fn finish(self) -> [u8; 32] {
        bytes_of(self.0.finish())
    }
}

impl Default for ViewDigest {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for ViewDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ViewDigest")
    }
}

/// What an object is in [`view_digest`]: its key, and the SHA-256 of its document.
#[must_use]
pub fn digest_line(object: &ViewObject) -> String {
    let key = key_to_message(&object.key());
    format!("{}\n{}\n{}\n{}\n", key.kind, key.namespace, key.name, hex(&object_digest(object)))
}

fn object_digest(object: &ViewObject) -> [u8; 32] {
    let received = match object {
        ViewObject::Unreadable(lost) => digest_in_reason(&lost.why),
        ViewObject::Mesh(_)
        | ViewObject::Namespace(_)
        | ViewObject::Service(_)
        | ViewObject::Endpoint(_)
        | ViewObject::TcpRoute(_)
        | ViewObject::TrafficPolicy(_)
        | ViewObject::AuthorizationPolicy(_)
        | ViewObject::Denied(_) => None,
    };
    received.unwrap_or_else(|| sha256(&document(object)))
}

fn digest_in_reason(why: &str) -> Option<[u8; 32]> {
    let (_, sum) = why.rsplit_once(OF_DOCUMENT)?;
    let pairs = sum.as_bytes().chunks_exact(2).map(|pair| std::str::from_utf8(pair).ok());
    let bytes: Option<Vec<_>> = pairs.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect();
    bytes?.try_into().ok()
}

/// The key as it travels; an endpoint's name is `service/workload`.
#[must_use]
pub fn key_to_message(key: &ViewKey) -> pb::ObjectKey {
    let name = match key {
        ViewKey::Mesh => "mesh".to_owned(),
        ViewKey::Namespace(name) => name.to_string(),
        ViewKey::Service(service) => service.name.to_string(),
        ViewKey::Endpoint(service, workload) => format!("{}/{workload}", service.name),
        ViewKey::TcpRoute(_, name)
        | ViewKey::TrafficPolicy(_, name)
        | ViewKey::AuthorizationPolicy(_, name) => name.to_string(),
        ViewKey::Denied(number) => format!("{number:02x}"),
    };
    let namespace = match key {
        ViewKey::Namespace(_) => None,
        ViewKey::Mesh
        | ViewKey::Service(_)
        | ViewKey::Endpoint(..)
        | ViewKey::TcpRoute(..)
        | ViewKey::TrafficPolicy(..)
        | ViewKey::AuthorizationPolicy(..)
        | ViewKey::Denied(_) => key.namespace(),
    };
    let namespace = namespace.map(ToString::to_string).unwrap_or_default();
    pb::ObjectKey { kind: key.kind().to_owned(), namespace, name }
}

/// The key of which [`key_to_message`] made `message`.
///
/// # Errors
///
/// [`RecordError::Key`] when a part is not what it should be.
pub fn key_from_message(message: &pb::ObjectKey) -> Result<ViewKey, RecordError> {
    let parsed = || {
        let namespace = || message.namespace.parse::<Namespace>().ok();
        let name = || message.name.parse().ok();
        Some(match message.kind.as_str() {
            "Mesh" if message.namespace.is_empty() && message.name == "mesh" => ViewKey::Mesh,
            "Namespace" if message.namespace.is_empty() => ViewKey::Namespace(message.name.parse().ok()?),
            "Service" => ViewKey::Service(ServiceName::new(namespace()?, name()?)),
            "Endpoint" => {
                let (service, workload) = message.name.split_once('/')?;
                let service = ServiceName::new(namespace()?, service.parse().ok()?);
                ViewKey::Endpoint(service, workload.parse().ok()?)
            }
            "TCPRoute" => ViewKey::TcpRoute(namespace()?, name()?),
            "TrafficPolicy" => ViewKey::TrafficPolicy(namespace()?, name()?),
            "AuthorizationPolicy" => ViewKey::AuthorizationPolicy(namespace()?, name()?),
            "Denied" if message.namespace.is_empty() => ViewKey::Denied(denied::number(&message.name)?),
            _ => return None,
        })
    };
    let text = || format!("{}/{}/{}", message.kind, message.namespace, message.name);
    parsed().ok_or_else(|| RecordError::Key(manifest::quoted(&text())))
}

fn target_text(target: &TargetRef) -> String {
    match target {
        TargetRef::Service(name) => format!("Service/{name}"),
        TargetRef::Namespace(name) => format!("Namespace/{name}"),
    }
}

fn target_from_text(text: &str, own: Option<&Namespace>) -> Option<TargetRef> {
    match text.split_once('/')? {
        ("Service", name) => Some(TargetRef::Service(name.parse().ok()?)),
        ("Namespace", name) => own.filter(|own| own.as_str() == name).cloned().map(TargetRef::Namespace),
        _ => None,
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    bytes_of(digest::digest(&digest::SHA256, bytes))
}

fn bytes_of(digest: digest::Digest) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.as_ref());
    bytes
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

#[cfg(test)]
mod tests;
