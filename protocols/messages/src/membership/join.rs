//! `/damselfly/join/1`: how a host becomes a member, and stays one.
//!
//! The manager proves first that it speaks for the cluster, and gives a nonce. The newcomer answers with a proof that it
//! knows a token's secret, which is good for these two hosts and this nonce only; the secret itself is never sent.

use hmac::{Hmac, Mac as _};
use libp2p::{Multiaddr, PeerId};
use prost::Message as _;
use sha2::Sha256;

use super::{IssuerCertificate, Role, SignedCredential, TokenId, Verifier, managers};
use crate::{
    config::SignedConfiguration,
    pb,
    wire::{Invalid, Wire},
};

/// Bytes of a nonce.
pub const NONCE_BYTES: usize = 32;
/// Longest version of a program, in bytes.
const VERSION_BYTES_MAX: usize = 64;
/// Longest reason of a refusal, in bytes.
const REASON_BYTES_MAX: usize = 1024;
/// Separates these proofs from every other use of the key.
const PROOF_DOMAIN: &[u8] = b"damselfly join v1\0";

/// The manager's first word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    /// That it speaks for the cluster.
    pub issuer: IssuerCertificate,
    /// Used once.
    pub nonce: [u8; NONCE_BYTES],
}

/// What a host asks of the manager.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Join, or stay.
    pub body: RequestBody,
    /// Where it can be dialled; a scheduler is put into the ring with these.
    pub addresses: Vec<Multiaddr>,
    /// The version of its program.
    pub version: String,
}

/// See [`Request`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestBody {
    /// It has a token.
    Join {
        /// Which.
        token: TokenId,
        /// See [`proof`].
        proof: [u8; 32],
        /// What it is to be.
        role: Role,
    },
    /// It has a credential.
    Renew(SignedCredential),
}

/// The manager's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It is a member.
    Welcome(Welcome),
    /// It is not.
    Refused(Refusal),
}

/// What a member needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// Shown to every other member.
    pub credential: SignedCredential,
    /// The newest configuration.
    pub configuration: SignedConfiguration,
    /// Where managers are joined at present, at most [`MANAGERS_MAX`](super::MANAGERS_MAX); none: where the host knows.
    pub managers: Vec<(PeerId, Multiaddr)>,
}

/// Why a manager refuses a host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// For programs.
    pub code: RefusalCode,
    /// For people.
    pub reason: String,
}

/// What kind of refusal it is; numbers on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalCode {
    /// No such token, or not its secret: not told apart.
    Unknown = 1,
    /// The token's time is over.
    Expired = 2,
    /// It was used as often as it may be.
    UsedUp = 3,
    /// It was taken back.
    Withdrawn = 4,
    /// It does not make a host what it asks to be.
    Role = 5,
    /// The host was put out of the cluster.
    Revoked = 6,
    /// Too many tries.
    TooMany = 7,
    /// The request makes no sense.
    Malformed = 8,
    /// The manager cannot, at the moment.
    Unavailable = 9,
}

impl RefusalCode {
    const ALL: [Self; 9] = [
        Self::Unknown,
        Self::Expired,
        Self::UsedUp,
        Self::Withdrawn,
        Self::Role,
        Self::Revoked,
        Self::TooMany,
        Self::Malformed,
        Self::Unavailable,
    ];

    /// Whether the same request may be answered otherwise later.
    pub const fn is_temporary(self) -> bool {
        matches!(self, Self::TooMany | Self::Unavailable)
    }
}

impl Refusal {
    /// A refusal with a reason for people.
    pub fn new(code: RefusalCode, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into() }
    }
}

/// The proof that `newcomer` knows the secret behind `verifier`, for this manager, nonce and role.
pub fn proof(
    verifier: &Verifier,
    (manager, newcomer): (&PeerId, &PeerId),
    nonce: &[u8; NONCE_BYTES],
    role: Role,
) -> [u8; 32] {
    keyed(verifier, (manager, newcomer), nonce, role).finalize().into_bytes().into()
}

/// Whether a proof is right; takes the same time for every wrong one.
pub fn is_proof(
    proof: &[u8; 32],
    verifier: &Verifier,
    peers: (&PeerId, &PeerId),
    nonce: &[u8; NONCE_BYTES],
    role: Role,
) -> bool {
    keyed(verifier, peers, nonce, role).verify_slice(proof).is_ok()
}

fn keyed(
    verifier: &Verifier,
    (manager, newcomer): (&PeerId, &PeerId),
    nonce: &[u8; NONCE_BYTES],
    role: Role,
) -> Hmac<Sha256> {
    // HMAC takes keys of any length.
    let mut mac = Hmac::<Sha256>::new_from_slice(&verifier.0).unwrap_or_else(|_| unreachable!());
    mac.update(PROOF_DOMAIN);
    for part in [&manager.to_bytes()[..], &newcomer.to_bytes(), nonce, role.to_string().as_bytes()] {
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part);
    }
    mac
}

impl Wire for Greeting {
    fn to_bytes(&self) -> Vec<u8> {
        pb::JoinProof { issuer: Some(self.issuer.to_pb()), nonce: self.nonce.to_vec() }.encode_to_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, Invalid> {
        let message: pb::JoinProof = pb::decode("greeting", bytes)?;
        let nonce = message.nonce.try_into().map_err(|_| Invalid::new("nonce", "it has another length"))?;
        Ok(Self { issuer: IssuerCertificate::from_pb(message.issuer)?, nonce })
    }
}

impl Wire for Request {
    fn to_bytes(&self) -> Vec<u8> {
        let body = match &self.body {
            RequestBody::Join { token, proof, role } => pb::join_request::Body::Join(pb::Joining {
                token: token.0.to_vec(),
                mac: proof.to_vec(),
                role: role.number(),
            }),
            RequestBody::Renew(credential) => pb::join_request::Body::Renew(credential.to_pb()),
        };
        let addresses = self.addresses.iter().map(Multiaddr::to_vec).collect();
        pb::JoinRequest { body: Some(body), addresses, version: self.version.clone() }.encode_to_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, Invalid> {
        let message: pb::JoinRequest = pb::decode("join request", bytes)?;
        let length = |_| Invalid::new("join request", "a part has another length");
        let body = match message.body.ok_or_else(|| Invalid::new("join request", "it asks for nothing"))? {
            pb::join_request::Body::Join(join) => RequestBody::Join {
                token: TokenId(join.token.try_into().map_err(length)?),
                proof: join.mac.try_into().map_err(length)?,
                role: Role::from_number(join.role)?,
            },
            pb::join_request::Body::Renew(credential) => RequestBody::Renew(SignedCredential::from_pb(credential)?),
        };
        if message.version.len() > VERSION_BYTES_MAX {
            return Err(Invalid::new("version", "it is too long"));
        }
        Ok(Self { body, addresses: pb::addresses(message.addresses)?, version: message.version })
    }
}

impl Wire for Answer {
    fn to_bytes(&self) -> Vec<u8> {
        let body = match self {
            Self::Welcome(welcome) => pb::join_answer::Body::Welcome(pb::Welcome {
                credential: Some(welcome.credential.to_pb()),
                configuration: pb::SignedConfiguration::decode(welcome.configuration.as_bytes()).ok(),
                managers: managers::to_pb(&welcome.managers),
            }),
            Self::Refused(refusal) => pb::join_answer::Body::Refused(pb::JoinRefusal {
                code: refusal.code as u32,
                reason: refusal.reason.clone(),
            }),
        };
        pb::JoinAnswer { body: Some(body) }.encode_to_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, Invalid> {
        let missing = |what| Invalid::new("answer to a join request", format!("there is no {what}"));
        let message: pb::JoinAnswer = pb::decode("answer to a join request", bytes)?;
        match message.body.ok_or_else(|| missing("body"))? {
            pb::join_answer::Body::Welcome(welcome) => {
                let configuration = welcome.configuration.ok_or_else(|| missing("configuration"))?;
                Ok(Self::Welcome(Welcome {
                    credential: SignedCredential::from_pb(welcome.credential.ok_or_else(|| missing("credential"))?)?,
                    configuration: SignedConfiguration::from_bytes(&configuration.encode_to_vec())?,
                    managers: managers::from_pb(welcome.managers)?,
                }))
            }
            pb::join_answer::Body::Refused(refusal) => {
                let code = RefusalCode::ALL.into_iter().find(|code| *code as u32 == refusal.code);
                let reason = refusal.reason.chars().filter(|char| !char.is_control()).take(REASON_BYTES_MAX).collect();
                Ok(Self::Refused(Refusal { code: code.unwrap_or(RefusalCode::Malformed), reason }))
            }
        }
    }
}
