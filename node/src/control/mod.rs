//! The clients of the control plane: discovery, registration, identities.
//!
//! Each keeps something current and survives the server's absence; none is needed for a flow of a known service.

pub(crate) mod demand;
pub(crate) mod discovery;
pub(crate) mod identity;
pub(crate) mod link;
pub(crate) mod registration;
pub(crate) mod taint;
