//! Connections at the join listener. The oldest one that has not asked for anything ends for a newer one.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::task::{AbortHandle, Id};

/// Connections at once.
const IN_ALL: usize = 64;
/// Of these, connections of one source; of loopback, where a whole testnet may be, all.
const PER_SOURCE: usize = 8;

/// Whether a connection has sent its request: then it is answered, whoever else comes.
#[derive(Debug, Clone, Default)]
pub(super) struct HasAsked(Arc<AtomicBool>);

impl HasAsked {
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The connections there are, oldest first.
#[derive(Debug, Default)]
pub(super) struct Guests(VecDeque<Guest>);

#[derive(Debug)]
struct Guest {
    source: IpAddr,
    has_asked: HasAsked,
    task: AbortHandle,
}

impl Guests {
    /// Makes room for one more of `source`; false when all those that could go have asked.
    pub(super) fn make_room(&mut self, source: IpAddr) -> bool {
        let own = self.0.iter().filter(|guest| guest.source == source).count();
        let loses = if own >= PER_SOURCE && !source.is_loopback() {
            source
        } else if self.0.len() >= IN_ALL {
            let mut counts: HashMap<IpAddr, usize> = HashMap::new();
            for guest in self.0.iter().filter(|guest| !guest.has_asked.get()) {
                *counts.entry(guest.source).or_default() += 1;
            }
            match counts.into_iter().max_by_key(|(_, count)| *count) {
                Some((largest, _)) => largest,
                None => return false,
            }
        } else {
            return true;
        };
        let oldest = self.0.iter().position(|guest| guest.source == loses && !guest.has_asked.get());
        match oldest.and_then(|at| self.0.remove(at)) {
            Some(guest) => {
                guest.task.abort();
                true
            }
            None => false,
        }
    }

    pub(super) fn enter(&mut self, source: IpAddr, has_asked: HasAsked, task: AbortHandle) {
        self.0.push_back(Guest { source, has_asked, task });
    }

    pub(super) fn leave(&mut self, task: Id) {
        self.0.retain(|guest| guest.task.id() != task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection that is there until it is ended.
    fn arrive(guests: &mut Guests, ip: [u8; 4]) -> Option<(tokio::task::JoinHandle<()>, HasAsked)> {
        let source = IpAddr::from(ip);
        guests.make_room(source).then(|| {
            let task = tokio::spawn(std::future::pending());
            let has_asked = HasAsked::default();
            guests.enter(source, has_asked.clone(), task.abort_handle());
            (task, has_asked)
        })
    }

    #[tokio::test]
    async fn who_says_nothing_makes_room_and_who_has_asked_stays() {
        let mut guests = Guests::default();
        let (asking, has_asked) = arrive(&mut guests, [10, 0, 0, 1]).expect("room");
        has_asked.set();
        let silent: Vec<_> = (1..PER_SOURCE).filter_map(|_| arrive(&mut guests, [10, 0, 0, 1])).collect();
        assert_eq!(silent.len(), PER_SOURCE - 1);
        assert!(arrive(&mut guests, [10, 0, 0, 1]).is_some(), "its own oldest makes room");
        let (first, _) = silent.into_iter().next().expect("one");
        assert!(first.await.expect_err("ended").is_cancelled());
        for host in 2..100 {
            assert!(arrive(&mut guests, [10, 0, 0, host]).is_some(), "the largest makes room");
        }
        assert_eq!(guests.0.len(), IN_ALL);
        assert!(!asking.is_finished());
        guests.leave(asking.id());
        assert_eq!(guests.0.len(), IN_ALL - 1);
    }

    #[tokio::test]
    async fn when_all_have_asked_there_is_no_room() {
        let mut guests = Guests::default();
        for _ in 0..IN_ALL {
            arrive(&mut guests, [127, 0, 0, 1]).expect("a testnet is on loopback").1.set();
        }
        assert!(arrive(&mut guests, [10, 0, 0, 1]).is_none());
    }
}
