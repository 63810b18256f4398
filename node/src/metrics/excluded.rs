//! Which parents were excluded last, by their identities.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use libp2p::PeerId;
use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder},
    metrics::{MetricType, gauge::ConstGauge},
};

/// So many parents are named for each reason.
const NAMED_MAX: usize = 16;

/// For each reason the parents that were excluded last, and how often; clones are the same ones.
///
/// Peers cannot invent names: parents have proved theirs with their credentials. Those of one reason do not push out those
/// of another, so hosts that are merely gone hide no liar.
#[derive(Debug, Clone)]
pub struct ExcludedParents(Arc<[(&'static str, Mutex<Named>)]>);

/// Who was excluded how often, the last one last.
type Named = Vec<(PeerId, u64)>;

impl ExcludedParents {
    /// None yet, for any of these reasons.
    pub fn new(reasons: &[&'static str]) -> Self {
        Self(reasons.iter().map(|reason| (*reason, Mutex::default())).collect())
    }

    /// Names a parent; the one that was named longest ago makes room.
    pub fn name(&self, parent: PeerId, reason: &'static str) {
        let Some((_, named)) = self.0.iter().find(|(known, _)| *known == reason) else { return };
        let mut named = named.lock().unwrap_or_else(PoisonError::into_inner);
        let before = named.iter().position(|(peer, _)| *peer == parent).map(|at| named.remove(at).1);
        if named.len() >= NAMED_MAX {
            named.remove(0);
        }
        named.push((parent, before.unwrap_or(0) + 1));
    }
}

impl EncodeMetric for ExcludedParents {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (reason, named) in self.0.iter() {
            // Not while it is written: a slow reader must not hold up a download.
            let named = named.lock().unwrap_or_else(PoisonError::into_inner).clone();
            for (parent, times) in named {
                let labels = [("parent", parent.to_string()), ("reason", (*reason).to_owned())];
                let times = i64::try_from(times).unwrap_or(i64::MAX);
                ConstGauge::new(times).encode(encoder.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::text::encode, registry::Registry};

    use super::*;

    #[test]
    fn the_last_ones_of_each_reason_are_named() {
        let excluded = ExcludedParents::new(&["lied", "unreachable"]);
        let mut registry = Registry::default();
        registry.register("excluded_parents", "Help", excluded.clone());
        let shown = || {
            let mut text = String::new();
            encode(&mut text, &registry).expect("written");
            text
        };
        let liar = PeerId::random();
        excluded.name(liar, "lied");
        let gone: Vec<_> = (0..=NAMED_MAX).map(|_| PeerId::random()).collect();
        gone.iter().for_each(|peer| excluded.name(*peer, "unreachable"));
        excluded.name(gone[1], "unreachable");
        excluded.name(liar, "lied");
        let text = shown();
        assert!(text.contains(&format!("{{parent=\"{liar}\",reason=\"lied\"}} 2\n")), "{text}");
        assert!(text.contains(&format!("{{parent=\"{}\",reason=\"unreachable\"}} 2\n", gone[1])), "{text}");
        assert!(!text.contains(&gone[0].to_string()), "it was named longest ago: {text}");
        assert_eq!(text.matches("reason=\"unreachable\"").count(), NAMED_MAX, "{text}");
    }
}
