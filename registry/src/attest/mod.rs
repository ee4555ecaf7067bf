//! How somebody who has no identity yet proves that they may get one.
//!
//! One way so far: a one-use token that an admin made ([`join_token`]).

pub mod join_token;
mod making;
mod record;
mod server;
mod wanted;
