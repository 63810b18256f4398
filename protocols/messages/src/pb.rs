//! The generated wire types and their conversion to domain types, which validates.
//!
//! Private: nothing outside this crate sees a wire type.

#![allow(missing_docs)]

use libp2p::{Multiaddr, PeerId};
use prost::Message;

use crate::{
    id::{ContentId, TaskId},
    name::Name as DomainName,
    record as domain,
    wire::Invalid,
};

include!(concat!(env!("OUT_DIR"), "/damselfly.wire.v1.rs"));

/// Most addresses that are kept of one peer.
pub(crate) const ADDRESSES_MAX: usize = 16;
/// Longest binary multiaddr.
const ADDRESS_BYTES_MAX: usize = 300;

/// Decodes a frame's body as `M`.
pub(crate) fn decode<M: Message + Default>(what: &'static str, bytes: &[u8]) -> Result<M, Invalid> {
    M::decode(bytes).map_err(|error| Invalid::new(what, error.to_string()))
}

/// The value of a field that must be there.
pub(crate) fn required<T>(what: &'static str, field: Option<T>) -> Result<T, Invalid> {
    field.ok_or_else(|| Invalid::new(what, "it is missing"))
}

/// Refuses more than `max` of something, before any of it is converted.
pub(crate) fn at_most<T>(what: &'static str, items: Vec<T>, max: usize) -> Result<Vec<T>, Invalid> {
    if items.len() > max {
        return Err(Invalid::new(what, format!("{} are more than {max}", items.len())));
    }
    Ok(items)
}

/// Converts each item of a bounded list.
pub(crate) fn each<P, T>(what: &'static str, items: Vec<P>, max: usize) -> Result<Vec<T>, Invalid>
where
    T: TryFrom<P, Error = Invalid>,
{
    at_most(what, items, max)?.into_iter().map(T::try_from).collect()
}

pub(crate) fn peer_id(bytes: &[u8]) -> Result<PeerId, Invalid> {
    PeerId::from_bytes(bytes).map_err(|error| Invalid::new("peer id", error.to_string()))
}

pub(crate) fn addresses(list: Vec<Vec<u8>>) -> Result<Vec<Multiaddr>, Invalid> {
    let convert = |bytes: Vec<u8>| {
        if bytes.len() > ADDRESS_BYTES_MAX {
            return Err(Invalid::new("address", "it is too long"));
        }
        Multiaddr::try_from(bytes).map_err(|error| Invalid::new("address", error.to_string()))
    };
    at_most("addresses", list, ADDRESSES_MAX)?.into_iter().map(convert).collect()
}

impl From<&DomainName> for Name {
    fn from(name: &DomainName) -> Self {
        Self { cid: name.cid().to_owned(), tag: name.tag().to_owned() }
    }
}

impl TryFrom<Name> for DomainName {
    type Error = Invalid;

    fn try_from(name: Name) -> Result<Self, Invalid> {
        Self::parse(&name.cid, &name.tag)
    }
}

impl From<&domain::Binding> for Binding {
    fn from(binding: &domain::Binding) -> Self {
        Self {
            content: binding.content.digest().to_vec(),
            content_bytes: binding.content_bytes,
            generation: binding.generation,
            accepted: binding.accepted.map(|at| at.0),
            expires: binding.expires.map(|at| at.0),
        }
    }
}

impl TryFrom<Binding> for domain::Binding {
    type Error = Invalid;

    fn try_from(binding: Binding) -> Result<Self, Invalid> {
        if binding.generation == 0 || binding.generation > domain::GENERATION_MAX {
            return Err(Invalid::new("generation", format!("{} is out of range", binding.generation)));
        }
        crate::piece::PieceLayout::new(binding.content_bytes)?;
        Ok(Self {
            content: ContentId::from_bytes(&binding.content)?,
            content_bytes: binding.content_bytes,
            generation: binding.generation,
            accepted: binding.accepted.map(domain::UnixMillis),
            expires: binding.expires.map(domain::UnixMillis),
        })
    }
}

impl From<&domain::Tombstone> for Tombstone {
    fn from(tombstone: &domain::Tombstone) -> Self {
        Self { task: tombstone.task.digest().to_vec(), generation: tombstone.generation, deleted: tombstone.deleted.0 }
    }
}

impl TryFrom<Tombstone> for domain::Tombstone {
    type Error = Invalid;

    fn try_from(tombstone: Tombstone) -> Result<Self, Invalid> {
        if tombstone.generation > domain::GENERATION_MAX {
            return Err(Invalid::new("generation", format!("{} is out of range", tombstone.generation)));
        }
        Ok(Self {
            task: TaskId::from_bytes(&tombstone.task)?,
            generation: tombstone.generation,
            deleted: domain::UnixMillis(tombstone.deleted),
        })
    }
}
