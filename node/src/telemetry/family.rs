//! A family of series with a bound (security.md 9.3: 2,000 label sets per family, then the label `other`).
//!
//! Owns the bound, the overflow series and the forgetting of idle series (observability.md 2.3). What falls to the
//! overflow is counted. A label set that lives is never thrown out for a new one, so no caller can push out another's.

use std::{
    collections::HashMap,
    fmt::Debug,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder},
    metrics::{MetricType, TypedMetric, counter::Counter},
};

/// Label sets of one family.
pub const MAX_SERIES: usize = 2_000;
/// Calls of [`CappedFamily::forget_idle`] after which an untouched series goes: made once a minute, 10 minutes.
const IDLE_ROUNDS: u64 = 10;
/// The label value of what does not fit.
pub const OTHER: &str = "other";

/// The labels of a family.
pub trait Labels: EncodeLabelSet + Clone + Debug + Eq + Hash + Send + Sync + 'static {
    /// The label set of what does not fit: every open label is [`OTHER`].
    #[must_use]
    fn overflow(&self) -> Self;
}

/// Series of one metric by label set. A clone is the same family.
#[derive(Debug)]
pub struct CappedFamily<L, M> {
    inner: Arc<Mutex<Inner<L, M>>>,
    make: fn() -> M,
    limit: usize,
    dropped: Counter,
}

#[derive(Debug)]
struct Inner<L, M> {
    series: HashMap<L, Series<M>>,
    round: u64,
}

#[derive(Debug)]
struct Series<M> {
    metric: M,
    touched: u64,
}

impl<L, M> Clone for CappedFamily<L, M> {
    fn clone(&self) -> Self {
        let Self { inner, make, limit, dropped } = self;
        Self { inner: Arc::clone(inner), make: *make, limit: *limit, dropped: dropped.clone() }
    }
}

impl<L: Labels, M: Clone> CappedFamily<L, M> {
    /// An empty family of at most `limit` label sets; `dropped` counts what falls to the overflow.
    #[must_use]
    pub fn new(make: fn() -> M, limit: usize, dropped: Counter) -> Self {
        let inner = Inner { series: HashMap::new(), round: 0 };
        Self { inner: Arc::new(Mutex::new(inner)), make, limit, dropped }
    }

    /// The metric of `labels`, or of the overflow.
    #[must_use]
    pub fn of(&self, labels: &L) -> M {
        let mut inner = self.lock();
        let round = inner.round;
        if let Some(series) = inner.series.get_mut(labels) {
            series.touched = round;
            return series.metric.clone();
        }
        let key = if inner.series.len() < self.limit {
            labels.clone()
        } else {
            self.dropped.inc();
            labels.overflow()
        };
        let fresh = || Series { metric: (self.make)(), touched: round };
        let series = inner.series.entry(key).or_insert_with(fresh);
        series.touched = round;
        series.metric.clone()
    }

    /// Ends the series of `labels`.
    pub fn remove(&self, labels: &L) {
        self.lock().series.remove(labels);
    }

    /// Ends series that were not asked for during the last ten rounds. To be called once a minute, and only on families
    /// whose metrics nobody keeps.
    pub fn forget_idle(&self) {
        let mut inner = self.lock();
        inner.round += 1;
        let round = inner.round;
        inner.series.retain(|_, series| series.touched + IDLE_ROUNDS >= round);
    }

    /// How many label sets there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().series.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<L, M> CappedFamily<L, M> {
    /// A panic elsewhere left at worst one series behind.
    fn lock(&self) -> MutexGuard<'_, Inner<L, M>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<L: Labels, M: EncodeMetric + TypedMetric> EncodeMetric for CappedFamily<L, M> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        for (labels, series) in &self.lock().series {
            series.metric.encode(encoder.encode_family(labels)?)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        M::TYPE
    }

    fn is_empty(&self) -> bool {
        self.lock().series.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
    struct Service {
        service: String,
    }

    impl Labels for Service {
        fn overflow(&self) -> Self {
            Self { service: OTHER.to_owned() }
        }
    }

    fn service(n: usize) -> Service {
        Service { service: format!("s{n}") }
    }

    #[test]
    fn what_does_not_fit_falls_to_other_and_is_counted() {
        let dropped = Counter::default();
        let family = CappedFamily::new(Counter::<u64>::default, 3, dropped.clone());
        for n in [0, 1, 2, 3, 4, 0] {
            family.of(&service(n)).inc();
        }
        assert_eq!((family.len(), dropped.get()), (4, 2));
        assert_eq!(family.of(&service(0)).get(), 2);
        assert_eq!(family.of(&service(9).overflow()).get(), 2);
    }

    #[test]
    fn a_series_that_nobody_asks_for_goes_after_ten_rounds() {
        let family = CappedFamily::new(Counter::<u64>::default, 3, Counter::default());
        family.of(&service(0)).inc();
        family.of(&service(1)).inc();
        for _ in 0..IDLE_ROUNDS {
            family.forget_idle();
            family.of(&service(1)).inc();
        }
        assert_eq!(family.len(), 2);
        family.forget_idle();
        assert_eq!(family.len(), 1);
        family.remove(&service(1));
        assert!(family.is_empty());
    }
}
