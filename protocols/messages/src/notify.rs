//! `/damselfly/notify/1`: what schedulers tell hosts.

use prost::Message as _;

use crate::{
    id::{ContentId, TaskId},
    pb::{self, each, notify_request::Body as Pb, required},
    record::{Binding, Tombstone},
    scheduler::{PARENTS_MAX, Parent},
    wire::{Invalid, Wire},
};

/// What a scheduler tells a host.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// The task is deleted: drop it, remember that, then answer.
    DropTask(Tombstone),
    /// Another content stands under the name.
    ConflictLost {
        /// The task.
        task: TaskId,
        /// What stands.
        winner: Binding,
    },
    /// More parents for a download under way.
    NewParents {
        /// The task.
        task: TaskId,
        /// The content.
        content: ContentId,
        /// At most [`PARENTS_MAX`].
        parents: Vec<Parent>,
    },
    /// There is a configuration of this epoch.
    NewEpoch(u64),
}

/// A host's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response {
    /// To [`Request::DropTask`]: it held the task. Else whether it is concerned.
    pub held: bool,
}

impl Wire for Request {
    fn to_bytes(&self) -> Vec<u8> {
        let body = match self {
            Self::DropTask(tombstone) => Pb::DropTask(tombstone.into()),
            Self::ConflictLost { task, winner } => {
                Pb::ConflictLost(pb::ConflictLost { task: task.digest().to_vec(), winner: Some(winner.into()) })
            }
            Self::NewParents { task, content, parents } => Pb::NewParents(pb::NewParents {
                task: task.digest().to_vec(),
                content: content.digest().to_vec(),
                parents: parents.iter().map(pb::Parent::from).collect(),
            }),
            Self::NewEpoch(epoch) => Pb::NewEpoch(*epoch),
        };
        pb::NotifyRequest { body: Some(body) }.encode_to_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, Invalid> {
        let request: pb::NotifyRequest = pb::decode("notification", bytes)?;
        Ok(match required("notification", request.body)? {
            Pb::DropTask(tombstone) => Self::DropTask(tombstone.try_into()?),
            Pb::ConflictLost(lost) => Self::ConflictLost {
                task: TaskId::from_bytes(&lost.task)?,
                winner: required("winner", lost.winner)?.try_into()?,
            },
            Pb::NewParents(new) => Self::NewParents {
                task: TaskId::from_bytes(&new.task)?,
                content: ContentId::from_bytes(&new.content)?,
                parents: each("parents", new.parents, PARENTS_MAX)?,
            },
            Pb::NewEpoch(epoch) => Self::NewEpoch(epoch),
        })
    }
}

impl Wire for Response {
    fn to_bytes(&self) -> Vec<u8> {
        pb::NotifyResponse { held: self.held }.encode_to_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, Invalid> {
        let response: pb::NotifyResponse = pb::decode("notification answer", bytes)?;
        Ok(Self { held: response.held })
    }
}
