//! The report for people: ratios first.
//!
//! Owns the tables of standard output. Figures stand to the right of the ratios because they carry from one
//! machine to another, and figures do not.

use std::io::Write as _;

use anyhow::Result;

use crate::lane::Path;
use crate::measure::{Latency, Sample};
use crate::results::{Cell, LEAST_TLS_OF_DIRECT, NetworkResults, Results};
use crate::row::Row;
use crate::stats::Spread;
use crate::table::Table;

/// Above this fraction of the machine used by others the report warns.
const QUIET: f64 = 0.05;

/// Where a cell has nothing to show.
const NOTHING: &str = "-";

/// Prints `results` to standard output.
pub(crate) fn print(results: &Results) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{}; {} runs, {} s of load per figure; median [min-max]",
        results.host, results.runs, results.seconds
    )?;
    for network in &results.networks {
        writeln!(out, "\n{}: {}", network.network.name(), network.description)?;
        write!(out, "{}", remarks(network))?;
        write!(out, "\n{}", ratios(network).text())?;
        write!(out, "\n{}", details(network).text())?;
    }
    Ok(out.flush()?)
}

/// What a reader must know before the figures.
fn remarks(network: &NetworkResults) -> String {
    let mut text = String::new();
    if let Some(others) = network.others() {
        let warning = if others.max > QUIET { ": NOT QUIET, trust ratios only" } else { "" };
        text += &format!(
            "machine busy with other work: {:.0} % (at most {:.0} %){warning}\n",
            others.median * 100.0,
            others.max * 100.0
        );
    }
    if let Some(ratio) = network.ratio(Row::Bulk1, Path::Tls, Path::Direct).filter(|_| network.needs_check) {
        text += &format!(
            "baseline check: tls carries {ratio:.3} of direct bulk (void below {LEAST_TLS_OF_DIRECT})\n"
        );
    }
    text += &network.void().map(|void| format!("{void}\n")).unwrap_or_default();
    text
}

fn ratios(network: &NetworkResults) -> Table {
    let mut heading = vec!["ROW", "WEFT/TLS", "BOUND", "VERDICT", "WEFT/DIRECT", "TLS/DIRECT", "UNIT"];
    heading.extend(network.paths.iter().map(|path| path.name()));
    let mut table = Table::new(&heading);
    for row in &network.rows {
        let ratio = |path, to| shown(network.ratio(*row, path, to), |ratio| format!("{ratio:.2}"));
        let mut line = vec![
            row.name().to_owned(),
            ratio(Path::Weft, Path::Tls),
            shown(row.bound(), |bound| bound.text(row.unit())),
            shown(network.verdict(*row).filter(|_| network.void().is_none()), |verdict| {
                verdict.word().to_owned()
            }),
            ratio(Path::Weft, Path::Direct),
            ratio(Path::Tls, Path::Direct),
            row.unit().to_owned(),
        ];
        line.extend(network.paths.iter().map(|path| figure(network, *row, *path)));
        table.push(line);
    }
    table
}

/// Processor time of both sides and latencies, where the row has them.
fn details(network: &NetworkResults) -> Table {
    let mut heading = vec!["ROW", "DETAIL"];
    heading.extend(network.paths.iter().map(|path| path.name()));
    let mut table = Table::new(&heading);
    for row in network.rows.iter().filter(|row| row.load().is_some()) {
        let mut push = |detail: String, text: &dyn Fn(&Cell) -> String| {
            let cell =
                |path: &Path| network.cells.get(&(*row, *path)).map_or_else(|| NOTHING.to_owned(), text);
            let mut line = vec![row.name().to_owned(), detail];
            line.extend(network.paths.iter().map(cell));
            table.push(line);
        };
        if let Some(unit) = row.cpu_unit() {
            push(format!("CPU {unit}, client+server side"), &cpu);
        }
        if matches!(row, Row::Request1 | Row::Request64 | Row::Flows) {
            push("latency us, p50 / p99".to_owned(), &latency);
        }
    }
    table
}

fn cpu(cell: &Cell) -> String {
    let side = |side: usize| cell.median(move |sample| sample.cpu.map(|cpu| cpu[side]));
    shown(side(0).zip(side(1)), |(client, server)| format!("{}+{}", number(client), number(server)))
}

fn latency(cell: &Cell) -> String {
    let part = |of: fn(Latency) -> f64| cell.median(move |sample: &Sample| sample.latency.map(of));
    let (p50, p99) = (part(|latency| latency.p50_us), part(|latency| latency.p99_us));
    shown(p50.zip(p99), |(p50, p99)| format!("{p50:.0} / {p99:.0}"))
}

fn figure(network: &NetworkResults, row: Row, path: Path) -> String {
    let failed = network.cells.get(&(row, path)).is_some_and(|cell| cell.error.is_some());
    if failed {
        return "failed".to_owned();
    }
    let text = |Spread { median, min, max }| format!("{} [{}-{}]", number(median), number(min), number(max));
    shown(network.spread(row, path), text)
}

fn shown<T>(value: Option<T>, text: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| NOTHING.to_owned(), text)
}

/// Three digits or so: 61.5, 8.44, 0.47, 59576.
fn number(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_about_three_digits() {
        assert_eq!(number(59_576.4), "59576");
        assert_eq!(number(61.52), "61.5");
        assert_eq!(number(0.467), "0.47");
    }
}
