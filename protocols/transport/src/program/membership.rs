//! A host's membership: joining once with a token, remembering it, and renewing it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use damselfly_messages::{
    config::{Acceptance, CONFIGURATION_BYTES_MAX, SignedConfiguration},
    id::ClusterId,
    membership::{JoinToken, MANAGERS_MAX, Role, SignedCredential, join::Welcome},
    wire::{Invalid, Wire as _},
};
use libp2p::{Multiaddr, PeerId, identity::Keypair};
use serde::{Deserialize, Serialize};

use super::{cluster::PeerAddress, durable};
use crate::{
    admission::Admission,
    clock::Clock,
    dialing::DialPolicy,
    error_chain::chain,
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
    /// A manager has said that the host is revoked, which is final.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    is_revoked: bool,
}

/// How a host joins.
#[derive(Debug, Clone)]
pub struct Joining<'a> {
    /// Where it keeps its key and its membership.
    pub data_dir: &'a Path,
    /// Its key.
    pub keypair: &'a Keypair,
    /// The time.
    pub clock: &'a Clock,
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

/// What `--join` gives a host.
#[derive(Debug, Default)]
pub struct GivenToken {
    /// The token, if it can be used.
    pub token: Option<JoinToken>,
    /// Why it cannot, when the host is a member already and needs none.
    pub unused: Option<String>,
}

/// Reads what `--join` says for the host of this data directory. A member needs no token, so one that is gone or damaged
/// does not keep it from starting.
///
/// # Errors
/// What is wrong, for a person.
pub fn given_token(join: Option<&str>, data_dir: &Path) -> Result<GivenToken, String> {
    match join.map(read_token) {
        None => Ok(GivenToken::default()),
        Some(Ok(token)) => Ok(GivenToken { token: Some(token), unused: None }),
        Some(Err(reason)) if has_joined(data_dir) => Ok(GivenToken { token: None, unused: Some(reason) }),
        Some(Err(reason)) => Err(reason),
    }
}

impl GivenToken {
    /// Says once that the token cannot be used.
    pub fn warn(&self) {
        if let Some(reason) = &self.unused {
            tracing::warn!(reason, "the join token is not used: this host is a member already");
        }
    }
}

/// Reads a join token from a command line: itself, or `@` and the file that holds it, which other users do not see.
fn read_token(text: &str) -> Result<JoinToken, String> {
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
    /// It is revoked.
    #[error("the host is revoked. {}", keeper::new_identity(.data_dir))]
    Revoked {
        /// Where it is remembered.
        data_dir: PathBuf,
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
            (Some(known), _) if known.is_known_revoked(joining) => {
                Err(MembershipError::Revoked { data_dir: joining.data_dir.into() })
            }
            (Some(known), Some(token)) => Ok(Some(known.join_again(joining, token).await)),
            (Some(known), None) => Ok(Some(known)),
            (None, Some(token)) => Self::join(joining, token).await.map(Some),
            (None, None) => Ok(None),
        }
    }

    /// Whether a manager has told this host that it is revoked, or the configuration that is kept; others may know more.
    fn is_known_revoked(&self, joining: &Joining<'_>) -> bool {
        if self.is_revoked {
            return true;
        }
        let us = joining.keypair.public().to_peer_id();
        let stored = fs::read(joining.data_dir.join(CONFIGURATION_FILE)).ok();
        let stored = stored.and_then(|bytes| SignedConfiguration::from_bytes(&bytes).ok());
        let verified = stored.and_then(|signed| Acceptance::new(self.cluster).verify(&signed).ok());
        verified.is_some_and(|configuration| configuration.revoked.iter().any(|revoked| revoked.peer == us))
    }

    /// What a token is good for that a member is started with: its credential may have expired too long ago for a renewal.
    async fn join_again(self, joining: &Joining<'_>, token: &JoinToken) -> Self {
        let until = self.credential().and_then(|own| own.claim()).map(|own| own.not_after);
        if until.is_ok_and(|until| until > joining.clock.now()) {
            tracing::info!("the join token is not used: this host is a member already");
            return self;
        }
        match Self::join(joining, token).await {
            Ok(member) => member,
            Err(error) => {
                let reason = chain(&error);
                tracing::warn!(
                    reason,
                    "the credential has expired, and the join token gives no other; a manager is asked"
                );
                self
            }
        }
    }

    async fn join(joining: &Joining<'_>, token: &JoinToken) -> Result<Self, MembershipError> {
        let Joining { data_dir, keypair, role, addresses, .. } = joining;
        check_writable(data_dir)?;
        let mut last = MembershipError::NoManager;
        for (manager, address) in &token.managers {
            let asking = Asking::Join { token, role: *role };
            match ask(keypair, &token.roots, (*manager, address), asking, addresses).await {
                Ok(Welcome { credential, configuration, managers }) => {
                    tracing::info!(cluster = %token.cluster(), %role, "joined the cluster");
                    if let Ok(claim) = credential.claim() {
                        joining.clock.confirm(claim.not_before);
                    }
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
        let mut this =
            Self { cluster, managers: Vec::new(), credential: hex::encode(credential.to_bytes()), is_revoked: false };
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

    /// The admission of this member, which judges by `clock`.
    ///
    /// # Errors
    /// [`Invalid`] when the file was damaged.
    pub fn admission(&self, clock: Clock) -> Result<Admission, Invalid> {
        Ok(Admission::new_by(clock, self.cluster, self.credential()?))
    }
}

/// Whether what a manager answers can be kept: a join that is not kept takes a use of its token for nothing.
fn check_writable(data_dir: &Path) -> Result<(), MembershipError> {
    for name in [CONFIGURATION_FILE, MEMBERSHIP_FILE] {
        let path = data_dir.join(name);
        let stored = |source| MembershipError::Stored { path: path.clone(), source };
        if fs::symlink_metadata(&path).is_ok_and(|there| there.is_dir()) {
            return Err(stored(io::ErrorKind::IsADirectory.into()));
        }
        durable::check_room(&path, CONFIGURATION_BYTES_MAX, 0o600).map_err(stored)?;
    }
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), MembershipError> {
    durable::replace(path, bytes, 0o600).map_err(|source| MembershipError::Stored { path: path.into(), source })
}
