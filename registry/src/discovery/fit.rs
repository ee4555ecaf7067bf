//! Makes an update fit into one message.
//!
//! A view may be larger than a message. What decides (services, routes, policies, settings) always goes out together.
//! Then comes the denylist, page by page, then endpoints; what does not fit waits for the next update, which is due as
//! soon as this one is answered. Nobody loses a call by it: a caller meanwhile dials the endpoints that it has. Of a
//! denylist of more than 3 MiB an agent that has just joined learns the last pages a round trip later.

use std::sync::Arc;

use prost::Message;
use weft_api::{channel::MAX_MESSAGE_BYTES, pb::discovery as pb};
use weft_policy::snapshot::{Delta, View, ViewKey, ViewObject};

use super::encodings::Encodings;

/// What an update may weigh: the digest and the envelope around it take the rest.
const MAX_UPDATE_BYTES: usize = MAX_MESSAGE_BYTES - 4 * 1024;
/// What a repeated field costs beside its message: its tag and at most four bytes of length.
const FRAME_BYTES: usize = 5;

/// Why no update can be made.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{bytes} bytes without any endpoint, at most {MAX_UPDATE_BYTES}")]
pub struct TooLarge {
    /// Its size.
    pub bytes: usize,
}

/// The message of `delta`, which leads to `view`, and the view that it really leads to. `held` is what it starts from,
/// if it does not start from nothing. When everything fits that is `view` itself. The digest is the caller's to fill in.
///
/// # Errors
///
/// [`TooLarge`].
pub(super) fn fit(
    delta: Delta,
    view: &Arc<View>,
    held: Option<&View>,
    encodings: &Encodings,
) -> Result<(pb::Delta, Arc<View>), TooLarge> {
    let whole = encodings.message(&delta);
    if whole.encoded_len() <= MAX_UPDATE_BYTES {
        return Ok((whole, Arc::clone(view)));
    }
    let upserts = delta.upserts.iter().zip(&whole.upserts);
    let weight = |message: &pb::Object| message.encoded_len() + FRAME_BYTES;
    let (mut pages, mut endpoints, mut others) = (Vec::new(), Vec::new(), Vec::new());
    for (object, message) in upserts {
        match object {
            ViewObject::Denied(_) => pages.push((object, weight(message))),
            ViewObject::Endpoint(_) => endpoints.push((object, weight(message))),
            ViewObject::Mesh(_)
            | ViewObject::Namespace(_)
            | ViewObject::Service(_)
            | ViewObject::TcpRoute(_)
            | ViewObject::TrafficPolicy(_)
            | ViewObject::AuthorizationPolicy(_)
            | ViewObject::Unreadable(_) => others.push((object, weight(message))),
        }
    }
    let removes: usize = whole.removes.iter().map(|key| key.encoded_len() + FRAME_BYTES).sum();
    let mut bytes = removes + others.iter().map(|(_, weight)| weight).sum::<usize>();
    if bytes > MAX_UPDATE_BYTES {
        return Err(TooLarge { bytes });
    }
    let mut reached = View::clone(view);
    let mut kept: Vec<_> = others.into_iter().map(|(object, _)| object.clone()).collect();
    for (object, weight) in pages.into_iter().chain(endpoints) {
        if bytes + weight <= MAX_UPDATE_BYTES {
            bytes += weight;
            kept.push(object.clone());
        } else {
            hold_back(&mut reached, &object.key(), held);
        }
    }
    kept.sort_by_key(ViewObject::key);
    let part = Delta { upserts: kept, ..delta };
    Ok((encodings.message(&part), Arc::new(reached)))
}

/// Leaves an endpoint or a page as the agent has it.
fn hold_back(reached: &mut View, key: &ViewKey, held: Option<&View>) {
    reached.remove(key);
    if let Some(old) = held.and_then(|held| held.get(key)) {
        reached.insert(old.clone());
    }
}

#[cfg(test)]
mod tests {
    use weft_api::convert::discovery::delta_from_message;
    use weft_policy::{
        model::{EndpointState, Service},
        snapshot::Revision,
    };

    use super::*;
    use crate::samples;

    fn view(endpoints: usize, boot: u64) -> Arc<View> {
        let service: Service = samples::service("charge", "shop");
        let mut view: View =
            [ViewObject::from(samples::mesh()), ViewObject::from(service)].into_iter().collect();
        for number in 0..endpoints {
            view.insert(weft_policy::model::Endpoint {
                service: samples::service_name("charge", "shop"),
                workload: format!("charge-{number}").parse().unwrap(),
                node: format!("host{number}").parse().unwrap(),
                identity: samples::identity("shop", "charge"),
                label: format!("label-{number}").parse().unwrap(),
                addresses: vec!["192.0.2.1:7443".parse().unwrap()],
                weight: 1,
                locality: Default::default(),
                labels: Default::default(),
                boot,
                state: EndpointState::Confirmed,
            });
        }
        Arc::new(view)
    }

    #[test]
    fn an_update_that_fits_goes_out_whole() {
        let all = view(100, 1);
        let (message, reached) =
            fit(Delta::full(&all, Revision(1)), &all, None, &Encodings::default()).unwrap();
        assert_eq!((message.upserts.len(), &reached), (102, &all));
    }

    #[test]
    fn twenty_thousand_endpoints_come_in_several_messages_and_all_arrive() {
        let all = view(20_000, 1);
        let (mut held, encodings) = (Arc::new(View::new()), Encodings::default());
        let mut delta = Delta::full(&all, Revision(1));
        let mut messages = 0;
        while !delta.is_empty() {
            let before = (!delta.full).then_some(&*held);
            let (message, reached) = fit(delta, &all, before, &encodings).unwrap();
            assert!(message.encoded_len() <= MAX_UPDATE_BYTES);
            held = Arc::new(held.apply(&delta_from_message(message).unwrap()).unwrap());
            assert_eq!(held, reached);
            assert!(held.get(&ViewKey::Service(samples::service_name("charge", "shop"))).is_some());
            delta = Delta::diff(&held, &all, Revision(1), Revision(1));
            messages += 1;
        }
        assert_eq!(held, all);
        assert!((2..10).contains(&messages), "{messages}");
    }

    #[test]
    fn endpoints_that_wait_stay_as_they_are_held() {
        let (old, new) = (view(20_000, 1), view(20_000, 2));
        let delta = Delta::diff(&old, &new, Revision(1), Revision(2));
        let (message, reached) = fit(delta, &new, Some(&old), &Encodings::default()).unwrap();
        assert_eq!(old.apply(&delta_from_message(message).unwrap()).unwrap(), *reached);
        assert_eq!(reached.len(), old.len());
    }
}
