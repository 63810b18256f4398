//! What the daemon counts.

use damselfly_messages::info::HostReport;
use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::{Registry, Unit},
};

macro_rules! metrics {
    ($($name:ident: $kind:ty, $text:literal, $unit:expr;)*) => {
        /// The daemon's metrics; cheap to clone.
        #[derive(Debug, Clone, Default)]
        pub struct Metrics {
            $(#[doc = $text] pub $name: $kind,)*
        }

        impl Metrics {
            /// Registers every metric.
            pub fn register(&self, registry: &mut Registry) {
                let registry = registry.sub_registry_with_prefix("node");
                $(register(registry, stringify!($name), $text, $unit, self.$name.clone());)*
            }
        }
    };
}

fn register(
    registry: &mut Registry,
    name: &str,
    help: &str,
    unit: Option<Unit>,
    metric: impl prometheus_client::registry::Metric,
) {
    match unit {
        // The unit is the end of the name by convention, and the library adds it itself.
        Some(unit) => {
            registry.register_with_unit(name.trim_end_matches("_bytes"), help.trim_end_matches('.'), unit, metric);
        }
        None => registry.register(name, help.trim_end_matches('.'), metric),
    }
}

metrics! {
    imports: Counter, "Imports that were acknowledged.", None;
    import_failures: Counter, "Imports that failed.", None;
    exports: Counter, "Exports that were completed.", None;
    export_failures: Counter, "Exports that failed.", None;
    deletes: Counter, "Tasks deleted here, by users and by schedulers.", None;
    conflicts: Counter, "Entries that lost their name to another content.", None;
    downloads_completed: Counter, "Contents downloaded from peers.", None;
    received_bytes: Counter, "Verified bytes from peers.", Some(Unit::Bytes);
    duplicate_bytes: Counter, "Verified bytes that arrived twice.", Some(Unit::Bytes);
    sent_bytes: Counter, "Bytes sent to peers.", Some(Unit::Bytes);
    exported_local_bytes: Counter, "Bytes exported from the local store.", Some(Unit::Bytes);
    verification_failures: Counter, "Manifests and pieces of peers that did not verify.", None;
    damaged_reads: Counter, "Reads of the local store that did not verify.", None;
    busy_answers: Counter, "Requests of peers answered busy.", None;
    announced: Counter, "Records sent to schedulers.", None;
    contents: Gauge, "Complete contents in the store.", None;
    stored_bytes: Gauge, "Bytes of complete contents in the store.", Some(Unit::Bytes);
    free_bytes: Gauge, "Bytes free on the store's file system.", Some(Unit::Bytes);
}

impl Metrics {
    /// What the schedulers are told of it, for people.
    pub fn report(&self) -> HostReport {
        let gauge = |gauge: &Gauge| u64::try_from(gauge.get()).unwrap_or(0);
        HostReport {
            contents: gauge(&self.contents),
            stored_bytes: gauge(&self.stored_bytes),
            free_bytes: gauge(&self.free_bytes),
            sent_bytes: self.sent_bytes.get(),
            received_bytes: self.received_bytes.get(),
            local_bytes: self.exported_local_bytes.get(),
            imports: self.imports.get(),
            exports: self.exports.get(),
            failures: self.import_failures.get() + self.export_failures.get(),
        }
    }
}
