//! The discovery stream: deltas, bundles, registrations.

use weft_policy::snapshot::{Delta, Revision, ViewObject};

use crate::{
    pb::discovery as pb,
    record::{self, RecordError},
};

/// Why a delta is refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DeltaFault {
    /// It does not hold as many objects as its sender put in.
    #[error("the update lost objects on the way: {sent} {what} were sent, {found} arrived")]
    Lost {
        /// Upserts or removes.
        what: &'static str,
        /// How many the sender counted.
        sent: u32,
        /// How many there are.
        found: usize,
    },
    /// An object, or the key of one that is gone, cannot be read.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// The message that carries `delta`; `digest` is [`record::view_digest`] of the view after it.
#[must_use]
pub fn delta_to_message(delta: &Delta, digest: [u8; 32]) -> pb::Delta {
    let object = |object: &ViewObject| record::encode_view_object(object, 0);
    message_of(delta, delta.upserts.iter().map(object).collect(), digest)
}

/// The same of upserts that were encoded before, of whatever revision: those of `delta`, in the same order.
#[must_use]
pub fn message_of(delta: &Delta, mut upserts: Vec<pb::Object>, digest: [u8; 32]) -> pb::Delta {
    for (message, object) in upserts.iter_mut().zip(&delta.upserts) {
        message.revision = revision(object, delta.to);
    }
    let removes: Vec<_> = delta.removes.iter().map(record::key_to_message).collect();
    pb::Delta {
        from: delta.from.0,
        to: delta.to.0,
        full: delta.full,
        upsert_count: count(upserts.len()),
        remove_count: count(removes.len()),
        upserts,
        removes,
        view_digest: digest.to_vec(),
    }
}

/// The revision of the object itself; an endpoint or a page of the denylist, which are derived, have that of their delta.
fn revision(object: &ViewObject, of_delta: Revision) -> u64 {
    match object {
        ViewObject::Mesh(mesh) => mesh.metadata.revision,
        ViewObject::Namespace(settings) => settings.metadata.revision,
        ViewObject::Service(service) => service.metadata.revision,
        ViewObject::TcpRoute(route) => route.metadata.revision,
        ViewObject::TrafficPolicy(policy) => policy.metadata.revision,
        ViewObject::AuthorizationPolicy(policy) => policy.metadata.revision,
        ViewObject::Endpoint(_) | ViewObject::Unreadable(_) | ViewObject::Denied(_) => of_delta.0,
    }
}

/// Counts saturate: a delta of four thousand million objects does not fit a message anyway.
fn count(objects: usize) -> u32 {
    u32::try_from(objects).unwrap_or(u32::MAX)
}

/// The delta of which [`delta_to_message`] made `message`. Whether the view after it has the digest that the message
/// names is for the caller to check, who has the view.
///
/// # Errors
///
/// [`DeltaFault`]: the message is to be refused as a whole.
pub fn delta_from_message(message: pb::Delta) -> Result<Delta, DeltaFault> {
    complete("upserts", message.upsert_count, message.upserts.len())?;
    complete("removes", message.remove_count, message.removes.len())?;
    let upserts: Result<_, _> = message.upserts.iter().map(record::decode_view_object).collect();
    let removes: Result<_, _> = message.removes.iter().map(record::key_from_message).collect();
    Ok(Delta {
        from: Revision(message.from),
        to: Revision(message.to),
        full: message.full,
        upserts: upserts?,
        removes: removes?,
    })
}

fn complete(what: &'static str, sent: u32, found: usize) -> Result<(), DeltaFault> {
    if usize::try_from(sent) == Ok(found) { Ok(()) } else { Err(DeltaFault::Lost { what, sent, found }) }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};
    use weft_policy::snapshot::View;

    use super::*;
    use crate::{
        manifest::samples,
        record::{view_digest, view_object},
    };

    fn view() -> impl Strategy<Value = View> {
        (vec(samples::resource(), 0..6), vec(samples::endpoint(), 0..3)).prop_map(|(resources, endpoints)| {
            let mut view: View = resources.into_iter().filter_map(|r| view_object(r).ok()).collect();
            view.extend(endpoints);
            view
        })
    }

    fn is_lost(message: pb::Delta) -> bool {
        matches!(delta_from_message(message), Err(DeltaFault::Lost { .. }))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_delta_that_travelled_leads_to_the_same_view(old in view(), new in view()) {
            let delta = Delta::diff(&old, &new, Revision(3), Revision(4));
            let message = delta_to_message(&delta, view_digest(&new));
            let digest = message.view_digest.clone();
            let arrived = delta_from_message(message);
            prop_assert_eq!(arrived.as_ref(), Ok(&delta));
            let after = old.apply(&delta).unwrap();
            prop_assert_eq!(view_digest(&after).to_vec(), digest);
        }

        #[test]
        fn a_delta_that_lost_an_object_is_refused(old in view(), new in view()) {
            let whole = delta_to_message(&Delta::diff(&old, &new, Revision(3), Revision(4)), [0; 32]);
            let mut lost = whole.clone();
            if lost.upserts.pop().is_some() {
                prop_assert!(is_lost(lost));
            }
            let mut lost = whole;
            if lost.removes.pop().is_some() {
                prop_assert!(is_lost(lost));
            }
        }
    }
}
