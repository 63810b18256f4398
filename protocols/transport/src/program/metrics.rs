//! The metrics that every program has, and what their own are made of.

use std::{collections::BTreeMap, fmt, sync::LazyLock};

use procfs::process::{LimitValue, Process};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::ConstGauge,
        info::Info,
    },
    registry::{Registry, Unit},
};

use super::follower::Follower;
use crate::network::Network;

/// A registry that has what is known of every process: its version, and what it takes of the system.
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(ThisProcess));
    let version = vec![("version", env!("CARGO_PKG_VERSION"))];
    own(&mut registry).register("build", "Version of the program", Info::new(version));
    registry
}

/// The part of a registry for the program's own metrics, all of which begin with `damselfly_`.
pub fn own(registry: &mut Registry) -> &mut Registry {
    registry.sub_registry_with_prefix("damselfly")
}

/// Adds to a [`registry`] what a member of a cluster has: connections, gossip, admission, the epoch in force.
pub fn register(registry: &mut Registry, network: Network, follower: Follower) {
    let registry = own(registry);
    let peers = network.connected();
    registry.register(
        "connected_peers",
        "Peers connected at present",
        Watched::new(move || peers.borrow().len() as u64),
    );
    let help = "Epoch of the configuration in force";
    registry.register("configuration_epoch", help, Watched::new(move || follower.epoch()));
    let admission = network.admission().clone();
    let refusals = WatchedCounters::new("reason", move || admission.refusals());
    registry.register("admission_refusals", "Connections that were not admitted", refusals);
    let gossip = network.clone();
    let received = WatchedCounters::new("verdict", move || gossip.gossip_counts().received);
    registry.register("gossip_received", "Gossip messages of others, by what came of them", received);
    let published = WatchedCounters::new("result", move || network.gossip_counts().published);
    registry.register("gossip_published", "Gossip messages of this program's own", published);
}

/// A counter for each value of one label; the values are known beforehand, so that none of them is missing.
#[derive(Debug, Clone)]
pub struct Labelled {
    label: &'static str,
    counters: Family<[(&'static str, &'static str); 1], Counter>,
}

impl Labelled {
    /// Counters that begin with 0.
    pub fn new(label: &'static str, values: &[&'static str]) -> Self {
        let labelled = Self { label, counters: Family::default() };
        values.iter().for_each(|value| drop(labelled.of(value)));
        labelled
    }

    /// The counter of a value.
    pub fn of(&self, value: &'static str) -> Counter {
        self.counters.get_or_create(&[(self.label, value)]).clone()
    }
}

impl EncodeMetric for Labelled {
    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        self.counters.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}

/// A gauge whose value is looked up whenever somebody asks for it; must not wait.
pub struct Watched<F>(F);

impl<F: Fn() -> u64 + Send + Sync + 'static> Watched<F> {
    /// Shows what `look` gives.
    pub const fn new(look: F) -> Self {
        Self(look)
    }
}

impl<F> fmt::Debug for Watched<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").finish_non_exhaustive()
    }
}

impl<F: Fn() -> u64 + Send + Sync + 'static> EncodeMetric for Watched<F> {
    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        gauge((self.0)()).encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

/// A counter that something else keeps; looked up whenever somebody asks for it.
pub struct WatchedCounter<F>(F);

impl<F: Fn() -> u64 + Send + Sync + 'static> WatchedCounter<F> {
    /// Shows what `look` gives.
    pub const fn new(look: F) -> Self {
        Self(look)
    }
}

impl<F> fmt::Debug for WatchedCounter<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchedCounter").finish_non_exhaustive()
    }
}

impl<F: Fn() -> u64 + Send + Sync + 'static> EncodeMetric for WatchedCounter<F> {
    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        ConstCounter::new((self.0)()).encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}

/// Counters of one label that something else keeps; looked up whenever somebody asks for them.
pub struct WatchedCounters<F> {
    label: &'static str,
    look: F,
}

impl<F: Fn() -> BTreeMap<&'static str, u64> + Send + Sync + 'static> WatchedCounters<F> {
    /// Shows what `look` gives, by the value of `label`. The values must be few and always the same.
    pub const fn new(label: &'static str, look: F) -> Self {
        Self { label, look }
    }
}

impl<F> fmt::Debug for WatchedCounters<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchedCounters").field("label", &self.label).finish_non_exhaustive()
    }
}

impl<F: Fn() -> BTreeMap<&'static str, u64> + Send + Sync + 'static> EncodeMetric for WatchedCounters<F> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (value, count) in (self.look)() {
            ConstCounter::new(count).encode(encoder.encode_family(&[(self.label, value)])?)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}

fn gauge(value: u64) -> ConstGauge<i64> {
    ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX))
}

/// What the system says of this process, by the names that Prometheus gives it in every program.
#[derive(Debug)]
struct ThisProcess;

/// When the system was started, in seconds since 1970.
static BOOTED: LazyLock<Option<u64>> = LazyLock::new(|| procfs::boot_time_secs().ok());

impl Collector for ThisProcess {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // Where /proc cannot be read there is nothing to tell; the program's own metrics are told all the same.
        let Ok(process) = Process::myself() else { return Ok(()) };
        let Ok(stat) = process.stat() else { return Ok(()) };
        let ticks = procfs::ticks_per_second() as f64;
        let cpu = (stat.utime + stat.stime) as f64 / ticks;
        let help = "Time of processors that this process has used";
        let descriptor = encoder.encode_descriptor("process_cpu", help, Some(&Unit::Seconds), MetricType::Counter)?;
        ConstCounter::new(cpu).encode(descriptor)?;
        let start = BOOTED.map(|booted| booted as f64 + stat.starttime as f64 / ticks);
        if let Some(start) = start {
            let help = "When this process was started, in seconds since 1970";
            let unit = Some(&Unit::Seconds);
            let descriptor = encoder.encode_descriptor("process_start_time", help, unit, MetricType::Gauge)?;
            ConstGauge::new(start).encode(descriptor)?;
        }
        let files_max = process.limits().ok().and_then(|limits| match limits.max_open_files.soft_limit {
            LimitValue::Value(most) => Some(most),
            LimitValue::Unlimited => None,
        });
        let files = process.fd_count().ok().map(|files| files as u64);
        let memory = stat.rss * procfs::page_size();
        let values = [
            ("process_resident_memory", "Memory in RAM", Some(Unit::Bytes), Some(memory)),
            ("process_virtual_memory", "Virtual memory", Some(Unit::Bytes), Some(stat.vsize)),
            ("process_open_fds", "Open file descriptors", None, files),
            ("process_max_fds", "Most open file descriptors", None, files_max),
            ("process_threads", "Threads", None, u64::try_from(stat.num_threads).ok()),
        ];
        for (name, help, unit, value) in values {
            let Some(value) = value else { continue };
            gauge(value).encode(encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?)?;
        }
        Ok(())
    }
}
