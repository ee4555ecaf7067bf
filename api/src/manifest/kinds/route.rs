//! `TCPRoute`, as Gateway API has it, attached to services (GAMMA).

use serde_json::{Value, json};
use weft_policy::{
    code,
    model::{
        Metadata, TcpRoute,
        route::{BackendRef, ParentRef},
    },
    name::{Namespace, ObjectName, ServiceName},
};

use super::target::MAX_TARGETS;
use crate::{
    fault::Fault,
    manifest::{fields::At, object::Object, output::Output},
};

/// The most backends of a rule (Gateway API).
const MAX_BACKENDS: usize = 16;
/// The largest weight (Gateway API).
const MAX_WEIGHT: u32 = 1_000_000;

pub(in crate::manifest) fn read(metadata: Option<Metadata>, mut spec: Object<'_>) -> Option<TcpRoute> {
    let own = metadata.as_ref().and_then(|metadata| metadata.namespace.clone());
    let parents =
        spec.required("parentRefs").and_then(|at| at.each(MAX_TARGETS, |at| parent(at, own.as_ref())));
    let backends = spec.required("rules").and_then(|at| rule(&at, own.as_ref()));
    spec.unserved(&[("useDefaultGateways", "remove it: routes are attached to services")]);
    spec.finish();
    Some(TcpRoute { metadata: metadata?, parents: parents?, backends: backends? })
}

fn parent(at: &At<'_>, own: Option<&Namespace>) -> Option<ParentRef> {
    let mut object = at.object()?;
    let service = service(&mut object, Group::MustBeSaid, own);
    let port = object.optional("port").map(|at| at.port());
    object.unserved(&[("sectionName", "name the port by port: NUMBER")]);
    object.finish();
    Some(ParentRef { service: service?, port: port.map_or(Some(None), |found| found.map(Some))? })
}

/// The rules: exactly one, since TCP has nothing to tell rules apart by.
fn rule(at: &At<'_>, own: Option<&Namespace>) -> Option<Vec<BackendRef>> {
    let rules = at.list(1)?;
    let mut object = rules.first()?.object()?;
    let backends = object.required("backendRefs").and_then(|at| backends(&at, own));
    object.unserved(&[("name", "remove it"), ("filters", "remove it")]);
    object.finish();
    backends
}

fn backends(at: &At<'_>, own: Option<&Namespace>) -> Option<Vec<BackendRef>> {
    let items = at.list(MAX_BACKENDS)?;
    let read: Vec<_> = items.iter().map(|item| backend(item, own)).collect();
    read.into_iter().collect()
}

fn backend(at: &At<'_>, own: Option<&Namespace>) -> Option<BackendRef> {
    let mut object = at.object()?;
    let service = service(&mut object, Group::CoreByDefault, own);
    let port = object.required("port").and_then(|at| at.port());
    let weight = object.or("weight", 1, |at| at.small(0..=MAX_WEIGHT));
    object.unserved(&[("filters", "remove it")]);
    object.finish();
    Some(BackendRef { service: service?, port: port?, weight: weight? })
}

/// What a reference means that leaves group and kind out.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Group {
    /// A parent is a Gateway by default, so a service has to be said.
    MustBeSaid,
    /// A backend is a core Service by default.
    CoreByDefault,
}

fn service(object: &mut Object<'_>, group: Group, own: Option<&Namespace>) -> Option<ServiceName> {
    let (said_group, said_kind) = match group {
        Group::MustBeSaid => {
            (object.required("group").map(|at| core(&at)), object.required("kind").map(|at| kind(&at)))
        }
        Group::CoreByDefault => (Some(object.or("group", (), core)), Some(object.or("kind", (), kind))),
    };
    let name: Option<ObjectName> = object.required("name").and_then(|at| at.parse());
    let namespace = object.optional("namespace").map_or(Some(()), |at| same_namespace(&at, own));
    said_group??;
    said_kind??;
    namespace?;
    Some(ServiceName::new(own?.clone(), name?))
}

fn core(at: &At<'_>) -> Option<()> {
    if at.text()?.is_empty() {
        return Some(());
    }
    at.not_served("a reference to another group than \"\"", "refer to a Service: group: \"\", kind: Service");
    None
}

fn kind(at: &At<'_>) -> Option<()> {
    match at.text()? {
        "Service" => Some(()),
        "Gateway" | "ServiceImport" | "ListenerSet" => {
            at.not_served("a reference to this kind", "refer to a Service: group: \"\", kind: Service");
            None
        }
        _ => at.choice(&[("Service", ())]),
    }
}

/// References stay in the route's namespace until a ReferenceGrant can allow others.
fn same_namespace(at: &At<'_>, own: Option<&Namespace>) -> Option<()> {
    let namespace: Namespace = at.parse()?;
    if &namespace == own? {
        return Some(());
    }
    at.fault(
        Fault::new(code::NOT_SERVED, format!("a reference into the namespace {namespace} is not served yet"))
            .why("it needs a ReferenceGrant there, which is not served yet")
            .fix("refer to a service of the route's own namespace"),
    );
    None
}

pub(in crate::manifest) fn write(route: &TcpRoute, out: Output) -> Value {
    let reference = |service: &ServiceName| {
        out.inner()
            .put("group", "")
            .put("kind", "Service")
            .text("name", &service.name)
            .text("namespace", &service.namespace)
    };
    let parent = |parent: &ParentRef| reference(&parent.service).optional("port", parent.port).done();
    let backend = |backend: &BackendRef| {
        reference(&backend.service).put("port", backend.port).put("weight", backend.weight).done()
    };
    let parents: Vec<_> = route.parents.iter().map(parent).collect();
    let backends: Vec<_> = route.backends.iter().map(backend).collect();
    out.put("parentRefs", parents).put("rules", json!([{ "backendRefs": backends }])).done()
}
