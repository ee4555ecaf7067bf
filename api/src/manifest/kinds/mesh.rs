//! `Mesh` and `Namespace`.

use serde_json::Value;
use weft_policy::{
    code,
    model::{DefaultAuthorization, EgressMode, Mesh, Metadata, NamespaceSettings},
};

use crate::manifest::{fields::At, object::Object, output::Output};

/// The name of the one `Mesh` object.
const MESH_NAME: &str = "mesh";

const DEFAULTS: [(&str, DefaultAuthorization); 3] = [
    ("Deny", DefaultAuthorization::Deny),
    ("Audit", DefaultAuthorization::Audit),
    ("Allow", DefaultAuthorization::Allow),
];

const EGRESS: [(&str, EgressMode); 3] =
    [("Deny", EgressMode::Deny), ("Log", EgressMode::Log), ("Allow", EgressMode::Allow)];

pub(in crate::manifest) fn default_authorization(at: &At<'_>) -> Option<DefaultAuthorization> {
    at.choice(&DEFAULTS)
}

pub(in crate::manifest) const fn default_word(value: DefaultAuthorization) -> &'static str {
    match value {
        DefaultAuthorization::Deny => "Deny",
        DefaultAuthorization::Audit => "Audit",
        DefaultAuthorization::Allow => "Allow",
    }
}

const fn egress_word(value: EgressMode) -> &'static str {
    match value {
        EgressMode::Deny => "Deny",
        EgressMode::Log => "Log",
        EgressMode::Allow => "Allow",
    }
}

pub(in crate::manifest) fn read_mesh(metadata: Option<Metadata>, mut spec: Object<'_>) -> Option<Mesh> {
    if let Some(metadata) = metadata.as_ref().filter(|metadata| metadata.name.as_str() != MESH_NAME) {
        let what = format!("the Mesh object is named {MESH_NAME}, not {}", metadata.name);
        let fault = crate::fault::Fault::new(code::BAD_VALUE, what).fix("name it mesh");
        spec.at.cx.note(fault.at("metadata.name", None));
    }
    let trust_domain = spec.required("trustDomain").and_then(|at| at.parse());
    let default_authorization =
        spec.or("defaultAuthorization", DefaultAuthorization::default(), default_authorization);
    let egress = spec.or("egress", EgressMode::default(), |at| at.choice(&EGRESS));
    spec.finish();
    Some(Mesh {
        metadata: metadata?,
        trust_domain: trust_domain?,
        default_authorization: default_authorization?,
        egress: egress?,
    })
}

pub(in crate::manifest) fn write_mesh(mesh: &Mesh, out: Output) -> Value {
    out.text("trustDomain", &mesh.trust_domain)
        .put("defaultAuthorization", default_word(mesh.default_authorization))
        .put("egress", egress_word(mesh.egress))
        .done()
}

pub(in crate::manifest) fn read_namespace(
    metadata: Option<Metadata>,
    spec: Option<Object<'_>>,
) -> Option<NamespaceSettings> {
    let (mut default, mut egress) = (None, None);
    if let Some(mut spec) = spec {
        default = spec.optional("defaultAuthorization").and_then(|at| default_authorization(&at));
        egress = spec.optional("egress").and_then(|at| at.choice(&EGRESS));
        spec.finish();
    }
    Some(NamespaceSettings { metadata: metadata?, default_authorization: default, egress })
}

pub(in crate::manifest) fn write_namespace(settings: &NamespaceSettings, out: Output) -> Value {
    out.optional("defaultAuthorization", settings.default_authorization.map(default_word))
        .optional("egress", settings.egress.map(egress_word))
        .done()
}
