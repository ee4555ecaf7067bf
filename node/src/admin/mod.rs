//! The agent's own pages: metrics and health for machines, dumps for people.
//!
//! Owns two routers and who may read them. [`metrics_router`] (7402) holds nothing secret and may be scraped from
//! outside. [`admin_router`] (7401) tells what the agent knows: it is served on loopback, to the agent's own user and
//! root only, and to requests that name this host (a web page elsewhere cannot make a browser read it).

mod bounded;
pub mod dump;
pub mod local;
pub mod readiness;

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Query, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{encoding::text, registry::Registry};
use serde_json::{Value, json};

pub use self::{
    bounded::Bounded,
    dump::Dump,
    local::LocalListener,
    readiness::{Condition, Heartbeat, Liveness, Readiness},
};
use crate::clock::Clock;

/// The content type of OpenMetrics text.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the pages are made of.
#[derive(Clone)]
pub struct Pages {
    /// Every metric of the process.
    pub registry: Arc<Registry>,
    /// What is in order.
    pub readiness: Readiness,
    /// Whether the workers turn.
    pub liveness: Liveness,
    /// What the plane holds.
    pub dump: Arc<dyn Dump>,
    /// The plane's clock.
    pub clock: Clock,
}

/// `/metrics`, `/livez`, `/readyz`.
pub fn metrics_router(pages: Pages) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(pages)
}

/// `/readyz`, `/config_dump`, `/flows?limit=`, `/tunnels`, for requests that name this host.
pub fn admin_router(pages: Pages) -> Router {
    Router::new()
        .route("/readyz", get(readyz))
        .route("/config_dump", get(config_dump))
        .route("/flows", get(flows))
        .route("/tunnels", get(tunnels))
        .with_state(pages)
        .layer(middleware::from_fn(this_host))
}

async fn metrics(State(pages): State<Pages>) -> Response {
    let mut page = String::new();
    match text::encode(&mut page, &pages.registry) {
        Ok(()) => ([(header::CONTENT_TYPE, OPENMETRICS)], page).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn livez(State(pages): State<Pages>) -> Response {
    let silent = pages.liveness.silent(pages.clock.now());
    let body = json!({"live": silent.is_empty(), "silent": silent});
    (status(silent.is_empty()), Json(body)).into_response()
}

async fn readyz(State(pages): State<Pages>) -> Response {
    (status(pages.readiness.is_ready()), Json(pages.readiness.to_json())).into_response()
}

async fn config_dump(State(pages): State<Pages>) -> Json<Value> {
    Json(pages.dump.config())
}

async fn flows(State(pages): State<Pages>, Query(query): Query<Vec<(String, String)>>) -> Response {
    let limit = query.iter().find(|(name, _)| name == "limit").map(|(_, value)| value.parse::<usize>());
    match limit.transpose() {
        Ok(limit) => {
            Json(pages.dump.flows(limit.unwrap_or(dump::MAX_FLOWS).min(dump::MAX_FLOWS))).into_response()
        }
        Err(_) => (StatusCode::BAD_REQUEST, "limit is not a number\n").into_response(),
    }
}

async fn tunnels(State(pages): State<Pages>) -> Json<Value> {
    Json(pages.dump.tunnels())
}

const fn status(good: bool) -> StatusCode {
    if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// Refuses a request whose Host is not this host: a page whose name was made to point here (DNS rebinding).
async fn this_host(request: Request, next: Next) -> Response {
    if names_this_host(request.headers()) {
        return next.run(request).await;
    }
    (StatusCode::MISDIRECTED_REQUEST, "this page is served to this host only\n").into_response()
}

fn names_this_host(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(Ok(host)), None) = (hosts.next().map(|host| host.to_str()), hosts.next()) else { return false };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        Some(_) | None => host,
    };
    ["localhost", "127.0.0.1", "[::1]"].iter().any(|own| name.eq_ignore_ascii_case(own))
}

#[cfg(test)]
mod tests;
