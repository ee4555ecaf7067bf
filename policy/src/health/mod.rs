//! Whether something may be tried: per destination ([`breaker`]) and per endpoint ([`outlier`]).

pub mod breaker;
pub mod outlier;
