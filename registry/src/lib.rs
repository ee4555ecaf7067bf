//! The control plane of the mesh: what is configured, who may hold which identity, and what each
//! node is told of it.

pub mod clock;
pub mod store;
