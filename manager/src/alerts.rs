//! What should be known to who runs the cluster (pure but for `watch`). docs/alerts.md says what to do about each.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use damselfly_messages::{
    config::Accepted,
    info::{HostReport, HostsAnswer, Share},
    record::UnixMillis,
};
use libp2p::PeerId;
use serde::Serialize;
use utoipa::ToSchema;

use crate::cluster_view::{ClusterView, HostView};

#[cfg(test)]
mod tests;
mod watch;

pub use watch::Watch;

/// A change reaches everybody within two seconds; after this time something is in its way.
const ROLL_OUT_MAX: Duration = Duration::from_secs(10);
/// A scheduler is warm after 15 seconds at most.
const COLD_MAX: Duration = Duration::from_secs(30);
/// Less free than this part of what the store has and could have: the disk is nearly full.
const FREE_PART_MIN: f64 = 0.05;
/// Less free than this: it is full.
const FREE_BYTES_MIN: u64 = 256 << 20;
/// So many failures of one host between two marks are no accident.
const FAILURES_MIN: u64 = 10;
/// The time between two marks.
const MARK_EVERY: Duration = Duration::from_secs(60);
/// A credential is renewed after a fourteenth of its life. Of one with less than this part left it was tried often.
const CREDENTIAL_PART_MIN: u64 = 4;
/// Alerts of one kind with a subject each; of more there is one alert that counts them.
const EACH_MAX: usize = 5;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something does not work, or soon will not.
    Critical,
    /// Something will not work if nobody does anything.
    Warning,
    /// It is good to know.
    Info,
}

/// Something that should be known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Alert {
    /// Which kind, for programs.
    #[schema(value_type = String)]
    pub code: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What it is, for people.
    pub message: String,
    /// The host or scheduler that it is about, if it is one.
    pub subject: Option<String>,
}

/// What alerts follow from.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The cluster as it was seen last.
    pub cluster_view: &'a ClusterView,
    /// The configuration in force.
    pub accepted: &'a Accepted,
    /// This manager signs and publishes.
    pub is_publisher: bool,
    /// Members whose credential has ended or ends soon, and when.
    pub credentials: &'a [(PeerId, UnixMillis)],
    /// The time of day.
    pub time: UnixMillis,
}

/// What was seen before, as far as it counts.
#[derive(Debug, Default)]
pub struct Memory {
    /// The epoch that is not everywhere, and since when.
    behind: Option<(u64, Instant)>,
    /// Schedulers of the ring that are not warm, and since when.
    cold: HashMap<PeerId, Instant>,
    /// Hosts that no scheduler has heard of, and since when that is known.
    absent: HashMap<PeerId, Instant>,
    /// What hosts had failed when it was marked last and the time before.
    marks: [Option<(Instant, HashMap<PeerId, u64>)>; 2],
}

/// Until when a credential of this cluster ends to be told of.
pub fn credentials_until(accepted: &Accepted, time: UnixMillis) -> UnixMillis {
    UnixMillis(time.0 + accepted.configuration.settings.credential_ms / CREDENTIAL_PART_MIN)
}

impl Memory {
    /// All alerts, the worst first.
    pub fn look(&mut self, facts: &Facts<'_>, now: Instant) -> Vec<Alert> {
        let mut alerts = schedulers(facts);
        alerts.extend(self.cold(facts, now));
        alerts.extend(full(facts.cluster_view));
        alerts.extend(credentials(facts));
        alerts.extend(disks(facts.cluster_view));
        alerts.extend(hosts_down(facts));
        alerts.extend(self.absent(facts, now));
        alerts.extend(self.roll_out(facts, now));
        alerts.extend(self.failures(facts.cluster_view, now));
        alerts.extend(versions(facts.cluster_view));
        if !facts.is_publisher {
            let message = "Another manager publishes; changes made here are signed by way of it.".into();
            alerts.push(Alert { code: "not_publisher", severity: Severity::Info, message, subject: None });
        }
        alerts.sort_by_key(|alert| alert.severity);
        alerts
    }

    fn cold(&mut self, facts: &Facts<'_>, now: Instant) -> Vec<Alert> {
        let is_cold = |(peer, answer): &&(PeerId, Option<_>)| {
            let answer: Option<&damselfly_messages::info::HostsAnswer> = answer.as_ref();
            answer.is_some_and(|answer| !answer.warm) && facts.accepted.ring.members().contains(peer)
        };
        let cold: BTreeSet<_> = facts.cluster_view.schedulers.iter().filter(is_cold).map(|(peer, _)| *peer).collect();
        self.cold.retain(|peer, _| cold.contains(peer));
        let since = cold.into_iter().map(|peer| (peer, *self.cold.entry(peer).or_insert(now)));
        let long = since.filter(|(_, since)| now.saturating_duration_since(*since) > COLD_MAX);
        each("scheduler_cold", Severity::Warning, long.map(|(peer, _)| peer), "schedulers are not warm", |_| {
            "The scheduler is not warm: that it does not know a task means nothing.".into()
        })
    }

    /// Of hosts that were members before this manager started, and are down. While no scheduler answers nobody knows.
    fn absent(&mut self, facts: &Facts<'_>, now: Instant) -> Vec<Alert> {
        let is_seen =
            facts.cluster_view.schedulers.iter().any(|(_, answer)| answer.as_ref().is_some_and(|told| told.warm));
        let absent: BTreeSet<_> = facts.cluster_view.absent.iter().filter(|_| is_seen).copied().collect();
        self.absent.retain(|peer, _| absent.contains(peer));
        let since = absent.into_iter().map(|peer| (peer, *self.absent.entry(peer).or_insert(now)));
        let long = since.filter(|(_, since)| now.saturating_duration_since(*since) > COLD_MAX);
        each("host_down", Severity::Warning, long.map(|(peer, _)| peer), "hosts have not been seen", |_| {
            "The host is down; it was a member lately, and was not heard of since this manager started.".into()
        })
    }

    fn roll_out(&mut self, facts: &Facts<'_>, now: Instant) -> Option<Alert> {
        let epoch = facts.accepted.configuration.epoch;
        let percent = facts.cluster_view.roll_out(epoch);
        if percent >= 100.0 {
            self.behind = None;
            return None;
        }
        let (_, since) = *self.behind.insert(self.behind.filter(|(known, _)| *known == epoch).unwrap_or((epoch, now)));
        let passed = now.saturating_duration_since(since);
        let message =
            format!("Epoch {epoch} runs on {:.0} % only, {} s after the change.", percent.floor(), passed.as_secs());
        let alert = Alert { code: "roll_out_stuck", severity: Severity::Warning, message, subject: None };
        (passed > ROLL_OUT_MAX).then_some(alert)
    }

    /// Of hosts that have failed more often than between the last marks.
    fn failures(&mut self, cluster_view: &ClusterView, now: Instant) -> Vec<Alert> {
        let failed = || cluster_view.up().map(|host| (host.state.peer, host.state.report.failures));
        let is_due = |mark: &Option<(Instant, _)>| mark.as_ref().is_none_or(|(at, _)| now >= *at + MARK_EVERY);
        if is_due(&self.marks[0]) {
            self.marks.swap(0, 1);
            self.marks[0] = Some((now, failed().collect()));
        }
        // What a host that is not in the mark had failed before nobody knows.
        let Some((at, before)) = self.marks[1].as_ref().or(self.marks[0].as_ref()) else { return Vec::new() };
        let seconds = now.saturating_duration_since(*at).as_secs();
        let more: BTreeMap<_, _> = failed()
            .map(|(peer, count)| (peer, count.saturating_sub(before.get(&peer).copied().unwrap_or(count))))
            .filter(|(_, more)| *more >= FAILURES_MIN)
            .collect();
        each("failures_rising", Severity::Warning, more.keys().copied(), "hosts fail often", |peer| {
            let count = more.get(&peer).copied().unwrap_or_default();
            format!("{count} imports and exports have failed on the host within {seconds} s.")
        })
    }
}

/// One alert for each, or one for all when they are many.
fn each(
    code: &'static str,
    severity: Severity,
    peers: impl Iterator<Item = PeerId>,
    many: &str,
    message: impl Fn(PeerId) -> String,
) -> Vec<Alert> {
    let peers: Vec<_> = peers.collect();
    if peers.len() > EACH_MAX {
        return vec![Alert { code, severity, message: format!("{} {many}.", peers.len()), subject: None }];
    }
    let alert = |peer: PeerId| Alert { code, severity, message: message(peer), subject: Some(peer.to_string()) };
    peers.into_iter().map(alert).collect()
}

fn schedulers(facts: &Facts<'_>) -> Vec<Alert> {
    let ring = facts.accepted.ring.members();
    let silent = || facts.cluster_view.schedulers.iter().filter(|(_, answer)| answer.is_none()).map(|(peer, _)| *peer);
    if ring.is_empty() || silent().filter(|peer| ring.contains(peer)).count() == ring.len() {
        let message = match ring.is_empty() {
            true => "The ring is empty: nothing can be imported, found or deleted.",
            false => "No scheduler of the ring answers: only what hosts still remember can be found.",
        };
        let code = "no_scheduler";
        return vec![Alert { code, severity: Severity::Critical, message: message.into(), subject: None }];
    }
    let (inside, outside): (Vec<_>, Vec<_>) = silent().partition(|peer| ring.contains(peer));
    let mut alerts =
        each("scheduler_down", Severity::Critical, inside.into_iter(), "schedulers of the ring do not answer", |_| {
            "The scheduler does not answer; others answer for its tasks.".into()
        });
    alerts.extend(each(
        "scheduler_away",
        Severity::Info,
        outside.into_iter(),
        "schedulers out of the ring are away",
        |_| "The scheduler does not answer; it is not in the ring.".into(),
    ));
    alerts
}

/// Schedulers that are full or nearly so. A full share of tombstones only means that older deletes are forgotten early.
fn full(cluster_view: &ClusterView) -> Vec<Alert> {
    let is_nearly = |share: &&Share| share.max > 0 && share.used.saturating_mul(10) >= share.max.saturating_mul(9);
    let is_told = |share: &&Share| is_nearly(share) && (share.what != "tombstones" || share.used >= share.max);
    let heaviest = cluster_view.hosts.values().max_by_key(|host| host.state.records);
    let alert = |(peer, answer): &(PeerId, Option<HostsAnswer>)| {
        let share = answer.as_ref()?.shares.iter().filter(is_told).max_by_key(|share| {
            let part = share.used.saturating_mul(100) / share.max.max(1);
            (share.what != "tombstones", part)
        })?;
        let severity = match share.used >= share.max && share.what != "tombstones" {
            true => Severity::Critical,
            false => Severity::Warning,
        };
        let mut message = format!("The scheduler has {} of at most {} {}.", share.used, share.max, share.what);
        if let Some(host) = heaviest.filter(|host| host.state.records > 0) {
            message += &format!(" The host {} has announced most: {} records.", host.state.peer, host.state.records);
        }
        Some(Alert { code: "scheduler_full", severity, message, subject: Some(peer.to_string()) })
    };
    cluster_view.schedulers.iter().filter_map(alert).collect()
}

fn hosts_down(facts: &Facts<'_>) -> Vec<Alert> {
    let revoked: BTreeSet<_> = facts.accepted.configuration.revoked.iter().map(|revoked| revoked.peer).collect();
    let down = facts.cluster_view.hosts.iter().filter(|(peer, host)| !host.is_up && !revoked.contains(peer));
    each("host_down", Severity::Warning, down.map(|(peer, _)| *peer), "hosts are down", |peer| {
        let silent = facts.cluster_view.hosts.get(&peer).map_or(0, |host| host.heard.elapsed().as_secs());
        match silent {
            0..120 => "The host is down.".into(),
            seconds => format!("The host is down for {} minutes.", seconds / 60),
        }
    })
}

/// Of hosts that are up: one that has left does not renew its credential.
fn credentials(facts: &Facts<'_>) -> Vec<Alert> {
    let answers =
        |peer: &PeerId| facts.cluster_view.schedulers.iter().any(|(known, said)| known == peer && said.is_some());
    let is_up = |peer: &PeerId| facts.cluster_view.hosts.get(peer).is_some_and(|host| host.is_up) || answers(peer);
    let soon = credentials_until(facts.accepted, facts.time);
    let ending = facts.credentials.iter().filter(|(peer, until)| *until < soon && is_up(peer));
    let (ended, ends): (Vec<_>, Vec<_>) = ending.partition(|(_, until)| *until < facts.time);
    let until: HashMap<_, _> = facts.credentials.iter().copied().collect();
    let minutes = |peer: PeerId| until.get(&peer).map_or(0, |until| until.0.abs_diff(facts.time.0) / 60_000);
    let peers = |of: Vec<&(PeerId, UnixMillis)>| of.into_iter().map(|(peer, _)| *peer).collect::<Vec<_>>().into_iter();
    let mut alerts = each("credential_ended", Severity::Critical, peers(ended), "credentials have ended", |peer| {
        format!(
            "Its credential ended {} minutes ago; it goes on only by the grace of the configuration.",
            minutes(peer)
        )
    });
    alerts.extend(each("credential_ends", Severity::Warning, peers(ends), "credentials end soon", |peer| {
        format!("Its credential ends in {} minutes and was not renewed.", minutes(peer))
    }));
    alerts
}

fn disks(cluster_view: &ClusterView) -> Vec<Alert> {
    let free = |peer: PeerId| cluster_view.hosts.get(&peer).map_or(0, |host| host.state.report.free_bytes) >> 20;
    let of = |wanted: fn(&HostReport) -> bool| {
        let is_wanted = move |host: &&HostView| wanted(&host.state.report);
        cluster_view.up().filter(is_wanted).map(|host| host.state.peer)
    };
    let message = |peer| format!("{} MiB are free on the disk of its store.", free(peer));
    let mut alerts = each("disk_full", Severity::Critical, of(is_full), "disks are full", message);
    alerts.extend(each("disk_low", Severity::Warning, of(is_low), "disks are nearly full", message));
    alerts
}

/// A host that has told nothing yet has no full disk.
fn is_full(report: &HostReport) -> bool {
    *report != HostReport::default() && report.free_bytes < FREE_BYTES_MIN
}

fn is_low(report: &HostReport) -> bool {
    let all = report.stored_bytes.saturating_add(report.free_bytes);
    !is_full(report) && *report != HostReport::default() && (report.free_bytes as f64) < FREE_PART_MIN * all as f64
}

fn versions(cluster_view: &ClusterView) -> Option<Alert> {
    let of_schedulers =
        cluster_view.schedulers.iter().filter_map(|(_, answer)| Some(answer.as_ref()?.version.as_str()));
    let of_hosts = cluster_view.up().map(|host| host.state.version.as_str());
    let all: BTreeSet<_> = of_schedulers.chain(of_hosts).chain([env!("CARGO_PKG_VERSION")]).collect();
    let shown: Vec<_> = all.iter().take(EACH_MAX).copied().collect();
    let message = format!("Programs of {} versions run: {}.", all.len(), shown.join(", "));
    (all.len() > 1).then_some(Alert { code: "versions_differ", severity: Severity::Info, message, subject: None })
}
