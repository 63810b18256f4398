//! How fast bytes move, of what hosts count (pure).

use std::time::{Duration, Instant};

use damselfly_messages::info::HostReport;

/// Reports that are nearer together say nothing: when a host was heard of is known only so well.
const WINDOW_MIN: Duration = Duration::from_secs(1);

/// Bytes per second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rates {
    /// Sent to peers.
    pub sent: f64,
    /// Received from peers and verified.
    pub received: f64,
    /// Exported from local stores.
    pub local: f64,
}

impl Rates {
    /// Of all together.
    pub fn sum(all: impl Iterator<Item = Self>) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            sent: sum.sent + one.sent,
            received: sum.received + one.received,
            local: sum.local + one.local,
        })
    }
}

/// The rates of one host between its last reports.
#[derive(Debug, Clone, Copy)]
pub struct Meter {
    at: Instant,
    totals: [u64; 3],
    rates: Rates,
}

impl Meter {
    /// From the first report on.
    pub const fn new(at: Instant, report: &HostReport) -> Self {
        Self { at, totals: totals(report), rates: Rates { sent: 0.0, received: 0.0, local: 0.0 } }
    }

    /// Takes the report in that the host made at `at`. A host that began to count anew moved nothing.
    pub fn hear(&mut self, at: Instant, report: &HostReport) {
        let passed = at.saturating_duration_since(self.at);
        if passed < WINDOW_MIN {
            return;
        }
        let now = totals(report);
        let rate = |kind: usize| now[kind].saturating_sub(self.totals[kind]) as f64 / passed.as_secs_f64();
        *self = Self { at, totals: now, rates: Rates { sent: rate(0), received: rate(1), local: rate(2) } };
    }

    /// What was moved between the last two reports.
    pub const fn rates(&self) -> Rates {
        self.rates
    }
}

const fn totals(report: &HostReport) -> [u64; 3] {
    [report.sent_bytes, report.received_bytes, report.local_bytes]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_between_two_reports() {
        let begin = Instant::now();
        let report = |sent_bytes| HostReport { sent_bytes, ..HostReport::default() };
        let mut meter = Meter::new(begin, &report(50_000));
        // (milliseconds after the begin, bytes sent by then, bytes per second, why)
        let table = [
            (20, 50_000, 0.0, "the first report is no rate"),
            (500, 52_000, 0.0, "too near to the first"),
            (5_000, 60_000, 2_000.0, "what was too near counts now"),
            (5_030, 60_000, 2_000.0, "the same report, seen by another scheduler"),
            (10_000, 60_000, 0.0, "nothing was sent"),
            (12_000, 10, 0.0, "it has started anew"),
            (14_000, 4_010, 2_000.0, "and counts again"),
            (13_000, 0, 2_000.0, "an older report comes later"),
        ];
        for (millis, sent, rate, why) in table {
            meter.hear(begin + Duration::from_millis(millis), &report(sent));
            assert_eq!(meter.rates().sent, rate, "{why}");
        }
    }
}
