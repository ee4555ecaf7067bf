//! Changes what is known of an agent: several services write one record, so each change is compared and put.

use weft_identity::spiffe::IdKind;
use weft_policy::{
    code,
    name::{Namespace, NodeName},
};

use crate::{
    core::Core,
    denied, layout,
    records::{NodeRecord, Record},
    refusal::{Refusal, catalogued},
    roles::{Caller, Role},
    store::{Expected, Revision, StoreError},
};

/// How often a change is tried again because somebody else changed the record meanwhile. Writers of one node are few:
/// its stream, its issuer, an admin.
const MAX_TRIES: usize = 8;

impl NodeRecord {
    /// An agent that has joined and not been heard of.
    #[must_use]
    pub const fn new(namespace: Namespace) -> Self {
        Self {
            namespace,
            advertise: Vec::new(),
            boot: 0,
            version: String::new(),
            serial: None,
            banned: Vec::new(),
        }
    }
}

/// The node that a caller is the agent of.
///
/// # Errors
///
/// A refusal when it is not an agent of this trust domain, or its SVID is banned.
pub fn node_of(core: &Core, caller: &Caller) -> Result<NodeName, Refusal> {
    let refused = || Refusal::not_permitted("only the agent of a node may do this");
    if caller.role != Role::Node {
        return Err(refused());
    }
    let identity = caller.identity.as_ref().filter(|id| *id.trust_domain() == core.trust_domain);
    let node: NodeName = match identity.map(|id| id.kind()) {
        Some(IdKind::Node(name)) => name.parse().map_err(|_| refused())?,
        Some(IdKind::Workload { .. } | IdKind::Server(_) | IdKind::User(_) | IdKind::Other) | None => {
            return Err(refused());
        }
    };
    check_not_banned(core, caller, &node)?;
    Ok(node)
}

/// Refuses a node whose present SVID is banned, also on a connection that was open before (ISS-02).
pub(crate) fn check_not_banned(core: &Core, caller: &Caller, node: &NodeName) -> Result<(), Refusal> {
    let world = core.world.current();
    denied::check_caller(&world, caller, core.clock.now())?;
    let catalog = world.catalog();
    if catalog.all_nodes().contains_key(node) && !catalog.nodes().contains_key(node) {
        let what = format!("the record of node {node} is not as the server wrote it");
        return Err(Refusal::denied(code::RECORDS_REFUSED, what));
    }
    let serial = caller.peer.as_ref().map(|peer| peer.serial.to_string());
    let banned = catalog
        .nodes()
        .get(node)
        .zip(serial)
        .is_some_and(|(kept, serial)| kept.record.banned.contains(&serial));
    if banned {
        return Err(Refusal::denied(
            code::IDENTITY_BANNED,
            format!("this certificate of node {node} is banned"),
        ));
    }
    Ok(())
}

/// Changes the record of `name`, which is made when there is none, and returns it as it is then. `change` may be called
/// more than once; what it refuses is refused.
///
/// # Errors
///
/// What `change` refuses, or the store.
pub async fn update(
    core: &Core,
    name: &NodeName,
    change: impl Fn(&mut NodeRecord) -> Result<(), Refusal>,
) -> Result<NodeRecord, Refusal> {
    let key = layout::node(name);
    let mut tries = 0;
    loop {
        let (mut record, expected) = match core.store.get(&key).await? {
            Some(entry) => {
                let unreadable = |error| {
                    let what = format!("the record of node {name} cannot be read: {error}");
                    Refusal::new(tonic::Code::DataLoss, catalogued(code::UNREADABLE_RECORD, what))
                };
                (
                    NodeRecord::decode(&entry.value).map_err(unreadable)?,
                    Expected::Unchanged(entry.mod_revision),
                )
            }
            None => (NodeRecord::new(Namespace::default_namespace()), Expected::Absent),
        };
        let before = record.clone();
        change(&mut record)?;
        if record == before && expected != Expected::Absent {
            return Ok(record);
        }
        match core.store.put(key.clone(), record.encode(), expected, None).await {
            Ok(revision) => {
                core.world.wait_for(revision).await;
                return Ok(record);
            }
            Err(StoreError::Conflict(_)) if tries < MAX_TRIES => tries += 1,
            Err(error) => return Err(error.into()),
        }
    }
}

/// The refusal of an agent that a newer run of itself has replaced.
#[must_use]
pub(crate) fn old_boot(node: &NodeName, boot: u64, newest: u64) -> Refusal {
    let what = format!("node {node} was started again: boot {boot} is older than {newest}");
    Refusal::new(tonic::Code::FailedPrecondition, catalogued(code::OLD_BOOT, what))
}

/// A revision as the policy crate counts it.
#[must_use]
pub(crate) const fn shown(revision: Revision) -> weft_policy::snapshot::Revision {
    weft_policy::snapshot::Revision(revision.0)
}
