//! Messages between the planes.
//!
//! Owns the protobuf services and their generated code ([`pb`]), what a manifest means ([`manifest`]), the records of the
//! store and the discovery stream ([`record`]), messages to model values ([`convert`]), how an error travels ([`fault`]),
//! how old an answer is ([`staleness`]), and the TLS channel ([`channel`]). Decides nothing.

pub mod channel;
pub mod convert;
pub mod duration;
pub mod fault;
pub mod manifest;
pub mod pb;
pub mod record;
pub mod staleness;
pub mod token;
