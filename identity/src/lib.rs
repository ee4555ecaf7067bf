//! Who somebody is in a Weft mesh, and how it is proven.
//!
//! An identity is a SPIFFE ID ([`SpiffeId`]); its proof is an X.509-SVID (`svid::Svid`) that chains to
//! the trust bundle (`bundle::TrustBundle`) of its own trust domain and of no other. This crate owns
//! names, proofs, the authority that signs them and the rustls configurations that check them. It does
//! not own who *may* do what (`weft-policy`), nor files, sockets or timers (the two planes).
//!
//! Everything here is pure: no clock, no task, no socket. Callers pass `now` in. The only randomness is
//! that of the crypto provider, for keys and serial numbers.
//!
//! Features: names ([`spiffe`]) are always there, so that deciders can depend on them alone; `tls` adds
//! SVIDs, bundles, rotation and the rustls side; `ca` adds the certificate authority; `jwt` the tokens of callers.

#[cfg(feature = "tls")]
pub mod bundle;
#[cfg(feature = "ca")]
pub mod ca;
#[cfg(feature = "tls")]
pub mod csr;
pub mod denied;
#[cfg(feature = "jwt")]
pub mod jwt;
#[cfg(feature = "tls")]
pub mod rotation;
pub mod spiffe;
#[cfg(feature = "tls")]
pub mod svid;
#[cfg(feature = "tls")]
pub mod tls;
#[cfg(feature = "tls")]
mod x509;

#[cfg(test)]
#[cfg(feature = "ca")]
mod forge;

pub use spiffe::{IdKind, InvalidSpiffeId, SpiffeId, SpiffeName, TrustDomain, dns_label};
#[cfg(feature = "tls")]
pub use x509::fingerprint;
