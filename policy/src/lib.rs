//! Decisions: values in, values out.
//!
//! Owns the resource model and every decider of the mesh. Has no socket, clock, task or randomness of its own: `now` and
//! random numbers are arguments. Who a caller *is* comes as a [`weft_identity::spiffe::SpiffeId`]; how it was proven is
//! not known here.

pub mod code;
pub mod model;
pub mod name;
pub mod pattern;
