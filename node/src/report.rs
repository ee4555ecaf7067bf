//! The agent's own account of itself: one registry of metrics, one access log, one list of conditions.
//!
//! Owns how the notes of a flow become a line and counters; names and bounds are [`crate::telemetry`]'s.

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use prometheus_client::registry::Registry;
use weft_api::fault::Fault;
use weft_identity::spiffe::{IdKind, SpiffeId};
use weft_overlay::OverlayMetrics;
use weft_policy::code;

use crate::{
    access::{Record, Verdict},
    admin::readiness::{Liveness, Readiness},
    config::Config,
    error::FlowError,
    flows::Direction,
    relay::{End, Side, Transfer},
    telemetry::{AccessLog, FlowRecord, LogFile, LogWriter, NodeMetrics, Party, metrics::Decided},
};

/// Where everything is told.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) registry: Arc<Registry>,
    pub(crate) metrics: Arc<NodeMetrics>,
    pub(crate) overlay: Arc<OverlayMetrics>,
    pub(crate) readiness: Readiness,
    pub(crate) liveness: Liveness,
    log: AccessLog,
    writer: Mutex<Option<LogWriter>>,
}

impl Report {
    /// Makes the metrics and opens the access log.
    pub(crate) fn new(config: &Config, now: Instant) -> Result<Self, Fault> {
        let mut registry = Registry::default();
        let series = usize::try_from(config.limits.telemetry.series).unwrap_or(usize::MAX);
        let metrics = Arc::new(NodeMetrics::register(&mut registry, series));
        let overlay = Arc::new(OverlayMetrics::register(&mut registry));
        let (log, writer) = open_log(config, &metrics)?;
        Ok(Self {
            registry: Arc::new(registry),
            metrics,
            overlay,
            readiness: Readiness::default(),
            liveness: Liveness::new(now),
            log,
            writer: Mutex::new(writer),
        })
    }

    /// Writes what still waits for the log.
    pub(crate) fn finish(&self) {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            writer.finish(Duration::from_secs(1));
        }
    }

    /// A flow has ended: one line, and its counters.
    pub(crate) fn flow_ended(&self, record: &Record, outcome: &Result<Transfer, FlowError>, now: Instant) {
        let side = side_of(record.direction);
        let took = now.saturating_duration_since(record.started);
        let service = record.target.as_ref().map(|target| target.service.to_string()).unwrap_or_default();
        let (close, error_type) = match outcome {
            Ok(transfer) => {
                (transfer.end.label(), if transfer.end == End::Clean { "" } else { transfer.end.label() })
            }
            Err(error) => (error.class().label, error.class().label),
        };
        if record.began {
            self.metrics.flow_ended(side, &service, error_type, took);
        } else {
            self.metrics.flow_failed(side, &service, error_type);
        }
        self.log.record(&line(record, outcome, side, close, took));
    }
}

/// The side of the relay that a direction is.
pub(crate) const fn side_of(direction: Direction) -> Side {
    match direction {
        Direction::Outbound => Side::Caller,
        Direction::Inbound => Side::Service,
    }
}

fn open_log(config: &Config, metrics: &NodeMetrics) -> Result<(AccessLog, Option<LogWriter>), Fault> {
    let Some(path) = config.access_log() else { return Ok((AccessLog::off(), None)) };
    let lines = usize::try_from(config.limits.telemetry.log_lines).unwrap_or(usize::MAX);
    let started = if path == Path::new("-") {
        AccessLog::start(io::stdout(), lines, metrics.log_dropped())
    } else {
        let file = LogFile::open(path, config.limits.telemetry.log_file.0);
        file.and_then(|file| AccessLog::start(file, lines, metrics.log_dropped()))
    };
    let (log, writer) = started.map_err(|error| {
        Fault::new(code::FILE_UNUSABLE, format!("cannot write the access log {}", path.display()))
            .why(error.to_string())
    })?;
    Ok((log, Some(writer)))
}

fn line(
    record: &Record,
    outcome: &Result<Transfer, FlowError>,
    side: Side,
    close: &'static str,
    duration: Duration,
) -> FlowRecord {
    let (sent, received) = outcome.as_ref().map_or((0, 0), |t| (t.sent_bytes, t.received_bytes));
    // "In" is towards the service, on both sides of the mesh.
    let (bytes_in, bytes_out) = match side {
        Side::Caller => (sent, received),
        Side::Service => (received, sent),
    };
    let ended = outcome.as_ref().ok().and_then(|transfer| transfer.end.code(side));
    let failed = outcome.as_ref().err().map(|error| error.class().code);
    FlowRecord {
        started: record.time,
        duration,
        side,
        protocol: record.protocol,
        source: party(Some(&record.source), record.address.map(|address| address.to_string())),
        destination: destination(record),
        decision: record.verdict.map(decided),
        rule: (!record.policy.is_empty()).then(|| (record.policy.clone(), record.rule.clone())),
        code: failed.or(ended).or(record.code),
        bytes_in,
        bytes_out,
        close,
        tunnel: record.tunnel.map(|(id, _)| id),
        attempts: u32::try_from(record.attempt).unwrap_or(u32::MAX),
    }
}

/// The metrics' word for a verdict.
pub(crate) const fn decided(verdict: Verdict) -> Decided {
    match verdict {
        Verdict::Allow => Decided::Allow,
        Verdict::Deny => Decided::Deny,
    }
}

fn destination(record: &Record) -> Party {
    let address = record.tunnel.map(|(_, address)| address.to_string()).or_else(|| record.outside.clone());
    let mut party = party(record.local.as_ref(), address);
    if let Some(target) = &record.target {
        party.service = Some(target.to_string());
        party.namespace = Some(target.service.namespace.to_string());
    }
    party
}

fn party(id: Option<&SpiffeId>, address: Option<String>) -> Party {
    let (workload, namespace) = match id.map(SpiffeId::kind) {
        Some(IdKind::Workload { namespace, service_account }) => {
            (Some(service_account.to_owned()), Some(namespace.to_owned()))
        }
        Some(IdKind::Node(_) | IdKind::Server(_) | IdKind::User(_) | IdKind::Other) | None => (None, None),
    };
    Party { id: id.map(ToString::to_string), service: None, workload, namespace, cluster: None, address }
}
