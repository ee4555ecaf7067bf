//! The agent: the data plane on one host or in one pod.
//!
//! Programs reach it on loopback ([`intercept`]); it proves who they are, asks the snapshot where they may go, and
//! carries their bytes over tunnels to the agents of other nodes . Deciding is `weft-policy`'s, the wire is
//! `weft-overlay`'s; here is the acting.
//!
//! An agent with a snapshot needs no control plane: losing it stops nothing that is known.

pub mod admin;
pub mod app;
pub mod clock;
pub mod drain;
pub mod error;
pub mod files;
pub mod intercept;
pub mod listen;
pub mod relay;
pub mod telemetry;

#[cfg(test)]
mod testing;
