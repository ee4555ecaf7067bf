//! One object: its head, its kind, its size.

use serde_json::Value;
use weft_policy::{
    code,
    model::{Kind, Resource},
};

use super::{
    Form,
    fields::{At, Context},
    kinds::{authorization, mesh, route, service, traffic, workload},
    metadata,
    nearest::nearest,
    node::{self, Node},
    object::{Object, Unserved},
    output::Output,
    quoted,
};
use crate::fault::Fault;

/// The largest object, 256 KiB as JSON (security.md 9.3, registry object).
pub const MAX_OBJECT_BYTES: usize = 256 * 1024;
/// The largest AuthorizationPolicy, 64 KiB as JSON (security.md 7.2, point 12).
pub const MAX_POLICY_BYTES: usize = 64 * 1024;

/// Kinds of the specification that this version does not serve.
const UNSERVED_KINDS: [&str; 22] = [
    "BackendTLSPolicy",
    "ClusterLink",
    "DirectResponse",
    "EndpointSlice",
    "ExternalAuthorization",
    "FaultInjection",
    "GRPCRoute",
    "Gateway",
    "GatewayClass",
    "HTTPRoute",
    "ListenerSet",
    "MeshGateway",
    "PolicyTest",
    "RateLimit",
    "ReferenceGrant",
    "RequestAuthentication",
    "Role",
    "RoleBinding",
    "ServiceExport",
    "ServiceImport",
    "TLSRoute",
    "UDPRoute",
];

const UNSERVED: [Unserved; 1] = [("status", "remove it: the server writes what an object's state is")];

/// Reads the documents of a text; `None` when one of them cannot be read.
pub(super) fn read_all(context: &Context, nodes: &[Node]) -> Option<Vec<Resource>> {
    let mut resources: Vec<Resource> = Vec::new();
    let mut complete = true;
    for at in nodes.iter().flat_map(|node| items(At::root(context, node))) {
        match read(&at) {
            Some(resource) if resources.iter().any(|other| other.key() == resource.key()) => {
                let what = format!("{} is given twice", resource.key());
                at.fault(Fault::new(code::SAME_OBJECT_TWICE, what).fix("remove one of them"));
            }
            Some(resource) => resources.push(resource),
            None => complete = false,
        }
    }
    complete.then_some(resources)
}

/// The objects of a document: itself, or those of a list as `get -o yaml` prints it.
fn items(at: At<'_>) -> Vec<At<'_>> {
    let node::Value::Map(entries) = &at.node.value else { return vec![at] };
    let is_list = entries.iter().any(|entry| entry.key == "items")
        && entries.iter().all(|e| matches!(e.key.as_str(), "items" | "apiVersion" | "kind" | "metadata"))
        && entries.iter().all(|e| e.key != "kind" || e.value.value == node::Value::Text("List".to_owned()));
    let Some(list) = entries.iter().find(|entry| is_list && entry.key == "items") else { return vec![at] };
    let node::Value::List(nodes) = &list.value.value else { return vec![at] };
    let item = |(index, node)| At { cx: at.cx, path: format!("items[{index}]"), node };
    nodes.iter().enumerate().map(item).collect()
}

/// Reads one object.
pub(super) fn read(at: &At<'_>) -> Option<Resource> {
    let mut object = at.object()?;
    let version = object.required("apiVersion");
    let kind = object.required("kind").and_then(|at| kind(&at));
    let metadata = object.required("metadata");
    // Without its kind, an object cannot be read further.
    let kind = kind?;
    let version = version.and_then(|at| api_version(kind, &at));
    let metadata = metadata.and_then(|at| metadata::read(kind, &at));
    let spec = match kind {
        Kind::Namespace => object.optional("spec"),
        Kind::Mesh
        | Kind::Service
        | Kind::Workload
        | Kind::WorkloadEnrollment
        | Kind::TcpRoute
        | Kind::TrafficPolicy
        | Kind::AuthorizationPolicy => object.required("spec"),
    };
    object.unserved(&UNSERVED);
    object.finish();
    let spec = match spec {
        Some(spec) => Some(spec.object()?),
        None => None,
    };
    let resource = read_kind(kind, metadata, spec)?;
    version?;
    within_size(at, &resource).then_some(resource)
}

fn read_kind(
    kind: Kind,
    metadata: Option<weft_policy::model::Metadata>,
    spec: Option<Object<'_>>,
) -> Option<Resource> {
    Some(match kind {
        Kind::Namespace => Resource::Namespace(mesh::read_namespace(metadata, spec)?),
        Kind::Mesh => Resource::Mesh(mesh::read_mesh(metadata, spec?)?),
        Kind::Service => Resource::Service(service::read(metadata, spec?)?),
        Kind::Workload => Resource::Workload(workload::read(metadata, spec?)?),
        Kind::WorkloadEnrollment => Resource::WorkloadEnrollment(workload::read_enrollment(metadata, spec?)?),
        Kind::TcpRoute => Resource::TcpRoute(route::read(metadata, spec?)?),
        Kind::TrafficPolicy => Resource::TrafficPolicy(traffic::read(metadata, spec?)?),
        Kind::AuthorizationPolicy => Resource::AuthorizationPolicy(authorization::read(metadata, spec?)?),
    })
}

fn kind(at: &At<'_>) -> Option<Kind> {
    let text = at.text()?;
    if let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.name() == text) {
        return Some(kind);
    }
    if UNSERVED_KINDS.contains(&text) {
        at.not_served(&format!("the kind {text}"), "remove the object");
        return None;
    }
    let known = Kind::ALL.map(Kind::name);
    let fault = Fault::new(code::UNKNOWN_KIND, format!("unknown kind {}", quoted(text)))
        .why(format!("kinds: {}", known.join(", ")));
    at.fault(match nearest(text, known) {
        Some(kind) => fault.fix(format!("did you mean {kind}?")),
        None => fault,
    });
    None
}

/// TCPRoute came under this version first; its fields are the same.
const OLD_ROUTE_VERSION: &str = "gateway.networking.k8s.io/v1alpha2";

fn api_version(kind: Kind, at: &At<'_>) -> Option<()> {
    let text = at.text()?;
    let old_route = kind == Kind::TcpRoute && text == OLD_ROUTE_VERSION && at.cx.form == Form::Manifest;
    if text == kind.api_version() || old_route {
        return Some(());
    }
    at.fault(
        Fault::new(code::BAD_API_VERSION, format!("unknown version {} of {kind}", quoted(text)))
            .fix(format!("write apiVersion: {}", kind.api_version())),
    );
    None
}

fn within_size(at: &At<'_>, resource: &Resource) -> bool {
    let most = match resource.kind() {
        Kind::AuthorizationPolicy => MAX_POLICY_BYTES,
        Kind::Mesh
        | Kind::Namespace
        | Kind::Service
        | Kind::Workload
        | Kind::WorkloadEnrollment
        | Kind::TcpRoute
        | Kind::TrafficPolicy => MAX_OBJECT_BYTES,
    };
    let bytes = write(Form::Manifest, resource).to_string().len();
    if bytes > most {
        let what = format!("{} has {bytes} bytes as JSON", resource.key());
        at.fault(
            Fault::new(code::OVER_LIMIT, what)
                .why(format!("at most {most} are allowed"))
                .fix("split it into several objects"),
        );
    }
    bytes <= most
}

pub(super) fn write(form: Form, resource: &Resource) -> Value {
    let kind = resource.kind();
    let out = Output::new(form);
    let inner = out.inner();
    let spec = match resource {
        Resource::Mesh(r) => mesh::write_mesh(r, inner),
        Resource::Namespace(r) => mesh::write_namespace(r, inner),
        Resource::Service(r) => service::write(r, inner),
        Resource::Workload(r) => workload::write(r, inner),
        Resource::WorkloadEnrollment(r) => workload::write_enrollment(r, inner),
        Resource::TcpRoute(r) => route::write(r, inner),
        Resource::TrafficPolicy(r) => traffic::write(r, inner),
        Resource::AuthorizationPolicy(r) => authorization::write(r, inner),
    };
    out.put("apiVersion", kind.api_version())
        .put("kind", kind.name())
        .put("metadata", metadata::write(form, resource.metadata()))
        .put("spec", spec)
        .done()
}
