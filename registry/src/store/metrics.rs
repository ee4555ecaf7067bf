//! What the store reports. Names and units are public interface: dashboards depend on them.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// See the module.
#[derive(Debug)]
pub struct StoreMetrics {
    /// From having decided a group of writes to having it on the disk, in seconds.
    pub commit_duration: Histogram,
    /// Disk transactions that were made durable.
    pub commits: Counter,
    /// Disk transactions that failed.
    pub commit_failures: Counter,
    /// The newest revision.
    pub revision: Gauge,
    /// The size of all keys and values, in bytes.
    pub bytes: Gauge,
    /// Writes that wait for their answer.
    pub waiting: Gauge,
    /// Watches that are open.
    pub watches: Gauge,
    /// Whether etcd is followed now; 0 while it is away, and for an embedded store.
    pub connected: Gauge,
    /// Times that everything was listed anew because history or events were missing.
    pub relists: Counter,
    /// Transactions whose answer was lost, and whose fate was then found out.
    pub in_doubt: Counter,
}

impl Default for StoreMetrics {
    fn default() -> Self {
        // 0.5 ms, about the cheapest fsync, to 8 s.
        let commit_duration = Histogram::new(exponential_buckets(0.0005, 2.0, 15));
        Self {
            commit_duration,
            commits: Counter::default(),
            commit_failures: Counter::default(),
            revision: Gauge::default(),
            bytes: Gauge::default(),
            waiting: Gauge::default(),
            watches: Gauge::default(),
            connected: Gauge::default(),
            relists: Counter::default(),
            in_doubt: Counter::default(),
        }
    }
}

impl StoreMetrics {
    /// Registers every metric of the store.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("weft_registry");
        registry.register_with_unit(
            "commit_duration",
            "Time to make a group of writes durable",
            Unit::Seconds,
            self.commit_duration.clone(),
        );
        registry.register("commits", "Groups of writes made durable", self.commits.clone());
        registry.register("commit_failures", "Groups of writes that failed", self.commit_failures.clone());
        registry.register("store_revision", "Newest revision of the store", self.revision.clone());
        registry.register_with_unit(
            "store_size",
            "Keys and values in the store",
            Unit::Bytes,
            self.bytes.clone(),
        );
        registry.register("store_waiting", "Writes waiting for the store", self.waiting.clone());
        registry.register("store_watches", "Open watches of the store", self.watches.clone());
        registry.register("store_connected", "Whether etcd is followed now", self.connected.clone());
        registry.register("store_relists", "Times that etcd was listed anew", self.relists.clone());
        registry.register("store_in_doubt", "Writes to etcd whose answer was lost", self.in_doubt.clone());
    }

    /// Counts a write for as long as the result lives.
    pub(crate) fn wait(&self) -> Counted {
        Counted::new(&self.waiting)
    }

    /// Counts a watch for as long as the result lives.
    pub(crate) fn watcher(&self) -> Counted {
        Counted::new(&self.watches)
    }
}

/// One more in a gauge until it is dropped.
pub(crate) struct Counted {
    gauge: Gauge,
}

impl Counted {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self { gauge: gauge.clone() }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_registered_under_the_name_of_the_plane() {
        let metrics = StoreMetrics::default();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let waiting = metrics.wait();
        metrics.commit_duration.observe(0.002);

        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "weft_registry_commit_duration_seconds_count 1",
            "weft_registry_commits_total 0",
            "weft_registry_commit_failures_total 0",
            "weft_registry_store_revision 0",
            "weft_registry_store_size_bytes 0",
            "weft_registry_store_waiting 1",
            "weft_registry_store_watches 0",
            "weft_registry_store_connected 0",
            "weft_registry_store_relists_total 0",
            "weft_registry_store_in_doubt_total 0",
        ] {
            assert!(text.contains(line), "{line} is missing in:\n{text}");
        }
        drop(waiting);
        assert_eq!(metrics.waiting.get(), 0);
    }
}
