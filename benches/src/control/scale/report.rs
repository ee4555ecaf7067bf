//! What was measured, as a table and for programs.

use std::io::Write as _;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use crate::stats::quantile;
use crate::table::Table;

/// Counts changes that a reader of the object must know of.
const FORMAT: u32 = 1;

/// Everything that one run measured.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) agents: usize,
    times: Vec<Times>,
    figures: Vec<Figure>,
}

/// How long changes took.
#[derive(Debug)]
pub(super) struct Times {
    pub(super) row: &'static str,
    /// How many changes there were.
    pub(super) changes: usize,
    /// Until each agent acknowledged it, in microseconds.
    pub(super) each: Vec<u32>,
    /// Until the last one did; empty where that is not measured.
    pub(super) last: Vec<u32>,
    /// From the server to all agents, for one change; `None` where something else changed meanwhile.
    pub(super) bytes: Option<u64>,
    /// The most that the p99 of `last` may be.
    pub(super) bound: Option<Duration>,
}

/// One number.
#[derive(Debug)]
pub(super) struct Figure {
    pub(super) row: &'static str,
    pub(super) unit: &'static str,
    pub(super) value: f64,
    /// The most that it may be.
    pub(super) bound: Option<f64>,
}

impl Report {
    pub(super) fn times(&mut self, times: Times) {
        self.times.push(times);
    }

    pub(super) fn figure(&mut self, row: &'static str, unit: &'static str, value: f64, bound: Option<f64>) {
        self.figures.push(Figure { row, unit, value, bound });
    }

    /// The rows that miss their bound.
    pub(super) fn missed(&mut self) -> Vec<&'static str> {
        let times =
            self.times.iter_mut().filter_map(|times| (times.passes() == Some(false)).then_some(times.row));
        let figures = self.figures.iter().filter(|figure| figure.passes() == Some(false));
        times.chain(figures.map(|figure| figure.row)).collect()
    }

    pub(super) fn print(&mut self, as_json: bool) -> Result<()> {
        let mut out = std::io::stdout().lock();
        if as_json {
            serde_json::to_writer_pretty(&mut out, &self.value())?;
            return Ok(writeln!(out)?);
        }
        let heading = [
            "ROW", "CHANGES", "EACH_P50", "EACH_P99", "LAST_P50", "LAST_P99", "LAST_MAX", "BYTES", "BOUND",
            "VERDICT",
        ];
        let mut table = Table::new(&heading);
        self.times.iter_mut().for_each(|times| table.push(times.cells()));
        writeln!(out, "{}", table.text())?;
        let mut table = Table::new(&["ROW", "FIGURE", "BOUND", "VERDICT"]);
        self.figures.iter().for_each(|figure| table.push(figure.cells()));
        Ok(out.write_all(table.text().as_bytes())?)
    }

    fn value(&mut self) -> Value {
        json!({
            "format": FORMAT,
            "agents": self.agents,
            "times": self.times.iter_mut().map(Times::value).collect::<Vec<_>>(),
            "figures": self.figures.iter().map(Figure::value).collect::<Vec<_>>(),
        })
    }
}

impl Times {
    /// Nothing yet.
    pub(super) const fn new(row: &'static str, bound: Option<Duration>) -> Self {
        Self { row, changes: 0, each: Vec::new(), last: Vec::new(), bytes: None, bound }
    }

    /// One more change, with the time of each agent.
    pub(super) fn take(&mut self, took: Vec<u32>) {
        eprint!("\r{}: {}   ", self.row, self.changes + 1);
        self.changes += 1;
        self.last.extend(took.iter().max());
        self.each.extend(took);
    }

    fn passes(&mut self) -> Option<bool> {
        let bound = self.bound?;
        Some(quantile(&mut self.last, 0.99) <= crate::micros(bound))
    }

    fn cells(&mut self) -> Vec<String> {
        let (bound, verdict) = (self.bound, verdict(self.passes()));
        let ms = |samples: &mut Vec<u32>, q| {
            let measured = !samples.is_empty();
            let shown = f64::from(quantile(samples, q)) / 1_000.0;
            if measured { format!("{shown:.0} ms") } else { "-".to_owned() }
        };
        vec![
            self.row.to_owned(),
            self.changes.to_string(),
            ms(&mut self.each, 0.5),
            ms(&mut self.each, 0.99),
            ms(&mut self.last, 0.5),
            ms(&mut self.last, 0.99),
            ms(&mut self.last, 1.0),
            self.bytes.map_or_else(|| "-".to_owned(), |bytes| bytes.to_string()),
            bound.map_or_else(|| "-".to_owned(), |bound| format!("{} ms", bound.as_millis())),
            verdict.to_owned(),
        ]
    }

    fn value(&mut self) -> Value {
        let passes = self.passes();
        let micros = |samples: &mut Vec<u32>, q| (!samples.is_empty()).then(|| quantile(samples, q));
        json!({
            "row": self.row,
            "changes": self.changes,
            "eachP50Us": micros(&mut self.each, 0.5),
            "eachP99Us": micros(&mut self.each, 0.99),
            "lastP50Us": micros(&mut self.last, 0.5),
            "lastP99Us": micros(&mut self.last, 0.99),
            "lastMaxUs": micros(&mut self.last, 1.0),
            "bytes": self.bytes,
            "boundUs": self.bound.map(crate::micros),
            "verdict": passes.map(word),
        })
    }
}

impl Figure {
    fn passes(&self) -> Option<bool> {
        self.bound.map(|bound| self.value <= bound)
    }

    fn cells(&self) -> Vec<String> {
        let with_unit = |value: f64| format!("{value:.2} {}", self.unit).trim_end().to_owned();
        let bound = self.bound.map_or_else(|| "-".to_owned(), with_unit);
        vec![self.row.to_owned(), with_unit(self.value), bound, verdict(self.passes()).to_owned()]
    }

    fn value(&self) -> Value {
        json!({
            "row": self.row,
            "unit": self.unit,
            "value": self.value,
            "bound": self.bound,
            "verdict": self.passes().map(word),
        })
    }
}

fn verdict(passes: Option<bool>) -> &'static str {
    passes.map_or("-", word)
}

const fn word(passes: bool) -> &'static str {
    if passes { "pass" } else { "short" }
}
