//! A host's membership: joining once with a token, remembering it, and renewing it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use damselfly_messages::{
    config::SignedConfiguration,
    id::ClusterId,
    membership::{JoinToken, Refused, Role, SignedCredential, Standing, join::RefusalCode},
    record::UnixMillis,
    wire::{Invalid, Wire as _},
};
use libp2p::{Multiaddr, PeerId, identity::Keypair};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use super::{cluster::PeerAddress, durable, follower::Follower};
use crate::{
    admission::Admission,
    join::{Asking, JoinError, ask},
    network::Network,
    reason::chain,
};

/// Where a host keeps its membership in its data directory.
pub const MEMBERSHIP_FILE: &str = "membership.json";
/// Where a host keeps the newest configuration.
pub const CONFIGURATION_FILE: &str = "configuration.signed";

/// A credential is renewed after this part of its lifetime.
const RENEWED_AFTER: u32 = 14;
/// The first pause after a renewal that failed; each further one is twice as long.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(3600);
/// A host without a connection asks the manager after this time, and then every so often.
const ALONE_AFTER: Duration = Duration::from_secs(5);
const ASKED_ALONE_EVERY: Duration = Duration::from_secs(60);
/// How often it is looked whether the own credential still holds.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often it is said that it does not.
const ALARM_EVERY: Duration = Duration::from_secs(60);

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

/// Why a running host is no member any more.
#[derive(Debug, thiserror::Error)]
#[error("this host is no member of its cluster any more: {0}")]
pub struct Ended(Refused);

impl Membership {
    /// What the host remembers; else it joins, when it has a token.
    ///
    /// # Errors
    /// [`MembershipError`]
    pub async fn enter(joining: &Joining<'_>) -> Result<Option<Self>, MembershipError> {
        let known = Self::load(joining.data_dir)?;
        match (known, joining.token) {
            (Some(known), Some(token)) if known.cluster != token.cluster => Err(MembershipError::OtherCluster {
                ours: known.cluster,
                theirs: token.cluster,
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
            match ask(keypair, token.cluster, (*manager, address), asking, addresses).await {
                Ok((credential, configuration)) => {
                    tracing::info!(cluster = %token.cluster, %role, "joined the cluster");
                    return Self::remember(data_dir, (token.cluster, &token.managers), &credential, &configuration);
                }
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
        let managers = managers.iter().filter_map(|(peer, address)| PeerAddress::new(*peer, address.clone()));
        let this = Self { cluster, managers: managers.collect(), credential: hex::encode(credential.to_bytes()) };
        // First what is of no use alone.
        write(&data_dir.join(CONFIGURATION_FILE), configuration.as_bytes())?;
        this.store(data_dir)?;
        Ok(this)
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

/// Keeps a running host a member.
#[derive(Debug)]
pub struct Keeper {
    /// What it remembers.
    pub membership: Membership,
    /// Where.
    pub data_dir: PathBuf,
    /// Its key.
    pub keypair: Keypair,
    /// Where it can be dialled.
    pub addresses: Vec<Multiaddr>,
    /// Where its peers are told.
    pub network: Network,
    /// What brings the news.
    pub follower: Follower,
}

impl Keeper {
    /// Renews the credential whenever it is time; returns when the host is no member any more.
    pub async fn run(mut self) -> Ended {
        let mut pause = PAUSE_MIN;
        let mut next = self.renewal();
        let mut alarmed: Option<SystemTime> = None;
        let (mut asked_alone, mut alone_for) = (SystemTime::now(), ALONE_AFTER);
        loop {
            match self.network.admission().own_standing() {
                Ok(Standing::Valid) => alarmed = None,
                Ok(Standing::InGrace) => {
                    if alarmed.is_none_or(|at| at.elapsed().unwrap_or_default() >= ALARM_EVERY) {
                        alarmed = Some(SystemTime::now());
                        tracing::error!(
                            "the credential has expired: the cluster's grace ends soon, renewal needs a manager"
                        );
                    }
                }
                // It may have been off for long; a manager renews whom nobody has put out.
                Err(refused @ Refused::Expired { .. }) => match self.renew().await {
                    Ok(()) => next = self.renewal(),
                    Err(error) => {
                        tracing::error!(reason = chain(&error), "the expired credential was not renewed");
                        return Ended(refused);
                    }
                },
                Err(refused) => return Ended(refused),
            }
            let now = SystemTime::now();
            if !self.network.connected().borrow().is_empty() {
                asked_alone = now;
            } else if now.duration_since(asked_alone).unwrap_or_default() >= alone_for {
                // Perhaps nobody admits it any more, or everybody is somewhere else: the manager knows.
                (asked_alone, alone_for) = (now, ASKED_ALONE_EVERY);
                next = now;
            }
            if now < next {
                // Not longer: the configuration may revoke this host, and the clock may be set.
                sleep(LOOK_EVERY.min(next.duration_since(now).unwrap_or_default())).await;
                continue;
            }
            match self.renew().await {
                Ok(()) => (pause, next) = (PAUSE_MIN, self.renewal()),
                Err(JoinError::Refused(refusal)) if refusal.code == RefusalCode::Revoked => {
                    return Ended(Refused::Revoked);
                }
                Err(error) => {
                    tracing::warn!(reason = chain(&error), "the credential was not renewed; it is tried again");
                    next = SystemTime::now() + pause;
                    pause = (pause * 2).min(PAUSE_MAX).min(self.lifetime() / RENEWED_AFTER).max(PAUSE_MIN);
                }
            }
        }
    }

    fn lifetime(&self) -> Duration {
        let claim = self.membership.credential().and_then(|credential| credential.claim());
        claim
            .map_or(Duration::ZERO, |claim| Duration::from_millis(claim.not_after.0.saturating_sub(claim.not_before.0)))
    }

    /// When the credential is to be renewed.
    fn renewal(&self) -> SystemTime {
        let claim = self.membership.credential().and_then(|credential| credential.claim());
        let issued = claim.map_or(UnixMillis(0), |claim| claim.not_before);
        SystemTime::UNIX_EPOCH + Duration::from_millis(issued.0) + self.lifetime() / RENEWED_AFTER
    }

    async fn renew(&mut self) -> Result<(), JoinError> {
        let own = self.membership.credential()?;
        let mut last = JoinError::Timeout;
        for manager in self.membership.managers.clone() {
            match self.renew_with(&manager, &own).await {
                Ok(()) => return Ok(()),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn renew_with(&mut self, manager: &PeerAddress, own: &SignedCredential) -> Result<(), JoinError> {
        let asking = Asking::Renew(own);
        let at = (manager.peer(), manager.address());
        let renewed = ask(&self.keypair, self.membership.cluster, at, asking, &self.addresses).await?;
        let (credential, configuration) = renewed;
        self.membership.credential = hex::encode(credential.to_bytes());
        if let Err(error) = self.membership.store(&self.data_dir) {
            // It is used all the same, and renewed again after a restart.
            tracing::error!(reason = chain(&error), "the renewed credential is not stored");
        }
        self.network.admission().present(credential);
        if let Err(error) = self.follower.offer(configuration.as_bytes(), manager.peer()).await {
            tracing::warn!(%error, "the manager's configuration is refused");
        }
        self.follower.show_renewed().await;
        tracing::debug!("the credential was renewed");
        Ok(())
    }
}
