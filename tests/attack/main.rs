//! Sessions and transport under attack: TLS-01 to TLS-07 and QUIC-01 to QUIC-21 of the catalogue.
//!
//! The attacker is never quinn: `tests/tools/quic_attack.py` drives aioquic, authenticated with a certificate that the
//! victim trusts, and `tests/tools/quic_raw.py` makes packets by hand. [`frames`] has an endpoint of `weft-overlay` for
//! a victim, [`agent`] the real `weft agent` in a network namespace, with an honest caller beside it whose calls are
//! measured ([`notice`]).
//!
//! What is not here, and where it is instead, or why it does not apply to an endpoint of the mesh:
//!
//! | case | where or why |
//! |---|---|
//! | TLS-03 | `handshake.rs`: nothing reaches a caller that is not proven |
//! | TLS-05, QUIC-14 with flow ids | there is no HTTP and there are no datagrams on tunnels yet: DATAGRAM is an error here |
//! | QUIC-05 | connection IDs of an attacker only meet quinn's keyed hash (SipHash); the IDs it issues are its own |
//! | QUIC-08 on paths that may migrate | the roaming profile does not exist: every change of path is refused here |
//! | QUIC-18 after a restart | `overlay/src/tests/restart.rs` |
//! | QUIC-19 | `datapath.rs` |
//! | QUIC-21 | [`interop`] has the matrix |

#![expect(clippy::print_stdout, reason = "the figures of an attack are part of what a run reports")]

mod agent;
mod frames;
mod interop;
mod lab;
mod notice;
