//! Authorization policies: who may call (decisions.md, one schema).

use ipnet::IpNet;

use super::{Metadata, TargetRef};
use crate::{
    name::{Namespace, ObjectName, PortName},
    pattern::IdentityPattern,
};

/// An `AuthorizationPolicy` of level Network.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AuthorizationPolicy {
    /// Namespace and name; the annotation `weft.mesh/explain-denials: to-caller` lets callers see policy and rule.
    pub metadata: Metadata,
    /// 1 to 16 destinations in the policy's own namespace.
    pub targets: Vec<TargetRef>,
    /// What a matching rule does.
    pub action: Action,
    /// Whether it blocks.
    pub mode: Mode,
    /// 1 to 256 rules; any that matches decides.
    pub rules: Vec<Rule>,
}

/// What a matching rule does. DENY wins over ALLOW, whatever the order.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Action {
    /// The call is allowed unless a DENY matches.
    Allow,
    /// The call is refused.
    Deny,
}

/// Whether a policy blocks or is only recorded.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Mode {
    /// It decides.
    #[default]
    Enforce,
    /// It is evaluated, counted and logged, and never blocks.
    DryRun,
}

/// A rule matches when all its parts match.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rule {
    /// Unique in its policy.
    pub name: ObjectName,
    /// 1 to 512 sources; any.
    pub sources: Vec<Source>,
    /// Ports of the service; `None` sets no constraint, `Some` is never empty.
    pub ports: Option<Vec<PortRef>>,
    /// Networks the caller's node dials from; only beside an authenticated source. Never empty when given.
    pub networks: Option<Vec<IpNet>>,
}

/// Who a caller may be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Source {
    /// An identity pattern, less its exceptions (same grammar).
    Spiffe {
        /// Who.
        pattern: IdentityPattern,
        /// Who not, of those.
        except: Vec<IdentityPattern>,
    },
    /// `/ns/<namespace>/sa/<name>` of the local trust domain.
    ServiceAccount {
        /// Its namespace.
        namespace: Namespace,
        /// Its name.
        name: ObjectName,
    },
    /// Any authenticated caller of a trusted domain.
    Any,
    /// A plain caller of a permissive service.
    Unauthenticated,
}

/// A port by number or name.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum PortRef {
    /// Its number.
    Number(u16),
    /// Its name.
    Name(PortName),
}
