//! Takes schedulers that do not answer out of the ring, and puts them back when they do.
//!
//! [`Reach`] decides, without I/O or clock; [`keep_ring`] looks and carries out.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use damselfly_messages::config::{SchedulerEntry, SchedulerState, Settings};
use libp2p::PeerId;

use crate::{
    cluster_view::Poller,
    state::{ChangeError, State},
};

/// Two looks that are further apart than this say nothing of the time between them.
const BETWEEN_LOOKS_MAX: Duration = Duration::from_secs(15);
/// A dead scheduler that answers for this part of the time after which it was dead is in the ring again.
const BACK_AFTER_PART: u32 = 10;
/// The same, at least.
const BACK_AFTER_MIN: Duration = Duration::from_secs(10);
/// The same, at most.
const BACK_AFTER_MAX: Duration = Duration::from_secs(600);

/// For how long each scheduler has answered, or not.
#[derive(Debug, Default)]
struct Reach {
    last: Option<Instant>,
    known: HashMap<PeerId, Known>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Known {
    answers_for: Duration,
    silent_for: Duration,
}

/// A scheduler's state that is to be another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Change {
    peer: PeerId,
    from: SchedulerState,
    to: SchedulerState,
    /// For so long it has not answered, or has.
    after: Duration,
}

impl Reach {
    /// Notes who was `reached` just now, and says what follows. Says so again until `settings` are so.
    ///
    /// While nobody is reached it is this manager that is cut off, and no time counts. While no active scheduler is
    /// reached none is taken out, so the ring is never emptied.
    fn look(&mut self, settings: &Settings, reached: &HashSet<PeerId>, now: Instant) -> Vec<Change> {
        let elapsed = self.last.map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        self.last = Some(now);
        self.known.retain(|peer, _| settings.scheduler(peer).is_some());
        let is_reached = |entry: &SchedulerEntry| reached.contains(&entry.peer_id);
        if !settings.schedulers.iter().any(is_reached) {
            self.known.values_mut().for_each(|known| known.answers_for = Duration::ZERO);
            return Vec::new();
        }
        for entry in &settings.schedulers {
            let known = self.known.entry(entry.peer_id).or_default();
            known.note(is_reached(entry), elapsed.min(BETWEEN_LOOKS_MAX));
        }
        let ring_answers = settings.active_schedulers().any(is_reached);
        settings
            .schedulers
            .iter()
            .filter_map(|entry| self.judge(entry, settings.dead_scheduler_ms, ring_answers))
            .collect()
    }

    fn judge(&self, entry: &SchedulerEntry, dead_ms: u64, ring_answers: bool) -> Option<Change> {
        let known = self.known.get(&entry.peer_id)?;
        let dead_after = Duration::from_millis(dead_ms);
        let (to, after) = match entry.state {
            SchedulerState::Active if ring_answers && dead_ms > 0 && known.silent_for >= dead_after => {
                (SchedulerState::Dead, known.silent_for)
            }
            SchedulerState::Dead if known.answers_for >= back_after(dead_after) => {
                (SchedulerState::Active, known.answers_for)
            }
            // Only operators put one back that they have taken out.
            SchedulerState::Active | SchedulerState::Dead | SchedulerState::Draining => return None,
        };
        Some(Change { peer: entry.peer_id, from: entry.state, to, after })
    }
}

impl Known {
    fn note(&mut self, answers: bool, elapsed: Duration) {
        *self = match answers {
            true => Self { answers_for: self.answers_for + elapsed, silent_for: Duration::ZERO },
            false => Self { answers_for: Duration::ZERO, silent_for: self.silent_for + elapsed },
        };
    }
}

fn back_after(dead_after: Duration) -> Duration {
    (dead_after / BACK_AFTER_PART).clamp(BACK_AFTER_MIN, BACK_AFTER_MAX)
}

/// Keeps the ring to schedulers that answer, as long as this manager is the one that publishes. Runs until the program
/// ends.
pub async fn keep_ring(state: State, poller: Poller) {
    let mut reach = Reach::default();
    let mut seen = poller.watch();
    let is_publisher = state.is_publisher();
    while seen.changed().await.is_ok() {
        let cluster_view = seen.borrow_and_update().clone();
        let Some(accepted) = state.current() else { continue };
        let changes = reach.look(&accepted.configuration.settings, &cluster_view.reached, Instant::now());
        for change in changes.into_iter().filter(|_| *is_publisher.borrow()) {
            carry_out(&state, change).await;
        }
    }
}

async fn carry_out(state: &State, change: Change) {
    let Change { peer, from, to, after } = change;
    let seconds = after.as_secs();
    let because = match to {
        SchedulerState::Active => format!("it answers since {seconds} s"),
        SchedulerState::Draining | SchedulerState::Dead => format!("no answer for {seconds} s"),
    };
    let (before, after) = (from.name(), to.name());
    match state.observe_scheduler(peer, (from, to), &because).await {
        Ok(epoch) => tracing::warn!(%peer, before, after, because, epoch, "a scheduler's state has changed"),
        // The next look tries again.
        Err(ChangeError::Unsettled { .. }) => {}
        Err(error) => {
            let error = damselfly_transport::error_chain::chain(&error);
            tracing::error!(%peer, before, after, error, "a scheduler's state is not changed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use SchedulerState::{Active, Dead, Draining};

    const LOOK: Duration = Duration::from_secs(2);

    /// A cluster as this manager sees it, with its clock.
    struct Bench {
        reach: Reach,
        settings: Settings,
        now: Instant,
    }

    impl Bench {
        fn new(states: &[SchedulerState]) -> Self {
            let address = "/ip4/10.0.0.1/tcp/4600".parse().expect("an address");
            let entry = |state: &SchedulerState| SchedulerEntry {
                state: *state,
                ..SchedulerEntry::active(PeerId::random(), vec![std::clone::Clone::clone(&address)])
            };
            let schedulers = states.iter().map(entry).collect();
            let settings = Settings { schedulers, dead_scheduler_ms: 20_000, ..Settings::default() };
            Self { reach: Reach::default(), settings, now: Instant::now() }
        }

        /// Looks for so long while those of these numbers answer, and carries out what follows. Returns the states.
        fn pass(&mut self, seconds: u64, answering: &[usize]) -> Vec<SchedulerState> {
            for _ in 0..seconds / LOOK.as_secs() {
                self.now += LOOK;
                let reached = answering.iter().map(|number| self.settings.schedulers[*number].peer_id).collect();
                for change in self.reach.look(&self.settings, &reached, self.now) {
                    let entry = self.settings.schedulers.iter_mut().find(|entry| entry.peer_id == change.peer);
                    entry.expect("listed").state = change.to;
                }
            }
            self.settings.schedulers.iter().map(|entry| entry.state).collect()
        }
    }

    #[test]
    fn who_is_silent_leaves_the_ring_and_comes_back_when_it_answers_steadily() {
        let mut bench = Bench::new(&[Active, Active]);
        assert_eq!(bench.pass(60, &[0, 1]), [Active, Active]);
        assert_eq!(bench.pass(18, &[0]), [Active, Active], "not yet");
        assert_eq!(bench.pass(2, &[0]), [Active, Dead]);
        for _ in 0..10 {
            bench.pass(8, &[0, 1]);
            assert_eq!(bench.pass(2, &[0]), [Active, Dead], "it answers now and then");
        }
        assert_eq!(bench.pass(8, &[0, 1]), [Active, Dead], "a tenth would be 2 s, and that is too short");
        assert_eq!(bench.pass(4, &[0, 1]), [Active, Active]);
    }

    #[test]
    fn one_that_answers_now_and_then_is_not_dead() {
        let mut bench = Bench::new(&[Active, Active]);
        for _ in 0..10 {
            bench.pass(18, &[0]);
            assert_eq!(bench.pass(2, &[0, 1]), [Active, Active]);
        }
    }

    #[test]
    fn a_manager_that_is_cut_off_blames_nobody() {
        let mut bench = Bench::new(&[Active, Active, Draining]);
        bench.pass(10, &[0, 1, 2]);
        assert_eq!(bench.pass(3600, &[]), [Active, Active, Draining]);
        assert_eq!(bench.pass(18, &[0]), [Active, Active, Draining], "the time without any does not count");
        assert_eq!(bench.pass(4, &[0]), [Active, Dead, Draining]);
    }

    #[test]
    fn the_ring_is_never_emptied() {
        let mut bench = Bench::new(&[Active, Active, Draining]);
        bench.pass(10, &[0, 1, 2]);
        assert_eq!(bench.pass(3600, &[2]), [Active, Active, Draining], "none of the ring answers");
        let mut alone = Bench::new(&[Active]);
        assert_eq!(alone.pass(3600, &[]), [Active]);
        let mut last = Bench::new(&[Dead, Active]);
        assert_eq!(last.pass(20, &[0]), [Active, Active], "who is back is in the ring before the other leaves it");
        assert_eq!(last.pass(20, &[0]), [Active, Dead]);
    }

    #[test]
    fn what_operators_drain_stays_out() {
        let mut bench = Bench::new(&[Active, Draining, Draining]);
        assert_eq!(bench.pass(3600, &[0, 1]), [Active, Draining, Draining]);
    }

    #[test]
    fn zero_takes_nobody_out_but_still_puts_back() {
        let mut bench = Bench::new(&[Active, Active, Dead]);
        bench.settings.dead_scheduler_ms = 0;
        assert_eq!(bench.pass(3600, &[0, 2]), [Active, Active, Active]);
    }

    #[test]
    fn a_gap_between_looks_counts_as_little() {
        let mut bench = Bench::new(&[Active, Active]);
        bench.pass(4, &[0, 1]);
        bench.now += Duration::from_secs(3600);
        assert_eq!(bench.pass(2, &[0]), [Active, Active]);
    }

    #[test]
    fn a_tenth_of_the_time_brings_one_back_within_bounds() {
        for (dead, back) in [(10, 10), (600, 60), (7 * 24 * 3600, 600)] {
            assert_eq!(back_after(Duration::from_secs(dead)), Duration::from_secs(back));
        }
    }
}
