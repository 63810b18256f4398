//! Keeps a running host a member: renews its credential when it is time, and whenever others seem to see none in it.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use damselfly_messages::{
    membership::{
        Refused, Roots, SignedCredential, Standing,
        join::{RefusalCode, Welcome},
    },
    record::UnixMillis,
    wire::Wire as _,
};
use libp2p::{Multiaddr, identity::Keypair};
use tokio::time::sleep;

use super::{Membership, known_managers};
use crate::{
    join::{Asking, JoinError, ask},
    network::Network,
    program::{cluster::PeerAddress, follower::Follower},
    reason::chain,
};

/// A credential is renewed after this part of its lifetime.
const RENEWED_AFTER: u32 = 14;
/// The first pause after a renewal that failed; each further one is twice as long.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(3600);
/// A host without a connection asks the manager after this time.
const ALONE_AFTER: Duration = Duration::from_secs(5);
/// A host that others refuse, or that is alone, asks the manager so often.
const ASKED_IN_DOUBT_EVERY: Duration = Duration::from_secs(60);
/// When the cluster has a new root, hosts get credentials of it within this time, each at a random moment.
const NEW_ROOT_WITHIN: Duration = Duration::from_secs(20);
/// How often it is looked whether the own credential still holds.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often it is said that it does not.
const ALARM_EVERY: Duration = Duration::from_secs(60);

/// Why a running host is no member any more.
#[derive(Debug, thiserror::Error)]
#[error("this host is no member of its cluster any more: {0}")]
pub struct Ended(Refused);

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

/// Whether others still see a member in this host. The manager knows.
#[derive(Debug)]
struct Doubts {
    /// How often others had refused it when the manager was asked.
    refusals: u64,
    connected: SystemTime,
    asked: Option<SystemTime>,
}

impl Doubts {
    fn new() -> Self {
        Self { refusals: 0, connected: SystemTime::now(), asked: None }
    }

    /// Whether the manager should be asked: others refuse this host, or it has had no connection for a while, and perhaps
    /// everybody is somewhere else.
    fn arise(&mut self, refusals: u64, is_alone: bool, now: SystemTime) -> bool {
        if !is_alone {
            self.connected = now;
        }
        let since = |at: SystemTime| now.duration_since(at).unwrap_or_default();
        let doubtful = refusals > self.refusals || since(self.connected) >= ALONE_AFTER;
        let arise = doubtful && self.asked.is_none_or(|asked| since(asked) >= ASKED_IN_DOUBT_EVERY);
        if arise {
            (self.refusals, self.asked) = (refusals, Some(now));
        }
        arise
    }
}

/// Says now and then that the credential has expired.
#[derive(Debug, Default)]
struct Alarm(Option<SystemTime>);

impl Alarm {
    fn give(&mut self) {
        if self.0.is_none_or(|at| at.elapsed().unwrap_or_default() >= ALARM_EVERY) {
            self.0 = Some(SystemTime::now());
            tracing::error!("the credential has expired: the cluster's grace ends soon, renewal needs a manager");
        }
    }

    fn end(&mut self) {
        self.0 = None;
    }
}

impl Keeper {
    /// Renews the credential whenever it is time; returns when the host is no member any more.
    pub async fn run(mut self) -> Ended {
        let mut pause = PAUSE_MIN;
        let mut next = self.renewal();
        let mut doubts = Doubts::new();
        let mut alarm = Alarm::default();
        let mut is_spread = false;
        loop {
            let admission = self.network.admission();
            match admission.own_standing() {
                Ok(Standing::Valid) => alarm.end(),
                Ok(Standing::InGrace) => alarm.give(),
                // Others refuse it; when a renewal has failed, the next one waits its time.
                Err(Refused::RootRetired) if pause == PAUSE_MIN => next = SystemTime::now(),
                Err(Refused::RootRetired) => {}
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
            let admission = self.network.admission();
            if doubts.arise(admission.refused_by_others(), self.network.connected().borrow().is_empty(), now) {
                next = now;
            } else if !is_spread && !admission.own_is_newest() {
                // Not all hosts at once.
                next = next.min(now + NEW_ROOT_WITHIN.mul_f64(rand::random()));
                is_spread = true;
            }
            if now < next {
                // Not longer: the configuration may revoke this host, and the clock may be set.
                sleep(LOOK_EVERY.min(next.duration_since(now).unwrap_or_default())).await;
                continue;
            }
            match self.renew().await {
                Ok(()) => (pause, next, is_spread) = (PAUSE_MIN, self.renewal(), false),
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
                // The others would say the same.
                Err(error) if error.is_final() => return Err(error),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn renew_with(&mut self, manager: &PeerAddress, own: &SignedCredential) -> Result<(), JoinError> {
        let asking = Asking::Renew(own);
        let at = (manager.peer(), manager.address());
        let roots = self.network.admission().roots().unwrap_or_else(|| Roots::of(self.membership.cluster));
        let Welcome { credential, configuration, managers } =
            ask(&self.keypair, &roots, at, asking, &self.addresses).await?;
        self.membership.credential = hex::encode(credential.to_bytes());
        if !managers.is_empty() {
            let answered = (manager.peer(), manager.address().clone());
            self.membership.learn(&known_managers(answered, &managers));
        }
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
