//! Makes hosts members, keeps them, and puts them out.

use std::{net::IpAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use damselfly_messages::{
    config::{Revocation, SchedulerEntry},
    membership::{
        Issuer, IssuerCertificate, JoinToken, MANAGERS_MAX, Refused, Role, Roles, Roots, Secret, SignedCredential,
        TOKEN_ID_BYTES, Tags, TokenId, Trust, Verifier,
        join::{Refusal, RefusalCode, RequestBody, Welcome},
    },
    record::UnixMillis,
    wire::Invalid,
};
use damselfly_transport::{
    addresses::reachable,
    dialing::DialPolicy,
    error_chain::chain,
    join::{Asked, Authority},
    network::Network,
    program::metrics::Labelled,
};
use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};
use tokio::time::{Instant, MissedTickBehavior};

use crate::{
    database::{
        Database, DatabaseError,
        audit::Actor,
        join_tokens::{JoinToken as Made, NewJoinToken, Refused as NotLetIn},
        members::{Joining, RenewError},
    },
    keys::ISSUER_LIFETIME,
    state::{ChangeError, State},
};

/// What a host is told that was revoked.
const PUT_OUT: &str = "this host was put out of the cluster";
/// How often a manager says that it is there, and after which time it is forgotten.
const SEEN_EVERY: Duration = Duration::from_secs(60);
const GONE_AFTER: Duration = Duration::from_secs(24 * 3600);
/// A credential that has expired is renewed for this long, or for the cluster's grace if that is longer. Afterwards a host
/// needs a new token: a disk that was thrown away is no member for ever.
const RENEWED_UNTIL: Duration = Duration::from_secs(30 * 24 * 3600);
const CERTIFIED_EVERY: Duration = Duration::from_secs(24 * 3600);
/// A scheduler that joined is dialled for so long before it is given up.
const HEALTHY_WITHIN: Duration = Duration::from_secs(120);
const DIAL_WITHIN: Duration = Duration::from_secs(5);
/// A scheduler that joins begins to listen right after; when it is not reached by then, the log says so.
const REPORTED_AFTER: Duration = Duration::from_secs(10);
const DIAL_PAUSE: Duration = Duration::from_millis(250);

/// The cluster's membership; cheap to clone.
#[derive(Debug, Clone)]
pub struct Membership {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    database: Database,
    state: State,
    network: Network,
    policy: DialPolicy,
    asked: Labelled,
    /// Where this manager is joined.
    addresses: Vec<(PeerId, Multiaddr)>,
}

impl Membership {
    /// The membership of this manager's cluster, which is joined at `addresses`.
    pub fn new((state, network): (State, Network), policy: DialPolicy, addresses: Vec<Multiaddr>) -> Self {
        let us = network.peer_id();
        let addresses = addresses.into_iter().filter_map(|address| Some((us, address.with_p2p(us).ok()?))).collect();
        let asked = Labelled::new("result", &["joined", "refused", "renewed"]);
        let database = state.database().clone();
        Self { inner: Arc::new(Inner { database, state, network, policy, asked, addresses }) }
    }

    /// Has the root certify this manager anew every day, and shows every new certificate, until the program ends.
    pub async fn keep_certified(self) {
        let keys = self.inner.state.keys();
        let mut certified = keys.watch();
        loop {
            let renewed = tokio::select! {
                changed = certified.changed() => match changed {
                    Ok(()) => {
                        let issuer = certified.borrow_and_update().clone();
                        self.show_certified(&issuer).await
                    }
                    Err(_) => return,
                },
                () = tokio::time::sleep(CERTIFIED_EVERY) => keys.certify(self.inner.database.now()),
            };
            if let Err(error) = renewed {
                tracing::error!(%error, "this manager is not certified anew");
            }
        }
    }

    async fn show_certified(&self, issuer: &Issuer) -> Result<(), Invalid> {
        let Inner { state, network, .. } = &*self.inner;
        let granted = (Roles::just(Role::Manager), &Tags::new());
        let (own, _) = issuer.issue(network.peer_id(), granted, 0, (self.inner.database.now(), ISSUER_LIFETIME))?;
        network.admission().present(own);
        state.follower().show_renewed().await;
        Ok(())
    }

    /// Tells the database where this manager is joined, until the program ends.
    pub async fn keep_seen(self) {
        let us = self.inner.network.peer_id().to_string();
        let addresses: Vec<_> = self.inner.addresses.iter().map(|(_, address)| address.to_string()).collect();
        let mut ticks = tokio::time::interval(SEEN_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let clock = self.inner.database.clock().clone();
            drop(tokio::task::spawn_blocking(move || clock.keep()).await);
            let now = self.inner.database.now();
            let gone = UnixMillis(now.0.saturating_sub(GONE_AFTER.as_millis() as u64));
            if let Err(error) = self.inner.database.see_manager(&us, &addresses, (now, gone)).await {
                tracing::warn!(reason = chain(&error), "other managers do not hear of this one; it is tried again");
            }
        }
    }

    /// Where managers are joined: this one first, and then others of the same database.
    async fn managers(&self) -> Result<Vec<(PeerId, Multiaddr)>, DatabaseError> {
        let Inner { database, network, addresses, .. } = &*self.inner;
        let others = database.other_managers(&network.peer_id().to_string()).await?;
        let other = |address: &String| {
            let address: Multiaddr = address.parse().ok()?;
            match address.iter().last()? {
                Protocol::P2p(peer) => Some((peer, address)),
                _ => None,
            }
        };
        let others = others.iter().map(|addresses| addresses.iter().filter_map(other).collect());
        Ok(in_turn(&[addresses.clone()].into_iter().chain(others).collect::<Vec<_>>()))
    }

    fn issuer(&self) -> Issuer {
        self.inner.state.keys().issuer()
    }

    /// Tokens and members.
    pub fn database(&self) -> &Database {
        &self.inner.database
    }

    /// Makes a join token. What it returns holds the secret, which is kept nowhere.
    ///
    /// # Errors
    /// [`DatabaseError`]: there is none.
    pub async fn make_token(
        &self,
        (roles, tags): (Roles, Tags),
        uses: u32,
        lifetime: Duration,
        actor: &Actor,
    ) -> Result<(JoinToken, Made), DatabaseError> {
        let now = self.inner.database.now();
        let token = JoinToken {
            roots: self.roots(),
            id: TokenId(rand::random::<[u8; TOKEN_ID_BYTES]>()),
            secret: Secret(rand::random()),
            roles,
            expires: UnixMillis(now.0.saturating_add(lifetime.as_millis() as u64)),
            managers: self.managers().await?,
        };
        let new = NewJoinToken {
            id: token.id.0,
            verifier: token.secret.verifier().0,
            roles: roles.iter().map(|role| role.to_string()).collect(),
            tags,
            uses,
            expires: token.expires,
        };
        let made = self.inner.database.create_join_token(new, actor, now).await?;
        Ok((token, made))
    }

    /// Who is out, by the configuration in force.
    pub fn revoked(&self) -> Vec<Revocation> {
        self.inner.state.current().map_or_else(Vec::new, |accepted| accepted.configuration.revoked.clone())
    }

    /// Puts a host out of the cluster, for good: its key is never a member again.
    ///
    /// Returns the epoch that tells everyone.
    ///
    /// # Errors
    /// [`ChangeError`]: it is still in.
    pub async fn revoke(&self, peer: PeerId, because: String, actor: Actor) -> Result<u64, ChangeError> {
        let epoch = self.inner.state.revoke(peer, actor.clone(), because.clone()).await?;
        // It is out already; only the reason may be missing.
        let noted =
            self.inner.database.revoke_member(&peer.to_string(), &because, &actor, self.inner.database.now()).await;
        noted.map_err(ChangeError::Store)?;
        tracing::info!(%peer, epoch, "revoked");
        Ok(epoch)
    }

    /// The roots in force.
    fn roots(&self) -> Roots {
        let current = self.inner.state.current();
        current.map_or_else(|| self.issuer().roots().clone(), |accepted| accepted.configuration.roots.clone())
    }

    fn lifetime(&self) -> Duration {
        let current = self.inner.state.current();
        current.map_or(Duration::ZERO, |accepted| Duration::from_millis(accepted.configuration.settings.credential_ms))
    }

    fn grace(&self) -> Duration {
        let current = self.inner.state.current();
        current.map_or(Duration::ZERO, |accepted| Duration::from_millis(accepted.configuration.settings.grace_ms))
    }

    async fn join(&self, asked: &Asked) -> Result<(SignedCredential, Roles), Refusal> {
        let RequestBody::Join { token: TokenId(id), proof, role } = &asked.request.body else {
            return Err(Refusal::new(RefusalCode::Malformed, "it is no request to join"));
        };
        let database = &self.inner.database;
        let known = database.join_token(id).await.map_err(unavailable)?;
        // Only who proves to know the secret learns more than that.
        let known = known.filter(|token| asked.proves(&Verifier(token.verifier), proof, *role));
        let token = known
            .ok_or_else(|| Refusal::new(RefusalCode::Unknown, "there is no such token, or this is not its secret"))?;
        let granted = roles(&token.roles);
        let now = self.inner.database.now();
        // Why it is of no use at all comes before for what it is of no use.
        let member = database.member(&asked.peer.to_string()).await.map_err(unavailable)?;
        let is_again = member.is_some_and(|member| member.token_id == *id);
        let is_good = token.revoked.is_none() && token.expires > now && (token.uses_left > 0 || is_again);
        if is_good && !granted.contains(*role) {
            return Err(Refusal::new(RefusalCode::Role, format!("the token makes a host {granted}, not {role}")));
        }
        let serial = database.next_serial().await.map_err(unavailable)?;
        let joining = self.joining(asked, serial, now);
        let member = database.consume_join_token(id, joining, now).await.map_err(|error| refusal(error, token.uses))?;
        let signed = self.issue(asked.peer, (granted, &member.tags), serial, now)?;
        Ok((signed, granted))
    }

    async fn renew(&self, asked: &Asked) -> Result<SignedCredential, Refusal> {
        let RequestBody::Renew(shown) = &asked.request.body else {
            return Err(Refusal::new(RefusalCode::Malformed, "it is no renewal"));
        };
        // Whether it has expired is decided below: a host may have been off for some time.
        let mut trust = Trust::new(self.inner.state.cluster());
        trust.revoke(&self.revoked());
        let at = shown.claim().map(|claim| claim.not_before);
        let admitted = at.map_err(Refused::from).and_then(|at| trust.admit(&asked.peer, shown, at));
        let admitted = admitted.map_err(|refused| Refusal::new(RefusalCode::Malformed, refused.to_string()))?;
        let now = self.inner.database.now();
        let expired_ms = now.0.saturating_sub(admitted.credential.not_after.0);
        let grace = self.grace();
        if expired_ms > RENEWED_UNTIL.max(grace).as_millis() as u64 {
            return Err(too_late(expired_ms));
        }
        let serial = self.inner.database.next_serial().await.map_err(unavailable)?;
        match self.inner.database.renew_member(self.joining(asked, serial, now), now).await {
            Ok(member) => self.issue(asked.peer, (roles(&member.roles), &member.tags), serial, now),
            // The database was restored from before it joined; its credential proves that it did.
            // Its revocation, if there was one, is in the configuration only as long as its credential may hold.
            Err(RenewError::Unknown) if expired_ms > grace.as_millis() as u64 => Err(too_late(expired_ms)),
            Err(RenewError::Unknown) if self.roots().accepts(&admitted.root) => {
                tracing::warn!(peer = %asked.peer, "a member is renewed that the database does not know");
                let credential = &admitted.credential;
                self.issue(asked.peer, (credential.roles, &credential.tags), serial, now)
            }
            // Who has a root key that was retired, perhaps because it was stolen, proves nothing with it.
            Err(RenewError::Unknown) => Err(Refusal::new(RefusalCode::Malformed, Refused::RootRetired.to_string())),
            Err(RenewError::Revoked) => Err(Refusal::new(RefusalCode::Revoked, PUT_OUT)),
            Err(RenewError::Database(error)) => Err(unavailable(error)),
        }
    }

    /// What the database keeps of a host.
    fn joining(&self, asked: &Asked, serial: u64, now: UnixMillis) -> Joining {
        let not_after = now.0.saturating_add(self.lifetime().as_millis() as u64);
        Joining {
            peer_id: asked.peer.to_string(),
            serial,
            not_after: UnixMillis(not_after).min(self.issuer().not_after()),
            addresses: self.seen(asked).iter().map(ToString::to_string).collect(),
            version: asked.request.version.clone(),
        }
    }

    fn issue(
        &self,
        peer: PeerId,
        granted: (Roles, &Tags),
        serial: u64,
        now: UnixMillis,
    ) -> Result<SignedCredential, Refusal> {
        let issued = self.issuer().issue(peer, granted, serial, (now, self.lifetime()));
        issued.map(|(signed, _)| signed).map_err(unavailable)
    }

    /// Where the host can be dialled.
    fn seen(&self, asked: &Asked) -> Vec<Multiaddr> {
        let observed = Multiaddr::from(asked.from.ip()).with(Protocol::Tcp(asked.from.port()));
        reachable(asked.request.addresses.clone(), Some(&observed), &self.inner.policy)
    }

    /// Puts a scheduler that has joined into the ring as soon as it answers.
    async fn put_into_ring(self, peer: PeerId, addresses: Vec<Multiaddr>) {
        if addresses.is_empty() {
            return tracing::warn!(
                %peer,
                "the scheduler that joined is not in the ring: it names no address that others can dial, and does not listen \
                 at the one that it is seen at; add it to `schedulers` of the configuration with an address, or let it join anew with `advertise`. \
                 Addresses on loopback are dialled with `allow_loopback` (--allow-loopback) only"
            );
        }
        let healthy = async {
            let begun = Instant::now();
            let mut is_reported = false;
            while let Err(error) = self.inner.network.connect(peer, addresses.clone(), DIAL_WITHIN).await {
                if !is_reported && begun.elapsed() >= REPORTED_AFTER {
                    is_reported = true;
                    tracing::warn!(%peer, ?addresses, %error, "the scheduler that joined cannot be reached yet");
                }
                tokio::time::sleep(DIAL_PAUSE).await;
            }
        };
        if tokio::time::timeout(HEALTHY_WITHIN, healthy).await.is_err() {
            return tracing::warn!(%peer, ?addresses, "the scheduler that joined cannot be reached; it is not in the ring");
        }
        let entry = SchedulerEntry::active(peer, addresses);
        match self.inner.state.add_scheduler(entry).await {
            Ok(epoch) => tracing::info!(%peer, epoch, "the scheduler is in the ring"),
            Err(error) => tracing::error!(%peer, %error, "the scheduler is not put into the ring"),
        }
    }
}

#[async_trait]
impl Authority for Membership {
    fn certificate(&self) -> IssuerCertificate {
        self.issuer().certificate().clone()
    }

    async fn answer(&self, asked: Asked) -> Result<Welcome, Refusal> {
        let granted = match &asked.request.body {
            RequestBody::Renew(_) => "renewed",
            RequestBody::Join { .. } => "joined",
        };
        let result = self.decide(asked).await;
        self.inner.asked.of(if result.is_ok() { granted } else { "refused" }).inc();
        result
    }
}

impl Membership {
    /// Counts hosts that ask to join or to renew.
    pub fn asked(&self) -> &Labelled {
        &self.inner.asked
    }

    async fn decide(&self, asked: Asked) -> Result<Welcome, Refusal> {
        let current = self.inner.state.current();
        let current = current.ok_or_else(|| Refusal::new(RefusalCode::Unavailable, "the manager is starting"))?;
        let peer = asked.peer;
        if current.configuration.revoked.iter().any(|revoked| revoked.peer == self.inner.network.peer_id()) {
            return Err(Refusal::new(RefusalCode::Unavailable, "this manager is revoked: ask another one"));
        }
        if current.configuration.revoked.iter().any(|revoked| revoked.peer == peer) {
            return Err(Refusal::new(RefusalCode::Revoked, PUT_OUT));
        }
        let credential = match &asked.request.body {
            RequestBody::Renew(_) => self.renew(&asked).await?,
            RequestBody::Join { .. } => {
                let (credential, roles) = self.join(&asked).await?;
                tracing::info!(%peer, %roles, "a host has joined");
                if roles.contains(Role::Scheduler) && current.configuration.settings.scheduler(&peer).is_none() {
                    tokio::spawn(self.clone().put_into_ring(peer, self.seen(&asked)));
                }
                credential
            }
        };
        // A host that is not told goes on with those it knows.
        let managers = self.managers().await.unwrap_or_default();
        Ok(Welcome { credential, configuration: current.signed.clone(), managers })
    }
}

/// The first address of each manager, then the second of each, and so on: as many as a host may know.
fn in_turn(managers: &[Vec<(PeerId, Multiaddr)>]) -> Vec<(PeerId, Multiaddr)> {
    let rounds = managers.iter().map(Vec::len).max().unwrap_or(0);
    let addresses = (0..rounds).flat_map(|round| managers.iter().filter_map(move |of_one| of_one.get(round)));
    addresses.take(MANAGERS_MAX).cloned().collect()
}

/// A host that was off for too long must be let in by somebody.
fn too_late(expired_ms: u64) -> Refusal {
    let days = expired_ms / (24 * 3_600_000);
    let reason = format!(
        "the credential has expired {days} days ago, too long for a renewal: start the host once with --join and a new token"
    );
    Refusal::new(RefusalCode::Expired, reason)
}

fn refusal(error: NotLetIn, uses: u32) -> Refusal {
    let (code, reason) = match error {
        NotLetIn::Unknown => (RefusalCode::Unknown, "there is no such token".to_owned()),
        NotLetIn::Revoked => (RefusalCode::Withdrawn, "the token was withdrawn".to_owned()),
        NotLetIn::Expired => (RefusalCode::Expired, "the token has expired".to_owned()),
        NotLetIn::UsedUp => {
            let hosts = if uses == 1 { "1 host, which has".to_owned() } else { format!("{uses} hosts, which have") };
            (RefusalCode::UsedUp, format!("the token was good for {hosts} used it; make another one"))
        }
        NotLetIn::MemberRevoked => (RefusalCode::Revoked, PUT_OUT.to_owned()),
        NotLetIn::Database(error) => return unavailable(error),
    };
    Refusal::new(code, reason)
}

/// The roles in the database, which has only those that this program has written.
fn roles(names: &[String]) -> Roles {
    Roles::of(names.iter().filter_map(|name| name.parse().ok()))
}

fn unavailable(error: impl std::error::Error + 'static) -> Refusal {
    tracing::error!(reason = chain(&error), "a host cannot be let in");
    Refusal::new(RefusalCode::Unavailable, "the manager cannot store it; its log says why")
}

/// Where the join listener at `port` is reached by others, if nothing is said: at the IP addresses of `listeners`.
pub fn join_addresses(ip: IpAddr, port: u16, listeners: &[Multiaddr], policy: &DialPolicy) -> Vec<Multiaddr> {
    let of = |ip: Multiaddr| ip.with(Protocol::Tcp(port));
    if !ip.is_unspecified() {
        return vec![of(Multiaddr::from(ip))];
    }
    let mut addresses: Vec<_> = listeners
        .iter()
        .filter(|address| policy.allows(address))
        .filter_map(|address| match address.iter().next()? {
            Protocol::Ip4(ip) => Some(of(ip.into())),
            Protocol::Ip6(ip) => Some(of(ip.into())),
            _ => None,
        })
        .collect();
    addresses.dedup();
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_manager_is_named_before_any_is_named_twice() {
        let manager = |count: u8, name: u8| {
            let peer = PeerId::random();
            let at = |port: u8| (peer, format!("/ip4/10.0.0.{name}/tcp/{port}").parse().expect("an address"));
            (1..=count).map(at).collect::<Vec<_>>()
        };
        let managers = [manager(9, 1), manager(4, 2), manager(0, 3), manager(1, 4)];
        let named = in_turn(&managers);
        assert_eq!(named.len(), MANAGERS_MAX);
        assert_eq!(named[..3], [managers[0][0].clone(), managers[1][0].clone(), managers[3][0].clone()]);
        assert_eq!(named[3..5], [managers[0][1].clone(), managers[1][1].clone()]);
        assert_eq!(in_turn(&managers[3..]), managers[3]);
        assert_eq!(in_turn(&[]), []);
    }
}
