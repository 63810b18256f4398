//! Deletes as a scheduler has seen them, for the manager's audit.

use libp2p::PeerId;

use super::peer;
use crate::{
    name::Name,
    pb::{self, each, required},
    record::Tombstone,
    wire::Invalid,
};

/// Most deletes in one answer.
pub const DELETIONS_MAX: usize = 256;

/// What a scheduler has deleted since it started, some of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeletionsAnswer {
    /// In the order of their numbers, at most [`DELETIONS_MAX`]; fewer: there are no more.
    pub items: Vec<Deletion>,
}

/// A delete that a host has asked for, and that has buried something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deletion {
    /// Higher than those before it, also than those before the scheduler's start.
    pub number: u64,
    /// The host.
    pub peer: PeerId,
    /// Its user, as it says.
    pub uid: Option<u32>,
    /// The task's name, if the host says it.
    pub name: Option<Name>,
    /// The task, and when.
    pub tombstone: Tombstone,
}

impl From<&DeletionsAnswer> for pb::DeletionsAnswer {
    fn from(answer: &DeletionsAnswer) -> Self {
        Self { items: answer.items.iter().map(Into::into).collect() }
    }
}

impl TryFrom<pb::DeletionsAnswer> for DeletionsAnswer {
    type Error = Invalid;

    fn try_from(answer: pb::DeletionsAnswer) -> Result<Self, Invalid> {
        let items: Vec<Deletion> = each("deletions", answer.items, DELETIONS_MAX)?;
        if !items.is_sorted_by(|one, next| one.number < next.number) {
            return Err(Invalid::new("deletions", "they are not in order"));
        }
        Ok(Self { items })
    }
}

impl From<&Deletion> for pb::Deletion {
    fn from(deletion: &Deletion) -> Self {
        Self {
            number: deletion.number,
            peer: deletion.peer.to_bytes(),
            uid: deletion.uid,
            name: deletion.name.as_ref().map(Into::into),
            tombstone: Some((&deletion.tombstone).into()),
        }
    }
}

impl TryFrom<pb::Deletion> for Deletion {
    type Error = Invalid;

    fn try_from(deletion: pb::Deletion) -> Result<Self, Invalid> {
        let tombstone: Tombstone = required("tombstone", deletion.tombstone)?.try_into()?;
        let name = deletion.name.map(Name::try_from).transpose()?;
        if name.as_ref().is_some_and(|name| name.task_id() != tombstone.task) {
            return Err(Invalid::new("name", "it is another task's"));
        }
        Ok(Self { number: deletion.number, peer: peer(&deletion.peer)?, uid: deletion.uid, name, tombstone })
    }
}
