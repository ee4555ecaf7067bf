//! What other agents present and say, good or bad: W3 of their certificates, and what only their words bring about.
//!
//! The agent of "mal" has registered its service and is gone; an impostor stands at its address.

use std::net::SocketAddr;
use std::time::Duration;

use weft_overlay::{ALPN, CloseCode, ResetCode};
use weft_tests::forge::{Authority, Forged, Leaf, Name, Offset};
use weft_tests::manifest::TRUST_DOMAIN;
use weft_tests::told::Told;

use crate::case::{Case, case};
use crate::impostor::{Answer, Impostor, TUNNELS, call, stolen};
use crate::inventory::id;
use crate::scene::Scene;

const HOUR: Duration = Duration::from_secs(3_600);

/// The first one takes the agent of "mal" away.
pub(crate) const CASES: &[Case] = &[
    case("W3008", "a caller without a certificate", |s| {
        let mark = s.mark("hostb");
        call_hostb(s, false, b"");
        s.logged(&mark, "W3008")
    }),
    case("W8010", "a flow whose header is none", |s| {
        let mark = s.mark("hostb");
        call_hostb(s, true, &[0xff; 64]);
        s.logged(&mark, "W8010")
    }),
    case("W3001", "a certificate of another trust domain", |s| {
        s.mesh.kill_agent("mal");
        let root = Authority::root("other.example");
        presents(s, &root.sign(&Leaf::good("spiffe://other.example/ns/shop/sa/mal"), &[]), "W3001")
    }),
    case("W3002", "a certificate that has expired", |s| presents(s, &signed(&expired()), "W3002")),
    case("W3003", "a certificate of tomorrow", |s| {
        presents(s, &signed(&good().valid(Offset::In(HOUR), Offset::In(HOUR * 2))), "W3003")
    }),
    case("W3005", "the certificate of another workload", |s| {
        presents(s, &stolen(&s.mesh.stolen_svid("hostb", "charge")), "W3005")
    }),
    case("W3009", "a certificate with two names", |s| {
        let names = [Name::Uri(id("mal").into_bytes()), Name::Uri(id("order").into_bytes())];
        presents(s, &signed(&good().names(&names)), "W3009")
    }),
    case("W3010", "a certificate of somebody's own authority", |s| presents(s, &signed(&good()), "W3010")),
    case("W3019", "an agent that speaks another protocol", |s| {
        says_as(s, &own(s), b"weft/9", Answer::Nonsense, "W3019")
    }),
    case("W1004", "a handshake that never ends", |s| {
        let _impostor = Impostor::stalling(s.host("mal"), &state(s), &own(s));
        s.refused("mal", "W1004")
    }),
    case("W8015", "an answer that is none", |s| says(s, Answer::Nonsense, "W8015")),
    case("W1018", "a flow that stalled over there", |s| says(s, Answer::Reset(ResetCode::Stalled), "W1018")),
    case("W1024", "an endpoint that is not there any more", |s| {
        says(s, Answer::Refuse(ResetCode::WrongEndpoint, "W1024"), "W1024")
    }),
    case("W3018", "a root that is not trusted any more", |s| {
        says(s, Answer::Close(CloseCode::AuthorityRevoked), "W3018")
    }),
    case("W3026", "an identity that was withdrawn", |s| {
        says(s, Answer::Reset(ResetCode::IdentityRevoked), "W3026")
    }),
    case("W9001", "a fault of the other agent", |s| says(s, Answer::Reset(ResetCode::Internal), "W9001")),
];

fn good() -> Leaf {
    Leaf::good(&id("mal"))
}

fn expired() -> Leaf {
    good().valid(Offset::Ago(HOUR * 2), Offset::Ago(HOUR))
}

/// Signed by an authority of the right trust domain's name, and of nobody's trust.
fn signed(leaf: &Leaf) -> Forged {
    Authority::root(TRUST_DOMAIN).sign(leaf, &[])
}

/// The state of the agent whose place is taken.
fn state(scene: &Scene) -> std::path::PathBuf {
    scene.mesh.state("mal").join("agent")
}

/// The certificate that belongs there.
fn own(scene: &Scene) -> Forged {
    stolen(&scene.mesh.stolen_svid("mal", "mal"))
}

/// What a caller is told of an impostor that presents `forged`.
fn presents(scene: &Scene, forged: &Forged, code: &str) -> Result<Told, String> {
    says_as(scene, forged, ALPN, Answer::Nonsense, code)
}

/// What a caller is told of an impostor with the right certificate and a strange answer.
fn says(scene: &Scene, answer: Answer, code: &str) -> Result<Told, String> {
    says_as(scene, &own(scene), ALPN, answer, code)
}

fn says_as(
    scene: &Scene,
    forged: &Forged,
    protocol: &[u8],
    answer: Answer,
    code: &str,
) -> Result<Told, String> {
    let _impostor = Impostor::start(scene.host("mal"), &state(scene), forged, protocol, answer);
    scene.refused("mal", code)
}

fn call_hostb(scene: &Scene, with_certificate: bool, bytes: &[u8]) {
    let target: SocketAddr = (scene.host("hostb").ip4(), TUNNELS).into();
    let svid = with_certificate.then(|| scene.mesh.stolen_svid("mal", "mal"));
    let sni = format!("{}.local.weft", scene.mesh.label("hostb", "charge"));
    call(scene.host("mal"), target, &state(scene), svid.as_deref(), &sni, bytes);
}
