//! What two catalogs have in common, so that what follows from that need not be worked out again.
//!
//! Compares what clones share: it may say no when nothing differs, and never yes when something does.

use std::sync::Arc;

use super::Catalog;

impl Catalog {
    /// Whether both have the very same enrollments.
    pub(crate) fn shares_enrollments_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.enrollments, &other.enrollments)
    }

    /// Whether both have the very same policies.
    pub(crate) fn shares_policies_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.policies, &other.policies)
    }

    /// Whether both have the very same routes and settings of destinations.
    pub(crate) fn shares_traffic_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.routes, &other.routes) && Arc::ptr_eq(&self.traffic, &other.traffic)
    }

    /// Whether a workload that is the same in both, on a node that is, is the same endpoints.
    pub(crate) fn places_as(&self, other: &Self) -> bool {
        self.trust_domain == other.trust_domain
            && self.shares_enrollments_with(other)
            && self.shares_services_with(other)
    }

    /// Whether what agents are told beside endpoints, policies, routes and settings of destinations is the same in both.
    pub(crate) fn tells_as(&self, other: &Self) -> bool {
        let same_mesh = match (&self.mesh, &other.mesh) {
            (Some(own), Some(other)) => Arc::ptr_eq(own, other),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        same_mesh
            && self.shares_services_with(other)
            && Arc::ptr_eq(&self.namespaces, &other.namespaces)
            && self.unreadable == other.unreadable
    }

    fn shares_services_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.services, &other.services)
            && Arc::ptr_eq(&self.denied, &other.denied)
            && Arc::ptr_eq(&self.broken, &other.broken)
    }
}
