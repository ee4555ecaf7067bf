//! What programs send to the proxy ports, and who they are: W8, and W2 of local callers.

use std::io::{Read as _, Write as _};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use weft_tests::app::{self, loopback};
use weft_tests::manifest::NAMESPACE;
use weft_tests::told::Told;

use crate::case::{Case, case};
use crate::inventory::{GHOST, NOBODY, TO_ECHO, TO_LOOP, TWINS};
use crate::scene::{PROXY, Scene, told_by};

const URL: &str = "http://charge.shop.svc.weft/";
const HOST: &str = "charge.shop.svc.weft";

/// In any order, but for the last ones, which leave connections open for a moment.
pub(crate) const CASES: &[Case] = &[
    case("W8001", "a request line that is none", |s| s.proxied(b"GET\r\n\r\n", "W8001")),
    case("W8002", "a CONNECT without a port", |s| s.proxied(b"CONNECT nowhere HTTP/1.1\r\n\r\n", "W8002")),
    case("W8003", "a SOCKS greeting without a method", |s| socks(s, &[5, 0], "W8003")),
    case("W8004", "a SOCKS BIND", |s| {
        let bind = [5, 1, 0, 5, 2, 0, 1, 10, 77, 0, 2, 0, 80];
        socks(s, &bind, "W8004")
    }),
    case("W8005", "a request without a host", |s| s.proxied(b"GET / HTTP/1.1\r\n\r\n", "W8005")),
    case("W8006", "a head of 64 KiB", |s| {
        let head = format!("GET {URL} HTTP/1.1\r\nHost: {HOST}\r\nX: {}\r\n\r\n", "x".repeat(64 << 10));
        s.proxied(head.as_bytes(), "W8006")
    }),
    case("W8007", "half a head", |s| s.proxied(format!("GET {URL} HT").as_bytes(), "W8007")),
    case("W8008", "a plain request for a name that is not the mesh's own", |s| {
        s.proxied(b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n", "W8008")
    }),
    case("W8009", "two hosts", |s| {
        s.proxied(format!("GET {URL} HTTP/1.1\r\nHost: {HOST}\r\nHost: other\r\n\r\n").as_bytes(), "W8009")
    }),
    case("W8011", "https in a request line", |s| {
        s.proxied(format!("GET https://{HOST}/ HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes(), "W8011")
    }),
    case("W8013", "a credential of another scheme", |s| {
        with_header(s, "Proxy-Authorization: Bearer x", "W8013")
    }),
    case("W2204", "a credential of nobody", |s| {
        let wrong = BASE64_STANDARD.encode("order-hosta.shop:bm90IHRoZSBzZWNyZXQ");
        with_header(s, &format!("Proxy-Authorization: Basic {wrong}"), "W2204")
    }),
    case("W2207", "a page of another site", |s| {
        let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nOrigin: http://evil.example\r\n\r\n");
        s.proxied(request.as_bytes(), "W2207")
    }),
    case("W2202", "a user without a workload", |s| s.curled(NOBODY, "W2202")),
    case("W2203", "a user with two workloads", |s| s.curled(TWINS, "W2203")),
    case("W3006", "a workload without a certificate", |s| s.curled(GHOST, "W3006")),
    case("W2209", "the upstream port of another user's workload", |s| {
        let mark = s.mark("hosta");
        let url = format!("http://{}/", loopback(TO_ECHO));
        let refused = app::curl(s.host("hosta")).arg(url).as_user(GHOST).run();
        if refused.code() == Some(0) { Err(refused.to_string()) } else { s.logged(&mark, "W2209") }
    }),
    case("W2201", "the agent's own connection", |s| {
        let mark = s.mark("hosta");
        s.exchange("hosta", TO_LOOP, b"GET / HTTP/1.0\r\n\r\n");
        s.logged(&mark, "W2201")
    }),
    case("W2205", "an identity that no workload here has", |s| {
        s.told(
            "hosta",
            &["call", "charge.shop", "/", "--as", "spiffe://corp.example/ns/shop/sa/nobody"],
            "W2205",
        )
    }),
    case("W2206", "a program of a user whom no enrollment names", |s| run_of_nobody(s, NAMESPACE, "W2206")),
    case("W6021", "a program of a namespace that the node has nothing in", |s| {
        run_of_nobody(s, "bank", "W6021")
    }),
    case("W3004", "an identity that no enrollment gives to the node", |s| {
        s.told("late", &["run", "--service", "x", "-n", "bank", "--", "true"], "W3004")
    }),
    case("W5020", "a program that is not there", |s| {
        s.told("late", &["run", "--service", "x", "-n", NAMESPACE, "--", "/no/such/program"], "W5020")
    }),
    case("W8012", "more connections than the agent carries", |s| {
        let mark = s.mark("hostc");
        let open: Result<Vec<_>, _> =
            s.host("hostc").enter(|| (0..4).map(|_| std::net::TcpStream::connect(loopback(PROXY))).collect());
        let told = s.logged(&mark, "W8012");
        drop(open.map_err(|error| error.to_string())?);
        told
    }),
];

fn with_header(scene: &Scene, header: &str, code: &str) -> Result<Told, String> {
    scene.proxied(format!("GET {URL} HTTP/1.1\r\nHost: {HOST}\r\n{header}\r\n\r\n").as_bytes(), code)
}

/// SOCKS has no words: the code stands in the log.
fn socks(scene: &mut Scene, bytes: &[u8], code: &str) -> Result<Told, String> {
    let mark = scene.mark("hosta");
    scene.host("hosta").enter(|| {
        let mut stream = std::net::TcpStream::connect(loopback(PROXY)).map_err(|error| error.to_string())?;
        stream.write_all(bytes).map_err(|error| error.to_string())?;
        let _ = stream.read_to_end(&mut Vec::new());
        Ok::<_, String>(())
    })?;
    scene.logged(&mark, code)
}

fn run_of_nobody(scene: &Scene, namespace: &str, code: &str) -> Result<Told, String> {
    told_by(&scene.weft_of(NOBODY, &["run", "--service", "other", "-n", namespace, "--", "true"]).run(), code)
}
