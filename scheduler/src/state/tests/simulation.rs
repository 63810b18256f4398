//! A cluster with a virtual clock: schedulers that restart empty, ring changes, hosts that go away, lost messages.
//!
//! Then all that stops, and within 15 s every owner must know exactly what the hosts hold, and hosts must agree.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use damselfly_messages::{config::Accepted, record::UnixMillis, scheduler::Request};
use libp2p::PeerId;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

use super::{START, accepted, peer};
use crate::state::*;
use node::{Answer, Node, Out, Purpose};

mod checks;
mod node;

const SCHEDULERS: [u32; 5] = [1, 2, 3, 4, 5];
const HEARTBEAT_MS: u64 = 5_000;
/// How long there is trouble.
const TROUBLE_MS: u64 = 90_000;
/// How long the cluster has to converge after it.
const CONVERGE_MS: u64 = 15_000;

#[derive(Debug)]
enum Happening {
    Heartbeat(usize),
    /// A node goes on with what it wants.
    Wake(usize),
    ToScheduler {
        from: usize,
        to: PeerId,
        request: Request,
        id: u64,
    },
    ToNode {
        to: usize,
        id: u64,
        answer: Answer,
        epoch: u64,
    },
    Timeout {
        node: usize,
        id: u64,
    },
    Notify {
        from: PeerId,
        life: u32,
        to: PeerId,
        request: damselfly_messages::notify::Request,
        delete: Option<DeleteId>,
    },
    Notified {
        at: PeerId,
        life: u32,
        delete: DeleteId,
        peer: PeerId,
        answered: bool,
    },
    Configure {
        scheduler: PeerId,
        epoch: u64,
    },
    Tick,
    Trouble,
    Start(PeerId),
    Return(usize),
}

struct Scheduler {
    /// `None` while it is down.
    state: Option<State>,
    /// Counts its restarts: what belonged to an earlier one is void.
    life: u32,
    asks: BTreeMap<AskId, (usize, u64)>,
    skew_ms: u64,
}

struct World {
    rng: StdRng,
    now_ms: u64,
    queue: BTreeMap<(u64, u64), Happening>,
    sequence: u64,
    schedulers: BTreeMap<PeerId, Scheduler>,
    nodes: Vec<Node>,
    by_peer: BTreeMap<PeerId, usize>,
    epochs: BTreeMap<u64, Arc<Accepted>>,
    /// Requests under way and what they are for.
    pending: BTreeMap<u64, (PeerId, Purpose)>,
    loss: f64,
    names: usize,
}

impl World {
    fn new(hosts: usize, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let first = accepted(1, &SCHEDULERS[..4], 2);
        let scheduler = |rng: &mut StdRng| Scheduler {
            state: None,
            life: 0,
            asks: BTreeMap::new(),
            skew_ms: rng.random_range(0..2_000),
        };
        let schedulers = SCHEDULERS.map(|number| (peer(number), scheduler(&mut rng))).into();
        let nodes: Vec<_> =
            (0..hosts).map(|number| Node::new(number, peer(1000 + number as u32), Arc::clone(&first))).collect();
        let by_peer = nodes.iter().enumerate().map(|(index, node)| (node.peer, index)).collect();
        let mut world = Self {
            rng,
            now_ms: 0,
            queue: BTreeMap::new(),
            sequence: 0,
            schedulers,
            nodes,
            by_peer,
            epochs: [(1, first)].into(),
            pending: BTreeMap::new(),
            loss: 0.02,
            names: hosts.min(300),
        };
        for number in SCHEDULERS {
            world.on(Happening::Start(peer(number)));
        }
        for host in 0..hosts {
            let offset = world.rng.random_range(0..HEARTBEAT_MS);
            world.after(offset, Happening::Heartbeat(host));
        }
        world.after(0, Happening::Tick);
        world.after(1_000, Happening::Trouble);
        world
    }

    fn after(&mut self, ms: u64, happening: Happening) {
        self.sequence += 1;
        self.queue.insert((self.now_ms + ms, self.sequence), happening);
    }

    /// Sends something over the network: late, or never.
    fn send(&mut self, happening: Happening) {
        let latency = self.rng.random_range(1..60);
        if !self.rng.random_bool(self.loss) {
            self.after(latency, happening);
        }
    }

    fn run(&mut self, until_ms: u64) {
        while let Some((key, happening)) = self.queue.pop_first() {
            if key.0 > until_ms {
                self.queue.insert(key, happening);
                break;
            }
            self.now_ms = key.0;
            self.on(happening);
        }
        self.now_ms = until_ms;
    }

    fn epoch(&self) -> u64 {
        self.epochs.keys().last().copied().unwrap_or_default()
    }

    fn on(&mut self, happening: Happening) {
        match happening {
            Happening::Heartbeat(host) => {
                self.after(HEARTBEAT_MS, Happening::Heartbeat(host));
                self.drive(host, Node::heartbeat);
            }
            Happening::Wake(host) => self.drive(host, Node::go_on),
            Happening::ToScheduler { from, to, request, id } => {
                let scheduler = self.schedulers.get_mut(&to).expect("a scheduler");
                let ask = AskId(id);
                scheduler.asks.insert(ask, (from, id));
                self.feed(to, Event::Asked { ask, peer: self.nodes[from].peer, request });
            }
            Happening::ToNode { to, id, answer, epoch } => self.on_answer(to, id, answer, epoch),
            Happening::Timeout { node, id } => {
                let epoch = self.nodes[node].config.configuration.epoch;
                self.on_answer(node, id, Answer::Lost, epoch);
            }
            Happening::Notify { from, life, to, request, delete } => self.on_notify(from, life, to, &request, delete),
            Happening::Notified { at, life, delete, peer, answered } => {
                if self.schedulers[&at].life == life {
                    self.feed(at, Event::Notified { delete, peer, answered });
                }
            }
            Happening::Configure { scheduler, epoch } => {
                let known =
                    self.schedulers[&scheduler].state.as_ref().map_or(u64::MAX, |state| state.ring_history.epoch());
                if known < epoch {
                    self.feed(scheduler, Event::Configured(Arc::clone(&self.epochs[&epoch])));
                }
            }
            Happening::Tick => {
                self.after(TICK.as_millis() as u64, Happening::Tick);
                SCHEDULERS.iter().for_each(|number| self.feed(peer(*number), Event::Tick));
            }
            Happening::Trouble => self.trouble(),
            Happening::Start(scheduler) => self.start(scheduler),
            Happening::Return(host) => {
                self.nodes[host].online = true;
                self.drive(host, Node::heartbeat);
            }
        }
    }

    fn feed(&mut self, to: PeerId, event: Event) {
        let scheduler = self.schedulers.get_mut(&to).expect("a scheduler");
        let Some(state) = &mut scheduler.state else { return };
        let wall = UnixMillis(START + self.now_ms + scheduler.skew_ms);
        let actions = state.handle(event, Now { at: Duration::from_millis(self.now_ms), wall });
        let life = scheduler.life;
        for action in actions {
            match action {
                Action::Reply { ask, reply } => {
                    let asked = self.schedulers.get_mut(&to).and_then(|scheduler| scheduler.asks.remove(&ask));
                    let Some((node, id)) = asked else { continue };
                    let (answer, epoch) = match reply {
                        Reply::Response(response) => (Answer::Body(response.body), response.epoch),
                        Reply::Busy(_) | Reply::Refused(_) => (Answer::Lost, 0),
                    };
                    self.send(Happening::ToNode { to: node, id, answer, epoch });
                }
                Action::Notify { peer, request, delete, .. } => {
                    self.send(Happening::Notify { from: to, life, to: peer, request, delete });
                    if let Some(delete) = delete {
                        self.after(5_000, Happening::Notified { at: to, life, delete, peer, answered: false });
                    }
                }
                Action::Pull { epoch, .. } => self.after(50, Happening::Configure { scheduler: to, epoch }),
            }
        }
    }

    fn on_notify(
        &mut self,
        from: PeerId,
        life: u32,
        to: PeerId,
        request: &damselfly_messages::notify::Request,
        delete: Option<DeleteId>,
    ) {
        let node = self.by_peer[&to];
        if !self.nodes[node].online {
            return;
        }
        self.nodes[node].on_notify(request);
        if let Some(delete) = delete {
            self.send(Happening::Notified { at: from, life, delete, peer: to, answered: true });
        }
    }

    fn on_answer(&mut self, node: usize, id: u64, answer: Answer, epoch: u64) {
        let Some((from, purpose)) = self.pending.remove(&id) else { return };
        if !self.nodes[node].online {
            return;
        }
        if let Some(newer) = self.epochs.get(&epoch) {
            self.nodes[node].adopt(newer, self.now_ms);
        }
        self.drive(node, |node, now_ms| node.on_answer(from, purpose, answer, now_ms));
    }

    fn drive(&mut self, node: usize, act: impl FnOnce(&mut Node, u64) -> Vec<Out>) {
        if !self.nodes[node].online {
            return;
        }
        for out in act(&mut self.nodes[node], self.now_ms) {
            match out {
                Out::Wake(ms) => self.after(ms, Happening::Wake(node)),
                Out::Ask { to, request, purpose } => {
                    self.sequence += 1;
                    let id = self.sequence;
                    let patience = if matches!(purpose, Purpose::Delete(_)) { 16_000 } else { 2_000 };
                    self.pending.insert(id, (to, purpose));
                    if self.schedulers[&to].state.is_none() {
                        self.after(1, Happening::ToNode { to: node, id, answer: Answer::Unreachable, epoch: 0 });
                        continue;
                    }
                    self.send(Happening::ToScheduler { from: node, to, request: *request, id });
                    self.after(patience, Happening::Timeout { node, id });
                }
            }
        }
    }

    /// One of the things that go wrong, or that users do; the next one follows soon.
    fn trouble(&mut self) {
        if self.now_ms >= TROUBLE_MS {
            return;
        }
        let hosts = self.nodes.len();
        let pause = (10_000 / hosts as u64).max(20);
        let next = self.rng.random_range(pause / 2..pause * 2);
        self.after(next, Happening::Trouble);
        let host = self.rng.random_range(0..hosts);
        let name = self.rng.random_range(0..self.names);
        match self.rng.random_range(0..100) {
            0..50 => {
                // Two at once, so that a name has rivals.
                for host in [host, self.rng.random_range(0..hosts)] {
                    let content = self.rng.random_range(1..4);
                    self.drive(host, |node, now_ms| node.import(name, content, now_ms));
                }
            }
            50..70 => self.drive(host, |node, now_ms| node.delete(name, now_ms)),
            70..85 => self.export(host, name),
            85..90 => self.leave_for_a_while(host),
            // Once in some seconds, however many hosts there are.
            _ if self.rng.random_bool((pause as f64 / 1_500.0).min(1.0)) => match self.rng.random_range(0..3) {
                0 => self.change_ring(),
                _ => self.stop_a_scheduler(),
            },
            _ => {}
        }
    }

    /// Gets a content from whoever has it, and becomes a holder.
    fn export(&mut self, host: usize, name: usize) {
        let holders: Vec<_> = self.nodes.iter().filter_map(|node| node.held(name)).collect();
        let Some(binding) = holders.choose(&mut self.rng).copied() else { return };
        self.drive(host, |node, _| node.exported(name, binding));
    }

    fn leave_for_a_while(&mut self, host: usize) {
        if !self.nodes[host].online {
            return;
        }
        self.nodes[host].online = false;
        let away = self.rng.random_range(1_000..45_000);
        self.after(away, Happening::Return(host));
        let gone = self.nodes[host].peer;
        SCHEDULERS.iter().for_each(|number| self.feed(peer(*number), Event::Disconnected(gone)));
    }

    fn change_ring(&mut self) {
        let count = self.rng.random_range(3..=5);
        let mut members: Vec<_> = SCHEDULERS.choose_multiple(&mut self.rng, count).copied().collect();
        members.sort_unstable();
        let epoch = self.epoch() + 1;
        self.epochs.insert(epoch, accepted(epoch, &members, 2));
        for scheduler in SCHEDULERS {
            let late = self.rng.random_range(0..2_000);
            self.after(late, Happening::Configure { scheduler: peer(scheduler), epoch });
        }
    }

    fn stop_a_scheduler(&mut self) {
        let down = self.schedulers.values().filter(|scheduler| scheduler.state.is_none()).count();
        let stopped = peer(SCHEDULERS[self.rng.random_range(0..5)]);
        let late = self.rng.random_range(0..8_000);
        let scheduler = self.schedulers.get_mut(&stopped).expect("a scheduler");
        if down < 2 && scheduler.state.take().is_some() {
            scheduler.asks.clear();
            self.after(late, Happening::Start(stopped));
        }
    }

    /// Empty, but with the newest configuration.
    fn start(&mut self, number: PeerId) {
        let newest = Arc::clone(&self.epochs[&self.epoch()]);
        let scheduler = self.schedulers.get_mut(&number).expect("a scheduler");
        if scheduler.state.is_none() {
            scheduler.state = Some(State::new(number, Limits::default(), 7));
            scheduler.life += 1;
            self.feed(number, Event::Configured(newest));
        }
    }

    /// Everything works again, and nobody wants anything new.
    fn calm(&mut self) {
        self.loss = 0.0;
        SCHEDULERS.iter().for_each(|number| self.start(peer(*number)));
        let epoch = self.epoch();
        for number in SCHEDULERS {
            self.on(Happening::Configure { scheduler: peer(number), epoch });
        }
        for host in 0..self.nodes.len() {
            self.nodes[host].give_up();
            if !self.nodes[host].online {
                self.on(Happening::Return(host));
            }
        }
    }
}

fn simulate(hosts: usize, seed: u64) -> checks::Summary {
    let mut world = World::new(hosts, seed);
    world.run(TROUBLE_MS);
    world.calm();
    world.run(TROUBLE_MS + CONVERGE_MS);
    checks::check(&world, &format!("{hosts} hosts, seed {seed}"))
}

#[test]
fn ten_hosts() {
    let mut all = checks::Summary::default();
    for seed in 0..60 {
        all.add(simulate(10, seed));
    }
    all.assert_busy(500);
}

#[test]
fn a_hundred_hosts() {
    let mut all = checks::Summary::default();
    for seed in 0..4 {
        all.add(simulate(100, seed));
    }
    all.assert_busy(500);
}

#[test]
fn a_thousand_hosts() {
    simulate(1000, 1).assert_busy(500);
}
