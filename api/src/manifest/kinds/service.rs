//! `Service`.

use serde_json::Value;
use weft_policy::{
    code,
    model::{
        Metadata, Service,
        service::{AppProtocol, ServicePort},
    },
    name::PortName,
};

use super::mesh;
use crate::{
    fault::Fault,
    manifest::{
        Form,
        fields::At,
        metadata::{MAX_LABELS, label},
        object::{Object, Unserved},
        output::Output,
    },
};

/// The most ports of a service.
const MAX_PORTS: usize = 64;
/// The most identities beside the service's own that may serve it.
const MAX_IDENTITIES: usize = 64;

const PROTOCOLS: [(&str, AppProtocol); 7] = [
    ("http", AppProtocol::Http),
    ("http2", AppProtocol::Http2),
    ("h2c", AppProtocol::Http2),
    ("kubernetes.io/h2c", AppProtocol::Http2),
    ("grpc", AppProtocol::Grpc),
    ("tcp", AppProtocol::Tcp),
    ("tls", AppProtocol::Tls),
];

const UNSERVED: [Unserved; 3] = [
    ("names", "remove it: callers use NAME, NAME.NAMESPACE and NAME.NAMESPACE.svc.weft"),
    ("trafficDistribution", "remove it: connections go to all endpoints"),
    ("sessionAffinity", "remove it: connections go to all endpoints"),
];

const UNSERVED_OF_PORT: [Unserved; 2] = [
    ("protocol", "remove it: ports are TCP"),
    ("targetPort", "remove it: each Workload says under ports where it is served"),
];

pub(in crate::manifest) fn read(metadata: Option<Metadata>, mut spec: Object<'_>) -> Option<Service> {
    let ports = spec.required("ports").and_then(|at| ports(&at));
    let selector = spec.optional("selector").map(|at| selector(&at));
    let identities = spec.list("identities", MAX_IDENTITIES, |at| at.parse());
    let default = spec.optional("defaultAuthorization").map(|at| mesh::default_authorization(&at));
    let mode = spec.or("mode", (), |at| mode(at));
    spec.unserved(&UNSERVED);
    spec.finish();
    mode?;
    Some(Service {
        metadata: metadata?,
        ports: ports?,
        selector: selector.map_or(Some(None), |found| found.map(Some))?,
        identities: identities?,
        default_authorization: default.map_or(Some(None), |found| found.map(Some))?,
    })
}

/// How plain callers are treated; only Strict is served, which is what a service without the field is.
fn mode(at: &At<'_>) -> Option<()> {
    match at.text()? {
        "Strict" => Some(()),
        "Permissive" | "Observe" => {
            at.not_served("spec.mode other than Strict", "remove it: every caller needs an identity");
            None
        }
        _ => at.choice(&[("Strict", ())]),
    }
}

fn selector(at: &At<'_>) -> Option<std::collections::BTreeMap<String, String>> {
    let mut object = at.object()?;
    let labels = object.required("matchLabels");
    object.unserved(&[("matchExpressions", "use matchLabels")]);
    object.finish();
    let labels = labels?;
    let found = labels.texts(MAX_LABELS, label)?;
    if found.is_empty() {
        labels.empty("an empty selector never means \"any\"");
        return None;
    }
    Some(found)
}

fn ports(at: &At<'_>) -> Option<Vec<ServicePort>> {
    let items = at.list(MAX_PORTS)?;
    let several = items.len() > 1;
    let mut ports: Vec<ServicePort> = Vec::new();
    let mut complete = true;
    for item in &items {
        let Some(port) = port(item, several) else {
            complete = false;
            continue;
        };
        if ports.iter().any(|p| p.number == port.number) {
            item.fault(Fault::new(code::DUPLICATE_KEY, format!("the port {} is given twice", port.number)));
        }
        if let Some(name) =
            port.name.as_ref().filter(|name| ports.iter().any(|p| p.name.as_ref() == Some(name)))
        {
            item.fault(Fault::new(code::DUPLICATE_KEY, format!("the port name {name} is given twice")));
        }
        ports.push(port);
    }
    complete.then_some(ports)
}

fn port(at: &At<'_>, several: bool) -> Option<ServicePort> {
    let mut object = at.object()?;
    let number = object.required("port").and_then(|at| at.port());
    let name = if several { object.required("name") } else { object.optional("name") };
    let name = name.map(|at| port_name(&at));
    let app_protocol = object.optional("appProtocol").map(|at| at.choice(&PROTOCOLS));
    object.unserved(&UNSERVED_OF_PORT);
    object.finish();
    Some(ServicePort {
        number: number?,
        name: name.map_or(Some(None), |found| found.map(Some))?,
        app_protocol: app_protocol.map_or(Some(None), |found| found.map(Some))?,
    })
}

/// A port's name: it has a letter, so that it is never taken for a number (IANA service names, RFC 6335 §5.1).
pub(in crate::manifest) fn port_name(at: &At<'_>) -> Option<PortName> {
    let name: PortName = at.parse()?;
    if name.as_str().bytes().any(|b| b.is_ascii_lowercase()) {
        return Some(name);
    }
    let number = name.as_str();
    at.fault(
        Fault::new(code::BAD_NAME, format!("\"{number}\" is not the name of a port"))
            .why("a port's name has a letter")
            .fix(format!("write the number without quotes: {number}")),
    );
    None
}

pub(in crate::manifest) fn write(service: &Service, out: Output) -> Value {
    let port = |port: &ServicePort| {
        out.inner()
            .optional("name", port.name.as_ref().map(ToString::to_string))
            .put("port", port.number)
            .optional("appProtocol", port.app_protocol.map(protocol_word))
            .done()
    };
    let ports: Vec<_> = service.ports.iter().map(port).collect();
    let selector = service.selector.as_ref().map(|labels| {
        let labels = crate::manifest::output::text_map(labels);
        out.inner().put("matchLabels", labels).done()
    });
    let out = match out.form {
        Form::Manifest => out,
        Form::Record => out.put("mode", "Strict"),
    };
    out.put("ports", ports)
        .optional("selector", selector)
        .texts("identities", &service.identities)
        .optional("defaultAuthorization", service.default_authorization.map(mesh::default_word))
        .done()
}

const fn protocol_word(protocol: AppProtocol) -> &'static str {
    match protocol {
        AppProtocol::Http => "http",
        AppProtocol::Http2 => "http2",
        AppProtocol::Grpc => "grpc",
        AppProtocol::Tcp => "tcp",
        AppProtocol::Tls => "tls",
    }
}
