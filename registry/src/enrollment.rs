//! Which identities a node may hold, and what they may serve (decisions.md, registering).
//!
//! Pure. The issuer asks before it signs, registration before it registers, the view each time it is built: an
//! enrollment that is deleted takes its endpoints with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use weft_identity::spiffe::{IdKind, SpiffeId};
use weft_policy::{
    model::{WorkloadEnrollment, workload::UnixSelector},
    name::{Namespace, NodeName, ObjectName},
};

use crate::catalog::Catalog;

/// What enrollments give one identity on one node: all that match, together.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Grant {
    /// The namespace of the identity.
    pub namespace: Namespace,
    /// Its service account.
    pub account: ObjectName,
    /// The services that it may serve.
    pub services: BTreeSet<ObjectName>,
    /// The labels of its workloads. Where two enrollments differ, the first by name is heard.
    pub labels: BTreeMap<String, String>,
    /// Local users that may start it, beside the agent's own and root.
    pub selectors: Vec<UnixSelector>,
    /// The shortest lifetime that one of them sets; `None` takes the server's.
    pub ttl: Option<Duration>,
    /// The enrollments that give it, by name; at least one.
    pub enrollments: Vec<ObjectName>,
}

/// Why a node may not hold an identity.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NoGrant {
    /// It is not `/ns/<namespace>/sa/<name>` of this trust domain: agents, servers and people are never enrolled.
    #[error("{0} is not a workload of this trust domain")]
    NotAWorkload(SpiffeId),
    /// The records of its namespace are not as the server wrote them.
    #[error("{0}")]
    Closed(String),
    /// Its namespace has no enrollment.
    #[error("no WorkloadEnrollment in namespace {0}")]
    NoEnrollment(Namespace),
    /// There are some that give the identity, but to other nodes.
    #[error("WorkloadEnrollment {enrollment} gives it to other nodes")]
    OtherNodes {
        /// The first of them, by name.
        enrollment: ObjectName,
    },
    /// There are some for the node, but not for the identity.
    #[error("WorkloadEnrollment {enrollment} names the node, but not that identity")]
    OtherIdentities {
        /// The first of them, by name.
        enrollment: ObjectName,
    },
    /// None names the node or the identity.
    #[error("no WorkloadEnrollment in namespace {0} names the node or the identity")]
    Unknown(Namespace),
}

/// Enrollments by namespace and node, so that one question looks at few of them.
#[derive(Debug, Default)]
pub struct Enrollments {
    by_node: BTreeMap<(Namespace, NodeName), Vec<Arc<WorkloadEnrollment>>>,
}

impl Enrollments {
    /// Sorts the enrollments of a catalog.
    #[must_use]
    pub fn of(catalog: &Catalog) -> Self {
        let mut by_node: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for ((namespace, _), enrollment) in catalog.enrollments() {
            let nodes: BTreeSet<&NodeName> = enrollment.nodes.iter().collect();
            for node in nodes {
                let key = (namespace.clone(), node.clone());
                by_node.entry(key).or_default().push(Arc::clone(enrollment));
            }
        }
        Self { by_node }
    }

    /// What `node` gets with `identity`; `None` as [`grant`] says why.
    #[must_use]
    pub fn grant(&self, catalog: &Catalog, node: &NodeName, identity: &SpiffeId) -> Option<Grant> {
        let (namespace, account) = workload_of(catalog, identity)?;
        let here = self.by_node.get(&(namespace.clone(), node.clone()))?;
        join(namespace, account, here.iter().filter(|enrollment| gives(enrollment, identity)))
    }
}

/// What `node` gets with `identity`.
///
/// # Errors
///
/// [`NoGrant`] with what comes nearest.
pub fn grant(catalog: &Catalog, node: &NodeName, identity: &SpiffeId) -> Result<Grant, NoGrant> {
    let (namespace, account) =
        workload_of(catalog, identity).ok_or_else(|| NoGrant::NotAWorkload(identity.clone()))?;
    if let Some(why) = catalog.closed(&namespace) {
        return Err(NoGrant::Closed(why));
    }
    let own: Vec<_> = catalog.enrollments().iter().filter(|((found, _), _)| *found == namespace).collect();
    if own.is_empty() {
        return Err(NoGrant::NoEnrollment(namespace));
    }
    let all = own.iter().map(|(_, enrollment)| *enrollment);
    let matching = all.clone().filter(|found| found.nodes.contains(node) && gives(found, identity));
    if let Some(grant) = join(namespace.clone(), account, matching) {
        return Ok(grant);
    }
    let named = |found: Option<&Arc<WorkloadEnrollment>>| found.map(|found| found.metadata.name.clone());
    if let Some(enrollment) = named(all.clone().find(|found| gives(found, identity))) {
        return Err(NoGrant::OtherNodes { enrollment });
    }
    match named(all.clone().find(|found| found.nodes.contains(node))) {
        Some(enrollment) => Err(NoGrant::OtherIdentities { enrollment }),
        None => Err(NoGrant::Unknown(namespace)),
    }
}

/// Whether some enrollment gives `identity` to some node: an identity that none gives cannot be in use.
#[must_use]
pub fn can_exist(catalog: &Catalog, identity: &SpiffeId) -> bool {
    catalog.enrollments().values().any(|enrollment| gives(enrollment, identity))
}

/// Namespace and service account of a workload of the local trust domain.
fn workload_of(catalog: &Catalog, identity: &SpiffeId) -> Option<(Namespace, ObjectName)> {
    if identity.trust_domain() != catalog.trust_domain() {
        return None;
    }
    match identity.kind() {
        IdKind::Workload { namespace, service_account } => {
            Some((namespace.parse().ok()?, service_account.parse().ok()?))
        }
        IdKind::Node(_) | IdKind::Server(_) | IdKind::User(_) | IdKind::Other => None,
    }
}

/// Whether a pattern of the enrollment matches. The bound to its own namespace was checked when it was written; it is
/// asked again, because a signature hangs on it.
fn gives(enrollment: &WorkloadEnrollment, identity: &SpiffeId) -> bool {
    let namespace = enrollment.metadata.owner();
    let bound = |pattern: &&weft_policy::pattern::IdentityPattern| {
        pattern.stays_in_namespace(namespace.as_str()) && pattern.matches(identity)
    };
    enrollment.identities.iter().any(|pattern| bound(&pattern))
}

fn join<'a>(
    namespace: Namespace,
    account: ObjectName,
    enrollments: impl Iterator<Item = &'a Arc<WorkloadEnrollment>>,
) -> Option<Grant> {
    let mut grant = Grant {
        namespace,
        account,
        services: BTreeSet::new(),
        labels: BTreeMap::new(),
        selectors: Vec::new(),
        ttl: None,
        enrollments: Vec::new(),
    };
    for enrollment in enrollments {
        match &enrollment.services {
            Some(services) => grant.services.extend(services.iter().cloned()),
            None => drop(grant.services.insert(grant.account.clone())),
        }
        for (key, value) in &enrollment.labels {
            grant.labels.entry(key.clone()).or_insert_with(|| value.clone());
        }
        grant.selectors.extend(enrollment.selectors.iter().cloned());
        grant.ttl = grant.ttl.into_iter().chain(enrollment.ttl).min();
        grant.enrollments.push(enrollment.metadata.name.clone());
    }
    (!grant.enrollments.is_empty()).then_some(grant)
}

#[cfg(test)]
mod tests {
    use weft_policy::model::Resource;

    use super::*;
    use crate::samples;

    fn catalog() -> Catalog {
        let mut catalog = samples::catalog();
        catalog.put(Resource::WorkloadEnrollment(samples::enrollment(
            "charge",
            "shop",
            &["hostb"],
            "sa/charge",
        )));
        let mut more = samples::enrollment("z-any", "shop", &["hostb", "hostc"], "**");
        more.services = Some(vec!["ledger".parse().unwrap()]);
        more.labels = BTreeMap::from([("tier".to_owned(), "two".to_owned())]);
        more.ttl = Some(Duration::from_secs(600));
        catalog.put(Resource::WorkloadEnrollment(more));
        catalog
    }

    fn ask(node: &str, identity: &str) -> Result<Grant, NoGrant> {
        let (catalog, node) = (catalog(), node.parse().unwrap());
        let identity = format!("spiffe://corp.example{identity}").parse().unwrap();
        let answer = grant(&catalog, &node, &identity);
        assert_eq!(Enrollments::of(&catalog).grant(&catalog, &node, &identity), answer.clone().ok());
        answer
    }

    #[test]
    fn all_enrollments_that_match_give_together() {
        let grant = ask("hostb", "/ns/shop/sa/charge").unwrap();
        let names: Vec<_> = grant.services.iter().map(ObjectName::as_str).collect();
        assert_eq!(names, ["charge", "ledger"]);
        assert_eq!(grant.labels["tier"], "two");
        assert_eq!(grant.ttl, Some(Duration::from_secs(600)));
        assert_eq!(grant.enrollments.len(), 2);
    }

    #[test]
    fn iss_01_a_node_gets_no_identity_that_is_enrolled_for_another_node() {
        assert!(matches!(ask("hosta", "/ns/shop/sa/charge"), Err(NoGrant::OtherNodes { .. })));
        assert!(matches!(ask("hosta", "/ns/bank/sa/vault"), Err(NoGrant::NoEnrollment(_))));
    }

    #[test]
    fn agents_servers_and_people_are_never_enrolled() {
        for id in ["/node/hostb", "/server/a", "/user/ada", "/ns/shop/charge"] {
            assert!(matches!(ask("hostb", id), Err(NoGrant::NotAWorkload(_))), "{id}");
        }
    }

    #[test]
    fn an_enrollment_that_reaches_out_of_its_namespace_gives_nothing_there() {
        let mut catalog = samples::catalog();
        let mut wide = samples::enrollment("wide", "shop", &["hostb"], "**");
        wide.identities = vec!["spiffe://corp.example/**".parse().unwrap()];
        catalog.put(Resource::WorkloadEnrollment(wide));
        for id in ["/ns/shop/sa/charge", "/ns/bank/sa/vault"] {
            let id = format!("spiffe://corp.example{id}").parse().unwrap();
            assert!(grant(&catalog, &"hostb".parse().unwrap(), &id).is_err());
            assert!(!can_exist(&catalog, &id));
        }
    }
}
