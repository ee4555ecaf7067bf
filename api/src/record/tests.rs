//! What was encoded comes back; what was damaged never comes back wider.

use proptest::prelude::*;
use serde_json::Value;
use weft_policy::model::AuthorizationPolicy;

use super::*;
use crate::manifest::samples;

fn message(policy: &AuthorizationPolicy) -> pb::Object {
    encode_view_object(&policy.clone().into(), 7)
}

/// The message with another document, whose checksum is right: what a faulty or newer server could send.
fn with_document(message: &pb::Object, document: &Value) -> pb::Object {
    let document = document.to_string().into_bytes();
    pb::Object { sha256: sha256(&document).to_vec(), document, ..message.clone() }
}

fn is_closed(message: &pb::Object, policy: &AuthorizationPolicy) -> bool {
    match decode_view_object(message) {
        Ok(ViewObject::Unreadable(lost)) => lost.targets == policy.targets,
        Ok(_) | Err(_) => false,
    }
}

/// Every way to lose one part: a field dropped, a field made null, a list or mapping emptied.
fn losses(value: &Value, path: &str) -> Vec<(String, Value)> {
    let mut all = Vec::new();
    match value {
        Value::Object(map) => {
            if !map.is_empty() {
                all.push((format!("{path} emptied"), serde_json::json!({})));
            }
            for (key, inner) in map {
                let path = format!("{path}.{key}");
                let mut dropped = map.clone();
                dropped.remove(key);
                all.push((format!("{path} dropped"), dropped.into()));
                let replaced = losses(inner, &path).into_iter().map(|(name, with)| {
                    let mut changed = map.clone();
                    changed.insert(key.clone(), with);
                    (name, Value::from(changed))
                });
                all.extend(replaced);
            }
        }
        Value::Array(items) => {
            all.push((format!("{path} emptied"), serde_json::json!([])));
            for (index, inner) in items.iter().enumerate() {
                let replaced = losses(inner, &format!("{path}[{index}]")).into_iter().map(|(name, with)| {
                    let mut changed = items.clone();
                    changed[index] = with;
                    (name, Value::from(changed))
                });
                all.extend(replaced);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
    all
}

/// Parts that say nothing about who may call: they may be empty.
fn says_nothing(name: &str) -> bool {
    name == ".metadata.labels emptied" || name == ".metadata.annotations emptied" || {
        let note = name.starts_with(".metadata.labels.") || name.starts_with(".metadata.annotations.");
        note && name.ends_with(" dropped")
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_resource_comes_back_with_the_stores_revision(resource in samples::resource(), revision in any::<u64>()) {
        let bytes = encode_resource(&resource);
        let mut expected = resource;
        expected.metadata_mut().revision = revision;
        prop_assert_eq!(decode_resource(&bytes, revision), Ok(expected));
    }

    #[test]
    fn an_object_of_a_view_comes_back(resource in samples::resource(), endpoint in samples::endpoint()) {
        let endpoint = ViewObject::from(endpoint);
        prop_assert_eq!(decode_view_object(&encode_view_object(&endpoint, 1)), Ok(endpoint));
        if let Ok(object) = view_object(resource) {
            prop_assert_eq!(decode_view_object(&encode_view_object(&object, 1)), Ok(object));
        }
    }

    #[test]
    fn f08_a_policy_that_lost_any_part_closes_its_targets(policy in samples::policy()) {
        let whole = message(&policy);
        let document: Value = serde_json::from_slice(&whole.document).unwrap();
        for (name, damaged) in losses(&document, "") {
            if says_nothing(&name) {
                continue;
            }
            prop_assert!(is_closed(&with_document(&whole, &damaged), &policy), "{name}: {damaged}");
        }
    }

    #[test]
    fn f08_a_constraint_made_null_is_refused_or_was_null(policy in samples::policy()) {
        // `null` says "no constraint" in so many words: only who wrote the record can say it, and the checksum is theirs.
        let whole = message(&policy);
        let mut document: Value = serde_json::from_slice(&whole.document).unwrap();
        document["spec"]["rules"][0]["sources"] = Value::Null;
        prop_assert!(is_closed(&with_document(&whole, &document), &policy));
        document = serde_json::from_slice(&whole.document).unwrap();
        document["spec"]["action"] = Value::Null;
        prop_assert!(is_closed(&with_document(&whole, &document), &policy));
    }

    #[test]
    fn f08_a_truncated_or_flipped_policy_closes_its_targets(
        policy in samples::policy(), at in any::<prop::sample::Index>(), bit in 0_u8..8
    ) {
        let whole = message(&policy);
        let cut = at.index(whole.document.len());
        let short = pb::Object { document: whole.document[..cut].to_vec(), ..whole.clone() };
        prop_assert!(is_closed(&short, &policy));
        let mut flipped = whole.clone();
        flipped.document[cut] ^= 1 << bit;
        prop_assert!(is_closed(&flipped, &policy));
        // Cut with a checksum that fits, as a sender that was stopped half-way would make it.
        let document = whole.document[..cut].to_vec();
        let short = pb::Object { sha256: sha256(&document).to_vec(), document, ..whole };
        prop_assert!(is_closed(&short, &policy));
    }

    #[test]
    fn f13_no_bytes_of_the_store_are_read_wrongly(
        resource in samples::resource(), at in any::<prop::sample::Index>(), bit in 0_u8..8
    ) {
        let bytes = encode_resource(&resource);
        let index = at.index(bytes.len());
        let mut flipped = bytes.clone();
        flipped[index] ^= 1 << bit;
        prop_assert!(decode_resource(&flipped, 0).is_err());
        prop_assert!(decode_resource(&bytes[..index], 0).is_err());
    }

    #[test]
    fn the_digest_tells_views_apart_and_survives_the_way(
        resources in prop::collection::vec(samples::resource(), 0..6), endpoint in samples::endpoint()
    ) {
        let mut view: View = resources.into_iter().filter_map(|r| view_object(r).ok()).collect();
        let copy: View = view
            .iter()
            .map(|(_, object)| decode_view_object(&encode_view_object(object, 0)).unwrap())
            .collect();
        prop_assert_eq!(view_digest(&view), view_digest(&copy));
        view.insert(endpoint);
        prop_assert_ne!(view_digest(&view), view_digest(&copy));
    }

    #[test]
    fn the_digest_is_the_same_where_a_policy_could_not_be_read(policy in samples::policy()) {
        // A field of a newer version: the server reads it, the agent does not.
        let newer = message(&policy);
        let mut document: Value = serde_json::from_slice(&newer.document).unwrap();
        document["spec"]["rules"][0]["newer"] = true.into();
        let newer = with_document(&newer, &document);
        let lost = decode_view_object(&newer).unwrap();
        prop_assert_eq!(object_digest(&lost).to_vec(), newer.sha256);
        // And it can be kept on disk, and be sent on.
        let again = decode_view_object(&encode_view_object(&lost, 0)).unwrap();
        prop_assert_eq!(again, lost);
    }
}

#[test]
fn a_policy_whose_targets_are_lost_too_closes_its_namespace() {
    let key = pb::ObjectKey {
        kind: "AuthorizationPolicy".to_owned(),
        namespace: "shop".to_owned(),
        name: "p".to_owned(),
    };
    for targets in
        [vec![], vec!["Service/".to_owned()], vec!["Service/a".to_owned(), "Namespace/other".to_owned()]]
    {
        let message = pb::Object { key: Some(key.clone()), targets, ..pb::Object::default() };
        let Ok(ViewObject::Unreadable(lost)) = decode_view_object(&message) else { panic!("unreadable") };
        assert_eq!(lost.targets, []);
    }
}

#[test]
fn any_other_object_that_cannot_be_read_fails_the_message() {
    let key = |kind: &str, namespace: &str, name: &str| pb::ObjectKey {
        kind: kind.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    };
    let damaged = pb::Object { key: Some(key("Service", "shop", "a")), ..pb::Object::default() };
    assert_eq!(decode_view_object(&damaged), Err(RecordError::Damaged));
    for bad in [
        key("Service", "", "a"),
        key("Mesh", "shop", "mesh"),
        key("Mesh", "", "other"),
        key("Endpoint", "shop", "a"),
        key("Workload", "shop", "a"),
        key("", "", ""),
    ] {
        assert!(matches!(key_from_message(&bad), Err(RecordError::Key(_))), "{bad:?}");
    }
    assert!(decode_view_object(&pb::Object::default()).is_err());
}

#[test]
fn a_record_under_another_key_is_refused() {
    let text = "apiVersion: weft.mesh/v1alpha1\nkind: Service\nmetadata: {name: a, namespace: shop}\nspec: {ports: [{port: 1}]}";
    let resource = manifest::parse(text, None).unwrap().remove(0);
    let mut message = encode_view_object(&view_object(resource).unwrap(), 0);
    message.key.as_mut().unwrap().name = "b".to_owned();
    assert!(matches!(decode_view_object(&message), Err(RecordError::OtherObject { .. })));
}
