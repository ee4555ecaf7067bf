//! Mesh-wide and namespace-wide settings, and the defaults they give.

use weft_identity::spiffe::TrustDomain;

use super::Metadata;

/// What happens to a call that no rule speaks of. Rule presence never changes it (security.md 0, point 7).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum DefaultAuthorization {
    /// Refused.
    #[default]
    Deny,
    /// Allowed, counted and logged as what Deny would have refused.
    Audit,
    /// Allowed.
    Allow,
}

/// What happens to a destination outside the mesh.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum EgressMode {
    /// Refused.
    #[default]
    Deny,
    /// Connected directly and logged.
    Log,
    /// Connected directly.
    Allow,
}

/// The one `Mesh` object, named `mesh`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mesh {
    /// Name `mesh`, no namespace.
    pub metadata: Metadata,
    /// The trust domain; immutable once stored.
    pub trust_domain: TrustDomain,
    /// The default of every namespace that says nothing.
    pub default_authorization: DefaultAuthorization,
    /// The egress mode of every namespace that says nothing.
    pub egress: EgressMode,
}

/// A `Namespace` object: overrides of the mesh's defaults.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NamespaceSettings {
    /// The namespace's name stands in `metadata.name`.
    pub metadata: Metadata,
    /// Overrides the mesh's default for services here.
    pub default_authorization: Option<DefaultAuthorization>,
    /// Overrides the mesh's egress mode for workloads here.
    pub egress: Option<EgressMode>,
}
