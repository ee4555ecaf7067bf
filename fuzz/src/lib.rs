//! The fuzz targets of Weft (security.md 9.2), each one function from bytes to nothing that panics when a promise breaks.
//!
//! A target is more than "no panic": it builds what a careful reader would have said about the same bytes, and compares.
//! What is accepted must obey the rules that the documents name, by code that is not the code under test; what is legal by
//! construction must be accepted, so that a target cannot pass by refusing everything.
//!
//! `fuzz_targets/` only hands libFuzzer's bytes over; `tests/seeds.rs` replays `seeds/` with a plain `cargo test`.

mod chain;
mod choice;
mod config;
mod connection;
mod csr;
mod der;
mod events;
mod frames;
mod hostile;
mod management;
mod plane;
mod policy;
mod records;
mod spiffe;

pub use chain::f04_peer_chain;
pub use config::f17_config;
pub use connection::f15_quic_connection;
pub use csr::f05_csr;
pub use events::f14_store_events;
pub use frames::f12_stream_frames;
pub use management::f16_management;
pub use policy::f08_policy_record;
pub use records::f13_registry_record;
pub use spiffe::f01_spiffe_id;

/// A target under the name that its binary, seeds and dictionary have.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 10] = [
    ("f01_spiffe_id", f01_spiffe_id),
    ("f04_peer_chain", f04_peer_chain),
    ("f05_csr", f05_csr),
    ("f08_policy_record", f08_policy_record),
    ("f12_stream_frames", f12_stream_frames),
    ("f13_registry_record", f13_registry_record),
    ("f14_store_events", f14_store_events),
    ("f15_quic_connection", f15_quic_connection),
    ("f16_management", f16_management),
    ("f17_config", f17_config),
];
