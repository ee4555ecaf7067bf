//! Messages between the planes.
//!
//! Owns the protobuf services and their generated code ([`pb`]), what a manifest means ([`manifest`]), how an error
//! travels ([`fault`]), and the TLS channel ([`channel`]). Decides nothing.

pub mod channel;
pub mod duration;
pub mod fault;
pub mod manifest;
pub mod pb;
