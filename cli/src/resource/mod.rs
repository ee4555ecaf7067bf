//! Commands on resources: apply, get, describe, delete, diff, history, rollback, confirm.

pub(crate) mod apply;
pub(crate) mod columns;
pub(crate) mod confirm;
pub(crate) mod delete;
pub(crate) mod describe;
pub(crate) mod diff;
pub(crate) mod get;
pub(crate) mod history;
pub(crate) mod input;
pub(crate) mod rollback;
pub(crate) mod watch;

use serde_json::Value;
use weft_api::pb::management::ObjectRef;
use weft_policy::model::Kind;

use crate::{args::Global, error::CliError};

/// Reads `KIND/NAME …`, `KIND NAME …`, `KIND` or `KIND,KIND` into a kind and names.
pub(crate) fn parse_what(what: &[String]) -> Result<Vec<(Kind, Option<String>)>, CliError> {
    let mut parsed = Vec::new();
    let mut rest = what.iter();
    while let Some(word) = rest.next() {
        if let Some((kind, name)) = word.split_once('/') {
            parsed.push((kind_of(kind)?, Some(name.to_owned())));
            continue;
        }
        if word.contains(',') {
            for kind in word.split(',') {
                parsed.push((kind_of(kind)?, None));
            }
            continue;
        }
        let kind = kind_of(word)?;
        let names: Vec<_> = rest.by_ref().cloned().collect();
        if names.is_empty() {
            parsed.push((kind, None));
        }
        parsed.extend(names.into_iter().map(|name| (kind, Some(name))));
    }
    Ok(parsed)
}

fn kind_of(text: &str) -> Result<Kind, CliError> {
    text.parse().map_err(|_| {
        let kinds: Vec<_> = Kind::ALL.iter().map(|kind| kind.plural()).collect();
        CliError::usage(format!("{text:?} is not a kind"), &format!("one of: {}", kinds.join(", ")))
    })
}

/// The reference to an object of that kind and name in the namespace the person works in.
pub(crate) fn object_ref(kind: Kind, name: &str, global: &Global) -> ObjectRef {
    let (name, namespace) = match name.split_once('.') {
        Some((name, namespace)) if kind.is_namespaced() => (name, namespace.to_owned()),
        Some(_) | None => (name, namespace_of(global)),
    };
    let namespace = if kind.is_namespaced() { namespace } else { String::new() };
    ObjectRef { kind: kind.name().to_owned(), namespace, name: name.to_owned() }
}

/// The namespace the person works in.
pub(crate) fn namespace_of(global: &Global) -> String {
    global.namespace.clone().unwrap_or_else(|| "default".to_owned())
}

/// Reads the JSON of a document that the server sent.
pub(crate) fn parse_document(json: &[u8]) -> Result<Value, CliError> {
    serde_json::from_slice(json)
        .map_err(|e| CliError::internal(format!("the server's answer is not JSON: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn a_kind_and_names_are_read_in_every_spelling() {
        let service = |name: &str| (Kind::Service, Some(name.to_owned()));
        assert_eq!(parse_what(&words("svc/a service/b")).unwrap(), [service("a"), service("b")]);
        assert_eq!(parse_what(&words("services a b")).unwrap(), [service("a"), service("b")]);
        assert_eq!(parse_what(&words("ap")).unwrap(), [(Kind::AuthorizationPolicy, None)]);
        assert_eq!(parse_what(&words("svc,wl")).unwrap(), [(Kind::Service, None), (Kind::Workload, None)]);
        assert!(parse_what(&words("nonsense")).is_err());
    }
}
