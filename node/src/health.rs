//! What a person should know about this daemon.

use damselfly_messages::membership::Refused;
use damselfly_transport::{clock::ClockProblem, dialing::DialPolicy, program::follower::Follower};
use libp2p::{Multiaddr, PeerId};

use crate::{
    announcer::Announcer,
    failure::QUOTA_HINT,
    store::{Store, Stuck, Unnamed},
};

/// The state of this host's membership.
#[derive(Debug, Clone, Default)]
pub struct Health {
    /// It belongs to a cluster whose configuration it knows.
    pub member: bool,
    /// The cluster, in hex; empty without one.
    pub cluster: String,
    /// Epoch of the configuration; 0 before the first.
    pub epoch: u64,
    /// The schedulers in the ring.
    pub schedulers: Vec<SchedulerHealth>,
    /// The worst first.
    pub problems: Vec<Problem>,
}

impl Health {
    /// Why exports from other hosts cannot work, as `dfcache health` judges it; empty when they can.
    pub fn obstacles(&self) -> Vec<String> {
        let is_cut_off = !self.member || !self.schedulers.iter().any(|scheduler| scheduler.reachable);
        let obstacles = self.problems.iter().filter(|problem| is_cut_off && problem.code != "store_full");
        obstacles.map(|problem| format!("{}: {}", problem.message, problem.hint)).collect()
    }
}

/// One scheduler as this host sees it.
#[derive(Debug, Clone)]
pub struct SchedulerHealth {
    /// Who.
    pub peer: PeerId,
    /// Its first address.
    pub address: Option<Multiaddr>,
    /// It answered the last heartbeat, or there is a connection.
    pub reachable: bool,
    /// Its not knowing a task means something.
    pub warm: bool,
}

/// Something to act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// A name that stays.
    pub code: &'static str,
    /// One sentence.
    pub message: String,
    /// What to do.
    pub hint: &'static str,
}

/// Looks at membership, schedulers and the store.
pub fn health(follower: Option<&Follower>, announcer: &Announcer, store: &Store) -> Health {
    let mut health = membership(follower, announcer);
    health.problems.extend(announcer.clock().problem().map(wrong_clock));
    health.problems.extend(store.stuck().map(store_full));
    health.problems.extend(Some(store.unnamed()).filter(|unnamed| unnamed.contents > 0).map(unnamed_contents));
    health
}

fn membership(follower: Option<&Follower>, announcer: &Announcer) -> Health {
    let Some(follower) = follower else {
        return Health { problems: vec![not_a_member()], ..Health::default() };
    };
    let Some(accepted) = follower.current() else {
        let message = "no configuration of the cluster is known yet".to_owned();
        let hint = "check that a scheduler of the cluster runs and can be reached";
        return Health { problems: vec![Problem { code: "no_configuration", message, hint }], ..Health::default() };
    };
    let views = announcer.views();
    let configuration = &accepted.configuration;
    let schedulers: Vec<_> = configuration
        .settings
        .active_schedulers()
        .map(|entry| {
            let view = views.iter().find(|(peer, _)| *peer == entry.peer_id).map(|(_, view)| *view);
            let view = view.unwrap_or_default();
            SchedulerHealth {
                peer: entry.peer_id,
                address: entry.addresses.first().cloned(),
                reachable: view.reachable,
                warm: view.warm,
            }
        })
        .collect();
    let mut problems: Vec<_> = announcer.standing().err().map(not_valid).into_iter().collect();
    if !schedulers.iter().any(|scheduler| scheduler.reachable) {
        problems.push(no_scheduler(&schedulers, &announcer.dial_policy()));
    }
    let cluster = configuration.cluster.to_string();
    Health { member: true, cluster, epoch: configuration.epoch, schedulers, problems }
}

fn not_a_member() -> Problem {
    Problem {
        code: "not_a_member",
        message: "this host is not a member of a cluster: only local import and export work".to_owned(),
        hint: "to join others, start the daemon once with --join and a token of the manager: dfdaemon --join TOKEN",
    }
}

fn not_valid(refused: Refused) -> Problem {
    Problem {
        code: "credential",
        message: format!("this host's credential is not valid now, and others refuse it: {refused}"),
        hint: "check that the host's clock is right and that a manager can be reached, which renews the credential; local \
               import and export work meanwhile",
    }
}

fn wrong_clock(problem: ClockProblem) -> Problem {
    Problem {
        code: "clock",
        message: problem.to_string(),
        hint: "set the host's clock, best by a time service such as chrony or systemd-timesyncd",
    }
}

fn store_full(stuck: Stuck) -> Problem {
    let Stuck { used, quota } = stuck;
    let message = format!(
        "the store holds {used} bytes, more than {} % of its quota of {}, and nothing can be removed",
        quota.high_percent, quota.bytes
    );
    Problem { code: "store_full", message, hint: QUOTA_HINT }
}

fn unnamed_contents(unnamed: Unnamed) -> Problem {
    let Unnamed { contents, bytes } = unnamed;
    Problem {
        code: "unnamed_contents",
        message: format!("the names of {contents} contents ({bytes} bytes) were lost with a damaged index"),
        hint: "dfcache ls shows them as unnamed, under their content IDs: name one with dfcache export -i CONTENT_ID -O - | \
               dfcache import -i NAME -, or remove it with dfcache delete -l -i CONTENT_ID",
    }
}

fn no_scheduler(listed: &[SchedulerHealth], policy: &DialPolicy) -> Problem {
    let message = match listed.len() {
        0 => "the configuration lists no scheduler".to_owned(),
        count => format!("none of {count} schedulers is reachable"),
    };
    let is_refused = |one: &SchedulerHealth| one.address.as_ref().is_some_and(|it| policy.refuses_loopback(it));
    let hint = match listed.iter().any(is_refused) {
        true => {
            "loopback addresses are not dialled: for a cluster on one host set `allow_loopback` (--allow-loopback) in each program"
        }
        false => "check that the schedulers run and that no firewall is between; imports are queued meanwhile",
    };
    Problem { code: "no_scheduler", message, hint }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedulers_on_loopback_that_are_not_dialled_name_the_setting() {
        let at = |address: &str| SchedulerHealth {
            peer: PeerId::random(),
            address: Some(address.parse().expect("an address")),
            reachable: false,
            warm: false,
        };
        for (address, policy, expected) in [
            ("/ip4/127.0.0.1/tcp/1", DialPolicy::routable(), true),
            ("/ip6/::1/tcp/1", DialPolicy::routable(), true),
            ("/ip4/127.0.0.1/tcp/1", DialPolicy::local(), false),
            ("/ip4/10.0.0.1/tcp/1", DialPolicy::routable(), false),
        ] {
            let problem = no_scheduler(&[at(address)], &policy);
            assert_eq!(problem.hint.contains("--allow-loopback"), expected, "{address} {policy:?}");
        }
    }
}
