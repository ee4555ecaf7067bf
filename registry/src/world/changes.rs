//! What changed when: so that of a thousand agents only those whom a change concerns are looked at.
//!
//! Worlds that follow one another are counted. A [`Mark`] is a place in that count: whoever built something of the world
//! there asks any later one whether it could come out otherwise. When in doubt the answer is yes.

use std::{collections::BTreeMap, sync::Arc};

use weft_policy::name::{Namespace, NodeName, ServiceName};

/// The most keys of one kind of which it is known when they changed; more than there are in a mesh of 10,000 services.
/// Beyond it everything counts as changed, once.
const MAX_KEYS: usize = 65_536;

/// One of the worlds that follow one another.
#[derive(Clone, Debug)]
pub struct Mark {
    /// The same for worlds that follow one another.
    line: Arc<()>,
    serial: u64,
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Changes {
    now: Mark,
    /// What concerns everybody.
    common: u64,
    services: Stamps<ServiceName>,
    namespaces: Stamps<Namespace>,
    nodes: Stamps<NodeName>,
}

/// What may have changed from one world to the next.
#[derive(Debug, Default)]
pub(super) struct Touched {
    /// Something that anybody may be told.
    pub(super) common: bool,
    /// Services whose endpoints, policies or settings differ.
    pub(super) services: Vec<ServiceName>,
    /// Namespaces whose policies or settings for all services differ.
    pub(super) namespaces: Vec<Namespace>,
    /// Nodes that host something else.
    pub(super) nodes: Vec<NodeName>,
}

impl Changes {
    /// Of a world that follows no other.
    pub(super) fn first() -> Self {
        let now = Mark { line: Arc::new(()), serial: 0 };
        let (services, namespaces, nodes) = (Stamps::default(), Stamps::default(), Stamps::default());
        Self { now, common: 0, services, namespaces, nodes }
    }

    /// Of the world that follows, with what may differ.
    pub(super) fn next(&self, touched: Touched) -> Self {
        let mut next = self.clone();
        next.now.serial += 1;
        let serial = next.now.serial;
        if touched.common {
            next.common = serial;
        }
        next.services.touch(touched.services, serial);
        next.namespaces.touch(touched.namespaces, serial);
        next.nodes.touch(touched.nodes, serial);
        next
    }

    pub(super) const fn now(&self) -> &Mark {
        &self.now
    }

    /// Whether what `node` is told of `services` may differ from what it was told at `mark`.
    pub(super) fn concern<'a>(
        &self,
        mark: &Mark,
        node: &NodeName,
        services: impl IntoIterator<Item = &'a ServiceName>,
    ) -> bool {
        if !Arc::ptr_eq(&mark.line, &self.now.line) || mark.serial > self.now.serial {
            return true;
        }
        let later = |since: u64| since > mark.serial;
        later(self.common)
            || later(self.nodes.since(node))
            || services.into_iter().any(|service| {
                later(self.services.since(service)) || later(self.namespaces.since(&service.namespace))
            })
    }
}

/// When each key changed last.
#[derive(Clone, Debug)]
struct Stamps<K> {
    since: Arc<BTreeMap<K, u64>>,
    /// When those changed that are not named.
    others: u64,
}

impl<K> Default for Stamps<K> {
    fn default() -> Self {
        Self { since: Arc::default(), others: 0 }
    }
}

impl<K: Clone + Ord> Stamps<K> {
    fn touch(&mut self, keys: Vec<K>, serial: u64) {
        if keys.is_empty() {
            return;
        }
        let since = Arc::make_mut(&mut self.since);
        since.extend(keys.into_iter().map(|key| (key, serial)));
        if since.len() > MAX_KEYS {
            since.clear();
            self.others = serial;
        }
    }

    fn since(&self, key: &K) -> u64 {
        self.since.get(key).copied().unwrap_or(0).max(self.others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    fn service(name: &str) -> ServiceName {
        samples::service_name(name, "shop")
    }

    fn node() -> NodeName {
        "hosta".parse().unwrap()
    }

    #[test]
    fn only_what_changed_later_concerns() {
        let first = Changes::first();
        let mark = first.now().clone();
        let touched = Touched { services: vec![service("charge")], ..Touched::default() };
        let second = first.next(touched);
        assert!(second.concern(&mark, &node(), &[service("charge")]));
        assert!(!second.concern(&mark, &node(), &[service("order")]));
        assert!(!second.concern(second.now(), &node(), &[service("charge")]));
        let moved = second.next(Touched { nodes: vec![node()], ..Touched::default() });
        assert!(moved.concern(second.now(), &node(), &[]));
        assert!(!moved.concern(second.now(), &"hostb".parse().unwrap(), &[service("charge")]));
        let wide = moved.next(Touched { namespaces: vec!["shop".parse().unwrap()], ..Touched::default() });
        assert!(wide.concern(moved.now(), &node(), &[service("order")]));
        let all = wide.next(Touched { common: true, ..Touched::default() });
        assert!(all.concern(wide.now(), &node(), &[]));
    }

    #[test]
    fn a_world_that_does_not_follow_concerns_everybody() {
        let (one, other) = (Changes::first(), Changes::first());
        assert!(other.concern(one.now(), &node(), &[]));
        let later = one.next(Touched::default());
        assert!(one.concern(later.now(), &node(), &[]));
    }

    #[test]
    fn beyond_the_bound_everything_has_changed() {
        let first = Changes::first();
        let many = (0..=MAX_KEYS).map(|number| service(&format!("s{number}"))).collect();
        let full = first.next(Touched { services: many, ..Touched::default() });
        assert!(full.concern(first.now(), &node(), &[service("never-named")]));
        assert!(full.services.since.is_empty());
    }
}
