//! Who somebody is in a Weft mesh, and how it is proven.
//!
//! An identity is a SPIFFE ID ([`SpiffeId`]). Everything here is pure: no clock, no task, no socket.
//!
//! Features: names ([`spiffe`]) are always there, so that deciders can depend on them alone; `tls` adds
//! SVIDs, bundles, rotation and the rustls side; `ca` adds the certificate authority.

pub mod spiffe;

pub use spiffe::{IdKind, InvalidSpiffeId, SpiffeId, SpiffeName, TrustDomain, dns_label};
