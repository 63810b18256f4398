//! What tasks are called, for people: schedulers work with task IDs alone.
//!
//! Learned with announcements as far as there is room, and forgotten with the task.

use std::collections::{BTreeMap, HashMap};

use damselfly_messages::{id::TaskId, name::Name};

use super::hosts::HostId;

/// Bytes of one name beside its text, measured like those of tasks.
const NAME_BYTES: usize = 112;

/// One name, and who has told it.
#[derive(Debug)]
struct Known {
    /// The cid, then the tag.
    text: Box<str>,
    cid_bytes: u16,
    host: HostId,
}

impl Known {
    fn cost(&self) -> usize {
        NAME_BYTES + self.text.len()
    }
}

/// All known names. What a host has told counts for it until the name is forgotten.
#[derive(Debug, Default)]
pub(super) struct Names {
    known: BTreeMap<TaskId, Known>,
    bytes: usize,
    by_host: HashMap<HostId, usize>,
}

impl Names {
    /// Estimated bytes of memory.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The cid and the tag of a task.
    pub(super) fn get(&self, task: &TaskId) -> Option<(&str, &str)> {
        let known = self.known.get(task)?;
        known.text.split_at_checked(known.cid_bytes.into())
    }

    /// Keeps a name if there is room: one host has at most half of `max`, and the other half is divided equally among
    /// `hosts`.
    pub(super) fn learn(&mut self, task: TaskId, name: &Name, host: HostId, hosts: usize, max: usize) {
        let Ok(cid_bytes) = u16::try_from(name.cid().len()) else { return };
        if self.known.contains_key(&task) {
            return;
        }
        let known = Known { text: format!("{}{}", name.cid(), name.tag()).into(), cid_bytes, host };
        let cost = known.cost();
        let own = self.by_host.get(&host).copied().unwrap_or_default() + cost;
        let crowded = self.bytes + cost > max / 2;
        if own > max / 2 || crowded && own > max / 2 / hosts.max(1) {
            return;
        }
        self.bytes += cost;
        self.by_host.insert(host, own);
        self.known.insert(task, known);
    }

    /// Forgets the names of tasks that are not wanted.
    pub(super) fn retain(&mut self, wanted: impl Fn(&TaskId) -> bool) {
        self.known.retain(|task, known| {
            if wanted(task) {
                return true;
            }
            self.bytes -= known.cost();
            if let Some(own) = self.by_host.get_mut(&known.host) {
                *own -= known.cost();
                if *own == 0 {
                    self.by_host.remove(&known.host);
                }
            }
            false
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learn(names: &mut Names, host: u32, numbers: std::ops::Range<u32>, max: usize) -> usize {
        let before = names.known.len();
        for number in numbers {
            let name = Name::parse(&format!("host {host} name {number}"), "tag").expect("a name");
            names.learn(name.task_id(), &name, HostId(host), 4, max);
        }
        names.known.len() - before
    }

    #[test]
    fn every_host_has_a_share_of_the_names() {
        let mut names = Names::default();
        let max = 100 * 160;
        let first = learn(&mut names, 1, 0..1_000, max);
        assert!((50..80).contains(&first), "{first}: half of all");
        let shares = [2, 3, 4].map(|host| learn(&mut names, host, 0..1_000, max));
        assert!(shares.iter().all(|share| (10..20).contains(share)), "{shares:?}: a quarter of the other half");
        assert!(names.bytes() <= max, "{} bytes", names.bytes());
        assert_eq!(learn(&mut names, 1, 0..10, max), 0, "what is known costs nothing more");
        names.retain(|_| false);
        assert_eq!((names.bytes(), names.by_host.len()), (0, 0));
    }

    #[test]
    fn a_name_has_two_parts() {
        let mut names = Names::default();
        for (cid, tag) in [("a", ""), ("a", "b"), ("ab", ""), ("größe", "ü")] {
            let name = Name::parse(cid, tag).expect("a name");
            names.learn(name.task_id(), &name, HostId(1), 1, 1 << 20);
            assert_eq!(names.get(&name.task_id()), Some((cid, tag)));
        }
    }
}
