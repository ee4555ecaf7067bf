//! Commands that look: status, version.

pub(crate) mod status;
pub(crate) mod version;
