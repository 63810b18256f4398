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

/// When a host made a report: seen by the manager's clock, and by the host's own.
#[derive(Debug, Clone, Copy)]
pub struct Reported {
    at: Instant,
    running: Option<Duration>,
}

/// Reports of one run of a host agree in when it started, but for the way of the reports.
const SAME_RUN_WITHIN: Duration = Duration::from_secs(10);

impl Reported {
    /// A report that the manager knows to be made at `at`.
    pub fn new(at: Instant, report: &HostReport) -> Self {
        let running = (report.running_millis > 0).then(|| Duration::from_millis(report.running_millis));
        Self { at, running }
    }

    /// The time from `earlier` to this one; `None` when this is not the later one.
    ///
    /// By the host's own clock where both are of one run: schedulers get the reports at different times.
    pub fn since(&self, earlier: &Self) -> Option<Duration> {
        let by_manager = self.at.checked_duration_since(earlier.at);
        let (Some(running), Some(before)) = (self.running, earlier.running) else { return by_manager };
        let (started, started_before) = (self.at.checked_sub(running), earlier.at.checked_sub(before));
        let (Some(started), Some(started_before)) = (started, started_before) else { return by_manager };
        if started > started_before + SAME_RUN_WITHIN {
            return Some(by_manager.unwrap_or_default());
        }
        if started_before > started + SAME_RUN_WITHIN { None } else { running.checked_sub(before) }
    }
}

/// The rates of one host between its last reports.
#[derive(Debug, Clone, Copy)]
pub struct Meter {
    reported: Reported,
    totals: [u64; 3],
    rates: Rates,
}

impl Meter {
    /// From the first report on.
    pub fn new(at: Instant, report: &HostReport) -> Self {
        let reported = Reported::new(at, report);
        Self { reported, totals: totals(report), rates: Rates::default() }
    }

    /// Takes the report in that the host made at `at`. A host that began to count anew moved nothing.
    pub fn hear(&mut self, at: Instant, report: &HostReport) {
        let reported = Reported::new(at, report);
        let Some(passed) = reported.since(&self.reported).filter(|passed| *passed >= WINDOW_MIN) else { return };
        let now = totals(report);
        let rate = |kind: usize| now[kind].saturating_sub(self.totals[kind]) as f64 / passed.as_secs_f64();
        *self = Self { reported, totals: now, rates: Rates { sent: rate(0), received: rate(1), local: rate(2) } };
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

    /// Two schedulers get a host's reports at different times and tell of them with every look.
    #[test]
    fn a_steady_host_has_a_steady_rate() {
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        // The host's start, by its own clock, was an hour before; it receives 1,000 bytes per second.
        let report = |millis: u64| HostReport {
            received_bytes: millis,
            running_millis: 3_600_000 + millis,
            ..HostReport::default()
        };
        // Of the second scheduler the manager knows the time of the report less well.
        let heard = |look: u64, offset: u64, late: u64| {
            let made = look.saturating_sub(offset) / 5_000 * 5_000 + offset;
            (at(made + late), report(made))
        };
        for offset in [0, 20, 700, 2_500, 4_900] {
            let mut meter = Meter::new(at(0), &report(0));
            for look in (12_000..120_000).step_by(2_000) {
                for (made, report) in [heard(look, 0, 0), heard(look, offset, 400), heard(look, 0, 300)] {
                    meter.hear(made, &report);
                }
                let rate = meter.rates().received;
                assert!((rate - 1_000.0).abs() < 1.0, "{rate} at offset {offset} ms, look at {look} ms");
            }
        }
    }

    #[test]
    fn reports_have_an_order() {
        let begin = Instant::now();
        let made = |seconds: u64, running: u64| {
            let report = HostReport { running_millis: running * 1_000, ..HostReport::default() };
            Reported::new(begin + Duration::from_secs(1_000 + seconds), &report)
        };
        let seconds = |passed: Option<Duration>| passed.map(|passed| passed.as_secs());
        // (earlier, later, seconds between, why)
        let table = [
            (made(0, 100), made(5, 105), Some(5), "one run"),
            (made(0, 100), made(4, 105), Some(5), "the host's own clock counts"),
            (made(4, 105), made(5, 104), None, "an older one that came later"),
            (made(0, 100), made(9, 2), Some(9), "it was started again"),
            (made(9, 2), made(8, 108), None, "of the run before"),
            (made(0, 0), made(5, 0), Some(5), "hosts of an earlier version do not say"),
            (made(5, 0), made(0, 0), None, "and are taken by the manager's clock"),
        ];
        for (earlier, later, passed, why) in table {
            assert_eq!(seconds(later.since(&earlier)), passed, "{why}");
        }
    }
}
