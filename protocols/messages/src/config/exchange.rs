//! `/damselfly/config/1` and the gossip topic: how configurations travel.

use prost::Message as _;

use super::{GOSSIPED_BYTES_MAX, SignedConfiguration};
use crate::{
    membership::SignedCredential,
    pb,
    wire::{Invalid, Wire},
};

/// Asks for a configuration newer than the one known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Epoch the asker has; 0 for none.
    pub known_epoch: u64,
    /// The asker's credential, when it was renewed since the connection was made.
    pub renewed: Option<SignedCredential>,
}

/// The answer to [`Request`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Epoch the answerer has.
    pub epoch: u64,
    /// The newer configuration, if there is one.
    pub newer: Option<SignedConfiguration>,
}

/// Says that there is a configuration; the asking truth is [`Request`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gossip {
    /// Its epoch.
    pub epoch: u64,
    /// Itself, unless it is longer than [`GOSSIPED_BYTES_MAX`].
    pub full: Option<SignedConfiguration>,
}

impl Gossip {
    /// What to gossip of `signed`.
    pub fn of(signed: &SignedConfiguration) -> Self {
        let short = signed.as_bytes().len() <= GOSSIPED_BYTES_MAX;
        Self { epoch: signed.epoch(), full: short.then(|| signed.clone()) }
    }
}

fn to_pb(signed: &SignedConfiguration) -> Option<pb::SignedConfiguration> {
    pb::SignedConfiguration::decode(signed.as_bytes()).ok()
}

fn from_pb(signed: Option<pb::SignedConfiguration>) -> Result<Option<SignedConfiguration>, Invalid> {
    signed.map(|signed| SignedConfiguration::from_bytes(&signed.encode_to_vec())).transpose()
}

impl Wire for Request {
    fn to_bytes(&self) -> Vec<u8> {
        let renewed = self.renewed.as_ref().map(SignedCredential::to_pb);
        pb::ConfigRequest { known_epoch: self.known_epoch, renewed }.encode_to_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, Invalid> {
        let request: pb::ConfigRequest = pb::decode("configuration request", bytes)?;
        let renewed = request.renewed.map(SignedCredential::from_pb).transpose()?;
        Ok(Self { known_epoch: request.known_epoch, renewed })
    }
}

impl Wire for Response {
    fn to_bytes(&self) -> Vec<u8> {
        pb::ConfigResponse { epoch: self.epoch, newer: self.newer.as_ref().and_then(to_pb) }.encode_to_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, Invalid> {
        let response: pb::ConfigResponse = pb::decode("configuration answer", bytes)?;
        Ok(Self { epoch: response.epoch, newer: from_pb(response.newer)? })
    }
}

impl Wire for Gossip {
    fn to_bytes(&self) -> Vec<u8> {
        pb::ConfigGossip { epoch: self.epoch, full: self.full.as_ref().and_then(to_pb) }.encode_to_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, Invalid> {
        let gossip: pb::ConfigGossip = pb::decode("configuration gossip", bytes)?;
        Ok(Self { epoch: gossip.epoch, full: from_pb(gossip.full)? })
    }
}
