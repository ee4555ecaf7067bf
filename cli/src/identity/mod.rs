//! Commands on identities: tokens, certificates, the authority, and the person's own identity.

pub(crate) mod denied;
pub(crate) mod person;
pub(crate) mod rotate;
pub(crate) mod show;
pub(crate) mod token;
