//! Whole conversations on real loopback listeners, with the kernel as witness.

use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::*;
use crate::testing::PATIENCE;

fn own_uid() -> u32 {
    nix::unistd::getuid().as_raw()
}

fn selectable(name: &str, uid: u32, secret: u8) -> Selectable {
    let workload = LocalWorkload {
        namespace: "shop".parse().unwrap(),
        name: name.parse().unwrap(),
        identity: format!("spiffe://demo.example/ns/shop/sa/{name}").parse().unwrap(),
        uid: Some(uid),
    };
    Selectable {
        workload: Arc::new(workload),
        credential: Arc::new(Credential::from_parts(name, &[secret; 16])),
    }
}

/// A proxy port with these workloads behind it.
async fn shared_port(workloads: Vec<Selectable>) -> Listener {
    proxy_with(HeadLimits::default(), 10, workloads).await
}

async fn proxy_with(limits: HeadLimits, connections: usize, workloads: Vec<Selectable>) -> Listener {
    let all = LocalWorkloads::default();
    all.publish(workloads);
    let interception = Interception::new(limits, connections, Some(7_480), OwnSockets::default()).unwrap();
    interception.proxy(TcpListener::bind("127.0.0.1:0").await.unwrap(), Owner::Shared(all))
}

/// What became of a client that sends `pieces`, and all that it was answered.
async fn talk(listener: &Listener, pieces: &[&[u8]]) -> (Result<Accepted, InterceptError>, Vec<u8>) {
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    client.set_nodelay(true).unwrap();
    let pending = listener.accept().await;
    let (mut read, mut write) = client.split();
    let mut answer = Vec::new();
    let converse = async {
        for piece in pieces {
            // One that was refused early does not listen to the end.
            let _ = write.write_all(piece).await;
            tokio::task::yield_now().await;
        }
        let _ = read.read_to_end(&mut answer).await;
        let _ = write.shutdown().await;
        std::future::pending::<()>().await;
    };
    let finished = tokio::select! {
        finished = timeout(PATIENCE, pending.finish()) => finished.unwrap(),
        () = converse => unreachable!(),
    };
    if finished.is_err() {
        let _ = timeout(PATIENCE, read.read_to_end(&mut answer)).await.unwrap();
    } else {
        // The kernel, not tokio, knows what has arrived by now.
        let mut client = client.into_std().unwrap();
        let _ = io::Read::read_to_end(&mut client, &mut answer);
    }
    (finished, answer)
}

async fn refusal(listener: &Listener, request: &str) -> String {
    let (refused, answer) = talk(listener, &[request.as_bytes()]).await;
    assert!(refused.is_err(), "{request:?}");
    String::from_utf8(answer).unwrap()
}

fn one() -> Vec<Selectable> {
    vec![selectable("order", own_uid(), 1)]
}

fn two() -> Vec<Selectable> {
    vec![selectable("order", own_uid(), 1), selectable("charge", own_uid(), 2)]
}

const SOCKS_CHARGE: &[u8] = b"\x05\x01\x00\x03\x0bcharge.shop\x00\x50";

#[tokio::test]
async fn every_protocol_of_the_proxy_port_leads_to_its_destination() {
    let listener = shared_port(one()).await;
    let greeting: &[u8] = b"\x05\x01\x00";
    for (pieces, protocol, destination) in [
        (vec![greeting, SOCKS_CHARGE], Protocol::Socks5, "charge.shop:80"),
        (vec![&b"CONNECT charge.shop:443 HTTP/1.1\r\n\r\n"[..]], Protocol::Connect, "charge.shop:443"),
        (vec![&b"GET http://charge.shop/ HTTP/1.1\r\n\r\n"[..]], Protocol::Http, "charge.shop:80"),
        (
            vec![&b"GET / HTTP/1.1\r\nHost: charge.weft.localhost:7480\r\n\r\n"[..]],
            Protocol::Http,
            "charge.weft.localhost",
        ),
    ] {
        let (accepted, _) = talk(&listener, &pieces).await;
        let accepted = accepted.unwrap();
        assert_eq!((accepted.protocol, accepted.destination.to_string().as_str()), (protocol, destination));
        assert_eq!(accepted.source.name.as_str(), "order");
    }
    let own = format!(
        "GET / HTTP/1.1\r\nHost: charge.weft.localhost:{}\r\n\r\n",
        listener.local_addr().unwrap().port()
    );
    let (accepted, _) = talk(&listener, &[own.as_bytes()]).await;
    assert_eq!(accepted.unwrap().destination.to_string(), "charge.weft.localhost");
}

#[tokio::test]
async fn success_is_told_when_the_connection_stands_and_early_bytes_wait() {
    let listener = shared_port(one()).await;
    let (accepted, answer) = talk(&listener, &[b"\x05\x01\x00", SOCKS_CHARGE, b"early"]).await;
    assert_eq!(answer, [5, 0]);
    let mut app = accepted.unwrap().app;
    assert!(app.awaits_success());
    assert!(b"early".starts_with(&app.behind), "{:?}", app.behind);
    app.established().await.unwrap();
}

#[tokio::test]
async fn several_workloads_of_one_uid_are_told_apart_by_credential() {
    let listener = shared_port(two()).await;
    let answer = refusal(&listener, "GET http://charge.shop/ HTTP/1.1\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 407 ") && answer.contains("X-Weft-Code: W2203"), "{answer}");
    assert!(
        answer.contains("Proxy-Authenticate: Basic") && answer.contains("order.shop and charge.shop"),
        "{answer}"
    );

    // charge:AgICAgICAgICAgICAgICAg, which are its name and 16 bytes of 2.
    let basic = "Proxy-Authorization: Basic Y2hhcmdlOkFnSUNBZ0lDQWdJQ0FnSUNBZ0lDQWc=";
    let request = format!("CONNECT ledger:80 HTTP/1.1\r\n{basic}\r\n\r\n");
    let (accepted, _) = talk(&listener, &[request.as_bytes()]).await;
    assert_eq!(accepted.unwrap().source.name.as_str(), "charge");

    let password: &[u8] = b"\x01\x06charge\x16AgICAgICAgICAgICAgICAg";
    let (accepted, answer) = talk(&listener, &[b"\x05\x02\x00\x02", password, SOCKS_CHARGE]).await;
    assert_eq!(accepted.unwrap().source.name.as_str(), "charge");
    assert_eq!(answer, [5, 2, 1, 0]);
}

#[tokio::test]
async fn a_wrong_credential_is_refused_in_each_protocol() {
    let listener = shared_port(one()).await;
    let wrong = "Proxy-Authorization: Basic b3JkZXI6d3Jvbmc=";
    let answer = refusal(&listener, &format!("GET http://a/ HTTP/1.1\r\n{wrong}\r\n\r\n")).await;
    assert!(answer.contains("W2204") && !answer.contains("wrong"), "{answer}");
    let answer = refusal(&listener, "GET http://a/ HTTP/1.1\r\nProxy-Authorization: Bearer x\r\n\r\n").await;
    assert!(answer.contains("W8013"), "{answer}");
    let (refused, answer) = talk(&listener, &[b"\x05\x01\x02", b"\x01\x05order\x05wrong"]).await;
    assert!(matches!(refused, Err(InterceptError::Unproven(Unproven::Credential { .. }))));
    assert_eq!(answer, [5, 2, 1, 1]);
}

#[tokio::test]
async fn t1_a_caller_of_another_user_gets_nowhere() {
    let stranger = own_uid() + 1;
    let listener = shared_port(vec![selectable("order", stranger, 1)]).await;
    let answer = refusal(&listener, "GET http://charge.shop/ HTTP/1.1\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("W2202"), "{answer}");
    let (refused, answer) = talk(&listener, &[b"\x05\x01\x00", SOCKS_CHARGE]).await;
    assert!(matches!(refused, Err(InterceptError::Unproven(Unproven::NoWorkload { .. }))));
    assert_eq!(answer[..4], [5, 0, 5, 2]);
}

#[tokio::test]
async fn an_upstream_belongs_to_one_workload() {
    let interception = Interception::new(HeadLimits::default(), 10, None, OwnSockets::default()).unwrap();
    let upstream = |uid| Upstream {
        owner: selectable("order", uid, 1).workload,
        service: weft_policy::name::ServiceName::new("shop".parse().unwrap(), "charge".parse().unwrap()),
        port: std::num::NonZeroU16::new(80).unwrap(),
    };
    let socket = || async { TcpListener::bind("127.0.0.1:0").await.unwrap() };
    let mine = interception.upstream(socket().await, upstream(own_uid()));
    let accepted = talk(&mine, &[]).await.0.unwrap();
    assert_eq!(
        (accepted.destination.to_string().as_str(), accepted.protocol),
        ("charge.shop:80", Protocol::Upstream)
    );
    let theirs = interception.upstream(socket().await, upstream(own_uid() + 1));
    let refused = talk(&theirs, &[]).await.0.unwrap_err();
    assert_eq!(refused.code(), code::OTHER_WORKLOAD);
}

#[tokio::test]
async fn what_is_no_proxy_request_is_told_apart() {
    let listener = shared_port(one()).await;
    assert!(matches!(talk(&listener, &[b"\x16\x03\x01"]).await.0, Err(InterceptError::Unknown(0x16))));
    assert!(matches!(talk(&listener, &[b"\x04\x01"]).await.0, Err(InterceptError::Unknown(4))));
    let (refused, answer) = talk(&listener, &[b"\x05\x01\x01"]).await;
    assert_eq!((refused.unwrap_err().code(), answer), (code::BAD_SOCKS, vec![5, 0xff]));
    let (refused, answer) =
        talk(&listener, &[b"\x05\x01\x00", b"\x05\x02\x00\x01\x7f\x00\x00\x01\x00\x50"]).await;
    assert_eq!((refused.unwrap_err().code(), &answer[..4]), (code::SOCKS_COMMAND, &[5, 0, 5, 7][..]));
    for (request, status, code) in [
        ("GET https://a/ HTTP/1.1\r\n\r\n", 400, "W8011"),
        ("GET / HTTP/1.1\r\nHost: charge.shop\r\n\r\n", 400, "W8008"),
        ("GET / HTTP/1.1\n\n", 400, "W8009"),
        ("CONNECT charge.shop HTTP/1.1\r\n\r\n", 400, "W8002"),
        ("GET / HTTP/1.1\r\nHost: a.weft.localhost\r\nOrigin: http://evil.example\r\n\r\n", 403, "W2207"),
    ] {
        let answer = refusal(&listener, request).await;
        let wanted = format!("HTTP/1.1 {status} ");
        assert!(answer.starts_with(&wanted) && answer.contains(&format!("X-Weft-Code: {code}")), "{answer}");
    }
    let long = format!("GET http://a/{} HTTP/1.1\r\n\r\n", "x".repeat(20_000));
    assert!(refusal(&listener, &long).await.starts_with("HTTP/1.1 431 "));
}

#[tokio::test]
async fn a_client_that_sends_too_little_is_told_after_the_timeout() {
    let limits = HeadLimits { timeout: Duration::from_millis(50), ..HeadLimits::default() };
    let listener = proxy_with(limits, 10, one()).await;
    let answer = refusal(&listener, "GET http://a/ HTTP/1.1\r\nHost").await;
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("W8007"), "{answer}");
}

#[tokio::test]
async fn connections_beyond_the_limit_are_refused_and_free_places_are_used_again() {
    let listener = proxy_with(HeadLimits::default(), 1, one()).await;
    let request: &[u8] = b"GET http://a/ HTTP/1.1\r\n\r\n";
    let (first, _) = talk(&listener, &[request]).await;
    let first = first.unwrap();
    assert!(matches!(talk(&listener, &[request]).await.0, Err(InterceptError::TooMany)));
    drop(first);
    assert!(talk(&listener, &[request]).await.0.is_ok());
}

#[tokio::test]
async fn wl_04_strangers_take_no_place_from_those_who_have_a_workload() {
    let (mine, theirs) = (own_uid(), own_uid() + 1);
    let all = LocalWorkloads::default();
    all.publish(vec![selectable("order", theirs, 1)]);
    let interception =
        Interception::new(HeadLimits::default(), 1, Some(7_480), OwnSockets::default()).unwrap();
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listener = interception.proxy(socket, Owner::Shared(all.clone()));
    let address = listener.local_addr().unwrap();
    let stranger = TcpStream::connect(address).await.unwrap();
    let pending = listener.accept().await;
    // The one place is still free for a caller with a workload.
    all.publish(vec![selectable("order", mine, 1)]);
    let request: &[u8] = b"GET http://a/ HTTP/1.1\r\n\r\n";
    assert!(talk(&listener, &[request]).await.0.is_ok());
    drop((pending, stranger));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_request_means_the_same_wherever_it_is_split(cuts in proptest::collection::vec(0_usize..80, 0..6)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = shared_port(one()).await;
            let socks = [b"\x05\x01\x00", SOCKS_CHARGE].concat();
            let http = b"POST http://charge.shop/x HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody".to_vec();
            for whole in [socks, http] {
                let mut places: Vec<usize> = cuts.iter().map(|cut| cut % whole.len()).collect();
                places.sort_unstable();
                let mut pieces = Vec::new();
                let mut from = 0;
                for place in places.into_iter().chain([whole.len()]) {
                    pieces.push(&whole[from..place]);
                    from = place;
                }
                let (accepted, _) = talk(&listener, &pieces).await;
                assert_eq!(accepted.unwrap().destination.to_string(), "charge.shop:80");
            }
        });
    }
}
