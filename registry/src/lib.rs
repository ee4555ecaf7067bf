//! The control plane of the mesh: what is configured, who may hold which identity, and what each
//! node is told of it.
//!
//! ```text
//! people ──management──▶ store ──keeper──▶ World ──view──▶ discovery ──▶ agents
//! agents ──registration──▶ store            (catalog + liveness)
//! ```

pub mod catalog;
pub mod clock;
pub mod core;
pub mod discovery;
pub mod enrollment;
pub mod keeper;
pub mod layout;
pub mod liveness;
pub mod management;
pub mod metrics;
pub mod nodes;
pub mod presence;
pub mod records;
pub mod refusal;
pub mod registration;
pub mod roles;
pub mod store;
pub mod view;
pub mod world;

#[cfg(test)]
mod samples;
