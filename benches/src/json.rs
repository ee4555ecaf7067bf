//! The report for programs.
//!
//! Owns the JSON object of `-o json`; its fields are described in benches/README.md. A figure that was not
//! measured is `null`, never 0.

use std::io::Write as _;

use anyhow::Result;
use serde_json::{Map, Value, json};

use crate::lane::Path;
use crate::results::{Cell, LEAST_TLS_OF_DIRECT, NetworkResults, Results};
use crate::row::{Bound, Row};
use crate::stats::Spread;

/// Counts changes that a reader of the object must know of.
const FORMAT: u32 = 1;

/// Prints `results` to standard output.
pub(crate) fn print(results: &Results) -> Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, &value(results))?;
    Ok(writeln!(out)?)
}

fn value(results: &Results) -> Value {
    json!({
        "format": FORMAT,
        "host": results.host,
        "runs": results.runs,
        "seconds": results.seconds,
        "networks": results.networks.iter().map(network).collect::<Vec<_>>(),
    })
}

fn network(results: &NetworkResults) -> Value {
    json!({
        "network": results.network.name(),
        "description": results.description,
        "void": results.void(),
        "tlsOfDirectBulk": {
            "ratio": results.ratio(Row::Bulk1, Path::Tls, Path::Direct),
            "least": LEAST_TLS_OF_DIRECT,
        },
        "othersBusy": results.others().map(spread),
        "rows": results.rows.iter().map(|at| row(results, *at)).collect::<Vec<_>>(),
    })
}

fn row(results: &NetworkResults, row: Row) -> Value {
    let verdict = results.verdict(row).filter(|_| results.void().is_none());
    let paths: Map<String, Value> = results
        .paths
        .iter()
        .filter_map(|path| Some((path.name().to_owned(), cell(results, row, *path)?)))
        .collect();
    json!({
        "row": row.name(),
        "unit": row.unit(),
        "cpuUnit": row.cpu_unit(),
        "weftOfTls": results.ratio(row, Path::Weft, Path::Tls),
        "weftOfDirect": results.ratio(row, Path::Weft, Path::Direct),
        "tlsOfDirect": results.ratio(row, Path::Tls, Path::Direct),
        "bound": row.bound().map(bound),
        "verdict": verdict.map(|verdict| verdict.word().to_lowercase()),
        "paths": paths,
    })
}

fn bound(bound: Bound) -> Value {
    match bound {
        Bound::AtLeastOfTls(least) => json!({"atLeastOfTls": least}),
        Bound::AtMost(most) => json!({"atMost": most}),
    }
}

fn cell(results: &NetworkResults, row: Row, path: Path) -> Option<Value> {
    let cell: &Cell = results.cells.get(&(row, path))?;
    let cpu = |side: usize| cell.median(move |sample| sample.cpu.map(|cpu| cpu[side]));
    Some(json!({
        "error": cell.error,
        "figure": results.spread(row, path).map(spread),
        "samples": cell.samples.iter().map(|sample| sample.value).collect::<Vec<_>>(),
        "cpuClientSide": cpu(0),
        "cpuServerSide": cpu(1),
        "p50Us": cell.median(|sample| sample.latency.map(|latency| latency.p50_us)),
        "p99Us": cell.median(|sample| sample.latency.map(|latency| latency.p99_us)),
    }))
}

fn spread(spread: Spread) -> Value {
    json!({"median": spread.median, "min": spread.min, "max": spread.max})
}
