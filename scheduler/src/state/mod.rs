//! Everything a scheduler knows, and what it decides. Without I/O, clock and chance.
//!
//! All of it can be told again by the hosts. A request of a host about a task goes to one of the modules: `announce`,
//! `ask`, `delete`, `download`; `claims` keeps what they share consistent.

use std::{collections::BTreeMap, time::Duration};

use damselfly_messages::{
    id::TaskId,
    scheduler::{Request, RequestBody, Response, ResponseBody},
};
use libp2p::PeerId;

mod announce;
mod counters;
mod delete;
mod deletions;
mod download;
mod event;
mod holder_index;
pub(crate) mod hosts;
mod names;
mod parent_faults;
mod pulls;
mod query;
mod report;
mod ring_history;
mod status_query;
mod sweep;
mod tasks;
#[cfg(test)]
mod tests;
mod tombstones;

pub use counters::{Counters, Gauges};
pub use event::{Action, AskId, DeleteId, Event, Limits, Now, Reply, TICK};

use deletions::Deletions;
use download::Downloads;
use hosts::Hosts;
use names::Names;
use parent_faults::ParentFaults;
use pulls::Pulls;
use ring_history::{RingHistory, Role};
use tasks::Task;
use tombstones::Tombstones;

/// Why nothing with a tag is taken or given.
const BLOCKED: &str = "the tag is blocked in this cluster";

/// The state of a scheduler: [`handle`](Self::handle) is all it does.
#[derive(Debug)]
pub struct State {
    limits: Limits,
    /// Breaks ties between parents.
    seed: u64,
    ring_history: RingHistory,
    hosts: Hosts,
    tasks: BTreeMap<TaskId, Task>,
    tombstones: Tombstones,
    names: Names,
    downloads: Downloads,
    parent_faults: ParentFaults,
    deletes: BTreeMap<DeleteId, delete::Pending>,
    next_delete: u64,
    deletions: Deletions,
    /// Records of contents told by all hosts.
    announcements: usize,
    /// Tombstones told by all hosts, each host's own.
    announced_tombstones: usize,
    pulls: Pulls,
    swept: Duration,
    swept_downloads: Duration,
    counters: Counters,
}

impl State {
    /// A scheduler that knows nothing. `seed` decides between parents that are equally good.
    pub fn new(me: PeerId, limits: Limits, seed: u64) -> Self {
        Self {
            limits,
            seed,
            ring_history: RingHistory::new(me),
            hosts: Hosts::default(),
            tasks: BTreeMap::new(),
            tombstones: Tombstones::default(),
            names: Names::default(),
            downloads: Downloads::default(),
            parent_faults: ParentFaults::default(),
            deletes: BTreeMap::new(),
            next_delete: 0,
            deletions: Deletions::default(),
            announcements: 0,
            announced_tombstones: 0,
            pulls: Pulls::default(),
            swept: Duration::ZERO,
            swept_downloads: Duration::ZERO,
            counters: Counters::default(),
        }
    }

    /// Takes in one event and returns what is to be done, in this order.
    pub fn handle(&mut self, event: Event, now: Now) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Asked { ask, peer, request } => self.on_asked(ask, peer, request, now, &mut actions),
            Event::Notified { delete, peer, answered } => self.on_notified(delete, &peer, answered, &mut actions),
            Event::Disconnected(peer) => self.hosts.suspect(&peer),
            Event::Configured(accepted) => self.on_configured(accepted, now, &mut actions),
            Event::Tick => self.on_tick(now, &mut actions),
        }
        self.counters.notifications +=
            actions.iter().filter(|action| matches!(action, Action::Notify { .. })).count() as u64;
        actions
    }

    fn on_asked(&mut self, ask: AskId, peer: PeerId, request: Request, now: Now, actions: &mut Vec<Action>) {
        self.hosts.renew(&peer, now.at);
        if request.epoch > self.ring_history.epoch() && self.pulls.may_ask(peer, now.at) {
            actions.push(Action::Pull { from: peer, epoch: request.epoch });
        }
        let reply = match self.ring_history.current() {
            Some(_) => self.answer(ask, peer, request, now, actions),
            None => Some(self.respond(ResponseBody::NotOwner(None))),
        };
        if let Some(reply) = reply {
            actions.push(Action::Reply { ask, reply });
        }
    }

    /// Answers, unless the answer has to wait for others.
    fn answer(
        &mut self,
        ask: AskId,
        peer: PeerId,
        request: Request,
        now: Now,
        actions: &mut Vec<Action>,
    ) -> Option<Reply> {
        let asker = Asker { peer, epoch: request.epoch, stand_in: request.stand_in };
        let body = match request.body {
            RequestBody::AnnounceHost(host) => Ok(self.announce_host(asker, *host, now)),
            RequestBody::AnnounceTask(announce) => self.announce_task(asker, announce, now, actions),
            RequestBody::LeaveTask(task) => self.leave(asker, task, now),
            RequestBody::StatTask(name) => self.stat(asker, &name, now),
            RequestBody::RegisterPeerTask(register) => self.register(asker, &register, now),
            RequestBody::ReportPieceResult(report) => self.report_pieces(asker, &report, now),
            RequestBody::ReportPeerResult(report) => self.report_peer(asker, &report, now),
            RequestBody::DeleteTask(delete) => match self.delete(ask, asker, delete, now, actions) {
                Ok(done) => Ok(done?),
                Err(reply) => Err(reply),
            },
        };
        Some(body.map_or_else(|reply| reply, |body| self.respond(body)))
    }

    fn respond(&self, body: ResponseBody) -> Reply {
        Reply::Response(Response { epoch: self.ring_history.epoch(), body })
    }

    fn is_blocked(&self, tag: &str) -> bool {
        self.ring_history.settings().is_some_and(|settings| settings.is_blocked(tag))
    }

    fn not_owner(&self, asker: Asker) -> ResponseBody {
        let newer = self.ring_history.current().filter(|accepted| accepted.configuration.epoch > asker.epoch);
        ResponseBody::NotOwner(newer.map(|accepted| accepted.signed.as_bytes().to_vec()))
    }

    /// Checks that this scheduler has a say about a task.
    ///
    /// `also_former`: those that were owners a moment ago have one too, because they know what the new ones may not.
    fn admit(&mut self, asker: Asker, task: &TaskId, also_former: bool, now: Now) -> Result<(), Reply> {
        match self.ring_history.role(task, now.at) {
            Role::Owner => Ok(()),
            Role::Former if also_former => Ok(()),
            Role::Former | Role::NotOwner if asker.stand_in => {
                self.ring_history.stand_in(task, now.at);
                Ok(())
            }
            Role::Former | Role::NotOwner => Err(self.respond(self.not_owner(asker))),
        }
    }
}

/// Who asks, and from which view of the ring.
#[derive(Debug, Clone, Copy)]
struct Asker {
    peer: PeerId,
    epoch: u64,
    stand_in: bool,
}
