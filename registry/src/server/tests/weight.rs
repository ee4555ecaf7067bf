//! What a request may weigh, and what it costs the server (API-05; security.md 9.3).

use http::uri::PathAndQuery;
use prost::Message as _;
use tonic::{Code, Request, Status, transport::Channel};
use weft_api::{
    channel::MAX_MESSAGE_BYTES,
    pb::{
        discovery::{
            DiscoveryRequest, Hello, Subscribe, discovery_client::DiscoveryClient, discovery_request,
        },
        identity::{IssueSvidRequest, JoinRequest},
        management::{ApplyRequest, Document, ListRequest, RevokeTokenRequest},
    },
};
use weft_policy::code;

use super::{Rig, codes};
use crate::{harness::Raw, wire::SMALL_BYTES};

const APPLY: &str = "/weft.management.v1.Management/Apply";
const REVOKE: &str = "/weft.management.v1.Management/RevokeToken";
const DELETE: &str = "/weft.management.v1.Management/Delete";

/// The most that a message may cost, in bytes of memory for each of its own: below the 20 of the project's promise, with
/// the client of this test in the same process.
const MOST: usize = 20;

#[tokio::test]
async fn api_05_a_message_with_documents_ends_at_4_mib() {
    let rig = Rig::start();
    let channel = rig.socket().await;
    for (bytes, fits) in
        [(MAX_MESSAGE_BYTES - 1, true), (MAX_MESSAGE_BYTES, true), (MAX_MESSAGE_BYTES + 1, false)]
    {
        let mut request =
            ApplyRequest { documents: vec![Document { json: vec![b' '; bytes] }], ..Default::default() };
        let over = request.encoded_len() - bytes;
        request.documents[0].json.truncate(bytes - over);
        assert_eq!(request.encoded_len(), bytes);
        told(send(&channel, APPLY, request.encode_to_vec()).await, fits, bytes);
    }
}

#[tokio::test]
async fn api_05_any_other_message_ends_at_64_kib() {
    let rig = Rig::start();
    let (admin, nobody) = (rig.socket().await, rig.dial(None).await);
    let node = rig.node("hostb").await;
    let node = rig.dial(Some(&node)).await;
    for (bytes, fits) in [(SMALL_BYTES - 1, true), (SMALL_BYTES, true), (SMALL_BYTES + 1, false)] {
        // One field of text or bytes, with four bytes before it: its tag and a length of three.
        let text = "x".repeat(bytes - 4);
        let revoke = RevokeTokenRequest { id: text.clone() }.encode_to_vec();
        let join = JoinRequest { secret: text, ..Default::default() }.encode_to_vec();
        let csr = vec![0; bytes - 4];
        let issue = IssueSvidRequest { csr, ..Default::default() }.encode_to_vec();
        assert_eq!((revoke.len(), join.len(), issue.len()), (bytes, bytes, bytes));
        told(send(&admin, REVOKE, revoke).await, fits, bytes);
        told(send(&nobody, "/weft.identity.v1.Identity/Join", join).await, fits, bytes);
        told(send(&node, "/weft.identity.v1.Identity/IssueSvid", issue).await, fits, bytes);
    }
}

#[tokio::test]
async fn api_05_lists_of_a_million_are_refused_and_cost_little() {
    let rig = Rig::start();
    let (admin, node) = (rig.socket().await, rig.node("hostb").await);
    // `Document {}` in the field `documents`, two bytes each: as many as a message holds.
    let documents = [0x0a, 0].repeat(MAX_MESSAGE_BYTES / 2);
    let (grpc, id) = cost(documents.len(), send(&admin, APPLY, documents)).await;
    assert_eq!((grpc, &*id), (Code::InvalidArgument, code::OVER_LIMIT.as_str()));

    // `ObjectRef {}`, whose 72 bytes in memory come from two: refused by its weight, not by its number.
    let references = [0x0a, 0].repeat(MAX_MESSAGE_BYTES / 2);
    let (grpc, id) = cost(references.len(), send(&admin, DELETE, references)).await;
    assert_eq!((grpc, &*id), (Code::ResourceExhausted, code::MESSAGE_TOO_LARGE.as_str()));
    let references = [0x0a, 0].repeat(SMALL_BYTES / 2);
    assert!(send(&admin, DELETE, references).await.is_err());

    let channel = rig.dial(Some(&node)).await;
    let services = vec![String::new(); MAX_MESSAGE_BYTES / 2 - 4];
    let hello = Hello { boot: 1, services, ..Default::default() };
    let hello = DiscoveryRequest { message: Some(discovery_request::Message::Hello(hello)) };
    let weight = hello.encoded_len();
    let (grpc, id) = cost(weight, stream(channel.clone(), vec![hello])).await;
    assert_eq!((grpc, &*id), (Code::ResourceExhausted, code::OVER_LIMIT.as_str()));

    let hello = Hello { boot: 2, ..Default::default() };
    let add = vec![String::new(); 1_000_000];
    let subscribe = Subscribe { add, remove: Vec::new() };
    let messages = vec![
        DiscoveryRequest { message: Some(discovery_request::Message::Hello(hello)) },
        DiscoveryRequest { message: Some(discovery_request::Message::Subscribe(subscribe)) },
    ];
    let (grpc, id) = cost(2_000_000, stream(channel, messages)).await;
    assert_eq!((grpc, &*id), (Code::ResourceExhausted, code::OVER_LIMIT.as_str()));
}

#[tokio::test]
async fn api_05_nesting_without_end_is_refused() {
    let rig = Rig::start();
    let admin = rig.socket().await;
    // Groups in groups (field 9, wire type 3): the one kind of nesting that a decoder of protobuf follows blindly.
    for depth in [101, 10_000, SMALL_BYTES] {
        let (grpc, id) = codes(send(&admin, REVOKE, vec![0x4b; depth]).await);
        assert_eq!((grpc, &*id), (Code::InvalidArgument, code::WRONG_TYPE.as_str()), "depth {depth}");
    }
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        for depth in [127, 129, 100_000] {
            let json = format!("{}1{}", open.repeat(depth), close.repeat(depth)).into_bytes();
            let request = ApplyRequest { documents: vec![Document { json }], ..Default::default() };
            let (grpc, id) = codes(send(&admin, APPLY, request.encode_to_vec()).await);
            assert_eq!(grpc, Code::InvalidArgument);
            assert!(id.starts_with("W4"), "{id}");
        }
    }
}

#[tokio::test]
async fn api_05_texts_that_are_no_text_and_times_that_are_no_time_are_refused() {
    let rig = Rig::start();
    let admin = rig.socket().await;
    for bytes in [&[0xff_u8][..], &[0xc0, 0x80], &[0xed, 0xa0, 0x80], &[0xf4, 0x90, 0x80, 0x80]] {
        let mut message = vec![0x0a, u8::try_from(bytes.len()).unwrap()];
        message.extend(bytes);
        let (grpc, id) = codes(send(&admin, REVOKE, message).await);
        assert_eq!((grpc, &*id), (Code::InvalidArgument, code::WRONG_TYPE.as_str()), "{bytes:x?}");
    }
    for time in
        ["\"NaN\"", "\"NaNs\"", "\"inf\"", "\"-1s\"", "\"1e400s\"", "\"\"", "NaN", "1e999", "-0.0", "[]"]
    {
        let json = format!(
            "{{\"apiVersion\": \"weft.mesh/v1alpha1\", \"kind\": \"TrafficPolicy\", \
              \"metadata\": {{\"name\": \"t\", \"namespace\": \"shop\"}}, \
              \"spec\": {{\"targetRefs\": [{{\"group\": \"\", \"kind\": \"Service\", \"name\": \"charge\"}}], \
              \"timeouts\": {{\"connect\": {time}}}}}}}"
        );
        let request =
            ApplyRequest { documents: vec![Document { json: json.into_bytes() }], ..Default::default() };
        let (grpc, id) = codes(send(&admin, APPLY, request.encode_to_vec()).await);
        assert_eq!(grpc, Code::InvalidArgument, "{time}");
        assert!(id.starts_with("W4"), "{time}: {id}");
    }
}

#[tokio::test]
async fn limits_the_page_of_a_list_is_what_the_configuration_says() {
    let rig = Rig::with("limits: {listPage: 3}\n");
    for number in 1..=4 {
        let service = format!(
            "apiVersion: weft.mesh/v1alpha1\nkind: Service\nmetadata: {{name: s{number}, namespace: shop}}\n\
             spec: {{ports: [{{port: 80}}]}}\n"
        );
        rig.apply(&service).await;
        for asked in [0, 500, u32::MAX] {
            let request = ListRequest {
                kind: "Service".into(),
                namespace: "shop".into(),
                page_size: asked,
                ..Default::default()
            };
            let page = rig.admin().await.list(request).await.unwrap().into_inner();
            assert_eq!((page.documents.len(), page.next_page_token.is_empty()), (number.min(3), number <= 3));
        }
    }
}

/// Sends bytes as the message of a unary call.
async fn send(channel: &Channel, path: &str, message: Vec<u8>) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path: PathAndQuery = path.parse().unwrap();
    client.unary(Request::new(message), path, Raw).await.map(drop)
}

/// What an agent is told of its messages, at last.
async fn stream(channel: Channel, messages: Vec<DiscoveryRequest>) -> Result<(), Status> {
    use tokio_stream::StreamExt as _;

    let requests = tokio_stream::iter(messages).chain(tokio_stream::pending());
    let mut answers = DiscoveryClient::new(channel).stream(requests).await?.into_inner();
    while answers.message().await?.is_some() {}
    Ok(())
}

/// Checks that only the weight decided.
#[track_caller]
fn told(answer: Result<(), Status>, fits: bool, bytes: usize) {
    let (grpc, id) = codes(answer);
    let too_large = (grpc, &*id) == (Code::ResourceExhausted, code::MESSAGE_TOO_LARGE.as_str());
    assert_eq!(!too_large, fits, "{bytes} bytes: {grpc:?} {id}");
}

/// The refusal of a message of `weight` bytes, whose cost in memory is checked.
async fn cost(weight: usize, answer: impl Future<Output = Result<(), Status>>) -> (Code, String) {
    let before = reset_peak();
    let refusal = codes(answer.await);
    let grown = peak().saturating_sub(before);
    println!("{weight} bytes cost {grown}, {:.1} for each", grown as f64 / weight as f64);
    assert!(grown < MOST * weight, "{weight} bytes cost {grown}");
    refusal
}

/// The largest resident size of this process since [`reset_peak`], in bytes.
fn peak() -> usize {
    memory("VmHWM:")
}

/// Forgets the peak; returns the resident size now.
fn reset_peak() -> usize {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    memory("VmRSS:")
}

fn memory(row: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(row)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}
