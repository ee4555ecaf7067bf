//! What the control plane's services report. Names and units are public interface: dashboards depend on them.
//!
//! The store's own are [`crate::store::metrics`].

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

/// See the module.
#[derive(Debug, Default)]
pub struct RegistryMetrics {
    /// The newest revision in force (`weft.config.revision`).
    pub revision: Gauge,
    /// From sending the newest update to its Ack, in seconds (`weft.config.sync.lag`).
    pub sync_lag: Gauge<f64, AtomicU64>,
    /// Discovery streams that are open.
    pub agents: Gauge,
    /// Updates that were sent to agents.
    pub updates: Family<UpdateLabels, Counter>,
    /// Objects that are kept as agents are sent them.
    pub encoded_objects: Gauge,
    /// Updates that agents refused.
    pub nacks: Counter,
    /// Records of the store that could not be read.
    pub unreadable_records: Counter,
    /// Groups of records that were found not to be as the server wrote them.
    pub refused_groups: Counter,
    /// Groups of records that are closed because of that.
    pub closed_groups: Gauge,
    /// Entries of the denylist: identities, certificates, keys and nodes.
    pub denied: Gauge,
    /// Objects that people created, changed or deleted.
    pub changes: Counter,
    /// Changes that the history keeps.
    pub history_changes: Gauge,
    /// Changes that the history has forgotten, because there were too many.
    pub history_forgotten: Counter,
    /// Changes that wait for their confirmation.
    pub unconfirmed: Gauge,
    /// Changes that were taken back because nobody confirmed them, by outcome.
    pub taken_back: Family<OutcomeLabels, Counter>,
    /// Changes that were refused because they would have cut every call to a service.
    pub lockouts: Counter,
    /// Entries of the audit log.
    pub audit_entries: Counter,
    /// Times that the audit log could not be written.
    pub audit_failures: Counter,
    /// Refusals and reads that were not written to the audit log one by one, because too many came.
    pub audit_untold: Counter,
    /// Registrations of workloads, by outcome.
    pub registrations: Family<OutcomeLabels, Counter>,
    /// Streams of people that watch.
    pub watches: Gauge,
}

/// What kind of update.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct UpdateLabels {
    /// `full` or `delta`.
    pub kind: &'static str,
}

/// How something ended.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct OutcomeLabels {
    /// `ok` or the code of the refusal.
    pub outcome: String,
}

impl RegistryMetrics {
    /// Registers every metric here.
    pub fn register(&self, registry: &mut Registry) {
        let config = registry.sub_registry_with_prefix("weft_config");
        config.register("revision", "Newest revision in force", self.revision.clone());
        let lag = self.sync_lag.clone();
        config.register_with_unit("sync_lag", "Time from the newest update to its Ack", Unit::Seconds, lag);
        let registry = registry.sub_registry_with_prefix("weft_registry");
        registry.register("agents", "Discovery streams that are open", self.agents.clone());
        registry.register("updates", "Updates sent to agents", self.updates.clone());
        registry.register(
            "encoded_objects",
            "Objects kept as agents are sent them",
            self.encoded_objects.clone(),
        );
        registry.register("nacks", "Updates refused by agents", self.nacks.clone());
        registry.register("unreadable_records", "Stored records set aside", self.unreadable_records.clone());
        registry.register(
            "refused_groups",
            "Groups of stored records found not to be as the server wrote them",
            self.refused_groups.clone(),
        );
        registry.register(
            "closed_groups",
            "Groups of stored records that are closed",
            self.closed_groups.clone(),
        );
        registry.register("denied", "Entries of the denylist", self.denied.clone());
        registry.register("changes", "Objects changed by people", self.changes.clone());
        registry.register("history_changes", "Changes that the history keeps", self.history_changes.clone());
        registry.register(
            "history_forgotten",
            "Changes that the history has forgotten",
            self.history_forgotten.clone(),
        );
        registry.register("unconfirmed", "Changes that wait for confirmation", self.unconfirmed.clone());
        registry.register("taken_back", "Unconfirmed changes taken back", self.taken_back.clone());
        registry.register("lockouts", "Changes refused by the lock-out guard", self.lockouts.clone());
        registry.register("audit_entries", "Entries of the audit log", self.audit_entries.clone());
        registry.register("audit_failures", "Failed writes of the audit log", self.audit_failures.clone());
        registry.register(
            "audit_untold",
            "Refusals and reads left out of the audit log",
            self.audit_untold.clone(),
        );
        registry.register("registrations", "Registrations of workloads", self.registrations.clone());
        registry.register("watches", "Management watches that are open", self.watches.clone());
    }

    /// Counts an update.
    pub(crate) fn update(&self, full: bool) {
        let kind = if full { "full" } else { "delta" };
        self.updates.get_or_create(&UpdateLabels { kind }).inc();
    }

    /// Counts a change that was taken back: `ok`, `partly` (somebody had changed it since), or the code of the refusal.
    pub(crate) fn took_back(&self, outcome: &str) {
        self.taken_back.get_or_create(&OutcomeLabels { outcome: outcome.to_owned() }).inc();
    }

    /// Counts the outcome of a registration: `ok` or a code of the catalogue, a bounded set.
    pub(crate) fn registration(&self, outcome: &str) {
        self.registrations.get_or_create(&OutcomeLabels { outcome: outcome.to_owned() }).inc();
    }
}

/// One more in a gauge until it is dropped.
#[derive(Debug)]
pub(crate) struct Counted(Gauge);

impl Counted {
    pub(crate) fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_registered_under_its_name() {
        let metrics = RegistryMetrics::default();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        metrics.update(true);
        metrics.registration("ok");
        let open = Counted::new(&metrics.agents);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "weft_config_revision 0",
            "weft_config_sync_lag_seconds 0.0",
            "weft_registry_agents 1",
            "weft_registry_updates_total{kind=\"full\"} 1",
            "weft_registry_encoded_objects 0",
            "weft_registry_nacks_total 0",
            "weft_registry_registrations_total{outcome=\"ok\"} 1",
            "weft_registry_denied 0",
            "weft_registry_changes_total 0",
            "weft_registry_history_changes 0",
            "weft_registry_history_forgotten_total 0",
            "weft_registry_unconfirmed 0",
            "weft_registry_lockouts_total 0",
            "weft_registry_audit_entries_total 0",
            "weft_registry_audit_failures_total 0",
            "weft_registry_audit_untold_total 0",
        ] {
            assert!(text.contains(line), "{line} is missing in:\n{text}");
        }
        drop(open);
        assert_eq!(metrics.agents.get(), 0);
    }
}
