//! What an admin asks of a token, checked, and the WorkloadEnrollment that goes with it.

use std::{collections::BTreeMap, fmt, time::Duration};

use aws_lc_rs::digest;
use tonic::Code;
use weft_api::{pb::management::CreateTokenRequest, record};
use weft_policy::{
    code,
    model::{Metadata, Resource, WorkloadEnrollment, workload::UnixSelector},
    name::{Namespace, NodeName, ObjectName},
};

use super::{
    join_token::{JoinTokens, put, unusable},
    making::Plan,
    record::Purpose,
};
use crate::{
    history::{Draft, Head, Standing, Touching, Verb},
    layout,
    refusal::{Refusal, catalogued},
    roles::{Caller, Role},
    store::Expected,
};

/// How long a token is good for by default (decisions.md, tokens).
const DEFAULT_TTL: Duration = Duration::from_secs(15 * 60);
/// The longest that a token may be good for.
const LONGEST_TTL: Duration = Duration::from_secs(24 * 3600);
/// The most services and the most local users of one token: what an enrollment takes.
const MAX_LISTED: usize = 64;

/// What an admin asks for, checked.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) purpose: Purpose,
    services: Vec<ObjectName>,
    uids: Vec<u32>,
    pub(super) ttl: Duration,
    pub(super) replace: bool,
}

impl Wanted {
    pub(super) fn read(request: CreateTokenRequest) -> Result<Self, Refusal> {
        let ttl = match request.ttl_seconds {
            0 => DEFAULT_TTL,
            seconds => Duration::from_secs(seconds),
        };
        if ttl > LONGEST_TTL {
            let what = format!("a token lives at most {} h", LONGEST_TTL.as_secs() / 3600);
            return Err(Refusal::invalid(vec![
                catalogued(code::TOKEN_LIFETIME, what).at("ttl_seconds", None),
            ]));
        }
        let scoped = |path: &str, error: &dyn fmt::Display| {
            Refusal::invalid(vec![catalogued(code::TOKEN_SCOPE, error.to_string()).at(path, None)])
        };
        let namespace =
            (!request.namespace.is_empty()).then(|| request.namespace.parse::<Namespace>()).transpose();
        let namespace = namespace.map_err(|error| scoped("namespace", &error))?;
        let purpose = match request.purpose.as_str() {
            "agent" => Purpose::Agent {
                node: request.node.parse().map_err(|error| scoped("node", &error))?,
                namespace: namespace.unwrap_or_else(Namespace::default_namespace),
            },
            "user" => Purpose::Person {
                name: layout::user(&request.user).map(|_| request.user.clone()).ok_or_else(|| {
                    scoped("user", &"a user's name begins with a letter or digit and has letters, digits, '.', '_' and '-' only")
                })?,
                role: Role::person(&request.role)
                    .ok_or_else(|| scoped("role", &"a role is viewer, editor or admin"))?,
                namespace,
            },
            "server" => Purpose::Server,
            _ => return Err(Refusal::bad_value("purpose", "a token is for an agent, a user or a server")),
        };
        if request.services.len().max(request.uids.len()) > MAX_LISTED {
            return Err(Refusal::bad_value("services", format!("at most {MAX_LISTED} services and users")));
        }
        let mut services = Vec::with_capacity(request.services.len());
        for service in &request.services {
            services.push(service.parse().map_err(|error| scoped("services", &error))?);
        }
        Ok(Self { purpose, services, uids: request.uids, ttl, replace: request.replace })
    }
}

impl JoinTokens {
    /// Writes the enrollment of a node, unless the same one stands there.
    pub(super) async fn enroll(
        &self,
        caller: &Caller,
        wanted: &Wanted,
        node: &NodeName,
        namespace: &Namespace,
        plan: &mut Plan,
    ) -> Result<(), Refusal> {
        let head = Head::read(&*self.core.store).await?;
        self.core.world.wait_for(head.revision.unwrap_or_default()).await;
        let catalog = self.core.world.catalog();
        let enrollment = self.enrollment(wanted, node, namespace)?;
        let resource = Resource::WorkloadEnrollment(enrollment);
        let key = resource.key();
        plan.enrollments.push(key.clone());
        let stands = catalog.get(&key);
        if stands.as_ref().is_some_and(|found| same(found, &resource)) {
            return Ok(());
        }
        if stands.is_some() && !wanted.replace {
            let what = format!("{key} gives node {node} something else");
            let fault =
                catalogued(code::TOKEN_SCOPE, what).fix("replace it:   weft token create … --replace");
            return Err(Refusal::new(Code::FailedPrecondition, fault));
        }
        let expected = catalog.revision_of(&key).map_or(Expected::Absent, Expected::Unchanged);
        let stored = layout::resource(&key);
        plan.compares.extend(expected.compare(&stored));
        let value: bytes::Bytes = record::encode_resource(&resource).into();
        plan.ops.push(put(stored, value.clone()));
        let before = Standing::of(&catalog, &key);
        let draft = Draft {
            author: caller.to_string(),
            reason: format!("written with a token for node {node}"),
            verb: Verb::Token,
            of: None,
            objects: vec![Touching { key, before, after: Some(value) }],
        };
        plan.compares.push(head.compare());
        plan.ops.push(head.advance());
        plan.change = Some(head.next());
        plan.ops.extend(draft.ops(head.next(), self.core.clock.now(), true));
        Ok(())
    }

    fn enrollment(
        &self,
        wanted: &Wanted,
        node: &NodeName,
        namespace: &Namespace,
    ) -> Result<WorkloadEnrollment, Refusal> {
        let trust_domain = &self.core.trust_domain;
        let pattern = |account: &str| format!("spiffe://{trust_domain}/ns/{namespace}/sa/{account}").parse();
        let identities = if wanted.services.is_empty() {
            vec![pattern("*")]
        } else {
            wanted.services.iter().map(|service| pattern(service.as_str())).collect()
        };
        Ok(WorkloadEnrollment {
            metadata: Metadata {
                namespace: Some(namespace.clone()),
                name: enrollment_name(node)?,
                labels: BTreeMap::new(),
                annotations: [(
                    "weft.mesh/reason".to_owned(),
                    format!("written with a token for node {node}"),
                )]
                .into(),
                revision: 0,
            },
            identities: identities.into_iter().collect::<Result<_, _>>().map_err(unusable)?,
            nodes: vec![node.clone()],
            selectors: wanted.uids.iter().map(|uid| UnixSelector { uid: Some(*uid), user: None }).collect(),
            services: None,
            labels: BTreeMap::new(),
            ttl: None,
        })
    }
}

/// `agent-<node>`, cut and told apart by a hash where that is too long for a name.
fn enrollment_name(node: &NodeName) -> Result<ObjectName, Refusal> {
    let whole = format!("agent-{node}");
    if let Ok(name) = whole.parse() {
        return Ok(name);
    }
    let hash = digest::digest(&digest::SHA256, node.as_str().as_bytes());
    let start: String = node.as_str().chars().take(40).collect();
    format!("agent-{}-{}", start.trim_end_matches('-'), hex(&hash.as_ref()[..4])).parse().map_err(unusable)
}

/// Whether two enrollments give the same, whenever and why they were written.
fn same(one: &Resource, other: &Resource) -> bool {
    let bare = |resource: &Resource| {
        let mut resource = resource.clone();
        let metadata = resource.metadata_mut();
        metadata.revision = 0;
        metadata.annotations.clear();
        resource
    };
    bare(one) == bare(other)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
