//! The control plane of the mesh: what is configured, who may hold which identity, and what each
//! node is told of it.
//!
//! ```text
//! people ──management──▶ store ──keeper──▶ World ──view──▶ discovery ──▶ agents
//! agents ──registration──▶ store            (catalog + liveness)
//! joiners ──attest──▶ issuer ──▶ authority ──▶ issuance log in the store
//! ```
//!
//! Everybody comes through [`gate`]; [`server`] puts the parts together.

pub mod alarms;
pub mod attest;
pub mod audit;
pub mod authority;
pub mod bootstrap;
pub mod catalog;
pub mod clock;
pub mod config;
pub mod confirmation;
pub mod core;
pub mod denied;
pub mod discovery;
pub mod enrollment;
pub mod gate;
pub mod history;
pub mod identity_service;
pub mod issuance;
pub mod issuer;
pub mod keeper;
pub mod layout;
pub mod listeners;
pub mod liveness;
pub mod management;
pub mod metrics;
pub mod nodes;
pub mod presence;
pub mod private;
pub mod records;
pub mod refusal;
pub mod registration;
pub mod renewals;
pub mod replicas;
pub mod roles;
pub mod seal;
pub mod server;
pub mod shared_uid;
pub mod store;
pub mod telemetry;
pub mod throttle;
pub mod timestamp;
pub mod view;
pub mod wire;
pub mod world;

mod plain;

#[cfg(test)]
mod harness;
#[cfg(test)]
mod samples;
