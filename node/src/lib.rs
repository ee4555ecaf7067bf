//! The agent: the data plane on one host or in one pod.
//!
//! Programs reach it on loopback ([`intercept`]); it proves who they are, asks the snapshot where they may go, and
//! carries their bytes over tunnels to the agents of other nodes ([`relay`]). Deciding is `weft-policy`'s, the wire is
//! `weft-overlay`'s; here is the acting.
//!
//! An agent with a snapshot needs no control plane: losing it stops nothing that is known.

pub mod admin;
pub mod app;
pub mod clock;
pub mod config;
pub mod drain;
pub mod error;
pub mod files;
pub mod flows;
pub mod intercept;
pub mod join;
pub mod listen;
pub mod local;
pub mod node;
pub mod own_sockets;
pub mod probe;
mod refusal;
pub mod relay;
pub mod state;
pub mod telemetry;

mod access;
mod answers;
mod carry;
mod control;
mod denials;
mod inbound;
mod kept;
mod listeners;
mod local_api;
mod outbound;
mod plane;
mod report;
mod revocation;
mod shared;
mod worker;

#[cfg(test)]
mod testing;
