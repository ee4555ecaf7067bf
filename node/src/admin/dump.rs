//! What the agent holds now, for a person who looks for a fault.
//!
//! Owns the questions; the plane answers them. Answers are JSON, bounded, and never hold a key, token or credential.

use serde_json::Value;

/// Flows told at once.
pub const MAX_FLOWS: usize = 10_000;

/// The plane's answers.
pub trait Dump: Send + Sync + 'static {
    /// The configuration with the origin of each value, the snapshot's revision and its objects.
    fn config(&self) -> Value;

    /// The live flows, at most `limit`, oldest first: identities, service, bytes, age.
    fn flows(&self, limit: usize) -> Value;

    /// The tunnels: identities, address, round-trip time, flows, age.
    fn tunnels(&self) -> Value;
}
