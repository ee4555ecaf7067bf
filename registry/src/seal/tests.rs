//! Somebody who may write the store writes into it by hand, past the server: whatever he does is seen, and what it is
//! about is denied. Over the embedded store and over a real etcd, while the server runs and while it stands still.

pub(crate) mod by_hand;
mod conforms;
mod pure;
