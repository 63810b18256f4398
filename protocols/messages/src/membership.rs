//! Who belongs to a cluster: the chain from its root to a host's credential, and how a host gets one.
//!
//! The [`Root`] certifies one [`Issuer`] per manager; issuers sign credentials and configurations. [`Trust::admit`] is the
//! only place that decides whether a credential counts.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use libp2p::{
    PeerId,
    core::SignedEnvelope,
    identity::{Keypair, PublicKey},
};
use serde::{Deserialize, Serialize};

use crate::{record::UnixMillis, scheduler::TAGS_MAX, wire::Invalid};

mod credential;
pub mod join;
mod managers;
mod roots;
#[cfg(test)]
mod tests;
mod token;
mod trust;

pub use credential::{CREDENTIAL_BYTES_MAX, Credential, Issuer, IssuerCertificate, SignedCredential};
pub use managers::MANAGERS_MAX;
pub use roots::{Fingerprint, ROOTS_MAX, Root, Roots, Succession};
pub use token::{JoinToken, Secret, TOKEN_ID_BYTES, TokenId, Verifier};
pub use trust::{Admitted, Refused, Standing, Trust};

/// How far the clocks of two hosts may be apart.
pub const CLOCK_LEEWAY: Duration = Duration::from_secs(300);

/// What a host is in its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Imports, exports, serves.
    Node,
    /// A node that others prefer as a parent.
    Seed,
    /// Owns shards of the ring.
    Scheduler,
    /// Issues credentials and publishes the configuration.
    Manager,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Node, Self::Seed, Self::Scheduler, Self::Manager];

    // Numbers on the wire; 0 is none.
    const fn number(self) -> u32 {
        match self {
            Self::Node => 1,
            Self::Seed => 2,
            Self::Scheduler => 3,
            Self::Manager => 4,
        }
    }

    fn from_number(number: u32) -> Result<Self, Invalid> {
        let role = Self::ALL.into_iter().find(|role| role.number() == number);
        role.ok_or_else(|| Invalid::new("role", format!("there is no role {number}")))
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Node => "node",
            Self::Seed => "seed",
            Self::Scheduler => "scheduler",
            Self::Manager => "manager",
        })
    }
}

impl FromStr for Role {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let role = Self::ALL.into_iter().find(|role| role.to_string() == text);
        role.ok_or_else(|| Invalid::new("role", format!("{text:?} is none of node, seed, scheduler, manager")))
    }
}

/// A set of roles.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Roles(u8);

impl Roles {
    /// No role.
    pub const NONE: Self = Self(0);
    /// Whoever is a member.
    pub const ANY: Self = Self(0b1_1110);
    /// Hosts that hold contents.
    pub const NODES: Self = Self(1 << Role::Node.number() | 1 << Role::Seed.number());

    /// These roles.
    pub fn of(roles: impl IntoIterator<Item = Role>) -> Self {
        Self(roles.into_iter().fold(0, |bits, role| bits | 1 << role.number()))
    }

    /// This role alone.
    pub const fn just(role: Role) -> Self {
        Self(1 << role.number())
    }

    /// These, and `role`.
    pub const fn and(self, role: Role) -> Self {
        Self(self.0 | 1 << role.number())
    }

    /// Whether `role` is one of them.
    pub const fn contains(self, role: Role) -> bool {
        self.0 & 1 << role.number() != 0
    }

    /// Whether the sets have a role in common.
    pub const fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = Role> {
        Role::ALL.into_iter().filter(move |role| self.contains(*role))
    }

    fn to_numbers(self) -> Vec<u32> {
        self.iter().map(Role::number).collect()
    }

    fn from_numbers(numbers: &[u32]) -> Result<Self, Invalid> {
        if numbers.len() > Role::ALL.len() {
            return Err(Invalid::new("roles", "they are too many"));
        }
        let roles = numbers.iter().map(|number| Role::from_number(*number)).collect::<Result<Vec<_>, _>>()?;
        if roles.is_empty() { Err(Invalid::new("roles", "there is none")) } else { Ok(Self::of(roles)) }
    }
}

impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let roles: Vec<_> = self.iter().map(|role| role.to_string()).collect();
        f.write_str(&roles.join(", "))
    }
}

impl fmt::Debug for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Roles({self})")
    }
}

/// Where a host is, and whatever else its token says of it.
pub type Tags = BTreeMap<String, String>;

/// The tag of a join token that says whether a host may add tags of its own: not with the value [`OWN_TAGS_NONE`].
pub const OWN_TAGS: &str = "own_tags";
/// A host has no tags but those of its join token.
pub const OWN_TAGS_NONE: &str = "none";

/// The tags of a host: those that its credential grants, and of its own configuration those with other names, as far as the
/// join token allows any.
///
/// They decide from whom the host fetches, which overrides are for it, and how it is shown.
pub fn host_tags(granted: &Tags, own: &Tags) -> Tags {
    let mut tags = granted.clone();
    if !may_add_tags(granted) {
        return tags;
    }
    for (name, value) in own {
        if tags.len() < TAGS_MAX && name != OWN_TAGS {
            tags.entry(name.clone()).or_insert_with(|| value.clone());
        }
    }
    tags
}

/// The names of the tags in a host's own configuration that do not count, because its credential says otherwise.
pub fn overruled_tags<'a>(granted: &Tags, own: &'a Tags) -> Vec<&'a str> {
    let tags = host_tags(granted, own);
    own.iter().filter(|(name, value)| tags.get(*name) != Some(*value)).map(|(name, _)| name.as_str()).collect()
}

fn may_add_tags(granted: &Tags) -> bool {
    granted.get(OWN_TAGS).is_none_or(|value| value != OWN_TAGS_NONE)
}

/// Puts a payload into an envelope of its own kind: no signature of one kind counts as another's.
fn seal(key: &Keypair, kind: &'static str, payload: Vec<u8>) -> Result<Vec<u8>, Invalid> {
    SignedEnvelope::new(key, domain(kind), kind.as_bytes().to_vec(), payload)
        .map(SignedEnvelope::into_protobuf_encoding)
        .map_err(|error| Invalid::new("signing key", error.to_string()))
}

/// Opens an envelope; gives the payload and who signed it.
fn open(kind: &'static str, bytes: &[u8]) -> Result<(Vec<u8>, PublicKey), Invalid> {
    let envelope =
        SignedEnvelope::from_protobuf_encoding(bytes).map_err(|error| Invalid::new(kind, error.to_string()))?;
    let (payload, key) = envelope
        .payload_and_signing_key(domain(kind), kind.as_bytes())
        .map_err(|error| Invalid::new(kind, error.to_string()))?;
    Ok((payload.to_vec(), key.clone()))
}

fn domain(kind: &str) -> String {
    format!("damselfly {kind} v1")
}

/// A PeerId from the wire.
fn peer(bytes: &[u8]) -> Result<PeerId, Invalid> {
    PeerId::from_bytes(bytes).map_err(|error| Invalid::new("peer id", error.to_string()))
}

/// The time until which something holds that begins `at`.
fn after(at: UnixMillis, lifetime: Duration) -> UnixMillis {
    UnixMillis(at.0.saturating_add(u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX)))
}
