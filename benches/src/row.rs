//! The rows of the table: what each measures, in which unit, and the bound it must hold.
//!
//! Owns the names, the load shapes and the bounds. The figures come from "How it is proven" of the issue that
//! introduced these benches; the reasons behind the values are in the measurements of the transport study
//! (benches/README.md repeats the ones a reader needs).

use clap::ValueEnum;

use crate::role::load::Shape;

/// One line of the table.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, ValueEnum)]
pub(crate) enum Row {
    /// One TCP flow, as fast as it goes.
    #[value(name = "bulk-1")]
    Bulk1,
    /// Eight TCP flows at once.
    #[value(name = "bulk-8")]
    Bulk8,
    /// 100-byte requests on one kept connection.
    #[value(name = "request-1")]
    Request1,
    /// 100-byte requests on 64 kept connections.
    #[value(name = "request-64")]
    Request64,
    /// Connect, one request, close; 32 at once.
    Flows,
    /// Resident memory of one relay or agent, started and idle.
    Memory,
    /// From starting both relays or agents to the first answer through them.
    ColdStart,
}

/// Which way a bound points and what it is compared with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bound {
    /// The median of Weft over the median of the TLS baseline must reach this.
    AtLeastOfTls(f64),
    /// The median of Weft itself, in the row's unit, must not pass this.
    AtMost(f64),
}

/// What a row says about its bound.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    Pass,
    Short,
}

/// What a load process is asked to do for a row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) shape: Shape,
    /// Connections (or workers of short flows) at once.
    pub(crate) parallel: u16,
}

impl Row {
    pub(crate) const ALL: [Self; 7] = [
        Self::Bulk1,
        Self::Bulk8,
        Self::Request1,
        Self::Request64,
        Self::Flows,
        Self::Memory,
        Self::ColdStart,
    ];

    /// The name in the table, in JSON and after `--only`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bulk1 => "bulk-1",
            Self::Bulk8 => "bulk-8",
            Self::Request1 => "request-1",
            Self::Request64 => "request-64",
            Self::Flows => "flows",
            Self::Memory => "memory",
            Self::ColdStart => "cold-start",
        }
    }

    /// Unit of the row's figure.
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Bulk1 | Self::Bulk8 => "Gbit/s",
            Self::Request1 | Self::Request64 => "req/s",
            Self::Flows => "flow/s",
            Self::Memory => "MiB",
            Self::ColdStart => "ms",
        }
    }

    /// Unit of the processor time that one relay spends per piece of work; `None` where no work is counted.
    pub(crate) fn cpu_unit(self) -> Option<&'static str> {
        match self {
            Self::Bulk1 | Self::Bulk8 => Some("s/GB"),
            Self::Request1 | Self::Request64 => Some("us/req"),
            Self::Flows => Some("us/flow"),
            Self::Memory | Self::ColdStart => None,
        }
    }

    /// The load of the row; `None` for rows that are read off the processes at their start.
    pub(crate) fn load(self) -> Option<Load> {
        match self {
            Self::Bulk1 => Some(Load { shape: Shape::Bulk, parallel: 1 }),
            Self::Bulk8 => Some(Load { shape: Shape::Bulk, parallel: 8 }),
            Self::Request1 => Some(Load { shape: Shape::Echo, parallel: 1 }),
            Self::Request64 => Some(Load { shape: Shape::Echo, parallel: 64 }),
            Self::Flows => Some(Load { shape: Shape::Flows, parallel: 32 }),
            Self::Memory | Self::ColdStart => None,
        }
    }

    /// Whether the row exists without any relay in the way.
    pub(crate) fn exists_directly(self) -> bool {
        self.load().is_some()
    }

    /// The bound of the row, where one is set.
    pub(crate) fn bound(self) -> Option<Bound> {
        match self {
            Self::Bulk1 => Some(Bound::AtLeastOfTls(0.5)),
            Self::Request64 => Some(Bound::AtLeastOfTls(0.9)),
            Self::Flows => Some(Bound::AtLeastOfTls(3.0)),
            Self::Memory => Some(Bound::AtMost(20.0)),
            Self::Bulk8 | Self::Request1 | Self::ColdStart => None,
        }
    }
}

impl Bound {
    /// Judges the median of Weft, given the median of the TLS baseline; `None` without what it compares.
    pub(crate) fn judge(self, weft: Option<f64>, tls: Option<f64>) -> Option<Verdict> {
        let holds = match self {
            Self::AtLeastOfTls(least) => weft? / tls.filter(|tls| *tls > 0.0)? >= least,
            Self::AtMost(most) => weft? <= most,
        };
        Some(if holds { Verdict::Pass } else { Verdict::Short })
    }

    /// The bound as the table prints it.
    pub(crate) fn text(self, unit: &str) -> String {
        match self {
            Self::AtLeastOfTls(least) => format!(">= {least} x tls"),
            Self::AtMost(most) => format!("<= {most} {unit}"),
        }
    }
}

impl Verdict {
    /// The word in the table and in JSON.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Short => "SHORT",
        }
    }
}

/// Returns `rows` in table order, each once.
pub(crate) fn ordered(rows: &[Row]) -> Vec<Row> {
    Row::ALL.into_iter().filter(|row| rows.contains(row)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_at_its_bound_passes_and_one_below_is_short() {
        let bound = Bound::AtLeastOfTls(0.5);
        assert_eq!(bound.judge(Some(5.0), Some(10.0)), Some(Verdict::Pass));
        assert_eq!(bound.judge(Some(4.9), Some(10.0)), Some(Verdict::Short));
    }

    #[test]
    fn memory_over_its_bound_is_short_whatever_the_baseline_uses() {
        assert_eq!(Bound::AtMost(20.0).judge(Some(20.1), None), Some(Verdict::Short));
        assert_eq!(Bound::AtMost(20.0).judge(Some(20.0), None), Some(Verdict::Pass));
    }

    #[test]
    fn nothing_is_judged_without_both_sides_or_against_a_dead_baseline() {
        let bound = Bound::AtLeastOfTls(3.0);
        assert_eq!(bound.judge(Some(9.0), None), None);
        assert_eq!(bound.judge(None, Some(3.0)), None);
        assert_eq!(bound.judge(Some(9.0), Some(0.0)), None);
    }

    #[test]
    fn rows_given_twice_and_out_of_order_are_run_once_in_table_order() {
        assert_eq!(ordered(&[Row::Flows, Row::Bulk1, Row::Flows]), [Row::Bulk1, Row::Flows]);
    }
}
