//! Keys that are presented for a certificate (CERT-30): which kinds are signed, and never twice.
//!
//! The requests were made by OpenSSL 3 (`openssl req -new`), so that what is accepted and refused does not hang on our
//! own writer of requests.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tonic::{Code, Response, Status};
use weft_api::pb::identity::{
    IssueSvidRequest, IssueSvidResponse, JoinRequest, identity_client::IdentityClient,
};
use weft_identity::{csr::SigningRequest, svid::Svid};
use weft_policy::code;

use super::{Rig, agent_token, codes, workload};

const SIGNED: [(&str, &str); 3] = [
    (
        "p256",
        "MIHKMHICAQAwEDEOMAwGA1UEAwwFYWRtaW4wWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAASlcCu03aQW5K5GlWakgKYGsgtpTOZy\
    +5U1cgNqUKK7501OoZFes2FAxySHYz/ScAKDg8qk95pUi+Anbq0c6exhoAAwCgYIKoZIzj0EAwIDSAAwRQIhAMUJmFGwNztyLRI0\
    I+7kGq4RlK55g1+ssso8k/oTmrKmAiAfBEZdMG0zVAmPv1FxDSOpKAcljr55Zkc7U1NTBkoK7g==",
    ),
    (
        "p384",
        "MIH1MH8CAQAwADB2MBAGByqGSM49AgEGBSuBBAAiA2IABDP7XFUdv1rztTy0dJbcDOS55ZAm9l78YqrS1ZiLNAPiiWrqimjyfyCR\
    Xobg13XZTXny5PeId+3g1yXkr6/QND9Sr3n9Yp2U5vzl7paM1jdQbnM4yDDb6dARCG94OhavlKAAMAoGCCqGSM49BAMDA2YAMGMC\
    LwivGMtRU5H9+KM3HTV3vsom8gSY5aLMLu6TCHqnwII5r6srVowBrnVz3ujI19RMAjBCnFR3ca88s/AVmq01eFhxhHgRf3buDbri\
    90VHvJ+blGQKKOKY0Rig45NFjAyuvX8=",
    ),
    (
        "ed25519",
        "MH8wMwIBADAAMCowBQYDK2VwAyEAd3EJiA7pu3WMbvDmLHYt0mhgyAIKf7TyrVzl9dCNSu+gADAFBgMrZXADQQDQ9rV6JfNKsSSp\
    XKSuJ1YMyI3fJ/ubl9JXMSWx/GvKiECiKZRLNiBvatXiWzsIt5iYVYKGjf8j/SyJANqMhEgK",
    ),
];
const REFUSED: [(&str, &str); 6] = [
    (
        "RSA of 1024 bits",
        "MIIBPzCBqQIBADAAMIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDiRKq3w/DJhl6NdLbSgaGmVUvD16iYu8WiXRfMgrVX8fPL\
    0x6c/cd8P3inLKg8PfZGPPMaJ43H1HTdt4A/SCBvP3nKH424WVKS+WIH3gJUhp7tJ2WLtl1YrCQYk6SUG14wdmt9cdcARgdzDA3g\
    bxWJIXpaYdj3d4Cxwbp4IzFTnwIDAQABoAAwDQYJKoZIhvcNAQELBQADgYEAEoQxGMWcbKEwToG4lqxwoUspzS5Qvv+GzWtApM0f\
    WwMQHPnrNWwdDArXCCRIGj23Vg73auyutsnZf26oksFyhuhxzpCmfHn0yNYYXNk9DjpSVC9JHaCuyz3+6TvVlEJOGbQuA2X15Gj0\
    wgxZgJV1hC96B7pVceVNM+YudS2RTjc=",
    ),
    (
        "RSA of 2048 bits",
        "MIICRTCCAS0CAQAwADCCASIwDQYJKoZIhvcNAQEBBQADggEPADCCAQoCggEBAMfUOIG/w+/oBP25XSYIt2IHk9Nwccq1F9Qeben4\
    t3lMd/X1pBMHxozArv6PPk2ngYyHWUpljtAjCYEDog8T3PwRViLkzXFrE8qoTZvYv80y9x54ZsMyAzscoGlqUifZCb0/hTjwi4zn\
    US35k1A9wruEk+L784hS43a+NTH8mzQCazyxdWaCcLaSoPIA/m+ZzLwPZId+nn3OBoAGUBLv+IfLuAy5Xp29VRaMgHhauG4LUCjm\
    JELYH66zKXE4JvsIAM2Fk8pwshpQV4kPFrztQEJLzfQadn1RIuNmFiIYmc4yoN1HImuFttZ1+Aa4FLvDyP4u6DSFiGD5BamWLGWW\
    1XkCAwEAAaAAMA0GCSqGSIb3DQEBCwUAA4IBAQBVw3MFpThHZfl562mHq0q9S0FjGEAJiPiv8t44bfwXKQycPqBzWTZ49DozpZQG\
    f+vX3K1QiEdwWfiUtp8u3U84KK4GzLBFc0Aa0a5MMvfsejIS6L1SHfcnoiXZFM79qp3KeFHjwGSInzU3mZDpFA+NyeBrBW0ANPVk\
    /gcNt0Ft28IU4M8eY56nYHcQZNaU0h3iyJyYwo1FSfDkXRBHyHc6mp1iB9SNIu7w4p81hW+REgLBZnDId9uARuF27Aqsrjbyb1PD\
    CPMrf7V0hnfDWTQTQSZcQVAW6yULHDOPRiAxpuggGuEMC2nCxlJB2JnBEzCSLq8g/DBGLH8p77RstxwN",
    ),
    (
        "P-224",
        "MIGnMFcCAQAwADBOMBAGByqGSM49AgEGBSuBBAAhAzoABHoLuKUEDCvh1/hXxOcQrO8NbtkDUSfoo24hs5Ke18TFL7cWX5Wu/h6y\
    sprTXGldaJ7/BUVE8WM5oAAwCgYIKoZIzj0EAwIDQAAwPQIcEOtv8qENb2iuLcUu7yBiG1tdYEigM96pSlGoIwIdAIkZC0sdQgDm\
    gJ7tApVNB1bMt6XZh01JNXSqNSw=",
    ),
    (
        "secp256k1",
        "MIG3MF8CAQAwADBWMBAGByqGSM49AgEGBSuBBAAKA0IABOJ/MJzetRXHs1pR48iDIO1iH+5bq76v6Cf6XOH50gq6IKmbOSnLGDbf\
    qpobE4+S3q4GbJVj2lpgKAFYqEfuRtygADAKBggqhkjOPQQDAgNIADBFAiEAgeXUjLZEjmN7Cow70i8xqgIZvmSUBsUOT0ZilJM8\
    UakCIBipe6grAluag1InJf7jWHRM4kq2+VEZoCZvOweNP/W7",
    ),
    (
        "P-521",
        "MIIBQzCBpQIBADAAMIGbMBAGByqGSM49AgEGBSuBBAAjA4GGAAQBizMSLbGVEUy/Rk/ji1BWAKzChjOwojfF6dyILQvv5PCFnLNc\
    rzlz1L169682mfZRNuRYKo+o2nbV14dpdp5kuBMASfESev+a7vI8EKFHv5zearCQUwLMqWIkK7x1NMbHQDMf7d+evfOzlN+7qn4f\
    BuNvbdMKdZHmhqaXv7szEdiBAV2gADAKBggqhkjOPQQDAgOBjAAwgYgCQgFRkT2pDmJmSna4g8LA8GOrWgbWp3rfRxCTi9jnQWtS\
    k0iJ7TdD4rK0OsmmUAM676Em/Bh35ntd4Kr5CTnsxgPPygJCAPUDcARfNq94mSS+4mYbxDwXEwjlPvAFVWB389wUZltLdVlJTc74\
    BQrzgS30Hi62jHneS8ofZSvQ7TpLVXcBCY05",
    ),
    (
        "P-256 signed with SHA-1",
        "MIG5MGICAQAwADBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABKVwK7TdpBbkrkaVZqSApgayC2lM5nL7lTVyA2pQorvnTU6hkV6z\
    YUDHJIdjP9JwAoODyqT3mlSL4CdurRzp7GGgADAJBgcqhkjOPQQBA0gAMEUCIFWYvg6JBf4YKz0LYuOkjTa1fc/B/e6Ttxn/CL3v\
    cSMNAiEA4Sxs5fSlaVoDOhX061K5TnSuu1MA7uh9Hi5cnOD1hFg=",
    ),
];

#[tokio::test]
async fn cert_30_keys_of_the_three_good_kinds_are_certified_and_weak_ones_are_not() {
    let rig = Rig::start();
    let node = rig.node("hostb").await;
    for (kind, request) in SIGNED {
        let answer = ask(&rig, &node, workload(kind), STANDARD.decode(request).unwrap()).await;
        assert!(answer.is_ok(), "{kind}: {answer:?}");
    }
    for (kind, request) in REFUSED {
        let before = rig.issued().await;
        let (grpc, id) = codes(ask(&rig, &node, workload("weak"), STANDARD.decode(request).unwrap()).await);
        assert_eq!((grpc, &*id), (Code::InvalidArgument, code::BAD_SIGNING_REQUEST.as_str()), "{kind}");
        assert_eq!(rig.issued().await, before, "{kind}");
    }
}

#[tokio::test]
async fn cert_30_a_request_that_was_changed_on_the_way_proves_nothing() {
    let rig = Rig::start();
    let node = rig.node("hostb").await;
    let good = SigningRequest::create().unwrap().1;
    for at in (0..good.len()).step_by(7) {
        let mut changed = good.clone();
        changed[at] ^= 1;
        let (grpc, id) = codes(ask(&rig, &node, workload("charge"), changed).await);
        assert_eq!((grpc, &*id), (Code::InvalidArgument, code::BAD_SIGNING_REQUEST.as_str()), "byte {at}");
    }
    ask(&rig, &node, workload("charge"), good).await.unwrap();
}

#[tokio::test]
async fn cert_30_a_key_that_was_certified_for_somebody_else_is_refused_with_an_alarm() {
    let rig = Rig::start();
    let (one, two) = (rig.node("hostb").await, rig.node("hostc").await);
    let (_, csr) = SigningRequest::create().unwrap();
    ask(&rig, &one, workload("charge"), csr.clone()).await.unwrap();
    for (holder, id) in [(&one, workload("ledger")), (&one, one.id().to_string()), (&two, workload("order"))]
    {
        let (grpc, refused) = codes(ask(&rig, holder, id, csr.clone()).await);
        assert_eq!((grpc, &*refused), (Code::PermissionDenied, code::BAD_SIGNING_REQUEST.as_str()));
    }
    let token = rig.token(agent_token("hostd")).await;
    let request = JoinRequest {
        secret: token.secret().to_owned(),
        node: "hostd".into(),
        csr: csr.clone(),
        ..JoinRequest::default()
    };
    let joined = IdentityClient::new(rig.dial(None).await).join(request).await;
    assert_eq!(codes(joined).0, Code::PermissionDenied, "a joiner cannot bring a key of another either");
    assert_eq!(rig.alarms("foreign_key").await, 4);
    rig.join(&token, "hostd").await.unwrap();
}

#[tokio::test]
async fn iss_03_a_captured_request_is_answered_once_on_any_connection() {
    let rig = Rig::start();
    let (one, two) = (rig.node("hostb").await, rig.node("hostc").await);
    let (_, csr) = SigningRequest::create().unwrap();
    let mut client = IdentityClient::new(rig.dial(Some(&one)).await);
    let request = IssueSvidRequest { spiffe_id: workload("charge"), csr: csr.clone(), ..Default::default() };
    client.issue_svid(request.clone()).await.unwrap();
    let issued = rig.issued().await;
    let again = [
        client.issue_svid(request.clone()).await,
        ask(&rig, &one, workload("charge"), csr.clone()).await,
        ask(&rig, &two, workload("charge"), csr.clone()).await,
    ];
    for answer in again {
        let (grpc, refused) = codes(answer);
        assert_eq!((grpc, &*refused), (Code::PermissionDenied, code::BAD_SIGNING_REQUEST.as_str()));
    }
    assert_eq!((rig.issued().await, rig.alarms("replay").await), (issued, 3));
    let nobody = ask_as_nobody(&rig, csr).await;
    assert_eq!(
        codes(nobody).0,
        Code::Unauthenticated,
        "without the connection it was bound to it is only bytes"
    );
}

#[tokio::test]
async fn iss_03_a_renewal_that_is_sent_twice_gives_one_certificate() {
    let rig = Rig::start();
    let node = rig.node("hostb").await;
    let (_, csr) = SigningRequest::create().unwrap();
    ask(&rig, &node, String::new(), csr.clone()).await.unwrap();
    let issued = rig.issued().await;
    assert_eq!(codes(ask(&rig, &node, String::new(), csr).await).0, Code::PermissionDenied);
    assert_eq!(rig.issued().await, issued);
    rig.issue(&node, "").await.unwrap();
}

async fn ask(
    rig: &Rig,
    holder: &Svid,
    spiffe_id: String,
    csr: Vec<u8>,
) -> Result<Response<IssueSvidResponse>, Status> {
    let mut client = IdentityClient::new(rig.dial(Some(holder)).await);
    client.issue_svid(IssueSvidRequest { spiffe_id, csr, ..Default::default() }).await
}

async fn ask_as_nobody(rig: &Rig, csr: Vec<u8>) -> Result<Response<IssueSvidResponse>, Status> {
    let mut client = IdentityClient::new(rig.dial(None).await);
    client.issue_svid(IssueSvidRequest { spiffe_id: workload("charge"), csr, ..Default::default() }).await
}
