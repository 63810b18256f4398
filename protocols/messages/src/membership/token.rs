//! Join tokens: all that a new host needs.

use std::{fmt, str::FromStr};

use libp2p::{Multiaddr, PeerId};
use multibase::Base;
use prost::Message as _;
use sha2::{Digest as _, Sha256};

use super::{Roles, Roots, managers};
use crate::{id::ClusterId, pb, record::UnixMillis, wire::Invalid};

/// What every token begins with; the number is that of the format.
const PREFIX: &str = "dfj1_";
/// Longest token in characters.
const TEXT_MAX: usize = 4096;
/// Bytes behind the message that show a slip of the pen.
const CHECK_BYTES: usize = 4;
/// Bytes of a token's name.
pub const TOKEN_ID_BYTES: usize = 16;
/// Bytes of a token's secret.
const SECRET_BYTES: usize = 32;
/// Separates keys made of secrets from every other use of SHA-256.
const VERIFIER_DOMAIN: &[u8] = b"damselfly join verifier v1\0";

/// The name of a join token, which is no secret.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenId(pub [u8; TOKEN_ID_BYTES]);

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenId({self})")
    }
}

impl FromStr for TokenId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let mut id = [0; TOKEN_ID_BYTES];
        hex::decode_to_slice(text, &mut id).map_err(|error| Invalid::new("token id", error.to_string()))?;
        Ok(Self(id))
    }
}

/// What only the holder of a token knows. Never shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub [u8; SECRET_BYTES]);

impl Secret {
    /// What the manager keeps of it; the key of the proof that a newcomer gives.
    pub fn verifier(&self) -> Verifier {
        Verifier(Sha256::new().chain_update(VERIFIER_DOMAIN).chain_update(self.0).finalize().into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// The key of the proof that a newcomer knows a token's secret. Never shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier(pub [u8; 32]);

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier")
    }
}

/// All that a new host needs: where the managers are, what proves them, and what proves the host to them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// What the managers prove that they come from.
    pub roots: Roots,
    /// Its name.
    pub id: TokenId,
    /// Its secret.
    pub secret: Secret,
    /// What it makes a host. Only the manager's own record of it counts.
    pub roles: Roles,
    /// Until when it can be used; likewise.
    pub expires: UnixMillis,
    /// Where managers are joined, each address ending with `/p2p/` and its peer ID.
    pub managers: Vec<(PeerId, Multiaddr)>,
}

impl JoinToken {
    /// The cluster.
    pub fn cluster(&self) -> ClusterId {
        self.roots.cluster()
    }

    /// As text, to be typed or pasted. It holds the secret.
    pub fn reveal(&self) -> String {
        let message = pb::JoinToken {
            cluster: self.cluster().digest().to_vec(),
            id: self.id.0.to_vec(),
            secret: self.secret.0.to_vec(),
            roles: self.roles.to_numbers(),
            expires: self.expires.0,
            managers: managers::to_pb(&self.managers),
            roots: Some(self.roots.to_pb()),
        };
        let mut bytes = message.encode_to_vec();
        let check = check(&bytes);
        bytes.extend(check);
        format!("{PREFIX}{}", Base::Base64Url.encode(bytes))
    }
}

fn check(bytes: &[u8]) -> [u8; CHECK_BYTES] {
    let mut check = [0; CHECK_BYTES];
    check.copy_from_slice(&Sha256::digest(bytes)[..CHECK_BYTES]);
    check
}

fn invalid(reason: impl Into<String>) -> Invalid {
    Invalid::new("join token", reason)
}

impl FromStr for JoinToken {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let text = text.trim();
        let Some(text) = text.strip_prefix(PREFIX).filter(|text| text.len() <= TEXT_MAX) else {
            return Err(invalid(format!("it does not begin with {PREFIX}")));
        };
        let damaged = || invalid("it is damaged: copy all of it again");
        let bytes = Base::Base64Url.decode(text).map_err(|_| damaged())?;
        let (message, found) = bytes.split_last_chunk::<CHECK_BYTES>().ok_or_else(damaged)?;
        if check(message) != *found {
            return Err(damaged());
        }
        let message: pb::JoinToken = pb::decode("join token", message)?;
        Ok(Self {
            roots: Roots::from_pb(ClusterId::from_bytes(&message.cluster)?, message.roots)?,
            id: TokenId(message.id.try_into().map_err(|_| damaged())?),
            secret: Secret(message.secret.try_into().map_err(|_| damaged())?),
            roles: Roles::from_numbers(&message.roles)?,
            expires: UnixMillis(message.expires),
            managers: managers::from_pb(message.managers)?,
        })
    }
}
