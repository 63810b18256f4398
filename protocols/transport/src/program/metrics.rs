//! The metrics that every program has.

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge, info::Info},
    registry::Registry,
};

use super::follower::Follower;
use crate::network::Network;

/// Adds the program's version, its connections and the epoch in force to `registry`, whose prefix is `damselfly`.
pub fn register(registry: &mut Registry, network: Network, follower: Follower) {
    let version = vec![("version", env!("CARGO_PKG_VERSION"))];
    registry.register("build", "Version of the program", Info::new(version));
    registry.register_collector(Box::new(Membership { network, follower }));
}

/// A registry whose metrics all begin with `damselfly_`.
pub fn registry() -> Registry {
    Registry::with_prefix("damselfly")
}

/// Looks at the truth when it is asked, so that nothing has to be kept up to date.
#[derive(Debug)]
struct Membership {
    network: Network,
    follower: Follower,
}

impl Collector for Membership {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let values = [
            ("connected_peers", "Peers connected at present", self.network.connected().borrow().len() as i64),
            ("configuration_epoch", "Epoch of the configuration in force", self.follower.epoch() as i64),
        ];
        for (name, help, value) in values {
            let gauge = ConstGauge::new(value);
            let descriptor = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(descriptor)?;
        }
        let refusals = self.network.admission().refusals();
        let help = "Connections that were not admitted, by reason";
        let mut family = encoder.encode_descriptor("admission_refusals", help, None, MetricType::Counter)?;
        for (reason, count) in refusals {
            ConstCounter::new(count).encode(family.encode_family(&[("reason", reason)])?)?;
        }
        Ok(())
    }
}
