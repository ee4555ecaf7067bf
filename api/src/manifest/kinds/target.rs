//! `targetRefs`: what a policy is attached to.

use serde_json::Value;
use weft_policy::{
    code,
    model::TargetRef,
    name::{Namespace, ObjectName},
};

use crate::{
    fault::Fault,
    manifest::{fields::At, object::Object, output::Output},
};

/// The most targets of one policy, and the most parents of a route.
pub(super) const MAX_TARGETS: usize = 16;

/// The word of a target's kind.
const SERVICE: &str = "Service";
const NAMESPACE: &str = "Namespace";

pub(super) fn read(at: &At<'_>, own: Option<&Namespace>) -> Option<TargetRef> {
    let mut object = at.object()?;
    let core = group(&mut object);
    let kind = object.required("kind");
    let name: Option<ObjectName> = object.required("name").and_then(|at| at.parse());
    object.unserved(&[
        ("namespace", "remove it: a policy is attached in its own namespace"),
        ("sectionName", "name the port in a rule"),
    ]);
    object.finish();
    let (kind, name) = (kind?, name?);
    core?;
    match kind.text()? {
        SERVICE => Some(TargetRef::Service(name)),
        NAMESPACE => namespace(at, &name, own?),
        "ServiceImport" | "Gateway" | "HTTPRoute" | "GRPCRoute" => {
            kind.not_served("a target of this kind", "target a Service or a Namespace");
            None
        }
        _ => kind.choice(&[(SERVICE, ()), (NAMESPACE, ())]).and(None),
    }
}

/// The group, core when it is left out, as Gateway API's policies do for services.
fn group(object: &mut Object<'_>) -> Option<()> {
    object.or("group", (), |at| match at.text()? {
        "" => Some(()),
        _ => {
            at.not_served("a target of another group than \"\"", "target a Service or a Namespace");
            None
        }
    })
}

fn namespace(at: &At<'_>, name: &ObjectName, own: &Namespace) -> Option<TargetRef> {
    if name.as_str() == own.as_str() {
        return Some(TargetRef::Namespace(own.clone()));
    }
    at.fault(
        Fault::new(
            code::OTHER_NAMESPACE,
            format!("the target is the namespace {name}, the policy is in {own}"),
        )
        .why("a policy is attached in its own namespace only")
        .fix(format!("put the policy into the namespace {name}")),
    );
    None
}

pub(super) fn write(target: &TargetRef, out: Output) -> Value {
    let (kind, name) = match target {
        TargetRef::Service(name) => (SERVICE, name.as_str()),
        TargetRef::Namespace(name) => (NAMESPACE, name.as_str()),
    };
    out.put("group", "").put("kind", kind).put("name", name).done()
}
