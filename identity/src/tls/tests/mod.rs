//! Trust decisions on forged chains ([`verifier`]) and whole handshakes in memory ([`handshake`]).

mod handshake;
mod verifier;
