//! Requests that no library sends (API-04, API-05).

use tonic::Code;

use super::{
    Rig,
    raw::{Answer, EMPTY, Raw},
};

const STATUS: &str = "/weft.management.v1.Management/Status";
const HEALTH: &[u8] = b"/grpc.health.v1.Health/Check";

/// Paths that are near one that exists; each of them means nothing.
const ODD: &[&[u8]] = &[
    b"weft.management.v1.Management/Status",
    b"*",
    b"//weft.management.v1.Management/Status",
    b"/weft.management.v1.Management//Status",
    b"/./weft.management.v1.Management/Status",
    b"/x/../weft.management.v1.Management/Status",
    b"/weft.management.v1.Management/Status/",
    b"/weft.management.v1.Management/Stat%75s",
    b"/WEFT.management.v1.Management/Status",
    b"/weft.management.v1.management/Status",
    b"/weft.management.v1.Management/STATUS",
    b"/weft.management.v2.Management/Status",
    b"/Management/Status",
    b"/weft.agent.v1.Agent/Run",
    b"/unknown.Package/Method",
    b"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    b"/",
    b"http://server.weft/weft.management.v1.Management/Status",
    b"/weft.management.v1.Management/Status\0",
    b"/weft.management.v1.Management/Status\r\nx: y",
    b" /weft.management.v1.Management/Status",
];

#[tokio::test]
async fn api_04_a_path_that_is_not_exactly_a_method_means_nothing_whoever_asks() {
    let rig = Rig::start();
    assert_eq!(
        ask(Raw::socket(&rig).await, STATUS.as_bytes()).await,
        Answer::Status(0),
        "an admin is served"
    );
    assert_eq!(
        ask(Raw::nobody(&rig).await, STATUS.as_bytes()).await,
        Answer::Status(Code::Unauthenticated as u8),
        "nobody is not"
    );
    for path in ODD {
        let shown = String::from_utf8_lossy(path);
        let (admin, nobody) =
            (ask(Raw::socket(&rig).await, path).await, ask(Raw::nobody(&rig).await, path).await);
        assert_eq!(admin, nobody, "{shown}: the answer must not depend on who asks");
        match admin {
            Answer::Status(status) => assert_eq!(status, Code::Unimplemented as u8, "{shown}"),
            Answer::Reset(_) | Answer::Gone(_) => {}
            Answer::Open => panic!("{shown} was served"),
        }
    }
    let after = ask(Raw::nobody(&rig).await, HEALTH).await;
    assert_eq!(after, Answer::Status(0), "and the server goes on");
}

#[tokio::test]
async fn api_04_a_query_behind_a_method_gives_nobody_more() {
    let rig = Rig::start();
    for query in ["?", "?role=admin", "?/weft.identity.v1.Identity/GetBundle"] {
        let path = format!("{STATUS}{query}");
        let answer = ask(Raw::nobody(&rig).await, path.as_bytes()).await;
        assert_eq!(answer, Answer::Status(Code::Unauthenticated as u8), "{path}");
    }
}

#[tokio::test]
async fn api_04_the_caller_is_the_connection_whatever_the_headers_say() {
    let rig = Rig::start();
    for header in [
        ("authorization", "Bearer admin"),
        ("x-forwarded-client-cert", "URI=spiffe://corp.example/user/root"),
        ("x-weft-role", "admin"),
        ("cookie", "role=admin"),
        ("grpc-timeout", "99999999H"),
    ] {
        let mut nobody = Raw::nobody(&rig).await;
        nobody.call(1, STATUS.as_bytes(), &[header], EMPTY).await;
        let answer = nobody.answer(1).await;
        assert_eq!(answer, Answer::Status(Code::Unauthenticated as u8), "{header:?}");
    }
}

#[tokio::test]
async fn api_05_compressed_messages_are_refused_before_anything_is_unpacked() {
    let rig = Rig::start();
    let revoke = b"/weft.management.v1.Management/RevokeToken";
    // Ten bytes that say they are compressed; a bomb would be no larger.
    let bomb = [&[1, 0, 0, 0, 10][..], &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3]].concat();
    for encoding in ["gzip", "deflate", "zstd", "br"] {
        let mut admin = Raw::socket(&rig).await;
        admin.call(1, revoke, &[("grpc-encoding", encoding)], &bomb).await;
        assert_eq!(admin.answer(1).await, Answer::Status(Code::Unimplemented as u8), "{encoding}");
    }
    let mut admin = Raw::socket(&rig).await;
    admin.call(1, revoke, &[], &bomb).await;
    let unnamed = admin.answer(1).await;
    assert_eq!(unnamed, Answer::Status(Code::InvalidArgument as u8), "compressed with what is not said");
}

#[tokio::test]
async fn api_05_a_frame_that_is_cut_or_lies_about_its_length_is_no_message() {
    let rig = Rig::start();
    let revoke = b"/weft.management.v1.Management/RevokeToken";
    for (body, expected) in [
        ([0, 0xff, 0xff, 0xff, 0xff], Code::ResourceExhausted),
        ([0, 0, 0x40, 0, 1], Code::ResourceExhausted),
        ([7, 0, 0, 0, 0], Code::InvalidArgument),
    ] {
        let mut admin = Raw::socket(&rig).await;
        admin.call(1, revoke, &[], &body).await;
        assert_eq!(admin.answer(1).await, Answer::Status(expected as u8), "{body:?}");
    }
    for body in [&[][..], &[0, 0], &[0, 0, 0, 0, 9, 1, 2]] {
        let mut admin = Raw::socket(&rig).await;
        admin.call(1, revoke, &[], body).await;
        let answer = admin.answer(1).await;
        assert!(matches!(answer, Answer::Status(status) if status != 0), "{body:?}: {answer:?}");
    }
    assert_eq!(ask(Raw::nobody(&rig).await, HEALTH).await, Answer::Status(0));
}

#[tokio::test]
async fn api_05_headers_are_bounded() {
    let rig = Rig::start();
    // Each counts for its name, its value and 32 bytes (RFC 9113 §6.5.2), so the second lot has 20 KiB.
    let (fits, too_many) = ([("a", "b"); 300], [("a", "b"); 600]);
    let mut nobody = Raw::nobody(&rig).await;
    nobody.call(1, HEALTH, &fits, EMPTY).await;
    assert_eq!(nobody.answer(1).await, Answer::Status(0));
    let mut nobody = Raw::nobody(&rig).await;
    nobody.call(1, HEALTH, &too_many, EMPTY).await;
    let refused = nobody.answer(1).await;
    assert!(!matches!(refused, Answer::Status(0)), "{refused:?}");
}

async fn ask(mut raw: Raw, path: &[u8]) -> Answer {
    raw.call(1, path, &[], EMPTY).await;
    raw.answer(1).await
}
