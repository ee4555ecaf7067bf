//! The whole-mesh harness: what a scenario needs to build a mesh, break it and look at it.
//!
//! Scenarios (`tests/*.rs`) start the real `weft` binary in network namespaces and real programs
//! beside it, so nothing here links a plane of the mesh; only the handshake tests use the tunnels
//! themselves. The pieces:
//!
//! - [`netns`]: hosts as network namespaces on one bridge, links that can be cut;
//! - [`process`]: child processes that are always ended, with their output in files;
//! - [`eventually`]: waiting for a condition, and the only clock of the harness;
//! - [`app`]: real programs (nginx, redis, python's `http.server`) and small clients;
//! - [`cpu`]: CPU time of a thread;
//! - [`chance`]: random moments that a seed repeats;
//! - [`told`], [`commands`] and [`grpc`]: what a person or a client is told of an error, and whether the commands in it
//!   exist;
//! - [`clock`]: a wall clock of its own for a host, that can be stepped;
//! - [`disk`]: a disk of its own that fills up and breaks;
//! - [`load`]: clients that count what fails;
//! - [`mesh`]: a server and agents, joined by token, configured by files, driven by the command line;
//! - [`person`]: a user without privileges, for what one host does alone;
//! - [`python`]: tools in Python: an independent QUIC stack, an independent maker of certificates;
//! - [`manifest`]: resources as a person writes them;
//! - [`forge`], [`corpus`] and [`presented`]: certificates of an attacker, made by rcgen and by an independent
//!   hand, and how they are presented;
//! - [`handshake`] and [`verdict`]: real handshakes with an attacker, and what came of them on both ends;
//! - [`sbom`]: what the binary is made of, for `tests/sbom`;
//! - [`architecture`]: the invariants of the source tree, as functions over what cargo reports.
//!
//! The harness panics with a message that names the cause: its caller is a test.

pub mod app;
pub mod architecture;
pub mod chance;
pub mod clock;
pub mod commands;
pub mod corpus;
pub mod cpu;
pub mod disk;
pub mod eventually;
pub mod forge;
pub mod grpc;
pub mod handshake;
pub mod load;
pub mod manifest;
pub mod mesh;
pub mod netns;
pub mod person;
pub mod presented;
pub mod process;
pub mod python;
pub mod sbom;
pub mod told;
pub mod verdict;
