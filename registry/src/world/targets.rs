//! Policies, settings and routes by what they are about, so that a view does not go through all of a namespace.

use std::{collections::BTreeMap, sync::Arc};

use weft_policy::{
    model::{AuthorizationPolicy, TargetRef, TcpRoute, TrafficPolicy},
    name::{Namespace, ServiceName},
};

use super::changes::Touched;
use crate::catalog::{Catalog, Scoped};

/// Objects of one kind by their targets.
#[derive(Clone, Debug)]
pub struct Targeted<P> {
    of_service: BTreeMap<ServiceName, Vec<Arc<P>>>,
    of_namespace: BTreeMap<Namespace, Vec<Arc<P>>>,
}

/// See the module. What did not change is shared with the world before.
#[derive(Clone, Debug)]
pub(super) struct Targets {
    pub(super) policies: Arc<Targeted<AuthorizationPolicy>>,
    pub(super) traffic: Arc<Targeted<TrafficPolicy>>,
    pub(super) routes: Arc<BTreeMap<ServiceName, Vec<Arc<TcpRoute>>>>,
}

impl<P> Targeted<P> {
    fn of(objects: &BTreeMap<Scoped, Arc<P>>, targets: impl Fn(&P) -> &[TargetRef]) -> Self {
        let mut sorted = Self { of_service: BTreeMap::new(), of_namespace: BTreeMap::new() };
        for ((namespace, _), object) in objects {
            for target in targets(object) {
                let list = match target {
                    TargetRef::Service(name) => {
                        let service = ServiceName::new(namespace.clone(), name.clone());
                        sorted.of_service.entry(service).or_default()
                    }
                    TargetRef::Namespace(whole) if whole == namespace => {
                        sorted.of_namespace.entry(namespace.clone()).or_default()
                    }
                    // Another namespace is not its to speak of.
                    TargetRef::Namespace(_) => continue,
                };
                list.push(Arc::clone(object));
            }
        }
        sorted
    }

    /// Those about that service alone.
    #[must_use]
    pub fn service(&self, name: &ServiceName) -> &[Arc<P>] {
        self.of_service.get(name).map_or(&[], Vec::as_slice)
    }

    /// Those about every service of a namespace.
    #[must_use]
    pub fn namespace(&self, name: &Namespace) -> &[Arc<P>] {
        self.of_namespace.get(name).map_or(&[], Vec::as_slice)
    }
}

impl Targets {
    /// Of `catalog`; what differs from `before` is noted.
    pub(super) fn of(catalog: &Catalog, before: Option<(&Catalog, &Self)>, touched: &mut Touched) -> Self {
        let kept = before.filter(|(old, _)| old.shares_policies_with(catalog));
        let policies = kept.map(|(_, old)| Arc::clone(&old.policies));
        let policies = policies.unwrap_or_else(|| {
            let new = Targeted::of(catalog.policies(), |policy| &policy.targets);
            if let Some((_, old)) = before {
                let (old, new) = (&*old.policies, &new);
                touched.services.extend(differ(&old.of_service, &new.of_service));
                touched.namespaces.extend(differ(&old.of_namespace, &new.of_namespace));
            }
            Arc::new(new)
        });
        let kept = before.filter(|(old, _)| old.shares_traffic_with(catalog));
        let (traffic, routes) = kept.map_or_else(
            || {
                touched.common = true;
                let traffic = Targeted::of(catalog.traffic(), |policy| &policy.targets);
                (Arc::new(traffic), Arc::new(routes_of(catalog)))
            },
            |(_, old)| (Arc::clone(&old.traffic), Arc::clone(&old.routes)),
        );
        Self { policies, traffic, routes }
    }
}

fn routes_of(catalog: &Catalog) -> BTreeMap<ServiceName, Vec<Arc<TcpRoute>>> {
    let mut sorted: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for route in catalog.routes().values() {
        for parent in &route.parents {
            sorted.entry(parent.service.clone()).or_default().push(Arc::clone(route));
        }
    }
    sorted
}

/// The keys under which something else stands.
fn differ<'a, K: Clone + Ord, P>(
    old: &'a BTreeMap<K, Vec<Arc<P>>>,
    new: &'a BTreeMap<K, Vec<Arc<P>>>,
) -> impl Iterator<Item = K> {
    let same = |one: &[Arc<P>], other: &[Arc<P>]| {
        one.len() == other.len() && one.iter().zip(other).all(|(one, other)| Arc::ptr_eq(one, other))
    };
    let changed =
        new.iter().filter(move |(key, list)| !old.get(*key).is_some_and(|before| same(before, list)));
    let gone = old.keys().filter(|key| !new.contains_key(*key));
    changed.map(|(key, _)| key).chain(gone).cloned()
}
