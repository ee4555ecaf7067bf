//! CONNECT (RFC 9110 §9.3.6): the proxy request for a connection of bytes.
//!
//! Pure. Owns what a CONNECT head must be. Bytes that came behind the head are the connection's first and wait for its
//! success.

use super::{
    destination::Destination,
    forward::ForwardError,
    http_head::{Body, RequestHead},
};

/// Reads the destination of a CONNECT request.
///
/// `own_ports` are the proxy's, see [`Destination::without_own_port`].
///
/// # Errors
///
/// [`ForwardError`] for a target without a port, and for a request with a body: whose bytes those are is unclear.
pub fn connect(head: &RequestHead, own_ports: &[u16]) -> Result<Destination, ForwardError> {
    if !matches!(head.body()?, Body::None | Body::Length(0)) {
        return Err(ForwardError::ConnectBody);
    }
    match Destination::parse(&head.target, None) {
        Ok(Destination::Named { port: None, .. }) | Err(_) => Err(ForwardError::ConnectTarget),
        Ok(destination) => Ok(destination.without_own_port(own_ports)),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::intercept::http_head::{HeadLimits, parse_request};

    fn read(text: &str) -> Result<String, ForwardError> {
        let head = parse_request(&Bytes::copy_from_slice(text.as_bytes()), &HeadLimits::default()).unwrap();
        connect(&head, &[7_480]).map(|found| found.to_string())
    }

    #[test]
    fn a_target_needs_host_and_port() {
        assert_eq!(read("CONNECT charge.shop:80 HTTP/1.1\r\n\r\n").unwrap(), "charge.shop:80");
        assert_eq!(read("CONNECT [::1]:443 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap(), "[::1]:443");
        assert_eq!(
            read("CONNECT charge.weft.localhost:7480 HTTP/1.1\r\n\r\n").unwrap(),
            "charge.weft.localhost"
        );
        for target in ["charge.shop", "http://charge.shop:80/", "/", "charge.shop:0", "user@charge.shop:80"] {
            let refused = read(&format!("CONNECT {target} HTTP/1.1\r\n\r\n"));
            assert_eq!(refused, Err(ForwardError::ConnectTarget), "{target}");
        }
    }

    #[test]
    fn a_connect_with_a_body_is_refused() {
        assert!(read("CONNECT a:80 HTTP/1.1\r\nContent-Length: 0\r\n\r\n").is_ok());
        for header in ["Content-Length: 1", "Transfer-Encoding: chunked"] {
            let refused = read(&format!("CONNECT a:80 HTTP/1.1\r\n{header}\r\n\r\n"));
            assert_eq!(refused, Err(ForwardError::ConnectBody));
        }
    }
}
