//! Who asks, and what that caller may do.
//!
//! Owns the table of methods ([`METHODS`]): which need a role, and which one. A method of the served packages without a
//! row does not start ([`check_table`]); a path that is not in the table is not served at all. [`crate::gate`] enforces
//! it before any service sees a request, and puts the [`Caller`] into the request's extensions. What a role covers
//! within a method (namespaces, loosening) the service asks for itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
};

use weft_api::pb;
use weft_identity::{spiffe::SpiffeId, tls::PeerIdentity};
use weft_policy::name::Namespace;

/// What a caller may do. Later ones of the three roles of people include the earlier ones.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Role {
    /// Nothing that needs a role.
    Anonymous,
    /// What an agent does, for its own node.
    Node,
    /// What another server of the mesh does.
    Server,
    /// Read.
    Viewer,
    /// Change objects, tighten defaults.
    Editor,
    /// Everything.
    Admin,
}

impl Role {
    /// The role of people with that name.
    #[must_use]
    pub fn person(name: &str) -> Option<Self> {
        [Self::Viewer, Self::Editor, Self::Admin].into_iter().find(|role| role.as_str() == name)
    }

    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Anonymous => "none",
            Self::Node => "node",
            Self::Server => "server",
            Self::Viewer => "viewer",
            Self::Editor => "editor",
            Self::Admin => "admin",
        }
    }
}

/// Where a request came from.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Source {
    /// The Unix socket on the server's host.
    Local {
        /// The peer's effective user, as the kernel tells it.
        uid: u32,
    },
    /// The control port.
    Remote {
        /// The peer's address, canonical.
        addr: SocketAddr,
    },
}

/// Who sent a request, proven before any service sees it.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The identity of the certificate; `None` on the Unix socket and for those who show none.
    pub identity: Option<SpiffeId>,
    /// What the caller may do, in its [`Self::scope`].
    pub role: Role,
    /// The namespaces in which the role holds; `None` means everywhere.
    pub scope: Option<BTreeSet<Namespace>>,
    /// Where the request came from.
    pub source: Source,
    /// What the handshake proved.
    pub peer: Option<PeerIdentity>,
}

impl Caller {
    /// The role that the caller has for things of `namespace`; `None` are the things of no namespace.
    #[must_use]
    pub fn role_in(&self, namespace: Option<&Namespace>) -> Role {
        match (&self.scope, namespace) {
            (None, _) => self.role,
            (Some(scope), Some(namespace)) if scope.contains(namespace) => self.role,
            (Some(_), _) => Role::Anonymous,
        }
    }
}

impl fmt::Display for Caller {
    /// For audit and lists: the identity, or the local user.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.identity, self.source) {
            (Some(identity), _) => identity.fmt(f),
            (None, Source::Local { uid }) => write!(f, "uid {uid}"),
            (None, Source::Remote { addr }) => write!(f, "anonymous at {}", addr.ip()),
        }
    }
}

/// Who may call a method.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Access {
    /// Everybody: joining, bundles (which are public) and health.
    Everybody,
    /// An agent or a person with a certificate; the method decides what each gets.
    Identified,
    /// The agent of a node that is known and not banned.
    Agent,
    /// Another server of the mesh that was admitted.
    Server,
    /// A person with this role or a higher one.
    Person(Role),
}

impl Access {
    /// Whether `caller` may call, as far as the table says.
    #[must_use]
    pub fn allows(self, caller: &Caller) -> bool {
        let person = matches!(caller.role, Role::Viewer | Role::Editor | Role::Admin);
        match self {
            Self::Everybody => true,
            Self::Identified => caller.identity.is_some() && (person || caller.role == Role::Node),
            Self::Agent => caller.role == Role::Node,
            Self::Server => caller.role == Role::Server,
            Self::Person(least) => person && caller.role >= least,
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everybody => f.write_str("everybody"),
            Self::Identified => f.write_str("an agent or a person of the mesh"),
            Self::Agent => f.write_str("an agent"),
            Self::Server => f.write_str("a server of the mesh"),
            Self::Person(role) => write!(f, "the role {}", role.as_str()),
        }
    }
}

/// Every method that the server serves, and who may call it. Of health only `Check`: a watch would let anybody hold a
/// stream. There is no reflection.
pub const METHODS: &[(&str, Access)] = &[
    ("/grpc.health.v1.Health/Check", Access::Everybody),
    ("/weft.discovery.v1.Discovery/MayRun", Access::Agent),
    ("/weft.discovery.v1.Discovery/Register", Access::Agent),
    ("/weft.discovery.v1.Discovery/Stream", Access::Agent),
    ("/weft.discovery.v1.Discovery/Unregister", Access::Agent),
    ("/weft.identity.v1.Identity/GetBundle", Access::Everybody),
    ("/weft.identity.v1.Identity/IssueSvid", Access::Identified),
    ("/weft.identity.v1.Identity/Join", Access::Everybody),
    ("/weft.identity.v1.Identity/SignFor", Access::Server),
    ("/weft.management.v1.Management/Apply", Access::Person(Role::Editor)),
    ("/weft.management.v1.Management/CheckPolicy", Access::Person(Role::Viewer)),
    ("/weft.management.v1.Management/Confirm", Access::Person(Role::Editor)),
    ("/weft.management.v1.Management/CreateToken", Access::Person(Role::Admin)),
    ("/weft.management.v1.Management/Delete", Access::Person(Role::Editor)),
    ("/weft.management.v1.Management/Deny", Access::Person(Role::Admin)),
    ("/weft.management.v1.Management/Get", Access::Person(Role::Viewer)),
    ("/weft.management.v1.Management/History", Access::Person(Role::Viewer)),
    ("/weft.management.v1.Management/List", Access::Person(Role::Viewer)),
    ("/weft.management.v1.Management/ListAudit", Access::Person(Role::Admin)),
    ("/weft.management.v1.Management/ListDenied", Access::Person(Role::Viewer)),
    ("/weft.management.v1.Management/ListTokens", Access::Person(Role::Admin)),
    ("/weft.management.v1.Management/RevokeToken", Access::Person(Role::Admin)),
    ("/weft.management.v1.Management/Rollback", Access::Person(Role::Editor)),
    ("/weft.management.v1.Management/RotateAuthority", Access::Person(Role::Admin)),
    ("/weft.management.v1.Management/ShowAuthority", Access::Person(Role::Viewer)),
    ("/weft.management.v1.Management/Status", Access::Person(Role::Viewer)),
    ("/weft.management.v1.Management/Undeny", Access::Person(Role::Admin)),
    ("/weft.management.v1.Management/VerifyAudit", Access::Person(Role::Admin)),
    ("/weft.management.v1.Management/Watch", Access::Person(Role::Viewer)),
];

/// The package whose methods agents serve, not this server.
const AGENT_PACKAGE: &str = "/weft.agent.v1.";

/// Why the server does not start.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("these methods have no role: {}", .0.join(", "))]
pub struct MethodsWithoutRole(pub Vec<String>);

/// The table, by path.
pub type Table = BTreeMap<&'static str, Access>;

/// The table, checked against the descriptors of what is served.
///
/// # Errors
///
/// [`MethodsWithoutRole`] names what a build has forgotten.
pub fn check_table() -> Result<Table, MethodsWithoutRole> {
    check(METHODS, pb::methods())
}

fn check(rows: &'static [(&str, Access)], methods: Vec<String>) -> Result<Table, MethodsWithoutRole> {
    let table: Table = rows.iter().copied().collect();
    let served = methods.into_iter().filter(|path| !path.starts_with(AGENT_PACKAGE));
    let without: Vec<_> = served.filter(|path| !table.contains_key(path.as_str())).collect();
    if without.is_empty() { Ok(table) } else { Err(MethodsWithoutRole(without)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(role: Role, identity: Option<&str>) -> Caller {
        Caller {
            identity: identity.map(|id| id.parse().unwrap()),
            role,
            scope: None,
            source: Source::Remote { addr: "192.0.2.1:9".parse().unwrap() },
            peer: None,
        }
    }

    #[test]
    fn api_01_every_method_has_a_role() {
        let table = check_table().unwrap();
        let stale: Vec<_> = table
            .keys()
            .filter(|path| !path.starts_with("/grpc.") && !pb::methods().iter().any(|method| method == *path))
            .collect();
        assert!(stale.is_empty(), "rows without a method: {stale:?}");
    }

    #[test]
    fn api_01_a_method_without_a_role_does_not_start() {
        let methods =
            vec!["/weft.agent.v1.Agent/Run".to_owned(), "/weft.identity.v1.Identity/New".to_owned()];
        let refused = check(METHODS, methods).unwrap_err();
        assert_eq!(refused.0, ["/weft.identity.v1.Identity/New"]);
        assert_eq!(&*crate::server::ServerError::from(refused).fault().code, "W6027");
    }

    #[test]
    fn api_02_the_matrix_of_roles() {
        let id = Some("spiffe://corp.example/user/ada");
        let all = [Role::Anonymous, Role::Node, Role::Server, Role::Viewer, Role::Editor, Role::Admin];
        for (access, expected) in [
            (Access::Everybody, [true, true, true, true, true, true]),
            (Access::Identified, [false, true, false, true, true, true]),
            (Access::Agent, [false, true, false, false, false, false]),
            (Access::Server, [false, false, true, false, false, false]),
            (Access::Person(Role::Viewer), [false, false, false, true, true, true]),
            (Access::Person(Role::Editor), [false, false, false, false, true, true]),
            (Access::Person(Role::Admin), [false, false, false, false, false, true]),
        ] {
            assert_eq!(all.map(|role| access.allows(&caller(role, id))), expected, "{access}");
        }
        assert!(
            !Access::Identified.allows(&caller(Role::Admin, None)),
            "the socket has no identity to renew"
        );
    }

    #[test]
    fn a_role_holds_in_its_namespaces_only() {
        let mut ada = caller(Role::Editor, Some("spiffe://corp.example/user/ada"));
        let [shop, bank]: [Namespace; 2] = ["shop", "bank"].map(|name| name.parse().unwrap());
        ada.scope = Some([shop.clone()].into());
        assert_eq!(ada.role_in(Some(&shop)), Role::Editor);
        assert_eq!(ada.role_in(Some(&bank)), Role::Anonymous);
        assert_eq!(ada.role_in(None), Role::Anonymous);
    }
}
