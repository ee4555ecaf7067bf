//! End to end tests over real QUIC on loopback.
