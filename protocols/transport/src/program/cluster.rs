//! The address of a known peer.

use std::{fmt, str::FromStr};

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};
use serde::{Deserialize, Serialize};

/// The address of a known peer: a multiaddr that ends with `/p2p/` and the peer's ID.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PeerAddress {
    peer: PeerId,
    address: Multiaddr,
}

impl PeerAddress {
    /// `peer` at `address`, which may end with the same peer's ID.
    pub fn new(peer: PeerId, address: Multiaddr) -> Option<Self> {
        address.with_p2p(peer).ok().map(|address| Self { peer, address })
    }

    /// Who it is.
    pub const fn peer(&self) -> PeerId {
        self.peer
    }

    /// Where it is, ending with `/p2p/`.
    pub const fn address(&self) -> &Multiaddr {
        &self.address
    }
}

impl FromStr for PeerAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let address: Multiaddr = text.parse().map_err(|error| format!("{text:?} is no multiaddr: {error}"))?;
        match address.iter().last() {
            Some(Protocol::P2p(peer)) => Ok(Self { peer, address }),
            _ => Err(format!("{text:?} does not end with /p2p/ and a peer ID")),
        }
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

impl Serialize for PeerAddress {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PeerAddress {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
