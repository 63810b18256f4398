//! What children say about parents.

use std::{collections::BTreeMap, time::Duration};

use damselfly_messages::id::ContentId;

use super::hosts::HostId;

/// So many children must say that a parent lied before it is given to nobody: one may lie itself.
const LIED_TO: usize = 3;

/// Children remembered for one parent.
const CHILDREN_MAX: usize = 8;

/// Parents remembered; above it, new faults count only for the child that reports them.
const PARENTS_MAX: usize = 16_384;

/// For how long faults count.
const KEPT: Duration = Duration::from_secs(3600);

#[derive(Debug, Default)]
struct Fault {
    lied_to: Vec<HostId>,
    failed: Vec<HostId>,
    last: Duration,
}

/// ParentFaults of parents, each for one content.
#[derive(Debug, Default)]
pub(super) struct ParentFaults(BTreeMap<(ContentId, HostId), Fault>);

impl ParentFaults {
    /// A child says that the parent's bytes did not verify.
    pub(super) fn lied(&mut self, content: ContentId, parent: HostId, child: HostId, at: Duration) {
        if let Some(fault) = self.entry(content, parent, at) {
            remember(&mut fault.lied_to, child);
        }
    }

    /// A child could not fetch from the parent.
    pub(super) fn failed(&mut self, content: ContentId, parent: HostId, child: HostId, at: Duration) {
        if let Some(fault) = self.entry(content, parent, at) {
            remember(&mut fault.failed, child);
        }
    }

    /// Whether the parent is given to nobody.
    pub(super) fn condemned(&self, content: ContentId, parent: HostId) -> bool {
        self.0.get(&(content, parent)).is_some_and(|fault| fault.lied_to.len() >= LIED_TO)
    }

    /// How many children had trouble with the parent: others come before it.
    pub(super) fn doubts(&self, content: ContentId, parent: HostId) -> usize {
        self.0.get(&(content, parent)).map_or(0, |fault| fault.lied_to.len() + fault.failed.len())
    }

    pub(super) fn sweep(&mut self, at: Duration) {
        self.0.retain(|_, fault| fault.last + KEPT > at);
    }

    fn entry(&mut self, content: ContentId, parent: HostId, at: Duration) -> Option<&mut Fault> {
        if self.0.len() >= PARENTS_MAX && !self.0.contains_key(&(content, parent)) {
            return None;
        }
        let fault = self.0.entry((content, parent)).or_default();
        fault.last = at;
        Some(fault)
    }
}

fn remember(children: &mut Vec<HostId>, child: HostId) {
    if !children.contains(&child) && children.len() < CHILDREN_MAX {
        children.push(child);
    }
}
