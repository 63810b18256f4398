//! Where managers are joined: in tokens, and in what members are told.

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};

use crate::{pb, wire::Invalid};

/// Addresses of managers that a host knows, at most.
pub const MANAGERS_MAX: usize = 8;

pub(super) fn to_pb(managers: &[(PeerId, Multiaddr)]) -> Vec<Vec<u8>> {
    managers.iter().map(|(_, address)| address.to_vec()).collect()
}

pub(super) fn from_pb(managers: Vec<Vec<u8>>) -> Result<Vec<(PeerId, Multiaddr)>, Invalid> {
    pb::at_most("managers", managers, MANAGERS_MAX)?.into_iter().map(manager).collect()
}

/// An address that ends with the peer's ID.
fn manager(bytes: Vec<u8>) -> Result<(PeerId, Multiaddr), Invalid> {
    let invalid = |reason| Invalid::new("managers", reason);
    let address = Multiaddr::try_from(bytes).map_err(|error| invalid(error.to_string()))?;
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => Ok((peer, address)),
        _ => Err(invalid(format!("the manager's address {address} does not end with its peer ID"))),
    }
}
