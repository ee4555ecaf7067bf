//! SOCKS version 5 (RFC 1928) with user name and password (RFC 1929): its messages.
//!
//! Pure: bytes in, messages out; the conversation is [`super::explicit`]'s. Every reader takes what has arrived so far
//! and says `None` until its message is whole. Only CONNECT is served; name resolution is the mesh's, so names stay names.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    credential::{Credential, InvalidCredential},
    destination::{Destination, InvalidHost},
};

/// The first byte of every message but those of RFC 1929.
pub const VERSION: u8 = 5;
/// The version of the user name and password message.
const PASSWORD_VERSION: u8 = 1;
/// CONNECT; 2 is BIND and 3 is UDP ASSOCIATE.
const CONNECT: u8 = 1;

/// How a client offers to say who it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Method {
    /// Not at all: the kernel's word must do.
    None,
    /// By user name and password.
    Password,
}

/// How a connection attempt ended, as the client is told (RFC 1928 §6).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reply {
    /// The connection stands.
    Succeeded = 0,
    /// It failed for a reason of this side.
    Failure = 1,
    /// Policy refuses it.
    NotAllowed = 2,
    /// The network to the destination does not answer.
    NetworkUnreachable = 3,
    /// There is no such destination.
    HostUnreachable = 4,
    /// The destination's program refuses it.
    Refused = 5,
    /// It took too long.
    TimedOut = 6,
    /// Another command than CONNECT.
    CommandNotSupported = 7,
}

/// Why bytes are no SOCKS5 message that is served.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SocksError {
    /// Another version.
    #[error("version {0} is not SOCKS 5")]
    Version(u8),
    /// The client offers no way to say who it is that is known here.
    #[error("the client offers neither \"no authentication\" nor user name and password")]
    NoMethod,
    /// The user name and password message is wrong in itself.
    #[error(transparent)]
    Credential(#[from] InvalidCredential),
    /// BIND, UDP ASSOCIATE or an unknown command.
    #[error("command {0} is not CONNECT")]
    Command(u8),
    /// An unknown type of address, or port 0.
    #[error("the destination cannot be read")]
    Destination,
    /// A name that no host can have.
    #[error(transparent)]
    Host(#[from] InvalidHost),
}

/// A message and how many bytes it took.
pub type Parsed<T> = Result<Option<(T, usize)>, SocksError>;

/// Reads the client's greeting and chooses a method: the password where it is offered, since it says more.
///
/// # Errors
///
/// [`SocksError::Version`], [`SocksError::NoMethod`].
pub fn greeting(bytes: &[u8]) -> Parsed<Method> {
    let Some(version) = bytes.first() else { return Ok(None) };
    if *version != VERSION {
        return Err(SocksError::Version(*version));
    }
    let Some(count) = bytes.get(1).map(|count| usize::from(*count)) else { return Ok(None) };
    let Some(offered) = bytes.get(2..2 + count) else { return Ok(None) };
    let method = if offered.contains(&2) {
        Method::Password
    } else if offered.contains(&0) {
        Method::None
    } else {
        return Err(SocksError::NoMethod);
    };
    Ok(Some((method, 2 + count)))
}

/// The answer to a greeting.
#[must_use]
pub const fn choose(method: Method) -> [u8; 2] {
    match method {
        Method::None => [VERSION, 0],
        Method::Password => [VERSION, 2],
    }
}

/// The answer to a greeting that offers nothing we know.
pub const NO_METHOD: [u8; 2] = [VERSION, 0xff];

/// Reads user name and password.
///
/// # Errors
///
/// [`SocksError::Version`], [`SocksError::Credential`].
pub fn credential(bytes: &[u8]) -> Parsed<Credential> {
    let Some(version) = bytes.first() else { return Ok(None) };
    if *version != PASSWORD_VERSION {
        return Err(SocksError::Version(*version));
    }
    let Some((name, after)) = counted(bytes, 1) else { return Ok(None) };
    let Some((secret, end)) = counted(bytes, after) else { return Ok(None) };
    Ok(Some((Credential::presented(name, secret)?, end)))
}

/// The answer to user name and password (RFC 1929 §2).
#[must_use]
pub const fn verdict(accepted: bool) -> [u8; 2] {
    [PASSWORD_VERSION, if accepted { 0 } else { 1 }]
}

/// Reads the request for a connection.
///
/// # Errors
///
/// [`SocksError`].
pub fn request(bytes: &[u8]) -> Parsed<Destination> {
    let Some(version) = bytes.first() else { return Ok(None) };
    if *version != VERSION {
        return Err(SocksError::Version(*version));
    }
    let Some(command) = bytes.get(1) else { return Ok(None) };
    if *command != CONNECT {
        return Err(SocksError::Command(*command));
    }
    let Some(kind) = bytes.get(3) else { return Ok(None) };
    match kind {
        1 => address::<4>(bytes, |octets| Ipv4Addr::from(octets).into()),
        4 => address::<16>(bytes, |octets| Ipv6Addr::from(octets).into()),
        3 => name(bytes),
        _ => Err(SocksError::Destination),
    }
}

fn address<const N: usize>(bytes: &[u8], ip: impl Fn([u8; N]) -> IpAddr) -> Parsed<Destination> {
    let octets = bytes.get(4..4 + N).and_then(|octets| <[u8; N]>::try_from(octets).ok());
    let Some((octets, port)) = octets.zip(port(bytes, 4 + N)) else { return Ok(None) };
    let destination = Destination::address(ip(octets), port).ok_or(SocksError::Destination)?;
    Ok(Some((destination, 4 + N + 2)))
}

fn name(bytes: &[u8]) -> Parsed<Destination> {
    let Some((name, after)) = counted(bytes, 4) else { return Ok(None) };
    let Some(port) = port(bytes, after) else { return Ok(None) };
    let name = std::str::from_utf8(name).map_err(|_| InvalidHost)?;
    let port = std::num::NonZeroU16::new(port).ok_or(SocksError::Destination)?;
    Ok(Some((Destination::named(name, Some(port))?, after + 2)))
}

fn port(bytes: &[u8], at: usize) -> Option<u16> {
    let field = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes([field[0], field[1]]))
}

/// A field with its length in the byte before it, and where the next one begins.
fn counted(bytes: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let end = at + 1 + usize::from(*bytes.get(at)?);
    Some((bytes.get(at + 1..end)?, end))
}

/// The answer to a request. The bound address is not told: it would be the agent's, and means nothing to the client.
#[must_use]
pub const fn answer(reply: Reply) -> [u8; 10] {
    [VERSION, reply as u8, 0, 1, 0, 0, 0, 0, 0, 0]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn domain(name: &str, port: u16) -> Vec<u8> {
        let length = u8::try_from(name.len()).unwrap();
        [&[5, 1, 0, 3, length], name.as_bytes(), &port.to_be_bytes()].concat()
    }

    #[test]
    fn the_password_is_chosen_where_it_is_offered() {
        assert_eq!(greeting(&[5, 1, 0]), Ok(Some((Method::None, 3))));
        assert_eq!(greeting(&[5, 2, 0, 2]), Ok(Some((Method::Password, 4))));
        assert_eq!(greeting(&[5, 2, 1, 0x80]), Err(SocksError::NoMethod));
        assert_eq!(greeting(&[5, 0]), Err(SocksError::NoMethod));
        assert_eq!(greeting(&[4, 1]), Err(SocksError::Version(4)));
    }

    #[test]
    fn names_and_addresses_are_read() {
        let read = |bytes: &[u8]| request(bytes).unwrap().unwrap().0;
        assert_eq!(read(&domain("Charge.shop", 80)).to_string(), "charge.shop:80");
        assert_eq!(read(&[5, 1, 0, 1, 10, 0, 0, 1, 0, 80]).to_string(), "10.0.0.1:80");
        let mapped = [&[5, 1, 0, 4][..], &Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets(), &[1, 187]].concat();
        assert_eq!(read(&mapped).to_string(), "127.0.0.1:443");
        // Some clients send an address as a name: it is an address all the same.
        assert!(matches!(read(&domain("10.0.0.1", 80)), Destination::Address(_)));
    }

    #[test]
    fn what_is_not_served_is_told_apart() {
        assert_eq!(request(&[5, 2, 0, 1]), Err(SocksError::Command(2)));
        assert_eq!(request(&[5, 3, 0, 1]), Err(SocksError::Command(3)));
        assert_eq!(request(&[5, 1, 0, 9]), Err(SocksError::Destination));
        assert_eq!(request(&domain("charge", 0)), Err(SocksError::Destination));
        assert_eq!(request(&domain("bad host", 80)), Err(SocksError::Host(InvalidHost)));
        assert_eq!(request(&domain("", 80)), Err(SocksError::Host(InvalidHost)));
        assert_eq!(request(&[5, 1, 0, 3, 1, 0xff, 0, 80]), Err(SocksError::Host(InvalidHost)));
    }

    #[test]
    fn user_name_and_password_are_read() {
        let (read, used) = credential(b"\x01\x05order\x03abcX").unwrap().unwrap();
        assert_eq!(used, 11);
        assert!(read.matches(&Credential::parse("order:abc").unwrap()));
        assert!(credential(b"\x02\x01a\x01b").is_err());
        assert!(credential(b"\x01\x00\x01b").is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_nothing_is_read_beyond_the_end(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            for used in [
                greeting(&bytes).ok().flatten().map(|(_, used)| used),
                credential(&bytes).ok().flatten().map(|(_, used)| used),
                request(&bytes).ok().flatten().map(|(_, used)| used),
            ].into_iter().flatten() {
                prop_assert!(used <= bytes.len());
            }
        }

        #[test]
        fn a_request_is_the_same_wherever_it_was_split(name in "[a-z][a-z0-9-]{0,20}(\\.[a-z]{1,10}){0,3}", port in 1_u16.., cut in 0_usize..60) {
            let bytes = domain(&name, port);
            let whole = request(&bytes);
            let first = request(&bytes[..cut.min(bytes.len() - 1)]);
            // Bytes that came early either decide as the whole does, or ask for more.
            prop_assert!(first == Ok(None) || first == whole, "{first:?} {whole:?}");
            prop_assert_eq!(whole.unwrap().unwrap().1, bytes.len());
        }
    }
}
