//! How many connections and streams there may be, and for how long (API-07, API-10, API-14; security.md 9.3).

use std::time::Duration;

use tokio::io::AsyncReadExt;
use tonic::Code;
use weft_api::pb::management::{WatchRequest, management_client::ManagementClient};
use weft_policy::code;

use super::{
    Rig, call, codes,
    raw::{self, Answer, Bytes, EMPTY, Raw},
};

const HEALTH: &str = "/grpc.health.v1.Health/Check";
const STATUS: &str = "/weft.management.v1.Management/Status";
/// A watch of all objects of a kind: its stream stays open.
const WATCH: &[u8] = b"/weft.management.v1.Management/Watch";
/// `WatchRequest { kind: "Service", all_namespaces: true }` in its frame.
const SERVICES: &[u8] = &[0, 0, 0, 0, 11, 0x0a, 7, b'S', b'e', b'r', b'v', b'i', b'c', b'e', 0x18, 1];
const REFUSED_STREAM: u32 = 7;
const WITHIN: Duration = Duration::from_secs(20);

#[tokio::test]
async fn api_07_a_connection_has_as_many_streams_as_it_may_and_not_one_more() {
    let rig = Rig::with("limits: {streamsPerConnection: 3}\n");
    let mut raw = Raw::socket(&rig).await;
    for stream in [1, 3, 5] {
        raw.call(stream, WATCH, &[], SERVICES).await;
        assert_eq!(raw.opens(stream).await, Answer::Open, "stream {stream}");
    }
    raw.call(7, WATCH, &[], SERVICES).await;
    assert_eq!(raw.opens(7).await, Answer::Reset(REFUSED_STREAM));
    call(&rig.socket().await, STATUS).await.unwrap();
}

#[tokio::test]
async fn api_07_by_default_a_connection_has_64_streams() {
    let rig = Rig::start();
    let mut raw = Raw::socket(&rig).await;
    for number in 0..64 {
        let stream = 2 * number + 1;
        raw.call(stream, WATCH, &[], SERVICES).await;
        assert_eq!(raw.opens(stream).await, Answer::Open, "stream {stream}");
    }
    raw.call(129, WATCH, &[], SERVICES).await;
    assert_eq!(raw.opens(129).await, Answer::Reset(REFUSED_STREAM));
}

#[tokio::test]
async fn api_07_thousands_of_idle_streams_on_many_connections_end_at_the_limit_of_their_client() {
    let rig = Rig::with("limits: {streamsPerConnection: 64, streamsPerClient: 48}\n");
    let (ada, eve) = (rig.person("ada", "viewer").await, rig.person("eve", "viewer").await);
    let watch = || WatchRequest { kind: "Service".into(), all_namespaces: true, ..Default::default() };
    let (mut open, mut refused) = (Vec::new(), 0);
    for _ in 0..20 {
        let mut client = ManagementClient::new(rig.dial(Some(&ada)).await);
        for _ in 0..50 {
            match client.watch(watch()).await {
                Ok(stream) => open.push(stream),
                Err(status) => {
                    assert_eq!(codes::<()>(Err(status)).1, code::TOO_MANY_STREAMS.as_str());
                    refused += 1;
                }
            }
        }
    }
    assert_eq!((open.len(), refused), (48, 20 * 50 - 48));
    let mut other = ManagementClient::new(rig.dial(Some(&eve)).await);
    drop(other.watch(watch()).await.unwrap());
    drop(open);
    let free =
        async { while ManagementClient::new(rig.dial(Some(&ada)).await).watch(watch()).await.is_err() {} };
    tokio::time::timeout(WITHIN, free).await.expect("what is closed is free again");
}

#[tokio::test]
async fn api_07_a_connection_is_asked_to_end_at_its_age_and_the_client_comes_back() {
    let rig = Rig::with("limits: {connectionAge: 300ms}\n");
    let channel = rig.dial(None).await;
    call(&channel, HEALTH).await.unwrap();
    assert!(Raw::socket(&rig).await.goes_away().await);
    assert!(Raw::nobody(&rig).await.goes_away().await);
    let back = async { while call(&channel, HEALTH).await.is_err() {} };
    tokio::time::timeout(WITHIN, back).await.expect("the channel connects anew");
}

#[tokio::test]
async fn api_10_a_client_that_does_not_begin_to_speak_is_let_go() {
    let rig = Rig::with("limits: {handshakeTimeout: 1s}\n");
    let ada = rig.person("ada", "viewer").await;
    for svid in [None, Some(&ada)] {
        let mut silent = raw::tls(&rig, svid).await;
        ended(&mut silent).await;
        let mut slow = raw::tls(&rig, svid).await;
        tokio::io::AsyncWriteExt::write_all(&mut slow, b"PRI * HTTP/2.0\r\n\r\nSM").await.unwrap();
        ended(&mut slow).await;
    }
    let mut raw = Raw::nobody(&rig).await;
    raw.call(1, HEALTH.as_bytes(), &[], EMPTY).await;
    assert_eq!(raw.answer(1).await, Answer::Status(0));
}

#[tokio::test]
async fn api_10_callers_without_a_certificate_leave_room_for_those_who_have_one() {
    let rig = Rig::with("limits: {anonymousConnections: 3, anonymousPerAddress: 3}\n");
    let ada = rig.person("ada", "viewer").await;
    let free = async {
        while http_open(&rig).await != 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(WITHIN, free).await.expect("the connection that joined has ended");
    let mut strangers = Vec::new();
    for number in 1..=3 {
        let mut raw = Raw::nobody(&rig).await;
        raw.call(1, HEALTH.as_bytes(), &[], EMPTY).await;
        assert_eq!(raw.answer(1).await, Answer::Status(0), "stranger {number}");
        strangers.push(raw);
    }
    ended(&mut raw::tls(&rig, None).await).await;
    for _ in 0..8 {
        call(&rig.dial(Some(&ada)).await, STATUS).await.unwrap();
    }
    drop(strangers.pop());
    let free = async {
        loop {
            let mut raw = Raw::begin(raw::tls(&rig, None).await).await;
            raw.call(1, HEALTH.as_bytes(), &[], EMPTY).await;
            if raw.answer(1).await == Answer::Status(0) {
                break;
            }
        }
    };
    tokio::time::timeout(WITHIN, free).await.expect("the place of one that left is free again");
}

#[tokio::test]
async fn api_10_a_caller_without_a_certificate_does_not_stay() {
    let rig = Rig::with("limits: {anonymousAge: 2s}\n");
    let ada = rig.person("ada", "viewer").await;
    let mut known = Raw::begin(raw::tls(&rig, Some(&ada)).await).await;
    let mut stranger = Raw::nobody(&rig).await;
    stranger.call(1, HEALTH.as_bytes(), &[], EMPTY).await;
    assert_eq!(stranger.answer(1).await, Answer::Status(0));
    stranger.goes_away().await;
    known.call(1, STATUS.as_bytes(), &[], EMPTY).await;
    assert_eq!(known.answer(1).await, Answer::Status(0), "who is known stays");
}

#[tokio::test]
async fn api_14_at_the_end_of_a_certificate_calls_are_refused_and_streams_close() {
    let (rig, hands) = Rig::timed("");
    let ada = rig.person("ada", "viewer").await;
    let channel = rig.dial(Some(&ada)).await;
    let mut client = ManagementClient::new(channel.clone());
    let watch = WatchRequest { kind: "Service".into(), all_namespaces: true, ..Default::default() };
    let mut stream = client.watch(watch.clone()).await.unwrap().into_inner();
    let left = ada.validity().not_after.duration_since(rig.now()).unwrap();
    hands.advance(left.saturating_sub(Duration::from_secs(1)));
    call(&channel, STATUS).await.unwrap();
    hands.advance(Duration::from_secs(1));
    let end = tokio::time::timeout(WITHIN, stream.message()).await.expect("the stream ends");
    assert_eq!(end.unwrap_err().code(), Code::Unauthenticated);
    for (path, _) in crate::roles::METHODS {
        let (grpc, id) = codes(call(&channel, path).await);
        assert_eq!((grpc, &*id), (Code::Unauthenticated, code::UNAUTHENTICATED.as_str()), "{path}");
    }
    assert_eq!(codes(client.watch(watch).await).0, Code::Unauthenticated);
}

/// Connections of the control port that are open, as the metrics tell.
async fn http_open(rig: &Rig) -> u64 {
    let text = super::http(rig.server().metrics_addr(), "/metrics").await;
    let line = text.lines().find_map(|line| line.strip_prefix("weft_registry_control_open "));
    line.expect("the gauge is there").parse().unwrap()
}

/// Waits until the server has closed the connection.
async fn ended(stream: &mut Box<dyn Bytes>) {
    let mut rest = Vec::new();
    let end = tokio::time::timeout(WITHIN, stream.read_to_end(&mut rest)).await;
    assert!(end.is_ok(), "the connection is still open");
}
