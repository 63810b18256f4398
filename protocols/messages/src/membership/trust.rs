//! Who is admitted. Pure: the time is told.

use std::{collections::HashMap, time::Duration};

use libp2p::PeerId;

use super::{CLOCK_LEEWAY, Credential, Fingerprint, Roots, SignedCredential};
use crate::{
    config::{Configuration, Revocation},
    id::ClusterId,
    record::UnixMillis,
    wire::Invalid,
};

/// What decides about credentials: the cluster's roots, whom it has revoked, and how long it bears with expired ones.
#[derive(Debug, Clone)]
pub struct Trust {
    roots: Roots,
    /// Who is revoked, and since when.
    revoked: HashMap<PeerId, UnixMillis>,
    grace: Duration,
}

/// Who was admitted, by which credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    /// The credential that it showed.
    pub credential: Credential,
    /// Who signed it.
    pub issuer: PeerId,
    /// The root that it comes from.
    pub root: Fingerprint,
}

/// How a member stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Its credential is valid.
    Valid,
    /// It has expired, and the cluster bears with that: somebody should look.
    InGrace,
}

/// Why a host is not admitted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It showed none.
    #[error("no credential was shown: join the cluster with a token first")]
    Missing,
    /// It cannot be read, or its signatures do not fit.
    #[error("the credential is not genuine: {0}")]
    NotGenuine(#[from] Invalid),
    /// It is of another cluster.
    #[error("the credential is of cluster {0}, not of ours")]
    OtherCluster(ClusterId),
    /// It is of another host.
    #[error("the credential is of host {0}, not of who shows it")]
    OtherPeer(PeerId),
    /// It comes from a root that the cluster has retired.
    #[error("the cluster has retired the root that the credential comes from: it must be renewed")]
    RootRetired,
    /// Its issuer had no right at that time.
    #[error("its issuer's certificate did not hold when it was issued")]
    IssuerExpired,
    /// The cluster has revoked its issuer before it was issued.
    #[error("the manager that issued the credential was revoked before that: another manager must renew it")]
    IssuerRevoked,
    /// It is not valid yet.
    #[error("the credential holds from {} s in the future on: the clock differs by more than {} s", .by.as_secs(), CLOCK_LEEWAY.as_secs())]
    NotYet {
        /// How much is missing.
        by: Duration,
    },
    /// It is not valid any more.
    #[error("the credential has expired {} s ago, or the clock differs by so much", .since.as_secs())]
    Expired {
        /// Since when.
        since: Duration,
    },
    /// The cluster has put the host out.
    #[error("the host is revoked")]
    Revoked,
}

impl Trust {
    /// Trusts the first root of `cluster`, and has heard of nothing else.
    pub fn new(cluster: ClusterId) -> Self {
        Self { roots: Roots::of(cluster), revoked: HashMap::new(), grace: Duration::ZERO }
    }

    /// Takes over what an accepted configuration says.
    pub fn follow(&mut self, configuration: &Configuration) {
        self.roots = configuration.roots.clone();
        self.revoke(&configuration.revoked);
        self.grace = Duration::from_millis(configuration.settings.grace_ms);
    }

    /// These are revoked, and nobody else.
    pub fn revoke(&mut self, revoked: &[Revocation]) {
        self.revoked = revoked.iter().map(|revocation| (revocation.peer, revocation.at)).collect();
    }

    /// The roots that it accepts.
    pub const fn roots(&self) -> &Roots {
        &self.roots
    }

    /// Whether the cluster has put `peer` out.
    pub fn is_revoked(&self, peer: &PeerId) -> bool {
        self.revoked.contains_key(peer)
    }

    /// Whether the host that proved to be `peer` is a member, by the credential that it shows.
    ///
    /// # Errors
    /// [`Refused`], with a reason that the host may be told.
    pub fn admit(&self, peer: &PeerId, shown: &SignedCredential, now: UnixMillis) -> Result<Admitted, Refused> {
        let (credential, signer) = shown.opened()?;
        if credential.cluster != self.roots.cluster() {
            return Err(Refused::OtherCluster(credential.cluster));
        }
        if credential.peer != *peer {
            return Err(Refused::OtherPeer(credential.peer));
        }
        let issuer = shown.issuer().certified(&self.roots)?;
        if issuer.key != signer {
            return Err(Invalid::new("credential", "it is not signed by the issuer that it names").into());
        }
        if credential.not_before < issuer.not_before || credential.not_after > issuer.not_after {
            return Err(Refused::IssuerExpired);
        }
        let admitted = Admitted { credential, issuer: issuer.key.to_peer_id(), root: issuer.root };
        self.standing(&admitted, now)?;
        Ok(admitted)
    }

    /// Whether a host's own credential comes from the cluster's newest root.
    pub fn is_newest(&self, own: &SignedCredential) -> bool {
        own.issuer().certified(&self.roots).is_ok_and(|issuer| self.roots.is_newest(&issuer.root))
    }

    /// How a host stands by the credential that it shows, which is its own.
    ///
    /// # Errors
    /// Those of [`Trust::standing`]; of others than retired roots it is known already that the credential is genuine.
    pub fn own_standing(&self, own: &SignedCredential, now: UnixMillis) -> Result<Standing, Refused> {
        let credential = own.claim()?;
        let issuer = own.issuer().certified(&self.roots).map_err(|_| Refused::RootRetired)?;
        self.standing(&Admitted { credential, issuer: issuer.key.to_peer_id(), root: issuer.root }, now)
    }

    /// How a host stands now that was admitted.
    ///
    /// # Errors
    /// [`Refused::Revoked`], [`Refused::RootRetired`], [`Refused::IssuerRevoked`], [`Refused::NotYet`] and
    /// [`Refused::Expired`].
    pub fn standing(&self, admitted: &Admitted, now: UnixMillis) -> Result<Standing, Refused> {
        let credential = &admitted.credential;
        if self.is_revoked(&credential.peer) {
            return Err(Refused::Revoked);
        }
        if !self.roots.accepts(&admitted.root) {
            return Err(Refused::RootRetired);
        }
        if self.revoked.get(&admitted.issuer).is_some_and(|at| credential.not_before > *at) {
            return Err(Refused::IssuerRevoked);
        }
        let early = Duration::from_millis(credential.not_before.0.saturating_sub(now.0));
        if early > CLOCK_LEEWAY {
            return Err(Refused::NotYet { by: early });
        }
        let late = Duration::from_millis(now.0.saturating_sub(credential.not_after.0));
        match late {
            Duration::ZERO => Ok(Standing::Valid),
            late if late <= self.grace => Ok(Standing::InGrace),
            // Its clock may be behind, and so it could not know.
            late if late <= leeway_of(credential) => Ok(Standing::Valid),
            late => Err(Refused::Expired { since: late }),
        }
    }
}

/// A credential that holds for seconds does not go on for minutes.
fn leeway_of(credential: &Credential) -> Duration {
    let lifetime = Duration::from_millis(credential.not_after.0.saturating_sub(credential.not_before.0));
    CLOCK_LEEWAY.min(lifetime / 4)
}
