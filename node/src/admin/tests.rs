//! The pages over real sockets.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::*;
use crate::{intercept::Lookup, own_sockets::OwnSockets, telemetry::NodeMetrics};

struct Fake;

impl Dump for Fake {
    fn config(&self) -> Value {
        json!({"revision": 7})
    }

    fn flows(&self, limit: usize) -> Value {
        json!({"limit": limit})
    }

    fn tunnels(&self) -> Value {
        json!([])
    }
}

fn pages() -> Pages {
    let mut registry = Registry::default();
    NodeMetrics::register(&mut registry, 10);
    let clock = Clock::system();
    let liveness = Liveness::new(clock.now());
    Pages {
        registry: Arc::new(registry),
        readiness: Readiness::default(),
        liveness,
        dump: Arc::new(Fake),
        clock,
    }
}

/// Serves `router` on a port of its own and asks it.
async fn ask(router: Router, users: Vec<u32>, request: &str) -> String {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let listener =
        LocalListener::for_users(socket, Arc::new(Lookup::open(OwnSockets::default()).unwrap()), users);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { axum::serve(listener, router).await });
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = client.read_to_string(&mut answer);
    // A refusal may be followed by a reset: what was said before counts.
    let _ = tokio::time::timeout(Duration::from_secs(10), read).await.unwrap();
    answer
}

fn own_user() -> Vec<u32> {
    vec![nix::unistd::geteuid().as_raw()]
}

async fn get_page(router: Router, path: &str, host: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    ask(router, own_user(), &request).await
}

#[tokio::test]
async fn health_tells_the_truth_with_reasons() {
    let pages = pages();
    let answer = get_page(metrics_router(pages.clone()), "/readyz", "agent:7402").await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("not yet known"), "{answer}");
    for condition in [
        Condition::Identity,
        Condition::Bundle,
        Condition::Snapshot,
        Condition::Listeners,
        Condition::Serving,
    ] {
        pages.readiness.ok(condition);
    }
    let answer = get_page(metrics_router(pages.clone()), "/readyz", "agent:7402").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");

    let long_ago = pages.clock.now() - Duration::from_secs(60);
    let liveness = Liveness::new(long_ago);
    let _hanging = liveness.expect("worker-0", long_ago);
    let answer = get_page(metrics_router(Pages { liveness, ..pages }), "/livez", "agent:7402").await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("worker-0"), "{answer}");
}

#[tokio::test]
async fn metrics_are_openmetrics_text() {
    let answer = get_page(metrics_router(pages()), "/metrics", "agent:7402").await;
    assert!(answer.contains("content-type: application/openmetrics-text"), "{answer}");
    assert!(answer.contains("weft_config_revision 0") && answer.trim_end().ends_with("# EOF"), "{answer}");
}

#[tokio::test]
async fn dumps_are_served_to_this_host_only() {
    for host in ["localhost:7401", "127.0.0.1", "[::1]:7401"] {
        let answer = get_page(admin_router(pages()), "/config_dump", host).await;
        assert!(answer.ends_with("{\"revision\":7}"), "{host}: {answer}");
    }
    for host in ["evil.example", "localhost.evil.example:7401", "::1", ""] {
        let answer = get_page(admin_router(pages()), "/config_dump", host).await;
        assert!(answer.starts_with("HTTP/1.1 421 "), "{host}: {answer}");
    }
}

#[tokio::test]
async fn t1_another_user_cannot_read_the_admin_page() {
    let request = "GET /flows HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let answer = ask(admin_router(pages()), vec![4_242_424], request).await;
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("W6015"), "{answer}");
    assert!(answer.ends_with("may read this.\n"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn api_07_idle_connections_are_bounded_and_end() {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    let (listener, router) = (Bounded::new(socket), metrics_router(pages()));
    tasks.spawn(async move { axum::serve(listener, router).await });
    let mut idle = Vec::new();
    let began = tokio::time::Instant::now();
    for _ in 0..200 {
        idle.push(TcpStream::connect(address).await.unwrap());
    }
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    // Virtual time moves on while they connect, so some have ended before the last comes. Without a bound the last would
    // not wait at all, without an end it would wait for ever; all in turn are four lots.
    let took = began.elapsed().as_secs();
    assert!((10..=41).contains(&took), "{took} s");
}

#[tokio::test]
async fn flows_are_bounded_by_the_question_and_by_the_page() {
    let page = |path: &'static str| async move { get_page(admin_router(pages()), path, "localhost").await };
    assert!(page("/flows").await.ends_with("{\"limit\":10000}"));
    assert!(page("/flows?limit=5").await.ends_with("{\"limit\":5}"));
    assert!(page("/flows?limit=99999999").await.ends_with("{\"limit\":10000}"));
    assert!(page("/flows?limit=x").await.starts_with("HTTP/1.1 400 "));
    assert!(page("/tunnels").await.ends_with("[]"));
}
