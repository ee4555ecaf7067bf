//! The numbers by which one end tells the other why a stream or a tunnel ended.
//!
//! Owns the two tables, [`ResetCode`] for one flow and [`CloseCode`] for a whole tunnel. The numbers are
//! part of the wire protocol: a number is never reused and never changes its meaning. Each lies under a
//! prefix of its own (`weft` in ASCII, shifted), so that a code of HTTP/3 or of a foreign program is never
//! mistaken for one of ours.
//!
//! What follows from a code (retry or not, metric label) is decided above, in `node::error`.

use std::fmt;

use quinn::VarInt;

/// `weft` in ASCII, 16 bits up; the low bits hold the table and the code. Fits QUIC's 62 bits.
const PREFIX: u64 = 0x7765_6674_0000;

/// A number that this version has no name for.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("unknown code {0:#x}")]
pub struct UnknownCode(pub u64);

/// A code as the peer sent it: a newer peer may use numbers that this version has no name for.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum PeerCode<C> {
    /// A code of this version's table.
    Known(C),
    /// Any other number, kept for the log.
    Unknown(u64),
}

impl<C: Copy + TryFrom<u64, Error = UnknownCode>> PeerCode<C> {
    /// Reads the number of a RESET_STREAM, STOP_SENDING or CONNECTION_CLOSE frame.
    pub fn from_wire(number: u64) -> Self {
        C::try_from(number).map_or(Self::Unknown(number), Self::Known)
    }

    /// The code, if this version knows it.
    pub fn known(self) -> Option<C> {
        match self {
            Self::Known(code) => Some(code),
            Self::Unknown(_) => None,
        }
    }
}

impl<C: fmt::Display> fmt::Display for PeerCode<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(code) => code.fmt(f),
            Self::Unknown(number) => write!(f, "unknown code {number:#x}"),
        }
    }
}

macro_rules! codes {
    ($(#[$meta:meta])* $name:ident, table $table:literal { $($(#[$doc:meta])* $variant:ident = $low:literal $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub enum $name {
            $($(#[$doc])* $variant,)*
        }

        impl $name {
            /// Every code, in the order of its number.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The stable name, as logs and metrics show it.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }

            /// The stable number on the wire, below 2^62.
            pub fn number(self) -> u64 {
                match self {
                    $(Self::$variant => PREFIX | ($table << 8) | $low,)*
                }
            }

            /// The same number for quinn.
            pub(crate) fn varint(self) -> VarInt {
                VarInt::from_u64(self.number()).expect("PREFIX leaves the number below 2^62")
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }

        impl From<$name> for u64 {
            fn from(code: $name) -> Self {
                code.number()
            }
        }

        impl TryFrom<u64> for $name {
            type Error = UnknownCode;

            fn try_from(number: u64) -> Result<Self, UnknownCode> {
                $(if number == Self::$variant.number() {
                    return Ok(Self::$variant);
                })*
                Err(UnknownCode(number))
            }
        }
    };
}

codes! {
    /// Why one flow was refused or cut.
    ResetCode, table 1 {
        /// The flow was dropped and nobody named a reason.
        Cancelled = 0x00 "cancelled",
        /// Policy refuses this caller.
        PolicyDenied = 0x01 "policy_denied",
        /// Policy allowed the flow when it started and no longer does.
        PolicyChanged = 0x02 "policy_changed",
        /// The caller's or the service's identity was revoked.
        IdentityRevoked = 0x03 "identity_revoked",
        /// An SVID reached its `not_after`.
        IdentityExpired = 0x04 "identity_expired",
        /// The authority that signed an SVID was revoked.
        AuthorityRevoked = 0x05 "authority_revoked",
        /// The peer's trust domain is no longer trusted.
        TrustDomainRemoved = 0x06 "trust_domain_removed",
        /// The peer's node was banned.
        NodeBanned = 0x07 "node_banned",
        /// This end is shutting down in good order.
        Drain = 0x08 "drain",
        /// No service of that name and port is served here.
        NoRoute = 0x09 "no_route",
        /// The application's address could not be reached.
        Unreachable = 0x0a "unreachable",
        /// The application refused the connection.
        UpstreamRefused = 0x0b "upstream_refused",
        /// The application did not answer the connection in time.
        UpstreamTimeout = 0x0c "upstream_timeout",
        /// The application's own connection broke.
        UpstreamReset = 0x0d "upstream_reset",
        /// A limit of this end is reached; another endpoint may serve.
        Overloaded = 0x0e "overloaded",
        /// The longest-stalled flow of an identity that used up its receive budget.
        Stalled = 0x0f "stalled",
        /// No byte moved for the idle timeout of the flow.
        Idle = 0x10 "idle",
        /// The stream broke the protocol, such as a malformed header.
        Protocol = 0x11 "protocol",
        /// The stream header has a version that this end does not speak.
        UnsupportedVersion = 0x12 "unsupported_version",
        /// The endpoint label of the header is not served behind this tunnel.
        WrongEndpoint = 0x13 "wrong_endpoint",
        /// The tunnel carries as many flows as it may.
        FlowLimit = 0x14 "flow_limit",
        /// A fault of this end.
        Internal = 0x15 "internal",
    }
}

codes! {
    /// Why a whole tunnel was closed.
    CloseCode, table 2 {
        /// The owner is done with it.
        Done = 0x00 "done",
        /// No flow used it for the idle timeout of the pool.
        Idle = 0x01 "idle",
        /// This end is shutting down in good order.
        Drain = 0x02 "drain",
        /// A tunnel under a newer SVID took its place.
        Replaced = 0x03 "replaced",
        /// The peer's identity was revoked.
        IdentityRevoked = 0x04 "identity_revoked",
        /// An SVID that authenticated the tunnel reached its `not_after`.
        IdentityExpired = 0x05 "identity_expired",
        /// The authority that signed the peer's SVID was revoked.
        AuthorityRevoked = 0x06 "authority_revoked",
        /// The peer's trust domain is no longer trusted.
        TrustDomainRemoved = 0x07 "trust_domain_removed",
        /// The peer's node was banned.
        NodeBanned = 0x08 "node_banned",
        /// Policy refuses the peer altogether.
        PolicyDenied = 0x09 "policy_denied",
        /// The peer's agent has restarted since; this tunnel belongs to its older boot.
        OlderBoot = 0x0a "older_boot",
        /// The peer broke the protocol, such as a wrong ALPN.
        Protocol = 0x0b "protocol",
        /// The peer already holds as many tunnels as it may.
        TooManyTunnels = 0x0c "too_many_tunnels",
        /// The peer makes tunnels faster than it may.
        TooManyHandshakes = 0x0d "too_many_handshakes",
        /// The peer opens or resets flows faster than it may.
        ExcessiveLoad = 0x0e "excessive_load",
        /// This end stops at once.
        Shutdown = 0x0f "shutdown",
        /// A fault of this end.
        Internal = 0x10 "internal",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_the_wire_and_fits_62_bits() {
        for &code in ResetCode::ALL {
            assert_eq!(ResetCode::try_from(code.number()), Ok(code));
            assert!(code.number() < 1 << 62);
        }
        for &code in CloseCode::ALL {
            assert_eq!(CloseCode::try_from(code.number()), Ok(code));
        }
    }

    #[test]
    fn numbers_and_names_are_unique_and_in_order() {
        assert!(ResetCode::ALL.windows(2).all(|pair| pair[0].number() < pair[1].number()));
        assert!(CloseCode::ALL.windows(2).all(|pair| pair[0].number() < pair[1].number()));
        let mut names: Vec<_> = ResetCode::ALL.iter().map(|code| code.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ResetCode::ALL.len());
    }

    #[test]
    fn the_numbers_are_stable() {
        assert_eq!(ResetCode::PolicyDenied.number(), 0x7765_6674_0101);
        assert_eq!(ResetCode::Stalled.number(), 0x7765_6674_010f);
        assert_eq!(CloseCode::IdentityExpired.number(), 0x7765_6674_0205);
        assert_eq!(CloseCode::OlderBoot.number(), 0x7765_6674_020a);
    }

    #[test]
    fn a_code_of_a_newer_peer_keeps_its_number() {
        let code = PeerCode::<ResetCode>::from_wire(0x7765_6674_01ff);
        assert_eq!(code, PeerCode::Unknown(0x7765_6674_01ff));
        assert_eq!(code.to_string(), "unknown code 0x7765667401ff");
        assert_eq!(PeerCode::<CloseCode>::from_wire(ResetCode::Drain.number()).known(), None);
    }
}
