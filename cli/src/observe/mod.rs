//! Commands that look: status, version.

pub(crate) mod audit;
pub(crate) mod status;
pub(crate) mod version;
