//! Heartbeats: that this host lives, where it is, and digests of what each scheduler is to know of it.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use damselfly_messages::{
    config::Accepted,
    info::HostReport,
    record::Record,
    scheduler::{RequestBody, ResponseBody},
};
use damselfly_transport::network::PeerEvent;
use libp2p::PeerId;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval},
};

use super::{Announcer, Told, lock};
use crate::blocking::blocking;

/// A scheduler that cannot be reached is tried again after this.
const RECONNECT: Duration = Duration::from_millis(500);
/// A host keeps in touch with so many schedulers even when they are to know nothing of it: with all of a cluster of usual
/// size, so that it knows which of them live.
const SCHEDULERS_MIN: usize = 8;

/// Schedulers that cannot be reached get stand-ins after this time: a restart is over sooner.
const STAND_IN_AFTER: Duration = Duration::from_secs(3);
/// Stand-ins forget what they are not told again.
const TELL_STAND_INS_EVERY: Duration = Duration::from_secs(240);

/// What a scheduler said last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SchedulerView {
    /// It answered the last heartbeat.
    pub reachable: bool,
    /// It has been an owner for long enough.
    pub warm: bool,
}

/// What each scheduler said last.
#[derive(Default)]
pub(super) struct Views(Mutex<HashMap<PeerId, SchedulerView>>);

impl Views {
    pub fn all(&self) -> Vec<(PeerId, SchedulerView)> {
        lock(&self.0).iter().map(|(peer, view)| (*peer, *view)).collect()
    }

    fn set(&self, peer: PeerId, view: SchedulerView) {
        lock(&self.0).insert(peer, view);
    }

    fn keep_only(&self, members: &[PeerId]) {
        lock(&self.0).retain(|peer, _| members.contains(peer));
    }
}

impl Announcer {
    /// Sends heartbeats and follows the ring, until the daemon ends.
    pub async fn run(
        self,
        mut configuration: watch::Receiver<Option<Arc<Accepted>>>,
        mut peers: mpsc::Receiver<PeerEvent>,
    ) {
        let mut beats = Beats::new(self);
        let mut tick = interval(Duration::from_millis(100));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        configuration.mark_changed();
        loop {
            tokio::select! {
                changed = configuration.changed() => match changed {
                    Ok(()) => {
                        let accepted = configuration.borrow_and_update().clone();
                        beats.on_configuration(accepted);
                    }
                    Err(_) => return,
                },
                Some(event) = peers.recv() => beats.on_peer(event),
                Some(done) = beats.running.join_next(), if !beats.running.is_empty() => beats.on_done(done),
                _ = tick.tick() => beats.on_tick(Instant::now()),
            }
        }
    }
}

/// Which heartbeat is due when, and which are under way: at most one per scheduler.
struct Beats {
    announcer: Announcer,
    running: JoinSet<(PeerId, bool)>,
    busy: HashSet<PeerId>,
    due: HashMap<PeerId, Instant>,
    /// What the next heartbeat of a scheduler brings along.
    moved: HashMap<PeerId, Vec<Arc<Record>>>,
    /// Who answers, since when, and when stand-ins were told what the others own.
    reachable: (HashSet<PeerId>, Instant),
    stand_ins_told: Option<Instant>,
}

impl Beats {
    fn new(announcer: Announcer) -> Self {
        Self {
            announcer,
            running: JoinSet::new(),
            busy: HashSet::new(),
            due: HashMap::new(),
            moved: HashMap::new(),
            reachable: (HashSet::new(), Instant::now()),
            stand_ins_told: None,
        }
    }

    fn on_configuration(&mut self, accepted: Option<Arc<Accepted>>) {
        let Some(accepted) = accepted else { return };
        let members = accepted.ring.members().to_vec();
        self.announcer.inner.views.keep_only(&members);
        // What moved before and was not told yet is either in here again or no longer the scheduler's.
        self.moved = lock(&self.announcer.inner.ledger).set_ring(Arc::clone(&accepted));
        self.due = members.into_iter().map(|member| (member, Instant::now())).collect();
        self.announcer.wake();
    }

    /// A scheduler that comes back hears of this host at once, and the outbox gets another chance.
    fn on_peer(&mut self, event: PeerEvent) {
        match event {
            PeerEvent::Connected(peer) if self.due.contains_key(&peer) => {
                self.due.insert(peer, Instant::now());
                self.announcer.wake();
            }
            PeerEvent::Disconnected(peer) if self.due.contains_key(&peer) => {
                self.announcer.inner.views.set(peer, SchedulerView::default());
                self.due.insert(peer, Instant::now());
            }
            PeerEvent::Connected(_) | PeerEvent::Disconnected(_) => {}
        }
    }

    fn on_done(&mut self, done: Result<(PeerId, bool), tokio::task::JoinError>) {
        let Ok((peer, reached)) = done else { return };
        self.busy.remove(&peer);
        let pause = if reached { self.heartbeat() } else { RECONNECT.min(self.heartbeat()) };
        self.due.entry(peer).and_modify(|due| *due = Instant::now() + pause);
    }

    fn on_tick(&mut self, now: Instant) {
        let due: Vec<_> = self.due.iter().filter(|(_, due)| **due <= now).map(|(peer, _)| *peer).collect();
        for peer in due {
            if !self.busy.contains(&peer) && self.concerns(&peer) {
                self.start(peer);
            }
        }
        self.tell_stand_ins(now);
    }

    /// What no owner can be told is told the schedulers that stand in, once the situation has lasted.
    fn tell_stand_ins(&mut self, now: Instant) {
        let views = self.announcer.views();
        let reachable: HashSet<_> = views.iter().filter(|(_, view)| view.reachable).map(|(peer, _)| *peer).collect();
        if reachable != self.reachable.0 {
            self.reachable = (reachable, now);
            self.stand_ins_told = None;
        }
        let (reachable, since) = &self.reachable;
        let told = self.stand_ins_told.is_some_and(|told| now - told < TELL_STAND_INS_EVERY);
        if told || now - *since < STAND_IN_AFTER || reachable.is_empty() || reachable.len() == self.due.len() {
            return;
        }
        self.stand_ins_told = Some(now);
        for (stand_in, records) in lock(&self.announcer.inner.ledger).orphans(reachable) {
            let announcer = self.announcer.clone();
            tokio::spawn(async move {
                tracing::info!(%stand_in, records = records.len(), "no owner is reachable: telling a stand-in");
                if let Err(reason) = announcer.send(stand_in, &records, Told::AsStandIn).await {
                    tracing::debug!(%stand_in, reason, "a stand-in was not told");
                }
            });
        }
    }

    fn heartbeat(&self) -> Duration {
        let accepted = self.announcer.inner.schedulers.accepted();
        Duration::from_millis(accepted.map_or(5_000, |accepted| accepted.configuration.settings.heartbeat_ms))
    }

    /// Whether this host needs to keep in touch with the scheduler.
    fn concerns(&self, peer: &PeerId) -> bool {
        let ledger = lock(&self.announcer.inner.ledger);
        if ledger.share(peer) > 0 || self.announcer.inner.network.is_connected(peer) {
            return true;
        }
        let connected = self.due.keys().filter(|peer| self.announcer.inner.network.is_connected(peer)).count();
        connected < SCHEDULERS_MIN
    }

    fn start(&mut self, peer: PeerId) {
        self.due.insert(peer, Instant::now() + self.heartbeat());
        self.busy.insert(peer);
        let moved = self.moved.remove(&peer).unwrap_or_default();
        let announcer = self.announcer.clone();
        self.running.spawn(async move { (peer, announcer.beat(peer, moved).await) });
    }
}

impl Announcer {
    /// One heartbeat, and what it shows to be missing. Returns whether the scheduler answered.
    async fn beat(&self, peer: PeerId, moved: Vec<Arc<Record>>) -> bool {
        match self.try_beat(peer, moved).await {
            Ok(()) => true,
            Err(reason) => {
                tracing::debug!(%peer, reason, "no heartbeat");
                self.inner.views.set(peer, SchedulerView::default());
                false
            }
        }
    }

    async fn try_beat(&self, peer: PeerId, moved: Vec<Arc<Record>>) -> Result<(), String> {
        let now = self.clock().now();
        if self.inner.contact.is_away(now) {
            let inner = Arc::clone(&self.inner);
            let marked = blocking(move || inner.contact.mark_stale_if_away(&inner.store, now)).await;
            marked.map_err(|error| error.to_string())?;
            self.wake();
            return self.beat_with(peer, Vec::new()).await;
        }
        self.beat_with(peer, moved).await
    }

    async fn beat_with(&self, peer: PeerId, moved: Vec<Arc<Record>>) -> Result<(), String> {
        if !moved.is_empty() {
            tracing::info!(%peer, records = moved.len(), "announcing what moved to a scheduler");
            self.send(peer, &moved, Told::News).await?;
        }
        let epoch = self.inner.schedulers.accepted().map_or(0, |accepted| accepted.configuration.epoch);
        let digests = {
            let mut ledger = lock(&self.inner.ledger);
            ledger.readmit(&peer, std::time::Instant::now());
            (ledger.epoch() == epoch).then(|| ledger.digests(&peer))
        };
        let running_millis = self.inner.started.elapsed().as_millis() as u64;
        let report = HostReport { running_millis, ..self.inner.metrics.report() };
        let host = self.inner.host.announcement(&self.inner.network, digests, report);
        let answer = match self.inner.schedulers.ask(peer, &RequestBody::AnnounceHost(Box::new(host)), false).await? {
            ResponseBody::Host(answer) => answer,
            ResponseBody::NotOwner(_) => return Err("its configuration is another one".to_owned()),
            _ => return Err("it answered something else".to_owned()),
        };
        self.inner.views.set(peer, SchedulerView { reachable: true, warm: answer.warm });
        self.clock().hear(peer, answer.time);
        self.inner.contact.made(self.clock().now());
        for bucket in answer.mismatched {
            // What is just being announced is known there and not in the ledger yet: told without it, the bucket would
            // take it back. The next heartbeat looks again.
            if lock(&self.inner.claimed).iter().any(|task| task.bucket() == bucket) {
                continue;
            }
            let records = lock(&self.inner.ledger).bucket(&peer, bucket);
            self.send(peer, &records, Told::Bucket(bucket)).await?;
        }
        Ok(())
    }
}
