//! The names a mesh is spoken of in: namespaces, services, workloads, nodes, ports, labels.
//!
//! Owns their grammar and their comparison. SPIFFE IDs are [`weft_identity`]'s.
//! `FromStr` is the only door, so that a value of these types is always well-formed.

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

/// The longest name of a namespace, service, workload, node or port: one DNS label (RFC 1035 §2.3.4).
pub const MAX_LABEL_BYTES: usize = 63;

/// Why a text is not a name.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidName {
    /// The text is empty.
    #[error("a name may not be empty")]
    Empty,
    /// The text is longer than [`MAX_LABEL_BYTES`].
    #[error("a name has at most 63 characters, this one has {0}")]
    TooLong(usize),
    /// A character outside `[a-z0-9-]`, or a hyphen at an end.
    #[error("{0:?} is not a name: use lower case letters, digits and inner hyphens")]
    Charset(String),
}

/// Checks the grammar of a DNS label in lower case (RFC 1123 §2.1), which Kubernetes uses for names too.
fn check_label(text: &str) -> Result<(), InvalidName> {
    if text.is_empty() {
        return Err(InvalidName::Empty);
    }
    if text.len() > MAX_LABEL_BYTES {
        return Err(InvalidName::TooLong(text.len()));
    }
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let ends_well = !text.starts_with('-') && !text.ends_with('-');
    if ends_well && text.bytes().all(inner) { Ok(()) } else { Err(InvalidName::Charset(text.into())) }
}

/// Declares a name type over one DNS label.
macro_rules! label_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The text of the name.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                check_label(text)?;
                Ok(Self(text.into()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

label_type! {
    /// A namespace: the unit of ownership and of policy defaults.
    Namespace
}
label_type! {
    /// The name of an object inside its namespace.
    ObjectName
}
label_type! {
    /// The name of a node (a host or pod that runs an agent).
    NodeName
}
label_type! {
    /// The name of a service port, such as `http`.
    PortName
}
label_type! {
    /// The name of a cluster.
    ClusterName
}
label_type! {
    /// The opaque label of one endpoint: 128 random bits in base32, reserved by the server. It is the SNI's first label.
    EndpointLabel
}

impl EndpointLabel {
    /// The characters of a label: 128 bits, five in each.
    pub const CHARS: usize = 26;
    /// RFC 4648 section 6 in lower case, as names are.
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

    /// The label of `bits`, the highest first; the last character carries three of them.
    #[must_use]
    pub fn from_bits(bits: u128) -> Self {
        let digit = |index: usize| {
            let shift = 123_i32 - 5 * i32::try_from(index).unwrap_or(0);
            let five = if shift >= 0 { bits >> shift } else { bits << -shift };
            char::from(Self::ALPHABET[usize::try_from(five & 31).unwrap_or(0)])
        };
        Self((0..Self::CHARS).map(digit).collect::<String>().into())
    }

    /// Whether it could have come from [`Self::from_bits`]: a label of another form says something to an observer.
    #[must_use]
    pub fn is_opaque(&self) -> bool {
        self.0.len() == Self::CHARS && self.0.bytes().all(|byte| Self::ALPHABET.contains(&byte))
    }
}

impl Namespace {
    /// The namespace of things that name none.
    #[must_use]
    pub fn default_namespace() -> Self {
        Self("default".into())
    }
}

/// A service: (namespace, name), unique in a cluster.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ServiceName {
    /// The namespace that owns the service.
    pub namespace: Namespace,
    /// Its name there.
    pub name: ObjectName,
}

impl ServiceName {
    /// Joins a namespace and a name.
    #[must_use]
    pub const fn new(namespace: Namespace, name: ObjectName) -> Self {
        Self { namespace, name }
    }
}

impl fmt::Display for ServiceName {
    /// The short canonical form, `charge.shop`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.name, self.namespace)
    }
}

/// The DNS suffix of mesh names; `<service>.<namespace>.svc.weft`.
const SUFFIX_FULL: &str = ".svc.weft";
/// The suffix that reaches a proxy on loopback without DNS (RFC 6761 §6.3 keeps `.localhost` local).
const SUFFIX_LOCALHOST: &str = ".weft.localhost";

/// Reads a host name as a mesh name: `charge`, `charge.shop`, `charge.shop.svc.weft`, each also with `.weft.localhost`.
///
/// A single label means the service of that name in `caller`, the caller's namespace. A trailing dot and upper case are
/// accepted, as DNS does. Returns `None` when the host is not a mesh name (so it is a destination outside the mesh).
#[must_use]
pub fn parse_host(host: &str, caller: &Namespace) -> Option<ServiceName> {
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let host = host.strip_suffix(SUFFIX_LOCALHOST).unwrap_or(&host);
    let host = host.strip_suffix(SUFFIX_FULL).unwrap_or(host);
    let mut labels = host.split('.');
    let name = labels.next()?.parse().ok()?;
    let namespace = match labels.next() {
        Some(label) => label.parse().ok()?,
        None => caller.clone(),
    };
    labels.next().is_none().then_some(ServiceName { namespace, name })
}

/// Whether a host can only mean a mesh name, by its suffix: an unknown one is then an error, never egress.
#[must_use]
pub fn is_mesh_suffix(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    host.ends_with(SUFFIX_LOCALHOST) || host.ends_with(SUFFIX_FULL)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shop() -> Namespace {
        "shop".parse().unwrap()
    }

    #[test]
    fn every_spelling_of_a_service_is_the_same_service() {
        for host in [
            "charge",
            "charge.shop",
            "Charge.Shop.",
            "charge.shop.svc.weft",
            "charge.weft.localhost",
            "charge.shop.weft.localhost",
            "charge.shop.svc.weft.weft.localhost",
        ] {
            assert_eq!(parse_host(host, &shop()).unwrap().to_string(), "charge.shop", "{host}");
        }
    }

    #[test]
    fn hosts_outside_the_mesh_are_not_mesh_names() {
        for host in ["www.example.com", "10.0.0.1", "", ".", "a..b", "-a", "a_b"] {
            assert_eq!(parse_host(host, &shop()), None, "{host}");
        }
    }

    #[test]
    fn a_name_is_one_dns_label_in_lower_case() {
        assert!("a".repeat(63).parse::<ObjectName>().is_ok());
        assert_eq!("a".repeat(64).parse::<ObjectName>(), Err(InvalidName::TooLong(64)));
        for bad in ["", "A", "a.b", "a_b", "-a", "a-", "a\n"] {
            assert!(bad.parse::<ObjectName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_label_is_128_bits_in_base32() {
        assert_eq!(EndpointLabel::from_bits(0).as_str(), "a".repeat(26));
        assert_eq!(EndpointLabel::from_bits(u128::MAX).as_str(), format!("{}4", "7".repeat(25)));
        assert_eq!(EndpointLabel::from_bits(1).as_str(), format!("{}e", "a".repeat(25)));
        assert_eq!(EndpointLabel::from_bits(1 << 123).as_str(), format!("b{}", "a".repeat(25)));
    }
}
