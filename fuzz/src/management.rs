//! f16: messages of the management API and of discovery, from their bytes to the answer.
//!
//! The service itself is asked, over a real store, always as a dry run. A lower role never gets what a higher one is
//! refused, a role in one namespace touches nothing of another, nothing is written, and every refusal can be explained.
//! What is read comes back; a record that lost a field is unreadable, and so denies.

use prost::Message;
use serde_json::Value;
use tonic::{Request, Status};
use weft_api::fault::status_to_faults;
use weft_api::pb::discovery::Delta as DeltaMessage;
use weft_api::pb::management::management_server::Management as _;
use weft_api::pb::management::{
    ApplyRequest, CheckPolicyRequest, CreateTokenRequest, DeleteRequest, Document, GetRequest, ListRequest,
    RevokeTokenRequest,
};
use weft_api::{convert, manifest, record};
use weft_policy::code;
use weft_registry::roles::{Caller, Role};

use crate::plane::{Plane, caller, plane};

/// The most bytes of a refusal as it travels: in trailers, of which peers take 16 KiB in all.
const MAX_TRAILERS: usize = 15 * 1024;

/// The first byte: which message the rest is. With bit 7, objects in JSON behind one another instead of protobuf.
pub fn f16_management(data: &[u8]) {
    let Some((which, rest)) = data.split_first() else { return };
    let plain = which & 0x80 != 0;
    match which % 7 {
        0 if plain => apply(ApplyRequest { documents: documents(rest), ..Default::default() }),
        0 => with(rest, apply),
        1 if plain => check(CheckPolicyRequest {
            source: "spiffe://corp.example/ns/shop/sa/order".to_owned(),
            service: "charge.shop".to_owned(),
            overlay: documents(rest),
            ..Default::default()
        }),
        1 => with(rest, check),
        2 => with(rest, get),
        3 => with(rest, list),
        4 => with(rest, delete),
        5 => with(rest, discovery),
        _ => tokens(rest),
    }
}

/// Objects, one in each line.
fn documents(bytes: &[u8]) -> Vec<Document> {
    bytes.split(|byte| *byte == b'\n').take(8).map(|json| Document { json: json.to_vec() }).collect()
}

/// Decodes, and checks that the message comes back from its own bytes.
fn with<M: Message + Default + PartialEq + std::fmt::Debug>(bytes: &[u8], then: fn(M)) {
    let Ok(message) = M::decode(bytes) else { return };
    assert_eq!(M::decode(message.encode_to_vec().as_slice()).as_ref(), Ok(&message));
    then(message);
}

fn asked<T>(caller: &Caller, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(caller.clone());
    request
}

fn people() -> [Caller; 4] {
    [
        caller(Role::Viewer, None),
        caller(Role::Editor, Some("shop")),
        caller(Role::Editor, None),
        caller(Role::Admin, None),
    ]
}

fn apply(request: ApplyRequest) {
    if let Ok(resources) = convert::management::resources(&request.documents, None) {
        resources.iter().take(4).for_each(comes_back);
    }
    let plane = plane();
    let before = plane.core.world.catalog().revision();
    let dry = ApplyRequest { dry_run: true, ..request };
    let ask = |caller: &Caller| {
        plane
            .runtime
            .block_on(plane.service.apply(asked(caller, dry.clone())))
            .map(tonic::Response::into_inner)
    };
    let answers = people().map(|caller| ask(&caller));
    answers.iter().for_each(explained);
    let [viewer, scoped, editor, admin] = answers;
    assert!(viewer.is_err(), "a viewer changes things");
    assert!(scoped.is_err() || editor.is_ok(), "a namespace's editor may what the mesh's may not");
    assert!(editor.is_err() || admin.is_ok(), "an editor may what an admin may not");
    for applied in scoped.into_iter().flat_map(|answer| answer.results) {
        let own = applied.namespace == "shop" || (applied.kind == "Namespace" && applied.name == "shop");
        assert!(own, "{} {}.{} is not the editor's", applied.kind, applied.name, applied.namespace);
    }
    assert_eq!(plane.core.world.catalog().revision(), before, "a dry run was written");
}

/// An object survives each form that it travels in, and a record of it that lost a field is no record.
fn comes_back(resource: &weft_policy::model::Resource) {
    let document = convert::management::document(resource);
    assert_eq!(
        convert::management::resources(&[document], None).as_deref(),
        Ok(std::slice::from_ref(resource))
    );
    assert_eq!(
        convert::management::key(&convert::management::reference(&resource.key())),
        Ok(resource.key())
    );
    let bytes = record::encode_resource(resource);
    let mut stored = resource.clone();
    stored.metadata_mut().revision = 7;
    assert_eq!(record::decode_resource(&bytes, 7).as_ref(), Ok(&stored));
    let start = bytes.iter().position(|byte| *byte == b'\n').expect("a record has a first line") + 1;
    let json: Value = serde_json::from_slice(&bytes[start..]).expect("a record is JSON");
    for lossy in losses(&json) {
        let text = lossy.to_string();
        let sum = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
        let hex: String = sum.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let answer = record::decode_resource(format!("weft-record/1 {hex}\n{text}").as_bytes(), 7);
        assert!(answer.is_err(), "a record that lost a field was read: {text}");
    }
}

/// The object without one of its fields, at most sixty-four ways. Entries of free maps may go: labels are no fields.
fn losses(json: &Value) -> Vec<Value> {
    let mut found = Vec::new();
    for path in objects(json, String::new()) {
        let free =
            ["/labels", "/annotations", "/ports", "/matchLabels"].iter().any(|end| path.ends_with(end));
        let keys = json.pointer(&path).and_then(Value::as_object).map(|map| map.keys().cloned().collect());
        for key in keys.filter(|_: &Vec<String>| !free).unwrap_or_default() {
            let mut lossy = json.clone();
            let map = lossy.pointer_mut(&path).and_then(Value::as_object_mut).expect("it is there");
            map.shift_remove(&key);
            found.push(lossy);
            if found.len() == 64 {
                return found;
            }
        }
    }
    found
}

fn objects(value: &Value, path: String) -> Vec<String> {
    match value {
        Value::Object(map) => {
            let inner = map.iter().flat_map(|(key, value)| {
                objects(value, format!("{path}/{}", key.replace('~', "~0").replace('/', "~1")))
            });
            std::iter::once(path.clone()).chain(inner.collect::<Vec<_>>()).collect()
        }
        Value::Array(list) => {
            list.iter().enumerate().flat_map(|(at, value)| objects(value, format!("{path}/{at}"))).collect()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    }
}

fn check(request: CheckPolicyRequest) {
    let plane = plane();
    let ask = |role| {
        let asked = asked(&caller(role, None), request.clone());
        plane.runtime.block_on(plane.service.check_policy(asked)).map(tonic::Response::into_inner)
    };
    let (viewer, admin) = (ask(Role::Viewer), ask(Role::Admin));
    explained(&viewer);
    match (&viewer, &admin) {
        (Ok(one), Ok(other)) => assert_eq!(one, other, "the decision depends on who looks"),
        (Err(_), Err(_)) => {}
        (Ok(_), Err(_)) | (Err(_), Ok(_)) => panic!("one may look, the other not"),
    }
    let Ok(answer) = viewer else { return };
    let known = code::lookup(&answer.code).is_some();
    assert!(if answer.allowed { answer.code.is_empty() || known } else { known }, "{answer:?}");
    if request.source.is_empty() && request.overlay.is_empty() {
        assert!(!answer.allowed, "a caller without identity passes: {answer:?}");
    }
}

fn get(request: GetRequest) {
    let plane = plane();
    let read = |caller: &Caller| plane.runtime.block_on(plane.service.get(asked(caller, request.clone())));
    let (scoped, viewer) = (read(&caller(Role::Viewer, Some("shop"))), read(&caller(Role::Viewer, None)));
    explained(&scoped);
    explained(&viewer);
    if let Ok(answer) = scoped {
        assert!(viewer.is_ok());
        own(&answer.into_inner().document.into_iter().collect::<Vec<_>>());
    }
}

fn list(request: ListRequest) {
    let plane = plane();
    let asked = asked(&caller(Role::Viewer, Some("shop")), request);
    let answer = plane.runtime.block_on(plane.service.list(asked));
    explained(&answer);
    if let Ok(answer) = answer {
        own(&answer.into_inner().documents);
    }
}

/// Nothing of the namespace `vault` is among what a viewer of `shop` sees.
fn own(documents: &[Document]) {
    for document in documents {
        let object: Value = serde_json::from_slice(&document.json).expect("objects are JSON");
        let namespace = object["metadata"]["namespace"].as_str();
        assert!(namespace != Some("vault"), "another namespace's object is shown: {object}");
        assert!(manifest::parse_json(&document.json, None).is_ok(), "what is shown can be applied");
    }
}

fn delete(request: DeleteRequest) {
    let plane = plane();
    let before = plane.core.world.catalog().revision();
    let dry = DeleteRequest { dry_run: true, ..request };
    let answers = people().map(|caller| {
        plane
            .runtime
            .block_on(plane.service.delete(asked(&caller, dry.clone())))
            .map(tonic::Response::into_inner)
    });
    answers.iter().for_each(explained);
    let [viewer, scoped, editor, admin] = answers;
    assert!(viewer.is_err(), "a viewer deletes");
    assert!(scoped.is_err() || editor.is_ok());
    assert!(editor.is_err() || admin.is_ok());
    for gone in scoped.into_iter().flat_map(|answer| answer.deleted) {
        assert!(gone.namespace == "shop" || gone.name == "shop", "{gone:?} is not the editor's");
    }
    assert_eq!(plane.core.world.catalog().revision(), before, "a dry run deleted");
}

/// Only admins get as far as the token office.
fn tokens(bytes: &[u8]) {
    let plane: &Plane = plane();
    let [viewer, scoped, editor, _] = people();
    let admin_of_one = caller(Role::Admin, Some("shop"));
    for person in [viewer, scoped, editor, admin_of_one] {
        if let Ok(message) = CreateTokenRequest::decode(bytes) {
            let answer = plane.runtime.block_on(plane.service.create_token(asked(&person, message)));
            explained(&answer);
            assert!(answer.is_err(), "{person} makes tokens");
        }
        if let Ok(message) = RevokeTokenRequest::decode(bytes) {
            let answer = plane.runtime.block_on(plane.service.revoke_token(asked(&person, message)));
            assert!(answer.is_err(), "{person} revokes tokens");
        }
    }
}

/// A delta that is read can be sent on and read again; one that lost an object is refused.
fn discovery(message: DeltaMessage) {
    let Ok(delta) = convert::discovery::delta_from_message(message.clone()) else { return };
    let again = convert::discovery::delta_to_message(&delta, [0; 32]);
    assert_eq!(convert::discovery::delta_from_message(again).as_ref(), Ok(&delta));
    let mut lost = message;
    if lost.upserts.pop().is_some() || lost.removes.pop().is_some() {
        assert!(
            convert::discovery::delta_from_message(lost).is_err(),
            "a delta that lost an object was read"
        );
    }
}

/// A refusal has codes of the catalogue, a next step, and fits its header.
fn explained<T>(answer: &Result<T, Status>) {
    let Err(status) = answer else { return };
    let faults = status_to_faults(status);
    assert!(!faults.is_empty(), "refused without a word: {status:?}");
    for fault in &faults {
        let row = code::lookup(&fault.code);
        assert!(row.is_some(), "{} is not in the catalogue: {}", fault.code, fault.what);
    }
    // Details travel in base64; of the message every byte may be percent-encoded.
    let trailers = status.details().len().div_ceil(3) * 4 + status.message().len() * 3;
    assert!(trailers <= MAX_TRAILERS, "a refusal of {trailers} bytes");
}
