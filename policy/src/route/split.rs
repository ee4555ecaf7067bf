//! The weighted choice among the backends of a route.

use std::sync::Arc;

use rand::Rng;

use super::Target;
use crate::{
    code::{self, CodeId},
    model::{TcpRoute, route::BackendRef},
};

/// A route as it is served: which of its backends exist is settled when the snapshot is built.
#[derive(Clone, Debug)]
pub struct Route {
    source: Arc<TcpRoute>,
    backends: Vec<BackendChoice>,
}

/// One backend of a route.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BackendChoice {
    /// Where it leads.
    pub target: Target,
    /// Its relative share.
    pub weight: u32,
    /// Whether service and port exist. A backend that does not keeps its share, and that share is refused, as in the
    /// Gateway API: moving it to the others would overload them without anybody having said so.
    pub exists: bool,
}

/// Why a route gives no backend.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NoBackend {
    /// The chosen backend does not exist.
    #[error("route {route} leads to {target}, which does not exist")]
    Missing {
        /// The route as `name.namespace`.
        route: String,
        /// The backend.
        target: Target,
    },
    /// Every weight is 0.
    #[error("every backend of route {route} has weight 0")]
    NoWeight {
        /// The route as `name.namespace`.
        route: String,
    },
}

impl NoBackend {
    /// The code in the catalogue.
    #[must_use]
    pub const fn code(&self) -> CodeId {
        match self {
            Self::Missing { .. } => code::ROUTE_BACKEND_MISSING,
            Self::NoWeight { .. } => code::ROUTE_WITHOUT_WEIGHT,
        }
    }
}

impl Route {
    /// Compiles a route; `exists` says whether a backend is there.
    pub(crate) fn compile(source: &Arc<TcpRoute>, exists: impl Fn(&BackendRef) -> bool) -> Self {
        let backends = source.backends.iter().map(|backend| BackendChoice {
            target: Target { service: backend.service.clone(), port: backend.port },
            weight: backend.weight,
            exists: exists(backend),
        });
        Self { source: Arc::clone(source), backends: backends.collect() }
    }

    /// The route as `name.namespace`.
    #[must_use]
    pub fn id(&self) -> String {
        format!("{}.{}", self.source.metadata.name, self.source.metadata.owner())
    }

    /// Its backends, in the order of the manifest.
    #[must_use]
    pub fn backends(&self) -> &[BackendChoice] {
        &self.backends
    }

    /// Chooses a backend for one connection, by weight.
    ///
    /// # Errors
    ///
    /// [`NoBackend`] when the chosen one does not exist, or none has weight.
    pub fn choose(&self, rng: &mut (impl Rng + ?Sized)) -> Result<&Target, NoBackend> {
        let total: u64 = self.backends.iter().map(|backend| u64::from(backend.weight)).sum();
        if total == 0 {
            return Err(NoBackend::NoWeight { route: self.id() });
        }
        let mut drawn = rng.random_range(0..total);
        let chosen = self.backends.iter().find(|backend| {
            let weight = u64::from(backend.weight);
            let hit = drawn < weight;
            drawn = drawn.saturating_sub(weight);
            hit
        });
        match chosen {
            Some(backend) if backend.exists => Ok(&backend.target),
            Some(backend) => Err(NoBackend::Missing { route: self.id(), target: backend.target.clone() }),
            None => Err(NoBackend::NoWeight { route: self.id() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::testing;

    fn route(weights: &[u32], missing: Option<usize>) -> Route {
        let backends = weights.iter().enumerate().map(|(index, weight)| BackendRef {
            service: testing::service_name(&format!("b{index}"), "shop"),
            port: 80,
            weight: *weight,
        });
        let parents = vec![testing::parent("charge", "shop", None)];
        let metadata = testing::metadata("split", Some("shop"));
        let source = Arc::new(TcpRoute { metadata, parents, backends: backends.collect() });
        let gone = missing.map(|index| testing::service_name(&format!("b{index}"), "shop"));
        Route::compile(&source, |backend| gone.as_ref() != Some(&backend.service))
    }

    #[test]
    fn shares_follow_the_weights() {
        let route = route(&[90, 10, 0], None);
        let mut rng = StdRng::seed_from_u64(1);
        let mut counts = [0_u32; 3];
        for _ in 0..10_000 {
            let name = route.choose(&mut rng).unwrap().service.name.to_string();
            counts[name[1..].parse::<usize>().unwrap()] += 1;
        }
        assert!((8_800..9_200).contains(&counts[0]), "{counts:?}");
        assert_eq!(counts[2], 0);
    }

    #[test]
    fn a_missing_backend_keeps_its_share_and_the_share_is_refused() {
        let route = route(&[1, 1], Some(1));
        let mut rng = StdRng::seed_from_u64(2);
        let refused = (0..10_000).filter(|_| route.choose(&mut rng).is_err()).count();
        assert!((4_700..5_300).contains(&refused), "{refused}");
        let error = NoBackend::Missing { route: route.id(), target: route.backends()[1].target.clone() };
        assert_eq!(error.to_string(), "route split.shop leads to b1.shop:80, which does not exist");
        assert_eq!(error.code().as_str(), "W1014");
    }

    proptest! {
        #[test]
        fn a_backend_of_weight_zero_is_never_chosen(
            weights in prop::collection::vec(prop_oneof![Just(0_u32), 1..4_u32, Just(1_000_000)], 1..16),
            seed in any::<u64>(),
        ) {
            let route = route(&weights, None);
            match route.choose(&mut StdRng::seed_from_u64(seed)) {
                Ok(target) => {
                    let backend = route.backends().iter().find(|backend| backend.target == *target).unwrap();
                    prop_assert!(backend.weight > 0);
                }
                Err(error) => {
                    prop_assert!(weights.iter().all(|weight| *weight == 0));
                    prop_assert_eq!(error.code().as_str(), "W1015");
                }
            }
        }
    }
}
