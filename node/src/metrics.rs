//! What the daemon counts.

use damselfly_messages::{info::HostReport, scheduler::ParentFault};
use damselfly_transport::program::metrics::{Labelled, Watched, WatchedCounter, WatchedCounters, own};
use libp2p::PeerId;
use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use crate::{
    announcer::Announcer,
    download::Downloads,
    permits::Permits,
    store::{Removed, Store},
};

mod excluded;
use excluded::ExcludedParents;

macro_rules! metrics {
    ($($name:ident: $kind:ty = $new:expr, $text:literal, $unit:expr;)*) => {
        /// The daemon's metrics; cheap to clone.
        #[derive(Debug, Clone)]
        pub struct Metrics {
            $(#[doc = $text] pub $name: $kind,)*
        }

        impl Default for Metrics {
            fn default() -> Self {
                Self { $($name: $new,)* }
            }
        }

        impl Metrics {
            /// Registers every metric.
            pub fn register(&self, registry: &mut Registry) {
                let registry = own(registry).sub_registry_with_prefix("node");
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
    let help = help.trim_end_matches('.');
    // The unit is the end of the name by convention, and the library adds it itself.
    match unit {
        Some(unit) => {
            let name = name.trim_end_matches(unit.as_str()).trim_end_matches('_');
            registry.register_with_unit(name, help, unit, metric);
        }
        None => registry.register(name, help, metric),
    }
}

/// Where exported bytes come from.
const SOURCES: &[&str] = &[LOCAL, PEERS];
/// From the local store.
pub const LOCAL: &str = "local";
/// From peers.
pub const PEERS: &str = "peers";

fn seconds() -> Histogram {
    Histogram::new([0.01, 0.1, 1.0, 10.0, 100.0, 1000.0])
}

metrics! {
    imports: Counter = Counter::default(), "Imports that were acknowledged.", None;
    import_failures: Counter = Counter::default(), "Imports that failed.", None;
    imported_bytes: Counter = Counter::default(), "Bytes of imports that were acknowledged.", Some(Unit::Bytes);
    import_seconds: Histogram = seconds(), "Time that imports took, also those that failed.", Some(Unit::Seconds);
    exports: Counter = Counter::default(), "Exports that were completed.", None;
    export_failures: Counter = Counter::default(), "Exports that failed.", None;
    export_seconds: Histogram = seconds(), "Time that exports took, also those that failed.", Some(Unit::Seconds);
    exported_bytes: Labelled = Labelled::new("source", SOURCES), "Bytes of completed exports.", Some(Unit::Bytes);
    exported_pieces: Labelled = Labelled::new("source", SOURCES), "Pieces of completed exports.", None;
    locate_seconds: Histogram = seconds(), "Time in which schedulers named parents for an export.", Some(Unit::Seconds);
    deletes: Counter = Counter::default(), "Tasks deleted here, by users and by schedulers.", None;
    conflicts: Counter = Counter::default(), "Entries that lost their name to another content.", None;
    downloads_completed: Counter = Counter::default(), "Contents downloaded from peers.", None;
    received_bytes: Counter = Counter::default(), "Verified bytes from peers.", Some(Unit::Bytes);
    received_pieces: Counter = Counter::default(), "Verified pieces from peers.", None;
    duplicate_bytes: Counter = Counter::default(), "Verified bytes that arrived twice.", Some(Unit::Bytes);
    sent_bytes: Counter = Counter::default(), "Bytes sent to peers.", Some(Unit::Bytes);
    sent_pieces: Counter = Counter::default(), "Pieces sent to peers.", None;
    uploads: Gauge = Gauge::default(), "Pieces on their way to peers.", None;
    verification_failures: Labelled = Labelled::new("what", &["content", "manifest", "piece"]), "What peers gave that did not verify.", None;
    parents_excluded: Labelled = Labelled::new("reason", FAULTS), "Parents that a download stopped asking.", None;
    excluded_parents: ExcludedParents = ExcludedParents::new(FAULTS), "Times that a parent was excluded, for the parents of each reason that were last.", None;
    damaged_reads: Counter = Counter::default(), "Reads of the local store that did not verify.", None;
    busy_answers: Counter = Counter::default(), "Requests of peers answered busy.", None;
    announced: Counter = Counter::default(), "Records sent to schedulers.", None;
    queued_announcements: Gauge = Gauge::default(), "Imports that no scheduler has heard of yet.", None;
    queued_deletes: Gauge = Gauge::default(), "Deletes that no scheduler has heard of yet.", None;
    contents: Gauge = Gauge::default(), "Complete contents in the store.", None;
    unfinished_contents: Gauge = Gauge::default(), "Partial and damaged contents in the store.", None;
    unnamed_contents: Gauge = Gauge::default(), "Complete contents whose names were lost with a damaged index.", None;
    stored_bytes: Gauge = Gauge::default(), "Bytes of complete contents in the store.", Some(Unit::Bytes);
    free_bytes: Gauge = Gauge::default(), "Bytes free on the store's file system.", Some(Unit::Bytes);
}

/// What is asked when somebody asks for the metrics.
#[derive(Clone)]
pub struct Watch {
    /// What it removes by itself.
    pub store: Store,
    /// How many are under way.
    pub downloads: Downloads,
    /// Which schedulers it reaches.
    pub announcer: Announcer,
    /// How many import, and how many wait for that.
    pub imports: Permits,
    /// The same of exports.
    pub exports: Permits,
}

impl Watch {
    /// Registers metrics that look at these.
    pub fn register(self, registry: &mut Registry) {
        let Self { store, downloads, announcer, imports, exports } = self;
        let registry = own(registry).sub_registry_with_prefix("node");
        let mut gauge = |name: &str, help: &str, look: Box<dyn Fn() -> usize + Send + Sync>| {
            registry.register(name, help, Watched::new(move || look() as u64));
        };
        gauge("downloads", "Contents that are being downloaded", Box::new(move || downloads.count()));
        let reachable = move || announcer.views().iter().filter(|(_, view)| view.reachable).count();
        gauge("reachable_schedulers", "Schedulers that answered the last heartbeat", Box::new(reachable));
        let waiting = imports.clone();
        gauge("running_imports", "Imports under way", Box::new(move || imports.taken()));
        gauge("waiting_imports", "Imports that wait for others to end", Box::new(move || waiting.waiting()));
        let waiting = exports.clone();
        gauge("running_exports", "Exports under way", Box::new(move || exports.taken()));
        gauge("waiting_exports", "Exports that wait for others to end", Box::new(move || waiting.waiting()));
        let (used, quota, evicted) = (store.clone(), store.clone(), store.clone());
        let help = "Bytes that count for the store's quota: complete, partial, damaged, and being imported";
        registry.register_with_unit("used", help, Unit::Bytes, Watched::new(move || used.used_bytes()));
        let quota = Watched::new(move || quota.quota().map_or(0, |quota| quota.bytes));
        registry.register_with_unit("quota", "Most bytes that the store may hold; 0: no quota", Unit::Bytes, quota);
        let evicted = WatchedCounter::new(move || evicted.removed().evicted_bytes);
        registry.register_with_unit("evicted", "Bytes of copies removed for want of room", Unit::Bytes, evicted);
        let removed = WatchedCounters::new("reason", move || {
            let Removed { expired, abandoned, tombstones, evicted, .. } = store.removed();
            let counts =
                [("abandoned", abandoned), ("evicted", evicted), ("expired", expired), ("tombstone", tombstones)];
            counts.into()
        });
        registry.register("removed", "What was removed although nobody deleted it", removed);
    }
}

const FAULTS: &[&str] = &["lied", "not_held", "unreachable"];

impl Metrics {
    /// Counts a parent that is asked no more.
    pub fn on_lost_parent(&self, parent: PeerId, fault: ParentFault) {
        let reason = match fault {
            ParentFault::Lied => "lied",
            ParentFault::NotHeld => "not_held",
            ParentFault::Unreachable => "unreachable",
        };
        self.parents_excluded.of(reason).inc();
        self.excluded_parents.name(parent, reason);
    }

    /// What the schedulers are told of it, for people.
    pub fn report(&self) -> HostReport {
        let gauge = |gauge: &Gauge| u64::try_from(gauge.get()).unwrap_or(0);
        HostReport {
            contents: gauge(&self.contents),
            stored_bytes: gauge(&self.stored_bytes),
            free_bytes: gauge(&self.free_bytes),
            sent_bytes: self.sent_bytes.get(),
            received_bytes: self.received_bytes.get(),
            local_bytes: self.exported_bytes.of(LOCAL).get(),
            imports: self.imports.get(),
            exports: self.exports.get(),
            failures: self.import_failures.get() + self.export_failures.get(),
            running_millis: 0,
        }
    }
}

/// Counts something that is under way as long as this lives.
#[derive(Debug)]
pub struct UnderWay(Gauge);

impl UnderWay {
    /// One more.
    pub fn begin(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.dec();
    }
}
