//! The management API: documents and references.

use weft_policy::{
    code,
    model::{Key, Kind, Resource},
    name::Namespace,
};

use crate::{
    fault::Fault,
    manifest,
    pb::management::{Document, ObjectRef},
};

/// The document that carries `resource`: the API object of the output contract.
#[must_use]
pub fn document(resource: &Resource) -> Document {
    Document { json: manifest::to_json(resource).to_string().into_bytes() }
}

/// The objects of `documents`, all or none. Documents name their namespace, or get `namespace` when one is given.
///
/// # Errors
///
/// All faults, their paths led by `documents[INDEX]`.
pub fn resources(documents: &[Document], namespace: Option<&Namespace>) -> Result<Vec<Resource>, Vec<Fault>> {
    let mut resources = Vec::new();
    let mut faults = Vec::new();
    for (index, document) in documents.iter().enumerate() {
        match manifest::parse_json(&document.json, namespace) {
            Ok(resource) => resources.push(resource),
            Err(found) => {
                faults.extend(found.into_iter().map(|fault| fault.under(&format!("documents[{index}]"))))
            }
        }
    }
    if faults.is_empty() { Ok(resources) } else { Err(faults) }
}

/// A reference to the object of that key.
#[must_use]
pub fn reference(key: &Key) -> ObjectRef {
    ObjectRef {
        kind: key.kind.name().to_owned(),
        namespace: key.namespace.as_ref().map(ToString::to_string).unwrap_or_default(),
        name: key.name.to_string(),
    }
}

/// The key that `reference` names; the kind in any of its spellings.
///
/// # Errors
///
/// The first fault: an unknown kind, a name that is none, a namespace too many or too few.
pub fn key(reference: &ObjectRef) -> Result<Key, Fault> {
    let fault = |code, what: String| Fault::new(code, what);
    let kind: Kind = reference.kind.parse().map_err(|_| {
        let known = Kind::ALL.map(Kind::name).join(", ");
        let what = format!("unknown kind {}", manifest::quoted(&reference.kind));
        Fault::new(code::UNKNOWN_KIND, what).why(format!("kinds: {known}"))
    })?;
    let name = reference.name.parse().map_err(|error| fault(code::BAD_NAME, format!("{error}")))?;
    let namespace = match (kind.is_namespaced(), reference.namespace.as_str()) {
        (true, "") => return Err(fault(code::MISSING_FIELD, format!("a {kind} needs its namespace"))),
        (true, text) => Some(text.parse().map_err(|error| fault(code::BAD_NAME, format!("{error}")))?),
        (false, "") => None,
        (false, _) => return Err(fault(code::BAD_VALUE, format!("a {kind} belongs to no namespace"))),
    };
    Ok(Key { kind, namespace, name })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::manifest::samples;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn documents_and_references_come_back(resource in samples::resource()) {
            prop_assert_eq!(key(&reference(&resource.key())), Ok(resource.key()));
            prop_assert_eq!(resources(&[document(&resource)], None), Ok(vec![resource]));
        }
    }

    #[test]
    fn faults_name_their_document() {
        let broken = |json: &str| Document { json: json.as_bytes().to_vec() };
        let service = r#"{"apiVersion":"weft.mesh/v1alpha1","kind":"Service","metadata":{"name":"a"},"spec":{"ports":[]}}"#;
        let faults =
            resources(&[broken("{"), broken(service)], Some(&Namespace::default_namespace())).unwrap_err();
        let paths: Vec<_> = faults.iter().map(|fault| fault.path()).collect();
        assert_eq!(paths, ["documents[0]", "documents[1].spec.ports"]);
    }

    #[test]
    fn a_faulty_reference_says_what_is_wrong() {
        let reference = |kind: &str, namespace: &str, name: &str| ObjectRef {
            kind: kind.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        assert!(key(&reference("svc", "shop", "charge")).is_ok());
        for (wrong, code) in [
            (reference("thing", "shop", "a"), "W4003"),
            (reference("Service", "", "a"), "W4005"),
            (reference("Service", "shop", "A b"), "W4014"),
            (reference("Mesh", "shop", "mesh"), "W4016"),
        ] {
            assert_eq!(&*key(&wrong).unwrap_err().code, code, "{wrong:?}");
        }
    }
}
