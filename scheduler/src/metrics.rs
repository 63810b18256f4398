//! The scheduler's numbers, for Prometheus.

use std::time::Duration;

use damselfly_messages::scheduler::{RegisterAnswer, RequestBody, ResponseBody, StatAnswer};
use damselfly_transport::program::metrics::own;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use crate::state::{Reply, State};

/// One kind of request, and how it was answered.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    kind: &'static str,
    result: &'static str,
}

/// What is counted.
#[derive(Debug)]
pub(crate) struct Metrics {
    requests: Family<Answered, Counter>,
    handling: Histogram,
    scheduling: Histogram,
    /// Taken from the state: its counters only grow.
    totals: [Counter; 8],
    gauges: [Gauge; 8],
    names: Gauge,
    waiting_requests: Gauge,
    notifications: [Gauge; 2],
    dropped_notifications: Counter,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let times = || Histogram::new([0.000_01, 0.000_1, 0.001, 0.01, 0.1, 1.0]);
        let metrics = Self {
            requests: Family::default(),
            handling: times(),
            scheduling: times(),
            totals: Default::default(),
            gauges: Default::default(),
            names: Gauge::default(),
            waiting_requests: Gauge::default(),
            notifications: Default::default(),
            dropped_notifications: Counter::default(),
        };
        let registry = own(registry).sub_registry_with_prefix("scheduler");
        // Those that every scheduler answers sooner or later; further results show when there are some.
        for kind in KINDS {
            drop(metrics.requests.get_or_create(&Answered { kind, result: "ok" }));
        }
        registry.register("requests", "Requests by kind and result", metrics.requests.clone());
        let help = "Time in which one request was decided";
        registry.register_with_unit("handling", help, Unit::Seconds, metrics.handling.clone());
        let help = "Time in which the parents for one download were chosen";
        registry.register_with_unit("scheduling", help, Unit::Seconds, metrics.scheduling.clone());
        let totals = [
            ("conflicts", "Records that lost their name to another content"),
            ("notifications", "Notifications for hosts"),
            ("lies", "Reports that a parent's bytes did not verify"),
            ("false_candidates", "Reports that a content is not what its sha256 name says"),
            ("over_bounds", "Records and downloads refused because a bound was reached"),
            ("lapsed_hosts", "Hosts whose lease ended"),
            ("forgotten_tasks", "Tasks forgotten because nobody holds them any more, or others own them"),
            (
                "forgotten_tombstones",
                "Tombstones forgotten because they are old, others own them, or there was no room",
            ),
        ];
        for ((name, help), total) in totals.into_iter().zip(&metrics.totals) {
            registry.register(name, help, total.clone());
        }
        let gauges = [
            ("tasks", "Tasks bound to a content"),
            ("announcements", "Records told by hosts"),
            ("hosts", "Hosts with a live lease"),
            ("suspect_hosts", "Hosts of those whose connection has ended"),
            ("tombstones", "Tombstones"),
            ("announced_tombstones", "Tombstones told by hosts: several may tell the same one"),
            ("downloads", "Downloads under way"),
        ];
        for ((name, help), gauge) in gauges.into_iter().zip(&metrics.gauges) {
            registry.register(name, help, gauge.clone());
        }
        let [.., state] = &metrics.gauges;
        registry.register_with_unit("state", "Estimated memory of the state", Unit::Bytes, state.clone());
        let help = "Estimated memory of the names of tasks";
        registry.register_with_unit("names", help, Unit::Bytes, metrics.names.clone());
        let help = "Requests that wait for their answer";
        registry.register("waiting_requests", help, metrics.waiting_requests.clone());
        let [waiting, running] = &metrics.notifications;
        registry.register("waiting_notifications", "Notifications that wait to be sent", waiting.clone());
        registry.register("running_notifications", "Notifications under way", running.clone());
        let help = "Notifications not sent because too many waited";
        registry.register("dropped_notifications", help, metrics.dropped_notifications.clone());
        metrics
    }

    pub(crate) fn on_answer(&self, kind: &'static str, reply: &Reply) {
        self.requests.get_or_create(&Answered { kind, result: result(reply) }).inc();
    }

    pub(crate) fn on_invalid(&self) {
        self.requests.get_or_create(&Answered { kind: "unknown", result: "invalid" }).inc();
    }

    pub(crate) fn on_handled(&self, kind: &'static str, took: Duration) {
        self.handling.observe(took.as_secs_f64());
        if kind == REGISTER {
            self.scheduling.observe(took.as_secs_f64());
        }
    }

    pub(crate) fn on_dropped_notification(&self) {
        self.dropped_notifications.inc();
    }

    /// Takes over how many requests wait for an answer, and how many notifications wait and are under way.
    pub(crate) fn on_queues(&self, requests: usize, notifications: (usize, usize)) {
        self.waiting_requests.set(requests as i64);
        let [waiting, running] = &self.notifications;
        waiting.set(notifications.0 as i64);
        running.set(notifications.1 as i64);
    }

    /// Takes over the state's numbers.
    pub(crate) fn update(&self, state: &State) {
        let counted = state.counters();
        let counted = [
            counted.conflicts,
            counted.notifications,
            counted.lies,
            counted.false_candidates,
            counted.over_bounds,
            counted.lapsed_hosts,
            counted.forgotten_tasks,
            counted.forgotten_tombstones,
        ];
        for (total, counted) in self.totals.iter().zip(counted) {
            total.inc_by(counted.saturating_sub(total.get()));
        }
        let now = state.gauges();
        self.names.set(now.name_bytes as i64);
        let now = [
            now.tasks,
            now.announcements,
            now.hosts,
            now.suspect_hosts,
            now.tombstones,
            now.announced_tombstones,
            now.downloads,
            now.bytes,
        ];
        for (gauge, now) in self.gauges.iter().zip(now) {
            gauge.set(now as i64);
        }
    }
}

const REGISTER: &str = "register_peer_task";

/// Every kind of request that there is, and what cannot be read.
const KINDS: [&str; 8] = [
    "announce_host",
    "announce_task",
    "delete_task",
    "leave_task",
    REGISTER,
    "report_peer_result",
    "report_piece_result",
    "stat_task",
];

/// The label of a kind of request.
pub(crate) const fn kind(body: &RequestBody) -> &'static str {
    match body {
        RequestBody::StatTask(_) => "stat_task",
        RequestBody::AnnounceTask(_) => "announce_task",
        RequestBody::RegisterPeerTask(_) => REGISTER,
        RequestBody::ReportPieceResult(_) => "report_piece_result",
        RequestBody::ReportPeerResult(_) => "report_peer_result",
        RequestBody::LeaveTask(_) => "leave_task",
        RequestBody::DeleteTask(_) => "delete_task",
        RequestBody::AnnounceHost(_) => "announce_host",
    }
}

fn result(reply: &Reply) -> &'static str {
    let response = match reply {
        Reply::Response(response) => response,
        Reply::Busy(_) => return "busy",
        Reply::Refused(_) => return "refused",
    };
    match &response.body {
        ResponseBody::NotOwner(_) => "not_owner",
        ResponseBody::Stat(StatAnswer::Missing(_)) | ResponseBody::Registered(RegisterAnswer::Missing(_)) => "missing",
        ResponseBody::Stat(_)
        | ResponseBody::Announced(_)
        | ResponseBody::Registered(_)
        | ResponseBody::Noted
        | ResponseBody::Deleted(_)
        | ResponseBody::Host(_) => "ok",
    }
}
