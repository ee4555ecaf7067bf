//! Messages to values of the model and back, with the path of a faulty field.
//!
//! Owns what the planes would otherwise each write: the discovery stream ([`discovery`]) and the objects of the
//! management API ([`management`]). Objects themselves are read by [`crate::manifest`] and [`crate::record`].

pub mod discovery;
pub mod management;
