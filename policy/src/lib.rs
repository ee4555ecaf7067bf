//! Decisions: values in, values out.
//!
//! Owns the resource model and every decider of the mesh. Has no socket, clock, task or randomness of its own: `now` and
//! random numbers are arguments. Who a caller *is* comes as a [`weft_identity::spiffe::SpiffeId`]; how it was proven is
//! not known here.
//!
//! | decider | asked | answers |
//! |---|---|---|
//! | [`snapshot`] | a view of objects | what is in force, or every fault |
//! | [`route`] | a host name, a service port | a target, a backend |
//! | [`authz`] | a caller and a target | a permit, or a denial with its reasons |
//! | [`balance`] | the endpoints of a destination, outcomes | an endpoint to try |
//! | [`health`] | outcomes | whether something may be tried |
//! | [`retry`], [`limit`] | tries, events | how long to wait |
//! | [`code`](mod@code) | a number | what it means and what to do |

pub mod authz;
pub mod balance;
pub mod code;
pub mod health;
pub mod limit;
pub mod model;
pub mod name;
pub mod pattern;
pub mod retry;
pub mod route;
pub mod snapshot;
#[cfg(test)]
mod testing;
