//! A host's membership: joining once with a token, remembering it, and renewing it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use damselfly_messages::{
    config::SignedConfiguration,
    id::ClusterId,
    membership::{JoinToken, MANAGERS_MAX, Role, SignedCredential, join::Welcome},
    wire::{Invalid, Wire as _},
};
use libp2p::{Multiaddr, PeerId, identity::Keypair};
use serde::{Deserialize, Serialize};

use super::{cluster::PeerAddress, durable};
use crate::{
    admission::Admission,
    dialing::DialPolicy,
    join::{Asking, JoinError, ask},
};

mod keeper;
pub use keeper::{Ended, Keeper};

/// Where a host keeps its membership in its data directory.
pub const MEMBERSHIP_FILE: &str = "membership.json";
/// Where a host keeps the newest configuration.
pub const CONFIGURATION_FILE: &str = "configuration.signed";

/// What a host remembers of having joined.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Membership {
    /// The cluster it belongs to.
    pub cluster: ClusterId,
    /// Where it is renewed.
    managers: Vec<PeerAddress>,
    /// In hex.
    credential: String,
}

/// How a host joins.
#[derive(Debug, Clone)]
pub struct Joining<'a> {
    /// Where it keeps its key and its membership.
    pub data_dir: &'a Path,
    /// Its key.
    pub keypair: &'a Keypair,
    /// By what right, if it has not joined yet.
    pub token: Option<&'a JoinToken>,
    /// As what.
    pub role: Role,
    /// Where it can be dialled.
    pub addresses: &'a [Multiaddr],
}

/// Where to ask from now on: first where this host was answered, whatever the manager thinks of its own addresses.
fn known_managers(answered: (PeerId, Multiaddr), told: &[(PeerId, Multiaddr)]) -> Vec<(PeerId, Multiaddr)> {
    let others = told.iter().filter(|other| **other != answered).cloned().collect::<Vec<_>>();
    [answered].into_iter().chain(others).take(MANAGERS_MAX).collect()
}

/// Whether the host of this data directory has joined a cluster.
pub fn has_joined(data_dir: &Path) -> bool {
    data_dir.join(MEMBERSHIP_FILE).exists()
}

/// Reads a join token from a command line: itself, or `@` and the file that holds it, which other users do not see.
///
/// # Errors
/// What is wrong, for a person.
pub fn read_token(text: &str) -> Result<JoinToken, String> {
    let token = match text.strip_prefix('@') {
        None => text.to_owned(),
        Some(path) => fs::read_to_string(path).map_err(|error| format!("--join: cannot read {path}: {error}"))?,
    };
    token.parse().map_err(|error| format!("--join: {error}"))
}

/// Why a host is no member.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// It is one already, of another cluster.
    #[error("this host belongs to cluster {ours}, and the token is of cluster {theirs}: for another cluster use another data directory than {}", .data_dir.display())]
    OtherCluster {
        /// Of which it is.
        ours: ClusterId,
        /// Which it was to join.
        theirs: ClusterId,
        /// Where that is remembered.
        data_dir: PathBuf,
    },
    /// What it remembers cannot be used.
    #[error("{} cannot be used", .path.display())]
    Stored {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No manager has made it one.
    #[error("cannot join the cluster")]
    Join(#[source] Box<JoinError>),
    /// The token is of no use.
    #[error("the join token names no manager")]
    NoManager,
}

impl Membership {
    /// What the host remembers; else it joins, when it has a token.
    ///
    /// # Errors
    /// [`MembershipError`]
    pub async fn enter(joining: &Joining<'_>) -> Result<Option<Self>, MembershipError> {
        let known = Self::load(joining.data_dir)?;
        match (known, joining.token) {
            (Some(known), Some(token)) if known.cluster != token.cluster() => Err(MembershipError::OtherCluster {
                ours: known.cluster,
                theirs: token.cluster(),
                data_dir: joining.data_dir.into(),
            }),
            (Some(known), _) => Ok(Some(known)),
            (None, Some(token)) => Self::join(joining, token).await.map(Some),
            (None, None) => Ok(None),
        }
    }

    async fn join(joining: &Joining<'_>, token: &JoinToken) -> Result<Self, MembershipError> {
        let Joining { data_dir, keypair, role, addresses, .. } = joining;
        let mut last = MembershipError::NoManager;
        for (manager, address) in &token.managers {
            let asking = Asking::Join { token, role: *role };
            match ask(keypair, &token.roots, (*manager, address), asking, addresses).await {
                Ok(Welcome { credential, configuration, managers }) => {
                    tracing::info!(cluster = %token.cluster(), %role, "joined the cluster");
                    let known = if managers.is_empty() { &token.managers } else { &managers };
                    let known = known_managers((*manager, address.clone()), known);
                    return Self::remember(data_dir, (token.cluster(), &known), &credential, &configuration);
                }
                // The others would say the same.
                Err(error) if error.is_final() => return Err(MembershipError::Join(error.into())),
                Err(error) => last = MembershipError::Join(error.into()),
            }
        }
        Err(last)
    }

    /// Keeps in `data_dir` that its host is a member.
    ///
    /// # Errors
    /// [`MembershipError::Stored`]: it is none when it starts again.
    pub fn remember(
        data_dir: &Path,
        (cluster, managers): (ClusterId, &[(PeerId, Multiaddr)]),
        credential: &SignedCredential,
        configuration: &SignedConfiguration,
    ) -> Result<Self, MembershipError> {
        let mut this = Self { cluster, managers: Vec::new(), credential: hex::encode(credential.to_bytes()) };
        this.learn(managers);
        // First what is of no use alone.
        write(&data_dir.join(CONFIGURATION_FILE), configuration.as_bytes())?;
        this.store(data_dir)?;
        Ok(this)
    }

    /// These are the managers now.
    fn learn(&mut self, managers: &[(PeerId, Multiaddr)]) {
        let known = managers.iter().filter_map(|(peer, address)| PeerAddress::new(*peer, address.clone()));
        self.managers = known.collect();
    }

    fn load(data_dir: &Path) -> Result<Option<Self>, MembershipError> {
        let path = data_dir.join(MEMBERSHIP_FILE);
        let read = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => Err(error),
        };
        let usable = read.and_then(|this: Self| this.credential().map(|_| this).map_err(io::Error::other));
        usable.map(Some).map_err(|source| MembershipError::Stored { path, source })
    }

    fn store(&self, data_dir: &Path) -> Result<(), MembershipError> {
        let path = data_dir.join(MEMBERSHIP_FILE);
        let bytes = serde_json::to_vec_pretty(self).map_err(io::Error::from);
        let bytes = bytes.map_err(|source| MembershipError::Stored { path: path.clone(), source })?;
        write(&path, &bytes)
    }

    /// Warns, once, when this host has joined by way of a loopback address, but dials none.
    pub fn warn_of_loopback(&self, policy: &DialPolicy) {
        if let Some(manager) = self.managers.iter().find(|manager| policy.refuses_loopback(manager.address())) {
            tracing::warn!(
                manager = %manager.address(),
                "the manager is on this host, and other programs here are not dialled: for a cluster on one host set \
                 `allow_loopback` (--allow-loopback) in each program"
            );
        }
    }

    /// What is shown to others.
    ///
    /// # Errors
    /// [`Invalid`] when the file was damaged.
    fn credential(&self) -> Result<SignedCredential, Invalid> {
        let bytes = hex::decode(&self.credential).map_err(|error| Invalid::new("credential", error.to_string()))?;
        SignedCredential::from_bytes(&bytes)
    }

    /// The admission of this member.
    ///
    /// # Errors
    /// [`Invalid`] when the file was damaged.
    pub fn admission(&self) -> Result<Admission, Invalid> {
        Ok(Admission::new(self.cluster, self.credential()?))
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), MembershipError> {
    durable::replace(path, bytes, 0o600).map_err(|source| MembershipError::Stored { path: path.into(), source })
}
