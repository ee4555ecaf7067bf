//! Objects as agents are sent them, encoded once for all agents.
//!
//! A thousand agents are told the same policy, and each update names the digest of a view of hundreds of objects. So what
//! an object is on the wire, and its line of the digest, is kept for as long as a view has the object. It is found by where
//! the object is in memory, and keeps it there: two objects are never taken for one.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use prometheus_client::metrics::gauge::Gauge;
use weft_api::{
    convert::discovery::message_of,
    pb::discovery as pb,
    record::{ViewDigest, digest_line, encode_view_object},
};
use weft_policy::snapshot::{Delta, View, ViewObject};

/// How many are kept at the least before it is looked which of them nobody has any more; then twice as many as are left.
/// So the bound is twice the objects that the worlds and the views of agents hold.
const FEW: usize = 4_096;

/// See the module.
#[derive(Debug)]
pub struct Encodings {
    kept: RwLock<Kept>,
    count: Gauge,
}

#[derive(Debug)]
struct Kept {
    by_address: HashMap<usize, Arc<Encoded>>,
    /// At how many the unused ones are looked for.
    most: usize,
}

#[derive(Debug)]
struct Encoded {
    /// Holds the object at its address.
    object: ViewObject,
    message: pb::Object,
    line: String,
}

impl Default for Encodings {
    fn default() -> Self {
        Self::new(Gauge::default())
    }
}

impl Encodings {
    /// Nothing is kept yet; `count` shows how many are.
    #[must_use]
    pub fn new(count: Gauge) -> Self {
        let kept = Kept { by_address: HashMap::new(), most: FEW };
        Self { kept: RwLock::new(kept), count }
    }

    /// The message that carries `delta`, without its digest.
    #[must_use]
    pub fn message(&self, delta: &Delta) -> pb::Delta {
        let encoded = self.all(delta.upserts.iter());
        let objects = encoded.into_iter().map(|encoded| encoded.message.clone());
        message_of(delta, objects.collect(), [0; 32])
    }

    /// The digest of `view`.
    #[must_use]
    pub fn view_digest(&self, view: &View) -> [u8; 32] {
        let mut digest = ViewDigest::new();
        for encoded in self.all(view.iter().map(|(_, object)| object)) {
            digest.line(&encoded.line);
        }
        digest.finish()
    }

    fn all<'a>(&self, objects: impl Iterator<Item = &'a ViewObject>) -> Vec<Arc<Encoded>> {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        let mut missing = Vec::new();
        let mut all = Vec::with_capacity(objects.size_hint().0);
        for object in objects {
            let encoded = kept.by_address.get(&object.address()).cloned();
            let encoded = encoded.unwrap_or_else(|| {
                let encoded = Arc::new(Encoded::of(object));
                missing.push(Arc::clone(&encoded));
                encoded
            });
            all.push(encoded);
        }
        drop(kept);
        if !missing.is_empty() {
            self.keep(missing);
        }
        all
    }

    fn keep(&self, encoded: Vec<Arc<Encoded>>) {
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        kept.by_address.extend(encoded.into_iter().map(|encoded| (encoded.object.address(), encoded)));
        if kept.by_address.len() > kept.most {
            // What is held once is held here alone.
            kept.by_address.retain(|_, encoded| encoded.object.holders() > 1);
            kept.most = FEW.max(kept.by_address.len() * 2);
        }
        self.count.set(i64::try_from(kept.by_address.len()).unwrap_or(i64::MAX));
    }
}

impl Encoded {
    fn of(object: &ViewObject) -> Self {
        let message = encode_view_object(object, 0);
        let line = digest_line(object);
        Self { object: object.clone(), message, line }
    }
}

#[cfg(test)]
mod tests {
    use weft_api::{convert::discovery::delta_to_message, record::view_digest};
    use weft_policy::snapshot::Revision;

    use super::*;
    use crate::samples;

    fn view(services: usize) -> View {
        let service = |number| samples::service(&format!("s{number}"), "shop");
        (0..services).map(|number| ViewObject::from(service(number))).collect()
    }

    #[test]
    fn what_is_kept_is_what_would_be_made_anew() {
        let encodings = Encodings::default();
        let view = view(20);
        let delta = Delta::full(&view, Revision(7));
        for _ in 0..2 {
            assert_eq!(encodings.message(&delta), delta_to_message(&delta, [0; 32]));
            assert_eq!(encodings.view_digest(&view), view_digest(&view));
        }
        assert_eq!(encodings.count.get(), 20);
    }

    #[test]
    fn what_nobody_has_any_more_is_forgotten() {
        let encodings = Encodings::default();
        let held = view(100);
        let digest = encodings.view_digest(&held);
        for _ in 0..10 {
            let _ = encodings.view_digest(&view(1_000));
        }
        assert!(encodings.count.get() <= i64::try_from(FEW + 1_000).unwrap());
        assert_eq!(encodings.view_digest(&held), digest);
        assert!(encodings.kept.read().unwrap().by_address.len() >= 100);
    }
}
