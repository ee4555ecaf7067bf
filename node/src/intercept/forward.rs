//! Plain HTTP requests on the proxy port: absolute-form, and origin-form for names that only the mesh has.
//!
//! Pure. Owns where such a request goes and the head that the service gets: origin-form, the Host as it was, without
//! what was meant for the proxy, and marked as the connection's only one ([`super::exchange`]).
//!
//! Origin-form is what a browser sends when a page links to the port. Two doors are closed: a page of another site
//! (`Origin`, `Sec-Fetch-Site`), and a foreign name that was made to point at loopback (DNS rebinding): only
//! `*.weft.localhost` and `*.svc.weft` are taken, which no public DNS can answer for.

use std::num::NonZeroU16;

use bytes::{Bytes, BytesMut};
use weft_policy::{
    code::{self, CodeId},
    name::is_mesh_suffix,
};

use super::{
    destination::{Destination, InvalidHost},
    http_head::{Body, HeadError, RequestHead, Version},
};

/// The port of a URL that names none (RFC 9110 §4.2.1).
const HTTP_PORT: Option<NonZeroU16> = NonZeroU16::new(80);

/// How much of a request line a refusal repeats.
const SHOWN_CHARACTERS: usize = 80;

/// A request as it goes on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Forward {
    /// Where.
    pub destination: Destination,
    /// The head for the service.
    pub head: Bytes,
    /// What follows it.
    pub body: Body,
    /// Whether it asks for another protocol.
    pub upgrades: bool,
    /// Method and path without the query, for a person; at most 80 characters.
    pub request: String,
}

/// Why a request is not taken.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ForwardError {
    /// Its head can be read in two ways, or not at all.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// It names no host.
    #[error("the request names no host")]
    NoHost,
    /// The host it names cannot be one.
    #[error(transparent)]
    Host(#[from] InvalidHost),
    /// Its target and its Host header name two hosts.
    #[error("the target and the Host header name two hosts")]
    TwoHosts,
    /// A scheme other than http.
    #[error("only http:// is taken in a request; for https use CONNECT, as every client does by itself")]
    Scheme,
    /// A target that is neither a URL nor a path.
    #[error("the target is neither a URL nor a path")]
    Target,
    /// Origin-form for a name that the mesh does not own alone.
    #[error("a request without a proxy is taken only for *.weft.localhost and *.svc.weft, not for {0}")]
    NotMeshOnly(String),
    /// A web page of another site sent it.
    #[error("a web page of another site sent this request ({0})")]
    CrossSite(&'static str),
    /// A CONNECT whose target is not host:port.
    #[error("the target of CONNECT is not host:port")]
    ConnectTarget,
    /// A CONNECT with a body.
    #[error("a CONNECT request has no body")]
    ConnectBody,
}

impl ForwardError {
    /// The catalogue's code.
    #[must_use]
    pub const fn code(&self) -> CodeId {
        match self {
            Self::Head(HeadError::TooLarge { .. } | HeadError::TooManyHeaders { .. }) => code::HEAD_TOO_LARGE,
            Self::Head(HeadError::Malformed(_)) | Self::Target => code::BAD_PROXY_REQUEST,
            Self::Head(HeadError::Ambiguous(_)) | Self::TwoHosts => code::AMBIGUOUS_REQUEST,
            Self::NoHost => code::NO_HOST,
            Self::Host(_) | Self::NotMeshOnly(_) => code::BAD_HOST,
            Self::Scheme => code::REQUEST_NOT_SERVED,
            Self::CrossSite(_) => code::CROSS_SITE,
            Self::ConnectTarget | Self::ConnectBody => code::BAD_CONNECT,
        }
    }
}

/// Reads where a request goes and writes the head that goes there.
///
/// `own_ports` are the proxy's, see [`Destination::without_own_port`].
///
/// # Errors
///
/// [`ForwardError`].
pub fn forward(head: &RequestHead, own_ports: &[u16]) -> Result<Forward, ForwardError> {
    let body = head.body()?;
    let host = head.headers.only("host", "it has two Host headers")?.map(text).transpose()?;
    check_hop_headers(head)?;
    let (authority, path) = match split_target(head)? {
        Target::Absolute { authority, path } => {
            if let Some(host) = host
                && Destination::parse(host, HTTP_PORT)? != Destination::parse(authority, HTTP_PORT)?
            {
                return Err(ForwardError::TwoHosts);
            }
            (authority, path)
        }
        Target::Origin(path) => {
            let host = host.filter(|host| !host.is_empty()).ok_or(ForwardError::NoHost)?;
            check_site(head)?;
            (host, path.to_owned())
        }
    };
    let destination = Destination::parse(authority, HTTP_PORT)?;
    if head.target.starts_with('/') && !destination.is_mesh_only() {
        return Err(ForwardError::NotMeshOnly(destination.to_string()));
    }
    let upgrades = head.upgrades();
    let rewritten = rewrite(head, &path, host.unwrap_or(authority), upgrades);
    let shown = path.split('?').next().unwrap_or_default();
    let request = format!("{} {shown}", head.method).chars().take(SHOWN_CHARACTERS).collect();
    let destination = destination.without_own_port(own_ports);
    Ok(Forward { destination, head: rewritten, body, upgrades, request })
}

enum Target<'a> {
    Absolute { authority: &'a str, path: String },
    Origin(&'a str),
}

fn split_target(head: &RequestHead) -> Result<Target<'_>, ForwardError> {
    let target = head.target.as_str();
    if target.contains('#') {
        return Err(ForwardError::Target);
    }
    if target.starts_with('/') {
        return Ok(Target::Origin(target));
    }
    let (scheme, rest) = target.split_once("://").ok_or(ForwardError::Target)?;
    if !scheme.eq_ignore_ascii_case("http") {
        return Err(ForwardError::Scheme);
    }
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let path = match path {
        "" if head.method == "OPTIONS" => "*".to_owned(), // RFC 9112 §3.2.4
        "" => "/".to_owned(),
        query if query.starts_with('?') => format!("/{query}"),
        path => path.to_owned(),
    };
    Ok(Target::Absolute { authority, path })
}

/// Refuses what a page of another site sends. Programs that are no browser send neither header.
fn check_site(head: &RequestHead) -> Result<(), ForwardError> {
    let site = head.headers.only("sec-fetch-site", "it has two Sec-Fetch-Site headers")?;
    let of_mesh: [&[u8]; 3] = [b"same-origin", b"same-site", b"none"];
    if site.is_some_and(|site| !of_mesh.contains(&site)) {
        return Err(ForwardError::CrossSite("Sec-Fetch-Site"));
    }
    let origin = head.headers.only("origin", "it has two Origin headers")?;
    let is_mesh = |origin: &[u8]| {
        let authority = std::str::from_utf8(origin).ok().and_then(|text| text.strip_prefix("http://"));
        let host = authority.and_then(|authority| Destination::parse(authority, HTTP_PORT).ok());
        matches!(host, Some(Destination::Named { host, .. }) if is_mesh_suffix(&host))
    };
    if origin.is_some_and(|origin| !is_mesh(origin)) {
        return Err(ForwardError::CrossSite("Origin"));
    }
    Ok(())
}

/// A client may not have headers removed that say where a message ends or whom it is for.
fn check_hop_headers(head: &RequestHead) -> Result<(), ForwardError> {
    let kept = ["host", "content-length", "transfer-encoding"];
    if kept.iter().any(|name| head.headers.lists("connection", name)) {
        return Err(
            HeadError::Ambiguous("its Connection header names a header that may not be removed").into()
        );
    }
    Ok(())
}

fn rewrite(head: &RequestHead, path: &str, host: &str, upgrades: bool) -> Bytes {
    let mut out = BytesMut::with_capacity(path.len() + 512);
    // The client's own version: what it cannot read (chunks, interim answers) must not be sent to it.
    let version = match head.version {
        Version::Http10 => " HTTP/1.0\r\nHost: ",
        Version::Http11 => " HTTP/1.1\r\nHost: ",
    };
    for part in [&head.method, " ", path, version, host, "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    for (name, value) in head.headers.iter() {
        if !is_of_hop(head, name, upgrades) {
            for part in [name.as_bytes(), b": ", value, b"\r\n"] {
                out.extend_from_slice(part);
            }
        }
    }
    let last: &[u8] = if upgrades { b"Connection: Upgrade\r\n\r\n" } else { b"Connection: close\r\n\r\n" };
    out.extend_from_slice(last);
    out.freeze()
}

/// Whether a header is between client and proxy only (RFC 9110 §7.6.1), or is written anew.
fn is_of_hop(head: &RequestHead, name: &str, upgrades: bool) -> bool {
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    let proxy = name.get(..6).is_some_and(|start| start.eq_ignore_ascii_case("proxy-"));
    if is("upgrade") {
        return !upgrades;
    }
    proxy || is("host") || is("connection") || is("keep-alive") || head.headers.lists("connection", name)
}

fn text(value: &[u8]) -> Result<&str, ForwardError> {
    std::str::from_utf8(value).map_err(|_| InvalidHost.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::intercept::http_head::{HeadLimits, parse_request};

    fn read(text: &str) -> Result<Forward, ForwardError> {
        let head = parse_request(&Bytes::copy_from_slice(text.as_bytes()), &HeadLimits::default())?;
        forward(&head, &[7_480])
    }

    fn head_of(text: &str) -> String {
        String::from_utf8(read(text).unwrap().head.to_vec()).unwrap()
    }

    #[test]
    fn absolute_form_becomes_origin_form_with_its_host() {
        let forward = read(
            "GET http://Charge.shop/a?b HTTP/1.1\r\nHost: Charge.shop\r\nAccept: */*\r\n\
             Proxy-Connection: Keep-Alive\r\nProxy-Authorization: Basic c2VjcmV0\r\n\r\n",
        )
        .unwrap();
        assert_eq!(forward.destination.to_string(), "charge.shop:80");
        assert_eq!(
            forward.head,
            "GET /a?b HTTP/1.1\r\nHost: Charge.shop\r\nAccept: */*\r\nConnection: close\r\n\r\n"
        );
    }

    #[test]
    fn urls_without_a_path_get_one() {
        for (target, first) in [
            ("http://a", "GET / HTTP/1.0"),
            ("HTTP://a?q", "GET /?q HTTP/1.0"),
            ("http://a/", "GET / HTTP/1.0"),
        ] {
            let head = head_of(&format!("GET {target} HTTP/1.0\r\n\r\n"));
            assert!(head.starts_with(&format!("{first}\r\nHost: a\r\n")), "{head}");
        }
        assert!(head_of("OPTIONS http://a HTTP/1.1\r\n\r\n").starts_with("OPTIONS * HTTP/1.1\r\n"));
    }

    #[test]
    fn origin_form_is_taken_for_names_that_only_the_mesh_has() {
        let forward = read("GET /x HTTP/1.1\r\nHost: charge.weft.localhost:7480\r\n\r\n").unwrap();
        assert_eq!(forward.destination.to_string(), "charge.weft.localhost");
        assert!(forward.head.starts_with(b"GET /x HTTP/1.1\r\nHost: charge.weft.localhost:7480\r\n"));
        assert!(read("GET /x HTTP/1.1\r\nHost: charge.shop.svc.weft\r\n\r\n").is_ok());
        for host in ["charge.shop", "charge", "127.0.0.1:7480", "localhost:7480", "rebound.example"] {
            let refused = read(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
            assert!(matches!(refused, Err(ForwardError::NotMeshOnly(_))), "{host}");
        }
        assert_eq!(read("GET / HTTP/1.1\r\n\r\n"), Err(ForwardError::NoHost));
        assert_eq!(read("GET / HTTP/1.1\r\nHost:\r\n\r\n"), Err(ForwardError::NoHost));
    }

    #[test]
    fn a_page_of_another_site_is_refused() {
        let from = |header: &str| {
            read(&format!("POST / HTTP/1.1\r\nHost: charge.weft.localhost:7480\r\n{header}\r\n\r\n"))
        };
        for header in [
            "Origin: https://evil.example",
            "Origin: null",
            "Origin: http://weft.localhost.evil.example",
            "Origin: https://order.weft.localhost",
            "Sec-Fetch-Site: cross-site",
            "Sec-Fetch-Site: new-value",
        ] {
            assert!(matches!(from(header), Err(ForwardError::CrossSite(_))), "{header}");
        }
        for header in [
            "Origin: http://order.weft.localhost:7480",
            "Sec-Fetch-Site: same-origin",
            "Sec-Fetch-Site: none",
        ] {
            assert!(from(header).is_ok(), "{header}");
        }
    }

    #[test]
    fn http_04_two_hosts_are_refused() {
        for text in [
            "GET http://a.shop/ HTTP/1.1\r\nHost: b.shop\r\n\r\n",
            "GET http://a.shop:81/ HTTP/1.1\r\nHost: a.shop\r\n\r\n",
            "GET http://a.shop/ HTTP/1.1\r\nHost: a.shop\r\nHost: a.shop\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a.svc.weft, b.svc.weft\r\n\r\n",
        ] {
            assert!(read(text).is_err(), "{text:?}");
        }
        assert!(read("GET http://a.shop/ HTTP/1.1\r\nHost: A.SHOP:80\r\n\r\n").is_ok());
    }

    #[test]
    fn http_10_goes_on_as_http_10() {
        let head = head_of("GET http://a/ HTTP/1.0\r\nConnection: keep-alive\r\nKeep-Alive: 5\r\n\r\n");
        assert_eq!(head, "GET / HTTP/1.0\r\nHost: a\r\nConnection: close\r\n\r\n");
        let text = "GET http://a/ HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        let forward = read(text).unwrap();
        assert!(!forward.upgrades, "an Upgrade in HTTP/1.0 is ignored (RFC 9110, 7.8)");
        assert_eq!(forward.head, "GET / HTTP/1.0\r\nHost: a\r\nConnection: close\r\n\r\n");
    }

    #[test]
    fn http_08_headers_named_by_connection_go_and_framing_stays() {
        let head = head_of(
            "POST http://a/ HTTP/1.1\r\nContent-Length: 1\r\nX-Hop: 1\r\nX-End: 2\r\nTE: trailers\r\n\
             Connection: X-Hop, te , keep-alive\r\nKeep-Alive: 5\r\n\r\n",
        );
        assert_eq!(
            head,
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nX-End: 2\r\nConnection: close\r\n\r\n"
        );
        for name in ["content-length", "Transfer-Encoding", "HOST"] {
            let refused = read(&format!("GET http://a/ HTTP/1.1\r\nHost: a\r\nConnection: {name}\r\n\r\n"));
            assert!(refused.is_err(), "{name}");
        }
    }

    #[test]
    fn an_upgrade_keeps_its_two_headers() {
        let text = "GET http://a/ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        let forward = read(text).unwrap();
        assert!(forward.upgrades);
        assert_eq!(
            forward.head,
            "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
        );
        let plain = head_of("GET http://a/ HTTP/1.1\r\nUpgrade: h2c\r\n\r\n");
        assert!(!plain.contains("Upgrade"), "{plain}");
    }

    #[test]
    fn targets_that_are_no_request_for_a_proxy_are_refused() {
        for target in
            ["https://a/", "ftp://a/", "a:80", "*", "http://user@a/", "http:///x", "http://a/#f", "//a/b#"]
        {
            assert!(read(&format!("GET {target} HTTP/1.1\r\n\r\n")).is_err(), "{target}");
        }
    }

    proptest! {
        #[test]
        fn what_goes_on_is_one_head_that_names_the_host_it_goes_to(
            host in "[a-z]{1,8}(\\.[a-z]{1,5})?",
            path in "/[a-z/.]{0,10}",
            name in "[A-Za-z-]{1,12}",
            value in "[ -~]{0,20}",
        ) {
            let text = format!("GET http://{host}{path} HTTP/1.1\r\n{name}: {value}\r\n\r\n");
            if let Ok(forward) = read(&text) {
                let again = parse_request(&forward.head, &HeadLimits::default()).unwrap();
                prop_assert_eq!(&again.target, &path);
                prop_assert_eq!(again.headers.all("host").collect::<Vec<_>>(), vec![host.as_bytes()]);
                prop_assert!(again.headers.all("proxy-authorization").next().is_none());
            }
        }
    }
}
