//! Messages between the planes.
//!
//! Owns the protobuf services and their generated code ([`pb`]). Decides nothing.

pub mod pb;
