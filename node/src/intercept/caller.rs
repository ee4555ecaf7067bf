//! Decides which workload speaks on a loopback connection (decisions.md, "Callers on one host").
//!
//! Owns the rules; the facts come from [`super::sock_diag`] and the credential from the client's first bytes. No proof,
//! no call: there is never a default identity. Processes of one uid trust each other; that is as far as the kernel
//! tells programs apart without a namespace.

use std::{fmt, sync::Arc};

use arc_swap::ArcSwap;
use weft_identity::spiffe::SpiffeId;
use weft_policy::{
    code::{self, CodeId},
    name::{Namespace, ObjectName},
};

use super::{credential::Credential, sock_diag::SocketEntry};

/// A workload of this agent, as far as its local callers are concerned.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LocalWorkload {
    /// The namespace that its short names are resolved in.
    pub namespace: Namespace,
    /// The name of its Workload object, unique on this agent.
    pub name: ObjectName,
    /// Whom it speaks as.
    pub identity: SpiffeId,
    /// The user its programs run as; `None` can be proven by nobody.
    pub uid: Option<u32>,
}

impl fmt::Display for LocalWorkload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.name, self.namespace)
    }
}

/// A workload with the credential that selects it on the shared port.
#[derive(Clone, Debug)]
pub struct Selectable {
    /// The workload.
    pub workload: Arc<LocalWorkload>,
    /// What its programs present.
    pub credential: Arc<Credential>,
}

/// All workloads of this agent, as the shared port sees them now. A clone sees the same ones.
#[derive(Clone, Debug, Default)]
pub struct LocalWorkloads {
    current: Arc<ArcSwap<Vec<Selectable>>>,
}

impl LocalWorkloads {
    /// Replaces the workloads; connections that are being accepted see the old or the new ones.
    pub fn publish(&self, workloads: Vec<Selectable>) {
        self.current.store(Arc::new(workloads));
    }

    /// The workloads now.
    #[must_use]
    pub fn load(&self) -> Arc<Vec<Selectable>> {
        self.current.load_full()
    }
}

/// Why a caller is not shown to be a workload.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Unproven {
    /// The kernel knows no socket at the client's end.
    #[error("the kernel knows no socket at the caller's end")]
    NoEntry,
    /// The client closed its socket before it could be looked up.
    #[error("the caller had closed its socket before it could be looked up")]
    Closed,
    /// The listener belongs to a workload of another user.
    #[error("the caller runs as uid {uid}, and the listener belongs to {workload}{}", declared(*expected))]
    OtherWorkload {
        /// The caller's user.
        uid: u32,
        /// Whose listener it is.
        workload: String,
        /// The user its programs run as.
        expected: Option<u32>,
    },
    /// No workload runs as the caller's user.
    #[error("the caller runs as uid {uid}, and no workload of this agent does")]
    NoWorkload {
        /// The caller's user.
        uid: u32,
    },
    /// Several workloads run as the caller's user, and it did not say which it is.
    #[error("the caller runs as uid {uid}, as do {}: a credential must say which", workloads.join(" and "))]
    Ambiguous {
        /// The caller's user.
        uid: u32,
        /// Their names.
        workloads: Vec<String>,
    },
    /// The credential selects no workload of the caller's user.
    #[error("the proxy credential belongs to no workload of uid {uid}")]
    Credential {
        /// The caller's user.
        uid: u32,
    },
}

fn declared(uid: Option<u32>) -> String {
    uid.map_or_else(|| ", which declares no uid".to_owned(), |uid| format!(" (uid {uid})"))
}

impl Unproven {
    /// The catalogue's code.
    #[must_use]
    pub const fn code(&self) -> CodeId {
        match self {
            Self::NoEntry | Self::Closed => code::CALLER_NOT_PROVEN,
            Self::OtherWorkload { .. } => code::OTHER_WORKLOAD,
            Self::NoWorkload { .. } => code::NO_WORKLOAD_FOR_UID,
            Self::Ambiguous { .. } => code::AMBIGUOUS_WORKLOAD,
            Self::Credential { .. } => code::BAD_CREDENTIAL,
        }
    }

    /// The bounded word for metrics and logs.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::NoEntry => "no_socket",
            Self::Closed => "closed",
            Self::OtherWorkload { .. } => "other_workload",
            Self::NoWorkload { .. } => "no_workload",
            Self::Ambiguous { .. } => "ambiguous",
            Self::Credential { .. } => "credential",
        }
    }
}

/// Proves that the caller is the one workload whose user it runs as.
///
/// # Errors
///
/// [`Unproven`] when there is no living socket, no such workload, or more than one.
pub fn prove<'a>(
    entry: Option<SocketEntry>,
    workloads: impl IntoIterator<Item = &'a Arc<LocalWorkload>>,
) -> Result<Arc<LocalWorkload>, Unproven> {
    let uid = living_uid(entry)?;
    let mut matching = workloads.into_iter().filter(|workload| workload.uid == Some(uid));
    let Some(first) = matching.next() else {
        return Err(Unproven::NoWorkload { uid });
    };
    let others: Vec<String> = matching.map(ToString::to_string).collect();
    if others.is_empty() {
        return Ok(Arc::clone(first));
    }
    let workloads = std::iter::once(first.to_string()).chain(others).collect();
    Err(Unproven::Ambiguous { uid, workloads })
}

/// Proves that the caller is `owner`, whose listener it used.
///
/// # Errors
///
/// [`Unproven`] when there is no living socket or it belongs to another user.
pub fn prove_owner(
    entry: Option<SocketEntry>,
    owner: &Arc<LocalWorkload>,
) -> Result<Arc<LocalWorkload>, Unproven> {
    let uid = living_uid(entry)?;
    if owner.uid == Some(uid) {
        return Ok(Arc::clone(owner));
    }
    Err(Unproven::OtherWorkload { uid, workload: owner.to_string(), expected: owner.uid })
}

/// Proves that the caller is the workload that its credential selects, and runs as that workload's user.
///
/// # Errors
///
/// [`Unproven`] when there is no living socket, or the credential is none of its user's workloads.
pub fn prove_selected(
    entry: Option<SocketEntry>,
    presented: &Credential,
    workloads: &[Selectable],
) -> Result<Arc<LocalWorkload>, Unproven> {
    let uid = living_uid(entry)?;
    let selected = workloads.iter().find(|one| one.credential.matches(presented));
    match selected {
        Some(one) if one.workload.uid == Some(uid) => Ok(Arc::clone(&one.workload)),
        Some(_) | None => Err(Unproven::Credential { uid }),
    }
}

fn living_uid(entry: Option<SocketEntry>) -> Result<u32, Unproven> {
    match entry {
        None => Err(Unproven::NoEntry),
        // Its uid reads as 0 in TIME_WAIT: taking it for root would be a gift.
        Some(SocketEntry { inode: 0, .. }) => Err(Unproven::Closed),
        Some(SocketEntry { uid, .. }) => Ok(uid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(name: &str, uid: Option<u32>) -> Arc<LocalWorkload> {
        Arc::new(LocalWorkload {
            namespace: "shop".parse().unwrap(),
            name: name.parse().unwrap(),
            identity: format!("spiffe://demo.example/ns/shop/sa/{name}").parse().unwrap(),
            uid,
        })
    }

    fn selectable(name: &str, uid: Option<u32>, secret: u8) -> Selectable {
        let credential = Arc::new(Credential::from_parts(name, &[secret; 16]));
        Selectable { workload: workload(name, uid), credential }
    }

    const fn socket_of(uid: u32) -> Option<SocketEntry> {
        Some(SocketEntry { uid, inode: 42, state: 1 })
    }

    #[test]
    fn the_only_workload_of_a_uid_is_proven() {
        let workloads = [workload("order", Some(1_000)), workload("charge", Some(1_001))];
        assert_eq!(prove(socket_of(1_001), &workloads).unwrap().name.as_str(), "charge");
    }

    #[test]
    fn no_entry_or_inode_0_is_no_proof() {
        let workloads = [workload("order", Some(0))];
        assert_eq!(prove(None, &workloads), Err(Unproven::NoEntry));
        let closed = Some(SocketEntry { uid: 0, inode: 0, state: 6 });
        assert_eq!(prove(closed, &workloads), Err(Unproven::Closed));
        assert_eq!(prove_owner(closed, &workloads[0]), Err(Unproven::Closed));
        assert_eq!(prove_owner(None, &workloads[0]), Err(Unproven::NoEntry));
    }

    #[test]
    fn uid_0_matches_only_a_workload_declared_with_uid_0() {
        let order = workload("order", Some(1_000));
        assert_eq!(prove(socket_of(0), [&order]), Err(Unproven::NoWorkload { uid: 0 }));
        assert!(matches!(prove_owner(socket_of(0), &order), Err(Unproven::OtherWorkload { uid: 0, .. })));
        let roots = workload("backup", Some(0));
        assert!(prove(socket_of(0), [&order, &roots]).is_ok_and(|found| found == roots));
    }

    #[test]
    fn a_workload_without_a_uid_is_proven_by_nobody() {
        let order = workload("order", None);
        assert_eq!(prove(socket_of(1_000), [&order]), Err(Unproven::NoWorkload { uid: 1_000 }));
        let refused = prove_owner(socket_of(1_000), &order).unwrap_err();
        assert!(refused.to_string().contains("declares no uid"), "{refused}");
    }

    #[test]
    fn several_workloads_of_one_uid_need_a_credential() {
        let workloads = [selectable("order", Some(1_000), 1), selectable("charge", Some(1_000), 2)];
        let plain: Vec<_> = workloads.iter().map(|one| Arc::clone(&one.workload)).collect();
        let refused = prove(socket_of(1_000), &plain).unwrap_err();
        assert_eq!(refused.code(), code::AMBIGUOUS_WORKLOAD);
        assert!(refused.to_string().contains("order.shop and charge.shop"), "{refused}");
        let chosen = prove_selected(socket_of(1_000), &workloads[1].credential, &workloads).unwrap();
        assert_eq!(chosen.name.as_str(), "charge");
    }

    #[test]
    fn t1_a_stolen_credential_is_worth_nothing_to_another_uid() {
        let workloads = [selectable("order", Some(1_000), 1)];
        let refused = prove_selected(socket_of(1_001), &workloads[0].credential, &workloads);
        assert_eq!(refused, Err(Unproven::Credential { uid: 1_001 }));
        let wrong = Credential::from_parts("order", &[9; 16]);
        assert_eq!(
            prove_selected(socket_of(1_000), &wrong, &workloads),
            Err(Unproven::Credential { uid: 1_000 })
        );
    }

    #[test]
    fn the_owner_of_a_listener_is_compared_by_uid() {
        let order = workload("order", Some(1_000));
        assert!(prove_owner(socket_of(1_000), &order).is_ok());
        let refused = prove_owner(socket_of(1_001), &order).unwrap_err();
        assert_eq!(refused.code(), code::OTHER_WORKLOAD);
    }
}
