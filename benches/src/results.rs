//! What a campaign measured, and what must be said about it.
//!
//! Owns the samples by row and path, the medians and ratios drawn from them, the check of the baseline, and the
//! list of problems that decides the exit code. Printing is the business of [`crate::report`] and [`crate::json`].

use std::collections::BTreeMap;

use crate::lane::Path;
use crate::measure::Sample;
use crate::row::{Row, Verdict};
use crate::site::Network;
use crate::stats::{Spread, spread};

/// The least that the TLS baseline must reach of direct bulk in the same run. A baseline below it is broken (a
/// throttled TCP leg, a starved machine), and every ratio to it would flatter Weft.
pub(crate) const LEAST_TLS_OF_DIRECT: f64 = 0.13;

/// A whole campaign.
pub(crate) struct Results {
    /// Kernel and processors.
    pub(crate) host: String,
    pub(crate) runs: u16,
    pub(crate) seconds: u16,
    pub(crate) networks: Vec<NetworkResults>,
}

/// What was measured on one network.
pub(crate) struct NetworkResults {
    pub(crate) network: Network,
    pub(crate) description: String,
    /// Rows and paths that were asked for; more may have been measured as a check.
    pub(crate) rows: Vec<Row>,
    pub(crate) paths: Vec<Path>,
    /// Whether ratios to the baseline mean nothing without its check.
    pub(crate) needs_check: bool,
    /// Per run, the fraction of the machine (0 to 1) that was busy while the bench idled.
    pub(crate) others_busy: Vec<f64>,
    pub(crate) cells: BTreeMap<(Row, Path), Cell>,
}

/// All samples of one row on one path.
#[derive(Default)]
pub(crate) struct Cell {
    pub(crate) samples: Vec<Sample>,
    /// The first failure; a cell that has one counts as failed whatever else it holds.
    pub(crate) error: Option<String>,
}

impl Results {
    /// What keeps these results from being good news, in sentences. With `gate`, missed bounds too.
    pub(crate) fn problems(&self, gate: bool) -> Vec<String> {
        self.networks.iter().flat_map(|network| network.problems(gate)).collect()
    }
}

impl NetworkResults {
    /// The spread of `row` on `path`; `None` where it failed or was not measured.
    pub(crate) fn spread(&self, row: Row, path: Path) -> Option<Spread> {
        let cell = self.cells.get(&(row, path)).filter(|cell| cell.error.is_none())?;
        spread(cell.samples.iter().map(|sample| sample.value))
    }

    /// The median on `path` over the median on `to`.
    pub(crate) fn ratio(&self, row: Row, path: Path, to: Path) -> Option<f64> {
        let (path, to) = (self.spread(row, path)?.median, self.spread(row, to)?.median);
        (to > 0.0).then_some(path / to)
    }

    /// Whether Weft holds the bound of `row`; `None` without a bound or without figures.
    pub(crate) fn verdict(&self, row: Row) -> Option<Verdict> {
        let median = |path| self.spread(row, path).map(|spread| spread.median);
        row.bound()?.judge(median(Path::Weft), median(Path::Tls))
    }

    /// Why the run is void, if it is.
    pub(crate) fn void(&self) -> Option<String> {
        let name = self.network.name();
        match self.ratio(Row::Bulk1, Path::Tls, Path::Direct) {
            _ if !self.needs_check => None,
            None => Some(format!("{name}: the run is void: the TLS baseline could not be checked")),
            Some(ratio) if ratio < LEAST_TLS_OF_DIRECT => Some(format!(
                "{name}: the run is void: the TLS baseline reached {ratio:.3} of direct bulk, below \
                 {LEAST_TLS_OF_DIRECT}"
            )),
            Some(_) => None,
        }
    }

    /// The fraction of the machine that others used, median and highest.
    pub(crate) fn others(&self) -> Option<Spread> {
        spread(self.others_busy.iter().copied())
    }

    fn problems(&self, gate: bool) -> Vec<String> {
        let name = self.network.name();
        let mut problems: Vec<String> = self.void().into_iter().collect();
        for ((path, error), rows) in self.failures() {
            problems.push(format!("{name}: {} on {} failed: {error}", rows.join(", "), path.name()));
        }
        for row in self.rows.iter().filter(|_| gate) {
            if self.verdict(*row) == Some(Verdict::Short) {
                problems.push(format!("{name}: {} is short of its bound", row.name()));
            }
        }
        problems
    }

    /// Failures by path and text, with the rows that share them: a path that does not start fails every row alike.
    fn failures(&self) -> BTreeMap<(Path, &str), Vec<&'static str>> {
        let mut failures: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for ((row, path), cell) in &self.cells {
            if let Some(error) = &cell.error {
                failures.entry((*path, error.as_str())).or_default().push(row.name());
            }
        }
        failures
    }
}

impl Cell {
    /// The median of a part of the samples; `None` where they lack it.
    pub(crate) fn median(&self, part: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
        if self.error.is_some() {
            return None;
        }
        spread(self.samples.iter().filter_map(part)).map(|spread| spread.median)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(figures: &[(Row, Path, &[f64])]) -> NetworkResults {
        let cells = figures.iter().map(|(row, path, values)| {
            let sample = |value: &f64| Sample { value: *value, cpu: None, latency: None };
            ((*row, *path), Cell { samples: values.iter().map(sample).collect(), error: None })
        });
        NetworkResults {
            network: Network::Pair,
            description: String::new(),
            rows: Row::ALL.to_vec(),
            paths: Path::ALL.to_vec(),
            needs_check: true,
            others_busy: vec![0.0],
            cells: cells.collect(),
        }
    }

    #[test]
    fn a_throttled_baseline_makes_the_run_void() {
        let results =
            results(&[(Row::Bulk1, Path::Tls, &[5.0, 5.0, 9.0]), (Row::Bulk1, Path::Direct, &[60.0])]);
        assert!(results.void().expect("void").contains("0.083"));
        assert_eq!(results.problems(false).len(), 1);
    }

    #[test]
    fn a_baseline_that_was_not_measured_makes_the_run_void() {
        assert!(results(&[(Row::Bulk1, Path::Tls, &[5.0])]).void().is_some());
    }

    #[test]
    fn ratios_are_those_of_medians() {
        let results = results(&[
            (Row::Bulk1, Path::Weft, &[1.0, 6.0, 100.0]),
            (Row::Bulk1, Path::Tls, &[10.0, 2.0, 11.0]),
            (Row::Bulk1, Path::Direct, &[60.0]),
        ]);
        assert_eq!(results.ratio(Row::Bulk1, Path::Weft, Path::Tls), Some(0.6));
        assert_eq!(results.verdict(Row::Bulk1), Some(Verdict::Pass));
        assert_eq!(results.void(), None);
    }

    #[test]
    fn a_short_row_is_a_problem_at_the_gate_only() {
        let results = results(&[
            (Row::Bulk1, Path::Weft, &[1.0]),
            (Row::Bulk1, Path::Tls, &[10.0]),
            (Row::Bulk1, Path::Direct, &[60.0]),
        ]);
        assert_eq!(results.problems(false), Vec::<String>::new());
        assert_eq!(results.problems(true), ["pair: bulk-1 is short of its bound"]);
    }

    #[test]
    fn a_cell_that_failed_once_gives_no_figure_and_is_a_problem() {
        let mut results = results(&[(Row::Flows, Path::Weft, &[9.0, 9.0])]);
        results.needs_check = false;
        let cell = results.cells.get_mut(&(Row::Flows, Path::Weft)).expect("the cell");
        cell.error = Some("the flow broke".to_owned());
        assert_eq!(results.spread(Row::Flows, Path::Weft), None);
        assert_eq!(results.problems(false), ["pair: flows on weft failed: the flow broke"]);
    }
}
