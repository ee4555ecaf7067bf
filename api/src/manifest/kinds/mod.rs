//! One file per kind: how it is read and how it is written, side by side.

pub(super) mod authorization;
pub(super) mod endpoint;
pub(super) mod mesh;
pub(super) mod route;
pub(super) mod service;
pub(super) mod target;
pub(super) mod traffic;
pub(super) mod workload;
