//! One measurement: a row on a lane.
//!
//! Owns the turning of counts and processor times into a [`Sample`].

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::lane::{Ground, Lane};
use crate::role::load::{Outcome, Shape};
use crate::row::{Load, Row};

/// What a load may take beyond its seconds: connecting, draining, printing.
const LOAD_GRACE: Duration = Duration::from_secs(45);

/// One figure of one row on one path in one run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// In the unit of the row.
    pub(crate) value: f64,
    /// Processor time per piece of work on the client side and the server side, in [`Row::cpu_unit`].
    pub(crate) cpu: Option<[f64; 2]>,
    pub(crate) latency: Option<Latency>,
}

/// Median and 99th percentile of a load, in microseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Latency {
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

/// Measures `row` on `lane`; `None` where the row does not exist there.
///
/// # Errors
///
/// A load that fails, a relay that is gone, or a TCP leg that does not run CUBIC where the site set it.
pub(crate) async fn measure(ground: &Ground, lane: &Lane, row: Row, seconds: u16) -> Result<Option<Sample>> {
    let value = match (row, row.load()) {
        (_, Some(load)) => return under_load(ground, lane, row, load, seconds).await.map(Some),
        (Row::Memory, None) => lane.resident_mib()?,
        (_, None) => lane.cold_start.map(|cold_start| cold_start.as_secs_f64() * 1e3),
    };
    Ok(value.map(|value| Sample { value, cpu: None, latency: None }))
}

async fn under_load(ground: &Ground, lane: &Lane, row: Row, load: Load, seconds: u16) -> Result<Sample> {
    let before = lane.cpu_time()?;
    let outcome = run_load(ground, lane, load, seconds).await.with_context(|| lane.quote())?;
    let after = lane.cpu_time()?;
    ensure!(
        !ground.site.sets_cubic() || outcome.congestion == "cubic",
        "the TCP legs run {}, not cubic",
        outcome.congestion
    );
    let work = work(load.shape, &outcome);
    ensure!(work > 0.0 && outcome.elapsed_s > 0.0, "nothing was carried");
    let cpu = before.zip(after).map(|(before, after)| {
        [0, 1].map(|side| (after[side].saturating_sub(before[side])).as_secs_f64() * cpu_scale(row) / work)
    });
    let latency = match load.shape {
        Shape::Bulk => None,
        Shape::Echo | Shape::Flows => Some(Latency { p50_us: outcome.p50_us, p99_us: outcome.p99_us }),
    };
    Ok(Sample { value: rate(load.shape, &outcome), cpu, latency })
}

async fn run_load(ground: &Ground, lane: &Lane, load: Load, seconds: u16) -> Result<Outcome> {
    let shape = match load.shape {
        Shape::Bulk => "bulk",
        Shape::Echo => "echo",
        Shape::Flows => "flows",
    };
    let (to, parallel, text) = (lane.target.to_string(), load.parallel.to_string(), seconds.to_string());
    let arguments = ["load", "--shape", shape, "--to", &to, "--parallel", &parallel, "--seconds", &text];
    let command = ground.launcher.role(&ground.site.client, &arguments);
    let limit = Duration::from_secs(seconds.into()) + LOAD_GRACE;
    let printed = ground.launcher.finish("load", command, limit).await?;
    serde_json::from_str(&printed).context("cannot understand the load's outcome")
}

/// Pieces of work done: GB (10^9 bytes) of bulk, else answers.
fn work(shape: Shape, outcome: &Outcome) -> f64 {
    match shape {
        Shape::Bulk => outcome.bytes as f64 / 1e9,
        Shape::Echo | Shape::Flows => outcome.requests as f64,
    }
}

/// The figure of the row: Gbit/s of bulk, else answers per second.
fn rate(shape: Shape, outcome: &Outcome) -> f64 {
    let bits_or_one = match shape {
        Shape::Bulk => 8.0,
        Shape::Echo | Shape::Flows => 1.0,
    };
    work(shape, outcome) * bits_or_one / outcome.elapsed_s
}

/// From seconds to the unit of [`Row::cpu_unit`].
fn cpu_scale(row: Row) -> f64 {
    match row.cpu_unit() {
        Some("s/GB") => 1.0,
        _ => 1e6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome() -> Outcome {
        Outcome {
            bytes: 5_000_000_000,
            requests: 600,
            elapsed_s: 2.0,
            p50_us: 1.0,
            p99_us: 2.0,
            congestion: "cubic".to_owned(),
        }
    }

    #[test]
    fn bulk_is_told_in_gigabits_of_confirmed_bytes() {
        assert!((rate(Shape::Bulk, &outcome()) - 20.0).abs() < 1e-9);
        assert!((work(Shape::Bulk, &outcome()) - 5.0).abs() < 1e-9);
    }

    #[test]
    fn requests_and_flows_are_told_per_second() {
        assert!((rate(Shape::Echo, &outcome()) - 300.0).abs() < 1e-9);
        assert!((rate(Shape::Flows, &outcome()) - 300.0).abs() < 1e-9);
    }
}
