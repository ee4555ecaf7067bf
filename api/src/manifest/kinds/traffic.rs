//! `TrafficPolicy`.

use std::{ops::RangeInclusive, time::Duration};

use serde_json::Value;
use weft_policy::{
    code,
    model::{
        Metadata, TargetRef, TrafficPolicy,
        traffic::{Algorithm, BreakerSettings, OutlierSettings, TimeoutSettings, TrafficSettings},
    },
};

use super::target::{self, MAX_TARGETS};
use crate::{
    duration::format_duration,
    fault::Fault,
    manifest::{
        fields::At,
        object::{Object, Unserved},
        output::Output,
    },
};

/// Bounds of the circuit breaker.
const CONNECTIONS: RangeInclusive<u32> = 1..=1_000_000;
/// Bounds of the failures in a row that eject.
const FAILURES: RangeInclusive<u32> = 1..=1_000;
/// Bounds of an ejection.
const EJECTION: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(24 * 3_600);
/// Bounds of connecting.
const CONNECT: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(300);
/// Bounds of silence on a connection.
const IDLE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(30 * 24 * 3_600);

const UNSERVED: [Unserved; 4] = [
    (
        "retryConstraint",
        "remove it: a connection that was not accepted is tried at other endpoints by itself",
    ),
    ("sessionPersistence", "remove it"),
    ("locality", "remove it"),
    ("warmup", "remove it"),
];

const ALGORITHMS: [(&str, Algorithm); 3] = [
    ("PeakEwma", Algorithm::PeakEwma),
    ("LeastRequest", Algorithm::LeastRequest),
    ("RoundRobin", Algorithm::RoundRobin),
];

pub(in crate::manifest) fn read(metadata: Option<Metadata>, mut spec: Object<'_>) -> Option<TrafficPolicy> {
    let own = metadata.as_ref().and_then(|metadata| metadata.namespace.clone());
    let targets = spec
        .required("targetRefs")
        .and_then(|at| at.each(MAX_TARGETS, |at| only_service(at, target::read(at, own.as_ref())?)));
    let algorithm = spec.or("loadBalancing", Algorithm::default(), algorithm);
    let breaker = spec.or("circuitBreaker", BreakerSettings::default(), breaker);
    let outlier = spec.or("outlierDetection", OutlierSettings::default(), outlier);
    let timeouts = spec.or("timeouts", TimeoutSettings::default(), timeouts);
    spec.unserved(&UNSERVED);
    spec.finish();
    let settings =
        TrafficSettings { algorithm: algorithm?, breaker: breaker?, outlier: outlier?, timeouts: timeouts? };
    Some(TrafficPolicy { metadata: metadata?, targets: targets?, settings })
}

fn only_service(at: &At<'_>, target: TargetRef) -> Option<TargetRef> {
    match target {
        TargetRef::Service(_) => Some(target),
        TargetRef::Namespace(_) => {
            at.not_served("a TrafficPolicy for a namespace", "name its services under targetRefs");
            None
        }
    }
}

fn algorithm(at: &At<'_>) -> Option<Algorithm> {
    let mut object = at.object()?;
    let field = object.required("algorithm");
    object.unserved(&[("header", "remove it"), ("cookie", "remove it"), ("source", "remove it")]);
    object.finish();
    let field = field?;
    if field.text()? == "ConsistentHash" {
        field.not_served("the algorithm ConsistentHash", "use PeakEwma, LeastRequest or RoundRobin");
        return None;
    }
    field.choice(&ALGORITHMS)
}

fn breaker(at: &At<'_>) -> Option<BreakerSettings> {
    let default = BreakerSettings::default();
    let mut object = at.object()?;
    let max_connections = object.or("maxConnections", default.max_connections, |at| at.small(CONNECTIONS));
    let max_pending = object.or("maxPendingRequests", default.max_pending, |at| at.small(CONNECTIONS));
    object.unserved(&[("maxRequests", "use maxConnections"), ("maxRetries", "remove it")]);
    object.finish();
    Some(BreakerSettings { max_connections: max_connections?, max_pending: max_pending? })
}

fn outlier(at: &At<'_>) -> Option<OutlierSettings> {
    let default = OutlierSettings::default();
    let mut object = at.object()?;
    let failures = object.or("consecutiveFailures", default.consecutive_failures, |at| at.small(FAILURES));
    let ejection = object.or("ejection", default, ejection);
    object.unserved(&[("successRate", "use consecutiveFailures")]);
    object.finish();
    Some(OutlierSettings { consecutive_failures: failures?, ..ejection? })
}

fn ejection(at: &At<'_>) -> Option<OutlierSettings> {
    let default = OutlierSettings::default();
    let mut object = at.object()?;
    let base = object.or("base", default.base, |at| at.duration(EJECTION));
    let max = object.or("max", default.max, |at| at.duration(EJECTION));
    let jitter = object.or("jitter", default.jitter, |at| at.number(0.0..=1.0));
    let percent = object.or("maxPercent", default.max_percent.into(), |at| at.small(0..=100));
    object.finish();
    let (base, max) = (base?, max?);
    if base > max {
        let what = format!("base, {}, is longer than max, {}", format_duration(base), format_duration(max));
        at.fault(Fault::new(code::BAD_VALUE, what).fix("make max at least as long as base"));
        return None;
    }
    let max_percent = u8::try_from(percent?).ok()?;
    Some(OutlierSettings { base, max, jitter: jitter?, max_percent, ..default })
}

fn timeouts(at: &At<'_>) -> Option<TimeoutSettings> {
    let default = TimeoutSettings::default();
    let mut object = at.object()?;
    let connect = object.or("connect", default.connect, |at| at.duration(CONNECT));
    let idle = object.or("idle", default.idle, |at| at.duration(IDLE));
    object.unserved(&[("request", "use connect and idle"), ("backendRequest", "use connect and idle")]);
    object.finish();
    Some(TimeoutSettings { connect: connect?, idle: idle? })
}

pub(in crate::manifest) fn write(policy: &TrafficPolicy, out: Output) -> Value {
    let TrafficSettings { algorithm, breaker, outlier, timeouts } = policy.settings;
    let targets: Vec<_> = policy.targets.iter().map(|target| target::write(target, out.inner())).collect();
    let ejection = out
        .inner()
        .put("base", format_duration(outlier.base))
        .put("max", format_duration(outlier.max))
        .put("jitter", outlier.jitter)
        .put("maxPercent", outlier.max_percent)
        .done();
    let breaker = out
        .inner()
        .put("maxConnections", breaker.max_connections)
        .put("maxPendingRequests", breaker.max_pending)
        .done();
    let outlier =
        out.inner().put("consecutiveFailures", outlier.consecutive_failures).put("ejection", ejection).done();
    let timeouts = out
        .inner()
        .put("connect", format_duration(timeouts.connect))
        .put("idle", format_duration(timeouts.idle))
        .done();
    let balancing = out.inner().put("algorithm", word(algorithm)).done();
    out.put("targetRefs", targets)
        .put("loadBalancing", balancing)
        .put("circuitBreaker", breaker)
        .put("outlierDetection", outlier)
        .put("timeouts", timeouts)
        .done()
}

const fn word(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::PeakEwma => "PeakEwma",
        Algorithm::LeastRequest => "LeastRequest",
        Algorithm::RoundRobin => "RoundRobin",
    }
}
