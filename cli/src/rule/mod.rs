//! Commands on rules: allow, deny, check, explain.

pub(crate) mod explain;
pub(crate) mod policy;
