//! What a program is told when its connection fails: words, status, reply.
//!
//! Pure. Owns the form of a refusal (cli.md 1.2 and 5.1) in each protocol of a program, and the names that it fills into
//! the next commands of the catalogue, so that they can be pasted.

use std::{fmt, str::FromStr};

use weft_api::fault::Fault;
use weft_identity::spiffe::IdKind;
use weft_policy::{
    code::{self, CodeId},
    name::{Namespace, parse_host},
};

use crate::intercept::{Destination, LocalWorkload, socks5};

/// Who asked for what.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Asked {
    /// The calling service account.
    pub(crate) caller: Name,
    /// The service that the destination means, if it can be one.
    pub(crate) service: Option<Name>,
    /// The destination as the program said it.
    pub(crate) destination: String,
    /// Method and path, where the request was seen.
    pub(crate) request: Option<String>,
}

/// A service or service account in its namespace.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Name {
    name: String,
    namespace: String,
}

impl Asked {
    /// What `source` asked for.
    pub(crate) fn new(source: &LocalWorkload, destination: &Destination, request: Option<String>) -> Self {
        let caller = match source.identity.kind() {
            IdKind::Workload { namespace, service_account } => {
                Name { name: service_account.to_owned(), namespace: namespace.to_owned() }
            }
            IdKind::Node(_) | IdKind::Server(_) | IdKind::User(_) | IdKind::Other => {
                Name { name: source.name.to_string(), namespace: source.namespace.to_string() }
            }
        };
        let service = match destination {
            Destination::Upstream { service, .. } => Some(service.clone()),
            Destination::Named { host, .. } => parse_host(host, &source.namespace),
            Destination::Address(_) => None,
        };
        let service = service
            .map(|found| Name { name: found.name.to_string(), namespace: found.namespace.to_string() });
        Self { caller, service, destination: destination.to_string(), request }
    }

    /// The fault of this call: who asked for what goes before, names go into the next commands.
    pub(crate) fn about(&self, fault: &Fault) -> Fault {
        let mut told = fault.completed();
        let denied = if fault.code.starts_with("W2") { "denied  " } else { "" };
        let whom = self.service.as_ref().filter(|_| !denied.is_empty());
        let whom = whom.map_or_else(|| self.destination.clone(), |service| service.seen_from(&self.caller));
        let request = self.request.as_ref().map_or_else(String::new, |request| format!(" {request}"));
        told.what = format!("{denied}{} → {whom}{request}   {}", self.caller.name, fault.what);
        for line in &mut told.fix {
            *line = line.replace("<caller>", &self.caller.to_string());
            if let Some(service) = &self.service {
                *line = line.replace("<service>", &service.to_string());
            }
        }
        told
    }
}

impl Name {
    /// As somebody of the same namespace would say it.
    fn seen_from(&self, other: &Self) -> String {
        if self.namespace == other.namespace {
            self.name.clone()
        } else {
            format!("{}.{}", self.name, self.namespace)
        }
    }
}

impl fmt::Display for Name {
    /// As the command line takes it: the namespace is said unless it is the default one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace == Namespace::default_namespace().as_str() {
            return f.write_str(&self.name);
        }
        write!(f, "{}.{}", self.name, self.namespace)
    }
}

impl FromStr for Name {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, namespace) = text.split_once('.').unwrap_or((text, "default"));
        Ok(Self { name: name.to_owned(), namespace: namespace.to_owned() })
    }
}

/// A fault with the causes and next commands of its row.
#[must_use]
pub fn fault_of(code: CodeId, what: impl Into<String>) -> Fault {
    let row = code.row();
    let mut fault = Fault::new(code, what).why(row.cause);
    fault.fix = row.fix.iter().map(|line| (*line).to_owned()).collect();
    fault
}

/// The text a person sees in place of a response: code and what happened, then facts and commands, one a line.
#[must_use]
pub fn text_of(fault: &Fault) -> String {
    let fault = fault.completed();
    let mut text = format!("{} {}\n", fault.code, printable(&fault.what));
    for line in fault.why.iter().chain(&fault.fix) {
        text.push_str(&format!("      {}\n", printable(line)));
    }
    text
}

/// Some of it may come from a peer: a terminal must not act on it.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

pub(crate) fn http_answer(fault: &Fault) -> String {
    let (status, phrase) = http_status(&fault.code);
    let body = text_of(fault);
    let challenge = if status == 407 { "Proxy-Authenticate: Basic realm=\"weft\"\r\n" } else { "" };
    format!(
        "HTTP/1.1 {status} {phrase}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
         X-Weft-Code: {}\r\nCache-Control: no-store\r\n{challenge}Connection: close\r\n\r\n{body}",
        body.len(),
        fault.code,
    )
}

/// The status that a program's HTTP client acts on best; people read the code.
fn http_status(code: &str) -> (u16, &'static str) {
    let is = |codes: &[CodeId]| codes.iter().any(|known| known.as_str() == code);
    let unavailable = [
        code::NO_ENDPOINT,
        code::ALL_EJECTED,
        code::BREAKER_OPEN,
        code::OVERLOADED,
        code::DRAINING,
        code::TOO_MANY_TUNNELS,
        code::TOO_MANY_CONNECTIONS,
        code::NO_SNAPSHOT,
        code::NO_SVID_YET,
        code::OWN_SVID_EXPIRED,
    ];
    if is(&[code::AMBIGUOUS_WORKLOAD, code::BAD_CREDENTIAL, code::BAD_PROXY_CREDENTIAL]) {
        (407, "Proxy Authentication Required")
    } else if is(&[code::HEAD_TOO_LARGE]) {
        (431, "Request Header Fields Too Large")
    } else if is(&[code::HEAD_TIMEOUT]) {
        (408, "Request Timeout")
    } else if is(&[code::PROGRAM_TIMEOUT, code::CONNECT_TIMEOUT, code::TUNNEL_BLOCKED]) {
        (504, "Gateway Timeout")
    } else if is(&unavailable) {
        (503, "Service Unavailable")
    } else if is(&[code::NOT_HTTP]) {
        (502, "Bad Gateway")
    } else {
        match code.as_bytes() {
            [b'W', b'2', ..] => (403, "Forbidden"),
            [b'W', b'8', ..] => (400, "Bad Request"),
            [b'W', b'9', ..] => (500, "Internal Server Error"),
            _ => (502, "Bad Gateway"),
        }
    }
}

pub(crate) fn socks_reply(code: &str) -> socks5::Reply {
    let is = |codes: &[CodeId]| codes.iter().any(|known| known.as_str() == code);
    if is(&[code::SOCKS_COMMAND]) {
        socks5::Reply::CommandNotSupported
    } else if code.starts_with("W2") || is(&[code::EGRESS_DENIED]) {
        socks5::Reply::NotAllowed
    } else if is(&[code::UNKNOWN_SERVICE, code::NAME_NOT_RESOLVED, code::BAD_HOST]) {
        socks5::Reply::HostUnreachable
    } else if is(&[code::PROGRAM_REFUSED, code::UNKNOWN_PORT]) {
        socks5::Reply::Refused
    } else if is(&[code::PROGRAM_TIMEOUT, code::CONNECT_TIMEOUT]) {
        socks5::Reply::TimedOut
    } else if is(&[code::TUNNEL_BLOCKED, code::EGRESS_UNREACHABLE]) {
        socks5::Reply::NetworkUnreachable
    } else {
        socks5::Reply::Failure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(service: Option<&str>) -> Asked {
        Asked {
            caller: "order.shop".parse().unwrap(),
            service: service.map(|name| name.parse().unwrap()),
            destination: "charge.weft.localhost:80".to_owned(),
            request: Some("GET /".to_owned()),
        }
    }

    #[test]
    fn a_denial_says_who_asked_for_what_and_what_to_paste() {
        let fault = fault_of(code::NO_ALLOW, "no policy allows this caller");
        let text = text_of(&asked(Some("charge.shop")).about(&fault));
        assert!(
            text.starts_with("W2101 denied  order → charge GET /   no policy allows this caller\n"),
            "{text}"
        );
        assert!(text.contains("weft policy allow order.shop charge.shop\n"), "{text}");
        let elsewhere = asked(Some("ledger.bank")).about(&fault);
        assert!(elsewhere.what.starts_with("denied  order → ledger.bank GET /"), "{}", elsewhere.what);
        let outside = asked(None).about(&fault_of(code::EGRESS_DENIED, "it is outside the mesh"));
        assert_eq!(outside.what, "order → charge.weft.localhost:80 GET /   it is outside the mesh");
    }

    #[test]
    fn the_status_follows_the_code() {
        for (code, status) in [
            ("W2201", 403),
            ("W2203", 407),
            ("W1005", 503),
            ("W1009", 504),
            ("W1011", 502),
            ("W8001", 400),
            ("W8006", 431),
            ("W8007", 408),
            ("W8014", 502),
            ("W9001", 500),
        ] {
            assert_eq!(http_status(code).0, status, "{code}");
        }
        assert_eq!(socks_reply("W1008"), socks5::Reply::Refused);
        assert_eq!(socks_reply("W1013"), socks5::Reply::NotAllowed);
        assert_eq!(socks_reply("W9001"), socks5::Reply::Failure);
    }
}
