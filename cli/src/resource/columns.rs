//! The columns of each kind: stable names, upper snake, more only at the end (cli.md 4.2).

use serde_json::Value;
use weft_policy::model::Kind;

/// The head of a kind's table.
pub(crate) fn head(kind: Kind, all_namespaces: bool, wide: bool) -> Vec<&'static str> {
    let mut columns = Vec::new();
    if all_namespaces && kind.is_namespaced() {
        columns.push("NAMESPACE");
    }
    columns.push("NAME");
    columns.extend(specific(kind).iter().map(|(name, _)| *name));
    if wide {
        columns.extend(["LABELS", "REVISION"]);
    }
    columns
}

/// One object's row.
pub(crate) fn row(kind: Kind, object: &Value, all_namespaces: bool, wide: bool) -> Vec<String> {
    let mut cells = Vec::new();
    if all_namespaces && kind.is_namespaced() {
        cells.push(text(object, "/metadata/namespace"));
    }
    cells.push(text(object, "/metadata/name"));
    cells.extend(specific(kind).iter().map(|(_, cell)| cell(object)));
    if wide {
        cells.push(pairs(object.pointer("/metadata/labels")));
        cells.push(text(object, "/metadata/resourceVersion"));
    }
    cells
}

type Column = (&'static str, fn(&Value) -> String);

const fn specific(kind: Kind) -> &'static [Column] {
    match kind {
        Kind::Mesh => &[
            ("TRUST_DOMAIN", |o| text(o, "/spec/trustDomain")),
            ("DEFAULT_AUTHORIZATION", |o| text(o, "/spec/defaultAuthorization")),
            ("EGRESS", |o| text(o, "/spec/egress")),
        ],
        Kind::Namespace => &[
            ("DEFAULT_AUTHORIZATION", |o| text(o, "/spec/defaultAuthorization")),
            ("EGRESS", |o| text(o, "/spec/egress")),
        ],
        Kind::Service => &[
            ("PORTS", |o| {
                list(o, "/spec/ports", |p| {
                    let name = p.get("name").and_then(Value::as_str).unwrap_or("");
                    format!("{}{}{name}", plain(p.get("port")), if name.is_empty() { "" } else { "/" })
                })
            }),
            ("DEFAULT_AUTHORIZATION", |o| text(o, "/spec/defaultAuthorization")),
        ],
        Kind::Workload => &[
            ("NODE", |o| text(o, "/spec/node")),
            ("IDENTITY", |o| text(o, "/spec/identity")),
            ("SERVICES", |o| list(o, "/spec/services", |s| plain(Some(s)))),
            ("PORTS", |o| pairs(o.pointer("/spec/ports"))),
        ],
        Kind::WorkloadEnrollment => &[
            ("NODES", |o| list(o, "/spec/nodes", |s| plain(Some(s)))),
            ("IDENTITIES", |o| list(o, "/spec/identities", |s| plain(Some(s)))),
        ],
        Kind::TcpRoute => &[
            ("PARENTS", |o| list(o, "/spec/parentRefs", |p| plain(p.get("name")))),
            ("BACKENDS", |o| {
                list(o, "/spec/rules/0/backendRefs", |b| {
                    format!("{}:{}={}", plain(b.get("name")), plain(b.get("port")), plain(b.get("weight")))
                })
            }),
        ],
        Kind::TrafficPolicy => &[
            ("TARGETS", |o| list(o, "/spec/targetRefs", |t| plain(t.get("name")))),
            ("ALGORITHM", |o| text(o, "/spec/loadBalancing/algorithm")),
        ],
        Kind::AuthorizationPolicy => &[
            ("TARGETS", |o| {
                list(o, "/spec/targetRefs", |t| format!("{}/{}", plain(t.get("kind")), plain(t.get("name"))))
            }),
            ("ACTION", |o| text(o, "/spec/action")),
            ("MODE", |o| text(o, "/spec/mode")),
            ("RULES", |o| list(o, "/spec/rules", |r| plain(r.get("name")))),
        ],
    }
}

fn text(object: &Value, pointer: &str) -> String {
    object.pointer(pointer).map_or_else(|| "-".to_owned(), |value| plain(Some(value)))
}

fn plain(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) if text.is_empty() => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_))) => {
            other.to_string()
        }
    }
}

fn list(object: &Value, pointer: &str, item: impl Fn(&Value) -> String) -> String {
    let items = object.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if items.is_empty() {
        return "-".to_owned();
    }
    items.iter().map(item).collect::<Vec<_>>().join(",")
}

fn pairs(value: Option<&Value>) -> String {
    match value.and_then(Value::as_object) {
        Some(map) if !map.is_empty() => {
            map.iter().map(|(k, v)| format!("{k}={}", plain(Some(v)))).collect::<Vec<_>>().join(",")
        }
        Some(_) | None => "-".to_owned(),
    }
}
