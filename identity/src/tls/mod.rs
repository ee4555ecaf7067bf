//! The rustls side of identity: what is presented, who is accepted.
//!
//! A process builds one server configuration per listener and one client configuration per dial; both
//! read their SVID and their bundles from slots at each handshake, so rotation rebuilds nothing.
//!
//! ```text
//! SvidSlot ──▶ presented chain          BundleSlot ──▶ SpiffeVerifier ──▶ PeerIdentity
//!    ▲ publish, withdraw                    ▲ publish         ▲ ExpectedPeer
//! ```

mod config;
mod error;
mod join;
mod peer;
mod provider;
mod slot;
mod verifier;

#[cfg(test)]
#[cfg(feature = "ca")]
mod tests;

pub use config::{client_config, server_config, tunnel_config};
pub use error::{REASONS, VerifyError};
pub use join::{JoinVerifier, join_config};
pub use peer::{ExpectedPeer, PeerIdentity, peer_id};
pub(crate) use provider::SIGNATURES;
pub use provider::crypto_provider;
pub use slot::{BundleSlot, Credential, InboundSvids, SvidSlot};
pub use verifier::{ClientAuth, PeerRole, SpiffeVerifier, still_trusted, verify_chain};
