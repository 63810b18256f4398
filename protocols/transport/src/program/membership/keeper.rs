//! Keeps a running host a member: renews its credential when it is time, and whenever others seem to see none in it.

use std::{path::PathBuf, time::Duration};

use damselfly_messages::{
    membership::{
        CLOCK_LEEWAY, Refused, Roots, SignedCredential, Standing,
        join::{RefusalCode, Welcome},
    },
    record::UnixMillis,
    wire::Wire as _,
};
use libp2p::{Multiaddr, identity::Keypair};
use tokio::time::{Instant, sleep};

use super::{MEMBERSHIP_FILE, Membership, known_managers};
use crate::{
    clock::Clock,
    error_chain::chain,
    join::{Asking, JoinError, ask},
    network::Network,
    program::{cluster::PeerAddress, follower::Follower, identity::KEY_FILE},
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
/// A host whose clocks disagree asks the manager for the time so often.
const ASKED_THE_TIME_EVERY: Duration = Duration::from_secs(3600);
/// A host whose clock no scheduler has confirmed by then asks the manager for the time.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(5);
/// When the cluster has a new root, hosts get credentials of it within this time, each at a random moment.
const NEW_ROOT_WITHIN: Duration = Duration::from_secs(20);
/// How often it is looked whether the own credential still holds.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often it is said that it does not.
const ALARM_EVERY: Duration = Duration::from_secs(60);

/// That a running host is revoked, which is final: everything else that makes a credential invalid may pass.
#[derive(Debug, thiserror::Error)]
#[error(
    "this host is no member of its cluster any more: {}. {}",
    Refused::Revoked,
    new_identity(.data_dir)
)]
pub struct Ended {
    data_dir: PathBuf,
}

/// What to do with a host that is revoked and is to be a member again.
pub(super) fn new_identity(data_dir: &std::path::Path) -> String {
    format!(
        "A token does not bring it back, because its key is revoked: for a new identity remove {KEY_FILE} and \
         {MEMBERSHIP_FILE} from {}, then start it with --join and a new token; what is stored here is kept",
        data_dir.display()
    )
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

/// Whether others still see a member in this host, and what time it is. The manager knows.
#[derive(Debug)]
struct Doubts {
    begun: Instant,
    /// How often others had refused it when the manager was asked.
    refusals: u64,
    connected: Instant,
    asked: Option<Instant>,
    /// When the manager was asked because the clocks disagree; none when they agree.
    asked_the_time: Option<Instant>,
}

impl Doubts {
    fn new() -> Self {
        Self { begun: Instant::now(), refusals: 0, connected: Instant::now(), asked: None, asked_the_time: None }
    }

    /// Whether the manager should be asked: others refuse this host, or it has had no connection for a while, and perhaps
    /// everybody is somewhere else.
    fn arise(&mut self, refusals: u64, is_alone: bool, now: Instant) -> bool {
        if !is_alone {
            self.connected = now;
        }
        let doubtful = refusals > self.refusals || now - self.connected >= ALONE_AFTER;
        let arise = doubtful && is_due(self.asked, ASKED_IN_DOUBT_EVERY, now);
        if arise {
            (self.refusals, self.asked) = (refusals, Some(now));
        }
        arise
    }

    /// Whether the manager should be asked for the time.
    fn arise_about(&mut self, clock: &Clock, now: Instant) -> bool {
        let is_late = clock.is_unconfirmed() && now - self.begun >= CONFIRMED_WITHIN;
        if clock.problem().is_none() && !is_late {
            self.asked_the_time = None;
            return false;
        }
        let arise = is_due(self.asked_the_time, ASKED_THE_TIME_EVERY, now);
        if arise {
            self.asked_the_time = Some(now);
        }
        arise
    }
}

fn is_due(last: Option<Instant>, every: Duration, now: Instant) -> bool {
    last.is_none_or(|last| now - last >= every)
}

/// Says now and then why the credential is of no use.
#[derive(Debug, Default)]
struct Alarm(Option<Instant>);

impl Alarm {
    fn give(&mut self, standing: Result<(), &Refused>, now: Instant) {
        if !is_due(self.0, ALARM_EVERY, now) {
            return;
        }
        self.0 = Some(now);
        match standing {
            Ok(()) => {
                tracing::error!("the credential has expired: the cluster's grace ends soon, renewal needs a manager");
            }
            Err(refused) => tracing::error!(
                reason = %refused,
                "this host's credential is not valid now; others refuse it, local work goes on, and a manager is asked"
            ),
        }
    }

    fn end(&mut self) {
        self.0 = None;
    }
}

impl Keeper {
    /// Renews the credential whenever it is time; returns when the host is revoked.
    pub async fn run(mut self) -> Ended {
        let mut pause = PAUSE_MIN;
        let mut next = self.renewal();
        let mut tried = None;
        let mut doubts = Doubts::new();
        let mut alarm = Alarm::default();
        let mut is_spread = false;
        loop {
            let now = Instant::now();
            let admission = self.network.admission();
            match admission.own_standing() {
                Ok(Standing::Valid) => alarm.end(),
                Ok(Standing::InGrace) => alarm.give(Ok(()), now),
                Err(Refused::Revoked) => return self.ended(),
                // Others refuse it. A manager renews it, unless the host is revoked.
                Err(refused) => {
                    if refused != Refused::RootRetired {
                        alarm.give(Err(&refused), now);
                    }
                    next = next.min(tried.map_or(now, |tried| tried + ASKED_IN_DOUBT_EVERY));
                }
            }
            let is_alone = self.network.connected().borrow().is_empty();
            let in_doubt = doubts.arise(admission.refused_by_others(), is_alone, now);
            if doubts.arise_about(admission.clock(), now) || in_doubt {
                next = now;
            } else if !is_spread && !admission.own_is_newest() {
                // Not all hosts at once.
                next = next.min(now + NEW_ROOT_WITHIN.mul_f64(rand::random()));
                is_spread = true;
            }
            if now < next {
                self.keep_time().await;
                // Not longer: the configuration may revoke this host, and the clock may be set.
                sleep(LOOK_EVERY.min(next - now)).await;
                continue;
            }
            tried = Some(now);
            match self.renew().await {
                Ok(()) => (pause, next, is_spread) = (PAUSE_MIN, self.renewal(), false),
                Err(JoinError::Refused(refusal)) if refusal.code == RefusalCode::Revoked => return self.ended(),
                Err(error) => {
                    tracing::warn!(reason = chain(&error), "the credential was not renewed; it is tried again");
                    next = Instant::now() + pause;
                    pause = (pause * 2).min(PAUSE_MAX).min(self.lifetime() / RENEWED_AFTER).max(PAUSE_MIN);
                }
            }
        }
    }

    /// Remembers that the host is revoked: its next start says so at once.
    fn ended(mut self) -> Ended {
        self.membership.is_revoked = true;
        if let Err(error) = self.membership.store(&self.data_dir) {
            tracing::warn!(reason = chain(&error), "it is not kept that this host is revoked");
        }
        Ended { data_dir: self.data_dir }
    }

    /// Keeps what is known of the time. Nothing depends on it.
    async fn keep_time(&self) {
        let clock = self.network.admission().clock().clone();
        drop(tokio::task::spawn_blocking(move || clock.keep()).await);
    }

    fn lifetime(&self) -> Duration {
        let claim = self.membership.credential().and_then(|credential| credential.claim());
        claim
            .map_or(Duration::ZERO, |claim| Duration::from_millis(claim.not_after.0.saturating_sub(claim.not_before.0)))
    }

    /// When the credential is to be renewed.
    fn renewal(&self) -> Instant {
        let claim = self.membership.credential().and_then(|credential| credential.claim());
        let issued = claim.map_or(UnixMillis(0), |claim| claim.not_before);
        let age = self.network.admission().clock().now().0.saturating_sub(issued.0);
        Instant::now() + (self.lifetime() / RENEWED_AFTER).saturating_sub(Duration::from_millis(age))
    }

    async fn renew(&mut self) -> Result<(), JoinError> {
        let own = self.membership.credential()?;
        let mut last = JoinError::Timeout;
        for manager in self.membership.managers.clone() {
            // It could only give what others refuse.
            if self.network.admission().is_revoked(&manager.peer()) {
                continue;
            }
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
        let not_before = credential.claim()?.not_before;
        check_time(self.network.admission().clock(), not_before).map_err(|by| JoinError::FromTheFuture { by })?;
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

/// Takes the time of a credential that was issued just now, unless others have confirmed another one. One that would be
/// valid much later by that is refused, with how much later: it replaces none that is valid.
fn check_time(clock: &Clock, issued: UnixMillis) -> Result<(), Duration> {
    if clock.confirm(issued) {
        return Ok(());
    }
    let early = Duration::from_millis(issued.0.saturating_sub(clock.now().0));
    if early > CLOCK_LEEWAY { Err(early) } else { Ok(()) }
}
